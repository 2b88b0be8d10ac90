"""open_checkpoint finds the files of a checkpoint, and raises one typed error for each fault in them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys

import pytest
import torch

from shardload import CorruptError, NotFoundError, ShardloadError, UnsafeError, UsageError, open_checkpoint
from tests.tiny import Net, random_state, run_python, save_safetensors, write_checkpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config={"hidden_size": 8})


def index_of(folder):
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


def edit_index(folder, change):
    path, document = index_of(folder)
    change(document)
    path.write_text(json.dumps(document))


def test_headers_tell_everything(folder):
    checkpoint = open_checkpoint(folder)
    state = random_state(Net())
    assert checkpoint.format == "safetensors"
    assert checkpoint.config == {"hidden_size": 8}
    assert checkpoint.index == "model.safetensors.index.json"
    assert {name: ref.shape for name, ref in checkpoint.tensors.items()} == {
        k: tuple(v.shape) for k, v in state.items()
    }
    assert checkpoint.nbytes == sum(t.nbytes for t in state.values())
    assert [shard.tensors for shard in checkpoint.shards] == [len(list(state)[n::3]) for n in range(3)]


def test_safetensors_before_bin(folder):
    write_checkpoint(folder, random_state(Net()), kind="bin")
    assert open_checkpoint(folder).format == "safetensors"


def test_a_single_file_is_a_checkpoint(folder):
    name = "model-00002-of-00003.safetensors"
    checkpoint = open_checkpoint(folder / name)
    assert {ref.shard for ref in checkpoint.tensors.values()} == {name}


def test_an_index_file_is_a_checkpoint(folder):
    assert len(open_checkpoint(folder / "model.safetensors.index.json").tensors) == len(random_state(Net()))


def test_a_variant_is_picked(tmp_path):
    save_safetensors({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_safetensors({"w": torch.zeros(2)}, tmp_path / "model.fp16.safetensors")
    assert open_checkpoint(tmp_path, variant="fp16").tensors["w"].shape == (2,)
    with pytest.raises(NotFoundError, match="variant 'int8'"):
        open_checkpoint(tmp_path, variant="int8")


def test_a_subfolder_is_opened(folder):
    assert open_checkpoint(folder.parent, subfolder="repo").config == {"hidden_size": 8}


def test_shards_named_in_another_way_are_found_through_their_index(folder):
    path, document = index_of(folder)
    for number in (1, 2, 3):
        old = f"model-0000{number}-of-00003.safetensors"
        os.rename(folder / old, folder / f"part_{number}.safetensors")
        for key, value in document["weight_map"].items():
            if value == old:
                document["weight_map"][key] = f"part_{number}.safetensors"
    path.write_text(json.dumps(document))
    assert len(open_checkpoint(folder).tensors) == len(random_state(Net()))


def test_a_numbered_set_needs_no_index(folder):
    (folder / "model.safetensors.index.json").unlink()
    assert len(open_checkpoint(folder).tensors) == len(random_state(Net()))


def test_a_numbered_set_with_a_hole_is_refused(folder):
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(NotFoundError, match="1 of 3 shards are missing"):
        open_checkpoint(folder)


def test_several_files_without_an_order_are_refused(tmp_path):
    for name in ("a", "b"):
        save_safetensors({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match="several weight files"):
        open_checkpoint(tmp_path)


def test_shards_of_two_saves_are_told_apart(tmp_path):
    for name in ("00001-of-00002", "00002-of-00002", "00001-of-00003"):
        save_safetensors({name: torch.zeros(1)}, tmp_path / f"model-{name}.safetensors")
    with pytest.raises(UsageError, match="several weight files") as caught:
        open_checkpoint(tmp_path)
    assert "keep the set that you mean" in caught.value.cure
    for path in tmp_path.glob("model-*-of-00003.safetensors"):
        assert "model*-of-00003.safetensors" in caught.value.cure
        path.unlink()
    assert set(open_checkpoint(tmp_path).tensors) == {"00001-of-00002", "00002-of-00002"}


def test_an_inner_folder_is_named_so_that_it_can_be_typed(tmp_path):
    inner = tmp_path / "it's (1), a copy"
    inner.mkdir()
    (inner / "config.json").write_text("{}")
    save_safetensors({"w": torch.zeros(1)}, inner / "model.safetensors")
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(tmp_path)
    (path,) = shlex.split(caught.value.cure.partition("pass the path of one: ")[2])
    assert set(open_checkpoint(path).tensors) == {"w"}


def test_an_optimizer_file_is_not_taken_for_weights(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pt")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    assert set(open_checkpoint(tmp_path).tensors) == {"w"}


def test_a_stale_total_size_is_a_warning(folder):
    edit_index(folder, lambda d: d["metadata"].update(total_size=5))
    (warning,) = open_checkpoint(folder).warnings
    assert "total_size 5" in warning


def test_an_envelope_is_opened_and_told(tmp_path):
    torch.save({"epoch": 3, "state_dict": random_state(Net())}, tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(random_state(Net()))
    assert any("state_dict" in warning and "epoch" in warning for warning in checkpoint.warnings)


def test_an_unknown_tensor_is_named(folder):
    with pytest.raises(NotFoundError, match=r"no tensor 'x\.y'"):
        open_checkpoint(folder).read("x.y")


@pytest.mark.parametrize(
    "region",
    [
        (slice(2, 5),), (slice(None), slice(1, 2)), (slice(0, 12, 3), slice(None)), (slice(4, 4),), (slice(-3, None),),
        (slice(3, 100), slice(-2, None)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_a_region_is_torchs_slice(tmp_path, region, kind):
    state = {"w": torch.randn(12, 8), "e": torch.zeros(0, 8), "s": torch.randn(4, 6).t()}
    checkpoint = open_checkpoint(
        write_checkpoint(
            tmp_path,
            {k: v for k, v in state.items() if kind != "safetensors" or k != "s"},
            kind=kind,
            shards=1,
        )
    )
    assert torch.equal(checkpoint.read("w", region), state["w"][region])
    assert torch.equal(checkpoint.read("e", region), state["e"][region])
    if kind != "safetensors":
        assert torch.equal(checkpoint.read("s", region), state["s"][region])


# --- bad input ------------------------------------------------------------------------------------------------


def break_missing_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def break_all_shards(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()


def break_outside(folder):
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder.parent / "evil.safetensors")
    edit_index(folder, lambda d: d["weight_map"].update({"embed.weight": "../evil.safetensors"}))


def break_absolute(folder):
    edit_index(folder, lambda d: d["weight_map"].update({"embed.weight": "/etc/passwd"}))


def break_link(folder):
    target = folder.parent / "elsewhere.safetensors"
    shutil.move(folder / "model-00001-of-00003.safetensors", target)
    (folder / "model-00001-of-00003.safetensors").symlink_to(target)


def break_index_names_too_much(folder):
    edit_index(folder, lambda d: d["weight_map"].update({"ghost": "model-00001-of-00003.safetensors"}))


def break_index_names_another_shard(folder):
    def change(document):
        owner = document["weight_map"]["embed.weight"]
        document["weight_map"]["embed.weight"] = next(
            v for v in document["weight_map"].values() if v != owner
        )

    edit_index(folder, change)


def break_truncated(folder):
    path = folder / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_cut_header(folder):
    path = folder / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def break_empty(folder):
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"")


def break_lfs(folder):
    (folder / "model-00003-of-00003.safetensors").write_bytes(LFS)


def break_html(folder):
    (folder / "model-00003-of-00003.safetensors").write_bytes(
        b"<!DOCTYPE html><html><head>login</head></html>"
    )


def break_index_text(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def break_index_lfs(folder):
    (folder / "model.safetensors.index.json").write_bytes(LFS)


def break_index_twice(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "a": "y"}}')


def break_index_no_map(folder):
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')


def break_index_numbers(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')


def break_config(folder):
    (folder / "config.json").write_text("[1]")


def break_config_twice(folder):
    (folder / "config.json").write_text('{"auto_map": 1, "auto_map": 2}')


BAD = [
    (break_missing_shard, NotFoundError, "1 of 3 shards are missing", "model-00002-of-00003"),
    (break_all_shards, NotFoundError, "3 of 3 shards are missing", "named by model.safetensors.index.json"),
    (break_outside, UnsafeError, "", "../evil.safetensors"),
    (break_absolute, UnsafeError, "", "/etc/passwd"),
    (break_link, UnsafeError, "", "model-00001-of-00003"),
    (break_index_names_too_much, CorruptError, "disagree", "in the index, in no shard: ghost"),
    (
        break_index_names_another_shard,
        CorruptError,
        "disagree",
        "not in the shard that the index names: embed.weight",
    ),
    (break_truncated, CorruptError, "", "model-00003-of-00003"),
    (break_cut_header, CorruptError, "", "model-00003-of-00003"),
    (break_empty, CorruptError, "empty", "model-00003-of-00003"),
    (break_lfs, CorruptError, "LFS", "git lfs pull"),
    (break_html, CorruptError, "HTML", "model-00003-of-00003"),
    (break_index_text, CorruptError, "no valid JSON", "repo"),
    (break_index_lfs, CorruptError, "no valid JSON", "git lfs pull"),
    (break_index_twice, CorruptError, "stands twice", "repo"),
    (break_index_no_map, CorruptError, "no weight_map", "model.safetensors.index.json"),
    (break_index_numbers, CorruptError, "no text", "model.safetensors.index.json"),
    (break_config, CorruptError, "config.json", "repo"),
    (break_config_twice, CorruptError, "stands twice", "repo"),
]


@pytest.mark.parametrize(("damage", "kind", "what", "names"), BAD, ids=[row[0].__name__ for row in BAD])
def test_bad_input_is_one_typed_error_that_names_the_file(folder, damage, kind, what, names):
    damage(folder)
    with pytest.raises(ShardloadError) as caught:
        open_checkpoint(folder)
    assert type(caught.value) is kind or isinstance(caught.value, kind)
    assert what in str(caught.value)
    assert names in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)


def test_two_shards_with_one_tensor_and_no_index_are_refused(tmp_path):
    for number in (1, 2):
        save_safetensors({"w": torch.ones(1) * number}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(CorruptError, match="w stands in"):
        open_checkpoint(tmp_path)


def test_no_file_outside_is_opened_for_a_hostile_index(folder):
    break_outside(folder)
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    with pytest.raises(UnsafeError):
        open_checkpoint(folder)
    assert not any("evil" in name for name in opened)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_opening_a_folder_does_not_import_torch(tmp_path, kind):
    folder = write_checkpoint(tmp_path, random_state(Net()), kind=kind)
    code = """
import sys
from shardload import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
print(len(checkpoint.tensors), "torch" in sys.modules)
"""
    assert run_python(code, str(folder)).stdout.split() == [str(len(random_state(Net()))), "False"]
