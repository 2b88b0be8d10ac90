"""write_output: what it writes, the safetensors library reads; what is refused leaves nothing."""

from __future__ import annotations

import os

import pytest
import torch

from shardload import (
    CorruptError,
    NoSpaceError,
    UnsupportedError,
    UsageError,
    attach_lora,
    convert,
    merge_to_disk,
    open_checkpoint,
    save,
    save_adapter,
)
from shardload.writing import (
    FileRange,
    Output,
    OutputShard,
    SameFile,
    disk_room,
    kernel_copy,
    output_writer,
    write_output,
)
from tests.writing.outputs import computed, copy_of, read, refused, same_files

TENSORS = {
    "odd": torch.arange(7, dtype=torch.int8),
    "half": torch.randn(5, 3).half(),
    "brain": torch.randn(4, 2).bfloat16(),
    "long": torch.arange(6).view(2, 3),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
}


def test_the_library_reads_what_was_written(tmp_path):
    shard = OutputShard(
        "model.safetensors", tuple(computed(*item) for item in TENSORS.items()), {"format": "pt", "k": "v"}
    )
    written = write_output(
        tmp_path / "out", Output((shard,), beside={"config.json": b"{}", "a/code.py": b"x"})
    )
    found, metadata = read(tmp_path / "out/model.safetensors")
    assert metadata == {"format": "pt", "k": "v"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    # Every tensor lies at a multiple of its element size, so that a load maps it.
    refs = open_checkpoint(tmp_path / "out").tensors
    assert all(ref.span.start % TENSORS[name].element_size() == 0 for name, ref in refs.items())
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "config.json", "model.safetensors"]
    assert [path.name for path in written.files] == ["config.json", "code.py", "model.safetensors"]
    assert written.nbytes == {"written": (tmp_path / "out/model.safetensors").stat().st_size}


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_copy_is_the_same_bytes(base, tmp_path, link, by_kernel, monkeypatch):
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    written = write_output(tmp_path / "out", copy_of(base, {"head.weight"}), link=link)
    same_files(base, tmp_path / "out")
    assert set(written.nbytes) == {"written", "linked" if link else "copied"} or "cloned" in written.nbytes
    assert not os.path.samefile(base / "config.json", tmp_path / "out/config.json")


def test_room_is_said_before(base, tmp_path, monkeypatch):
    output = copy_of(base, {"head.weight"})
    room = disk_room(tmp_path / "out/deep", output)
    sizes = {name: (base / name).stat().st_size for name in os.listdir(base)}
    rewritten = next(shard.name for shard in output.shards if isinstance(shard, OutputShard))
    assert room.needed == sizes[rewritten] + sizes["config.json"]
    assert room.shared == sum(sizes[s.name] for s in output.shards if isinstance(s, SameFile))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(output_writer.shutil, "disk_usage", lambda path: _Usage(7))
    with pytest.raises(NoSpaceError, match="7 are free"):
        write_output(tmp_path / "out", output)
    assert not (tmp_path / "out").exists()


class _Usage:
    def __init__(self, free):
        self.free = free


def test_targets_that_are_refused(base, tmp_path):
    output = copy_of(base, {"head.weight"})
    refused(base, output, UsageError, "the folder that it is made from")
    refused(base / "inner", output, UsageError, "the folder that it is made from")
    refused(base / "config.json", output, UsageError, "is a file")
    refused(tmp_path / "a\0b", output, UsageError, "holds a NUL")
    (tmp_path / "link").symlink_to(base)
    refused(tmp_path / "link", output, UsageError, "the folder that it is made from")
    for name in ("other.safetensors", "pytorch_model.bin", "config.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        refused(folder, output, UsageError, "would replace")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("kept")
    write_output(tmp_path / "notes", output)
    assert (tmp_path / "notes/README.md").read_text() == "kept"
    refused(tmp_path / "notes", output, UsageError, "would replace")


def test_a_header_that_tells_of_other_tensors(base, tmp_path):
    output = copy_of(base, {"head.weight"})
    shard = next(shard for shard in output.shards if isinstance(shard, OutputShard))
    for tensors in (shard.tensors[1:], shard.tensors[::-1]):
        wrong = OutputShard(shard.name, tensors, header=shard.header)
        refused(tmp_path / "out", Output((wrong,)), CorruptError, "describes other tensors")


def test_a_source_that_changes(base, tmp_path):
    output = copy_of(base, {"head.weight"})
    shard = next(shard for shard in output.shards if isinstance(shard, OutputShard))
    linked = next(shard for shard in output.shards if isinstance(shard, SameFile))
    os.utime(base / shard.name)
    refused(tmp_path / "out", output, CorruptError, "changed")
    output = copy_of(base, {"head.weight"})
    os.utime(base / linked.name)
    refused(tmp_path / "out", output, CorruptError, "changed")


@pytest.mark.parametrize("which", ["computed", "copied", "header", "linked"])
def test_verify_sees_what_the_disk_gives_back(base, tmp_path, monkeypatch, which):
    """A disk that turns one bit over is played by turning it over between writing and reading back."""
    output = copy_of(base, {"head.weight"})
    shard = next(shard for shard in output.shards if isinstance(shard, OutputShard))
    places = dict(enumerate(output_writer.Layout.of(shard).places))
    at = next(
        place
        for tensor, place in places.values()
        if isinstance(tensor.content, FileRange) is (which == "copied")
    )
    at = {"header": 12, "linked": 40}.get(which, at)

    def flip(path):
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    if which == "linked":
        same = kernel_copy.same_file

        def copying(source, target, *, link):
            kind = same(source, target, link=False)
            if target.name.endswith(".safetensors"):
                flip(target)
            return kind

        monkeypatch.setattr(kernel_copy, "_clone", lambda source, target: False)
        monkeypatch.setattr(output_writer, "same_file", copying)
    else:
        write = output_writer.write_shard

        def writing(path, layout, meter, **options):
            sums = write(path, layout, meter, **options)
            flip(path)
            return sums

        monkeypatch.setattr(output_writer, "write_shard", writing)
    refused(tmp_path / "out", output, CorruptError, "differs")
    write_output(tmp_path / "out", output, verify=False)
    with pytest.raises(AssertionError):
        same_files(base, tmp_path / "out")


def test_progress_counts_every_byte(base, tmp_path):
    seen = []
    output = copy_of(base, {"head.weight", "embed.weight"})
    write_output(tmp_path / "out", output, progress=seen.append)
    tensors = [t.nbytes for s in output.shards if isinstance(s, OutputShard) for t in s.tensors]
    assert [p.done_bytes for p in seen] == [sum(tensors[: n + 1]) for n in range(len(tensors))]
    assert {p.total_bytes for p in seen} == {sum(tensors)}


def test_an_address_in_a_store_is_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    save(model, "base")
    attach_lora(model, r=2, targets=["0"])
    save_adapter(model, "lora")
    before = sorted(os.listdir())
    for address in ("s3://bucket/out?key=SECRET", "HTTPS://host/out"):
        for write in (
            lambda out: save(torch.nn.Linear(4, 2), out),
            lambda out: save_adapter(model, out),
            lambda out: convert("base", out),
            lambda out: merge_to_disk("base", "lora", out),
        ):
            with pytest.raises(UnsupportedError, match="into folders") as refused:
                write(address)
            assert "SECRET" not in str(refused.value)
    assert sorted(os.listdir()) == before
    save(torch.nn.Linear(4, 2), "./s3:/bucket")  # a path that looks like one
    assert open_checkpoint("./s3:/bucket").tensors
