"""verify: every flipped byte is caught, whoever knows the hash; and what nobody knows is said to be unknown."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest
import torch

from shardload import (
    CorruptError,
    NotFoundError,
    UnsafeError,
    UsageError,
    build_shell,
    fill,
    from_pretrained,
    open_checkpoint,
    verify,
)
from shardload.compare.verify.manifest import parse_manifest
from tests.hub_server import HubServer, forget_connections
from tests.tiny import Net, assert_same_state, random_state, write_checkpoint


def write_sums(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def folder(tmp_path):
    folder = write_checkpoint(tmp_path / "repo", random_state(Net()), config={"a": 1})
    write_sums(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        yield server
        forget_connections()


def flip(path: Path, at: int) -> None:
    """Change one bit of one byte, of the file itself and not of a link to it."""
    with path.resolve().open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))


# --- where hashes come from -------------------------------------------------------------------------------------


def test_a_manifest_in_the_folder(folder):
    report = verify(folder)
    assert report.ok
    assert {file.name: file.status for file in report.files} == {
        path.name: "ok" for path in folder.iterdir() if path.name != "SHA256SUMS"
    }
    assert {file.by for file in report.files} == {("SHA256SUMS",)}
    assert report.nbytes == sum(file.size for file in report.files)


def test_what_the_systems_own_tool_writes_is_read(folder):
    for arguments in (["-b"], ["--tag"], []):
        names = [path.name for path in sorted(folder.glob("*.safetensors"))]
        done = subprocess.run(["sha256sum", *arguments, *names], cwd=folder, capture_output=True, check=True)
        (folder / "SHA256SUMS").write_bytes(done.stdout)
        report = verify(folder)
        assert report.ok
        assert sum(file.status == "ok" for file in report.files) == len(names)


def test_a_manifest_from_elsewhere(folder, tmp_path):
    (folder / "SHA256SUMS").rename(tmp_path / "checked.txt")
    assert not verify(folder).ok
    assert verify(folder, sums=tmp_path / "checked.txt").ok
    flip(folder / "config.json", 3)
    with pytest.raises(CorruptError, match="1 of 5 files"):
        verify(folder, sums=tmp_path / "checked.txt")
    with pytest.raises(NotFoundError, match="can't be read"):
        verify(folder, sums=tmp_path / "nothing.txt")


def test_what_nobody_knows_is_unknown_and_not_ok(folder):
    (folder / "SHA256SUMS").unlink()
    report = verify(folder)
    assert not report.ok
    assert {file.status for file in report.files} == {"unknown"}
    assert len(report.unverified) == 3


def test_a_file_that_the_manifest_names_and_the_folder_lacks(folder):
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  vocab.txt\n")
    report = verify(folder)
    assert report.ok  # no weights
    assert [file.name for file in report.files if file.status == "absent"] == ["vocab.txt"]


def test_the_hubs_listing_and_its_caches_names(hub, folder):
    (folder / "SHA256SUMS").unlink()
    big = {**random_state(Net()), "big": torch.zeros(300_000)}
    write_checkpoint(folder, big, shards=1)
    for path in [*folder.glob("model-*"), *folder.glob("*.index.json")]:
        path.unlink()
    hub.commit("org/name", folder)
    (folder / "README.md").write_text("# not asked for")
    hub.commit("org/name", folder)
    first = verify(
        "org/name"
    )  # nothing is in the cache yet: what the structure is read from is fetched, no more
    assert first.unverified == ["model.safetensors"]
    assert "README.md" not in hub.fetched()
    assert {file.name: file.status for file in first.files} == {
        "README.md": "absent",
        "config.json": "ok",
        "model.safetensors": "absent",
    }
    (folder / "README.md").unlink()
    hub.commit("org/name", folder)
    source = open_checkpoint("org/name").source
    paths = {name: source.open(name).local_path() for name in source.names()}
    report = verify("org/name")
    assert report.ok
    assert {file.by for file in report.files} == {("the Hub's listing",)}
    hub.stop()
    offline = verify("org/name", local_files_only=True)
    assert offline.ok
    assert {file.by for file in offline.files} == {("the Hub's cache",)}
    # The snapshot is a folder like any other: large files by SHA-256, small ones by git's own hash.
    snapshot = paths["model.safetensors"].parent
    assert verify(snapshot).ok
    kinds = {name: open_checkpoint(snapshot).source.digest(name).kind for name in paths}
    assert kinds == {"model.safetensors": "sha256", "config.json": "git"}
    for name, path in paths.items():
        flip(
            path, 20 if name == "config.json" else 700_000
        ) if name != "config.json" else path.resolve().write_text('{"a": 2}')
    for where, keywords in (("org/name", {"local_files_only": True}), (snapshot, {})):
        with pytest.raises(CorruptError, match="2 of 2 files"):
            verify(where, **keywords)


# --- one byte flipped in 50 places ------------------------------------------------------------------------------


def places(folder: Path, count: int) -> list[tuple[str, int]]:
    """Spread over all files that the manifest names, headers and last bytes among them."""
    rng = random.Random(50)
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    found = []
    for number in range(count):
        path = files[number % len(files)]
        size = path.stat().st_size
        found.append((path.name, {0: 0, 1: size - 1}.get(number // len(files), rng.randrange(size))))
    return found


def test_one_byte_flipped_in_fifty_places_is_caught_fifty_times(folder):
    caught = 0
    for name, at in places(folder, 50):
        flip(folder / name, at)
        with pytest.raises(CorruptError) as error:
            verify(folder)
        caught += [f.name for f in error.value.report.files if f.status == "changed"] == [name]
        flip(folder / name, at)
    assert caught == 50
    assert verify(folder).ok


def test_fifty_flips_in_weights_are_refused_by_a_load_that_verifies(folder):
    """Without it they load: the format has no checksum."""
    checkpoint = open_checkpoint(folder)
    rng = random.Random(51)
    refs = [ref for ref in checkpoint.tensors.values() if ref.nbytes]
    loaded_without = 0
    for number in range(50):
        ref = rng.choice(refs)
        at = rng.randrange(*ref.span)
        flip(folder / ref.shard, at)
        model = Net()
        before = {name: id(p) for name, p in model.named_parameters()}
        with pytest.raises(CorruptError, match="do not match their hashes") as caught:
            fill(model, open_checkpoint(folder), verify=True, copy=bool(number % 2))
        assert ref.shard in caught.value.where
        assert {name: id(p) for name, p in model.named_parameters()} == before
        if number < 5:
            fill(model, open_checkpoint(folder))
            loaded_without += 1
        flip(folder / ref.shard, at)
    assert loaded_without == 5
    shell = build_shell(Net)
    fill(shell, open_checkpoint(folder), verify=True)
    assert_same_state(shell.model, torch_model(random_state(Net())))


def torch_model(state):
    model = Net()
    model.load_state_dict(state)
    return model


# --- while loading ----------------------------------------------------------------------------------------------


def test_a_load_that_cannot_verify_says_so_before_it_begins(folder):
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(UsageError, match="the hash of 3 of 3 weight files is not known") as caught:
        from_pretrained(folder, model_class=lambda _config: Net(), verify=True)
    assert "sha256sum *.safetensors > SHA256SUMS" in caught.value.cure


def test_a_load_from_the_hub_verifies_what_it_downloads(hub, folder):
    (folder / "SHA256SUMS").unlink()
    hub.commit("org/name", folder)
    model = from_pretrained("org/name", model_class=lambda _config: Net(), verify=True)
    assert_same_state(model, torch_model(random_state(Net())))
    source = open_checkpoint("org/name").source
    shard = source.open("model-00002-of-00003.safetensors")
    flip(shard.local_path(), shard.size - 3)
    with pytest.raises(CorruptError, match="1 of 3 files"):
        from_pretrained("org/name", model_class=lambda _config: Net(), verify=True)


def test_a_shard_of_which_the_model_takes_nothing_is_verified_too(folder):
    checkpoint = open_checkpoint(folder)
    shard = checkpoint.tensors["embed.weight"].shard
    dropped = {name: None for name, ref in checkpoint.tensors.items() if ref.shard == shard}
    kept = [name for name in Net().state_dict() if name not in dropped]
    assert kept
    flip(folder / shard, checkpoint.tensors["embed.weight"].span.start)
    with pytest.raises(CorruptError, match="1 of 3 files"):
        fill(Net(), checkpoint_again(folder), verify=True, key_map=dropped, allow_missing=list(dropped))


def checkpoint_again(folder):
    return open_checkpoint(folder)


def test_each_byte_is_read_by_the_verifier_once(folder, monkeypatch):
    from shardload.compare.verify import hashing

    real, read = hashing.hash_file, []
    monkeypatch.setattr(
        "shardload.compare.verify.while_loading.hash_file",
        lambda path, *a: (read.append(path.name), real(path, *a))[1],
    )
    fill(Net(), open_checkpoint(folder), verify=True)
    assert sorted(read) == sorted(path.name for path in folder.glob("*.safetensors"))


# --- manifests that lie -----------------------------------------------------------------------------------------

HASH = "a" * 64


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"{HASH}  ../x\n", UnsafeError), (f"{HASH}  /etc/passwd\n", UnsafeError), (f"{HASH}  a\\b\n", UnsafeError),
        (f"SHA256 (../x) = {HASH}\n", UnsafeError), (f"\\{HASH}  a\\\\b\n", UnsafeError),
        (f"{HASH[1:]}  x\n", CorruptError), (f"{HASH}\n", CorruptError), (f"{HASH} x\n", CorruptError),
        (f"{HASH}  x\n{HASH}  x\n", CorruptError), (f"{HASH}  x\n{HASH}  ./x\n", CorruptError),
        ("<html>", CorruptError), (b"\xff\xfe", CorruptError), (b"#" * (16 * 2**20 + 1), CorruptError),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_a_manifest_that_is_none(text, kind):
    with pytest.raises(kind):
        parse_manifest(text if isinstance(text, bytes) else text.encode(), "SHA256SUMS", "here")


def test_names_in_a_manifest():
    text = f"# made by hand\n\n{HASH.upper()} *a/b c.bin\n\\{HASH}  new\\nline\n{HASH}  ./dotted\n"
    found = parse_manifest(text.encode(), "SHA256SUMS", "here")
    assert {name: digest.hex for name, digest in found.items()} == dict.fromkeys(
        ("a/b c.bin", "new\nline", "dotted"), HASH
    )


# --- values -----------------------------------------------------------------------------------------------------


def odd_state() -> dict[str, torch.Tensor]:
    state = {name: torch.randn(40, 64) for name in ("nan", "inf", "zeros", "tail", "good")}
    state["nan"][3, :5] = float("nan")
    state["inf"][0, 0] = float("-inf")
    state["zeros"].zero_()
    state["tail"].view(-1)[-1200:] = 0
    state["bias"] = torch.zeros(4096)  # as it is made
    state["count"] = torch.tensor(0)
    state["half"] = torch.full((2, 2), float("inf")).half()
    state["small"] = torch.tensor([[1.0, float("nan")]]).to(torch.float8_e4m3fn)
    state["whole"] = torch.zeros(3, 3, dtype=torch.int64)
    state["none"] = torch.empty(0, 4)
    return state


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_odd_values_are_named_and_counted(tmp_path, kind):
    folder = write_checkpoint(tmp_path, odd_state(), kind=kind, shards=2)
    write_sums(folder)
    assert verify(folder).ok
    report = verify(folder, values=True)
    assert not report.ok
    found = {finding.tensor: (finding.kind, finding.count, finding.numel) for finding in report.values}
    assert found == {
        "nan": ("NaN", 5, 2560),
        "inf": ("Inf", 1, 2560),
        "zeros": ("all zero", 2560, 2560),
        "tail": ("zero tail", 4800, 10240),
        "half": ("Inf", 4, 4),
        "small": ("NaN", 1, 2),
        "whole": ("all zero", 9, 9),
    }


def test_good_values_are_ok(folder):
    report = verify(folder, values=True)
    assert report.screened
    assert report.values == []
    assert report.ok


# --- the command ------------------------------------------------------------------------------------------------


def test_exit_codes_and_documents(folder):
    from click.testing import CliRunner

    from shardload.cli.verify import command

    run = CliRunner().invoke
    assert run(command, [str(folder)]).exit_code == 0
    document = json.loads(run(command, [str(folder), "--json", "--values"]).stdout)
    assert document["ok"] is True
    assert document["values_screened"] is True
    (folder / "SHA256SUMS").rename(folder.parent / "sums")
    assert run(command, [str(folder)]).exit_code == 1
    assert "not verified: the hashes of 3 weight files are not known" in run(command, [str(folder)]).stdout
    assert run(command, [str(folder), "--sums", str(folder.parent / "sums")]).exit_code == 0


def test_changed_bytes_are_exit_code_four_with_the_table(folder, capsys):
    from shardload.cli import run

    size = (folder / "model-00002-of-00003.safetensors").stat().st_size
    flip(folder / "model-00002-of-00003.safetensors", size - 1)
    assert run(["verify", str(folder)]) == 4
    shown = capsys.readouterr()
    assert "model-00002-of-00003.safetensors" in shown.out
    assert "CHANGED" in shown.out
    assert "1 of 5 files do not match their hashes" in shown.err
    assert run(["verify", str(folder), "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["kind"] == "CorruptError"
    assert [f["name"] for f in document["report"]["files"] if f["status"] == "changed"] == [
        "model-00002-of-00003.safetensors"
    ]
