"""After a kill: a call that had written its last file is told so, and a load says how to complete the output."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import shardload
from shardload import NotFoundError, UsageError
from shardload.writing.exchange import Exchange
from shardload.writing.staging import NAME, Staging
from tests.tiny import Net, random_state, write_checkpoint


def killed(change, call):
    """Run a call in a child in which `change` kills it, at a place that it patches."""
    child = os.fork()
    if child == 0:
        try:
            change()
            call()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die(*_args, **_keywords):
    os.kill(os.getpid(), signal.SIGKILL)


def before_removing():
    Staging.remove = die


def after_the_journal():
    Staging_rmdir = Path.rmdir
    Path.rmdir = lambda path: die() if path.name == NAME else Staging_rmdir(path)


@pytest.mark.parametrize("kill", [before_removing, after_the_journal])
@pytest.mark.parametrize("writer", ["convert", "merge", "copy"])
@pytest.mark.parametrize("size", ["5GB", "300B"])
def test_a_run_that_was_killed_after_its_last_file_is_said_to_be_complete(tmp_path, kill, writer, size):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float32), shards=1, config={"a": 1})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["head"]}
    net = Net()
    layer = dict(net.named_modules())["head"]
    factors = {
        "base_model.model.head.lora_A.weight": torch.randn(2, layer.in_features),
        "base_model.model.head.lora_B.weight": torch.randn(layer.out_features, 2),
    }
    lora = tmp_path / "lora"
    lora.mkdir()
    torch.save(factors, lora / "adapter_model.bin")
    (lora / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "out"

    def call():
        if writer == "convert":
            return shardload.convert(base, out, dtype="float16", max_shard_size=size)
        if writer == "copy":
            return shardload.convert(base, out, max_shard_size=size)
        return shardload.merge_to_disk(base, lora, out).written

    killed(kill, call)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    written = call()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in written.files} == before.keys()
    assert set(written.resumed) == {name for name in before if name.endswith(".safetensors")}
    with pytest.raises(UsageError, match="would replace") as caught:
        call()
    assert "they are complete" in caught.value.cure


def test_what_differs_from_the_output_is_not_said_to_be_complete(tmp_path):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float32), shards=1, config={"a": 1})
    out = tmp_path / "out"
    killed(after_the_journal, lambda: shardload.convert(base, out, dtype="float16"))
    for name in ("model.safetensors", "config.json"):
        was = (out / name).read_bytes()
        (out / name).write_bytes(was[:-1] + b"\1")
        (out / NAME).mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="would replace"):
            shardload.convert(base, out, dtype="float16")
        (out / name).write_bytes(was)


@pytest.mark.parametrize("moves", range(2, 7))
@pytest.mark.parametrize("cure", ["again", "by hand"])
def test_a_load_after_a_killed_exchange_says_how_to_complete_it(tmp_path, moves, cure):
    out = tmp_path / "an output"
    old, new = (
        {"a": torch.full((4, 4), float(i)), "b": torch.ones(4, 4), "c": torch.ones(4)} for i in (1, 2)
    )
    write = functools.partial(shardload.save, folder=out, max_shard_size=64)
    write(Holder(old))
    real, done = Exchange._move, []

    def move(*arguments):
        done.append(arguments)
        return die() if len(done) > moves else real(*arguments)

    killed(lambda: setattr(Exchange, "_move", staticmethod(move)), lambda: write(Holder(new)))
    with pytest.raises(NotFoundError) as caught:
        shardload.open_checkpoint(out)
    assert NAME in caught.value.cure
    assert "run the same save" in caught.value.cure
    command = caught.value.cure.split("`")[1]
    if cure == "again":
        write(Holder(new))
    else:
        assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert NAME not in os.listdir(out)
    checkpoint = shardload.open_checkpoint(out)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in new.items())


def test_a_load_after_a_first_save_was_killed_names_the_unfinished_output(tmp_path):
    killed(lambda: setattr(Exchange, "run", die), lambda: shardload.save(Net(), tmp_path / "out"))
    with pytest.raises(NotFoundError, match="holds no checkpoint") as caught:
        shardload.open_checkpoint(tmp_path / "out")
    assert f"its files are in {NAME}" in caught.value.cure
    assert "cp -rf" not in caught.value.cure  # not known to be complete


class Holder(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name, torch.nn.Parameter(tensor))
