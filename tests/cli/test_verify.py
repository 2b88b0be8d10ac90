"""`shardload verify`: its table, its verdict and its exit code."""

import hashlib
import json
import re
import subprocess

import pytest
import torch

from tests.tiny import write_checkpoint

STATE = {f"w{n}": torch.arange(1.0, 17.0).view(4, 4) + n for n in range(3)}


@pytest.fixture
def folder(tmp_path):
    made = write_checkpoint(tmp_path / "repo", STATE, shards=2)
    sums(made)
    return made


def sums(folder, without=()):
    names = sorted(path.name for path in folder.iterdir() if path.name not in {"SHA256SUMS", *without})
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_right_bytes_are_exit_code_0(folder, call_cli):
    done = call_cli("verify", folder, "--values")
    assert (done.returncode, done.stderr) == (0, "")
    assert "every weight file has its known hash" in done.stdout
    assert "no NaN, no Inf, no matrix or tail of zeros" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if ".safetensors " in line]
    assert [(row[0], row[3]) for row in rows] == [
        (f"model-0000{n}-of-00002.safetensors", "right") for n in (1, 2)
    ]
    assert "\x1b" not in done.stdout


def test_a_hash_that_nobody_knows_is_exit_code_1(folder, call_cli):
    sums(folder, without={"model-00001-of-00002.safetensors"})
    done = call_cli("verify", folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert "of unknown hash" in done.stdout
    assert "not verified: the hashes of 1 weight files are not known" in done.stdout


def test_the_printed_command_keeps_the_sums_of_today(tmp_path, call_cli):
    folder = write_checkpoint(tmp_path / "a repo", STATE, shards=2)
    done = call_cli("verify", folder)
    assert done.returncode == 1
    assert "pass --sums SUMS, a file of SHA-256 sums" in done.stdout
    (command,) = re.findall(r"\(cd .*\)", done.stdout)
    subprocess.run(command, shell=True, check=True)
    assert call_cli("verify", folder).returncode == 0


def test_sums_of_another_file(folder, tmp_path, call_cli):
    moved = (folder / "SHA256SUMS").rename(tmp_path / "sums.txt")
    assert call_cli("verify", folder).returncode == 1
    assert call_cli("verify", folder, "--sums", moved).returncode == 0


def test_odd_values_are_a_table_and_exit_code_1(tmp_path, call_cli):
    state = {**STATE, "bad\x1b[31m": torch.tensor([1.0, float("nan"), 2.0, 3.0]), "zero": torch.zeros(4, 4)}
    folder = write_checkpoint(tmp_path / "odd", state, shards=1)
    sums(folder)
    done = call_cli("verify", folder, "--values")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(("  NaN", "  all"))}
    assert "1 of 4" in rows["NaN"]
    assert "zero" in rows["all"]
    assert call_cli("verify", folder).returncode == 0  # nobody asked for the values


def test_json_says_the_same(folder, call_cli):
    document = json.loads(call_cli("verify", folder, "--json").stdout)
    assert document["ok"] is True
    assert {file["status"] for file in document["files"]} == {"ok"}
