"""Training checkpoints as frameworks write them: the weights are found or listed, and nothing beside them is made."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import itertools
import pathlib
import random
import types
import uuid

import pytest
import torch
from torch import nn

from shardload import NotFoundError, UnsupportedError, UsageError, examine, from_pretrained, open_checkpoint
from shardload.checkpoint.formats.envelope import state_dicts
from tests.tiny import Net, assert_same_state, random_state, save_safetensors, torch_filled

STATES = [random_state(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), seed=seed) for seed in range(3)]


def optimizer() -> dict:
    model = nn.Linear(2, 3)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    return adam.state_dict()


def numpy_values() -> dict:
    numpy = pytest.importorskip("numpy")
    return {"metric": numpy.float64(71.2), "history": numpy.ones(3), "rng": numpy.random.get_state()}


BESIDE = {
    "nothing": dict,
    "numbers": lambda: {"epoch": 3, "loss": 0.1, "done": True, "name": "run"},
    "optimizer": lambda: {"optimizer": optimizer(), "lr_scheduler": {"last_epoch": 2, "base_lrs": [0.1]}},
    "arguments": lambda: {"args": argparse.Namespace(lr=1, path=pathlib.PurePosixPath("/x"), sizes=[1, 2])},
    "paths and dates": lambda: {
        "dir": pathlib.Path("/tmp"), "when": dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), "took": dt.timedelta(1)
    },
    "collections": lambda: {
        "hist": collections.defaultdict(list, a=[1.0]), "last": collections.deque([1, 2]),
        "n": collections.Counter("aab"),
    },
    "generators": lambda: {"rng": [torch.get_rng_state()], "python": random.getstate()},
    "odd keys": lambda: {"shapes": {(1, 2): 3, 7: "x"}, 5: "five"},
    "small things": lambda: {
        "id": uuid.UUID(int=1), "price": decimal.Decimal("1.5"), "ns": types.SimpleNamespace(a=1), "t": torch.tensor(3)
    },
    "numpy": numpy_values,
}  # fmt: skip


def deep(state: dict) -> dict:
    """A state dict of dicts, as Megatron nests them."""
    first = next(iter(state))
    return {
        "language_model": {
            "encoder": {k: v for k, v in state.items() if k != first},
            "embedding": {first: state[first]},
        }
    }


def flat_names(state: dict) -> dict:
    first = next(iter(state))
    names = {key: f"language_model.{'embedding' if key == first else 'encoder'}.{key}" for key in state}
    return {names[key]: value for key, value in state.items()}


# How each framework lays a file out: the file, and its state dicts by their name; the first is the one that is taken.
FRAMEWORKS = {
    "plain": lambda a, b, c: (dict(a), {"": a}),
    "lightning": lambda a, b, c: ({"state_dict": a, "pytorch-lightning_version": "2"}, {"state_dict": a}),
    "trainer": lambda a, b, c: ({"model": a, "ema": b}, {"model": a, "ema": b}),
    "timm": lambda a, b, c: ({"state_dict": a, "state_dict_ema": b}, {"state_dict": a, "state_dict_ema": b}),
    "deepspeed": lambda a, b, c: ({"module": a, "buffer_names": ["x"], "dp_world_size": 1}, {"module": a}),
    "cifar": lambda a, b, c: ({"net": a, "acc": 91.0}, {"net": a}),
    "dpo": lambda a, b, c: ({"step_idx": 1, "state": a, "metrics": {"l": 1.0}}, {"state": a}),
    "shadow": lambda a, b, c: ({"model": a, "ema": {"shadow": b, "decay": 0.9}}, {"model": a, "ema": b}),
    "megatron": lambda a, b, c: ({"model": deep(a), "iteration": 1}, {"model": flat_names(a)}),
    "ddp in an envelope": lambda a, b, c: ({"checkpoint_version": 3, "model": {"module": a}}, {"model.module": a}),
}  # fmt: skip
UNDECIDED = {
    "esrgan": lambda a, b, c: ({}, {"params": a, "params_ema": b}),
    "dino": lambda a, b, c: ({}, {"student": a, "teacher": b}),
    "gan": lambda a, b, c: ({}, {"generator": a, "discriminator": b, "ema": c}),
    "two envelopes": lambda a, b, c: ({}, {"model": a, "state_dict": b}),
}  # fmt: skip


def holds(checkpoint, state: dict) -> bool:
    got = {name: checkpoint.read(name) for name in checkpoint.tensors}
    return got.keys() == state.keys() and all(torch.equal(got[key], value) for key, value in state.items())


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_the_weights_are_found_or_listed(tmp_path, beside, as_zip):
    """Twenty of these: 14 frameworks, each with one more or none of the other things beside it."""
    made = 0
    for (name, lay_out), other in itertools.product(
        {**FRAMEWORKS, **UNDECIDED}.items(), ("nothing", "numbers")
    ):
        file, states = lay_out(*STATES)
        file = {**file, **(states if name in UNDECIDED else {})}
        if name != "plain":
            file |= BESIDE[beside]() | BESIDE[other]()
        path = tmp_path / "x.pt"
        torch.save(file, path, _use_new_zipfile_serialization=as_zip)
        made += 1
        if name in UNDECIDED:
            with pytest.raises(UnsupportedError) as caught:
                open_checkpoint(path)
            assert caught.value.code == "E-STATES"
            assert all(f"state_dict={each!r}" in caught.value.cure for each in states)
        else:
            assert holds(open_checkpoint(path), next(iter(states.values()))), (name, beside)
        for each, state in states.items():
            if each:
                assert holds(open_checkpoint(path, state_dict=each), state), (name, beside, each)
    assert made == 28


def test_names_of_state_dicts_are_their_ends_or_their_paths(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": STATES[0], "ema": {"shadow": STATES[1]}}, path)
    checkpoint = open_checkpoint(path)
    assert any(
        "'ema.shadow' (7 tensors)" in line and "state_dict='ema.shadow'" in line
        for line in checkpoint.warnings
    )
    assert holds(open_checkpoint(path, state_dict="ema.shadow"), STATES[1])
    assert holds(open_checkpoint(path, state_dict="shadow"), STATES[1])
    with pytest.raises(NotFoundError, match="no state dict 'teacher'") as caught:
        open_checkpoint(path, state_dict="teacher")
    assert "'model'" in caught.value.cure
    assert list(state_dicts({"a": {}, "b": 3})) == []


def test_a_file_of_safetensors_holds_one(tmp_path):
    save_safetensors(STATES[0], tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="holds one"):
        open_checkpoint(tmp_path, state_dict="ema")


def test_the_one_that_fits_the_model_is_taken(tmp_path):
    state = random_state(Net())
    torch.save({"generator": state, "discriminator": STATES[0]}, tmp_path / "gan.pt")
    model = from_pretrained(tmp_path / "gan.pt", model_class=lambda _: Net(), progress=False)
    assert_same_state(model, torch_filled(Net, state))
    assert examine(tmp_path / "gan.pt", model_class=lambda _: Net()).exit_code == 0
    torch.save(
        {"params": state, "params_ema": random_state(Net(), seed=1), "d": STATES[0]}, tmp_path / "ema.pt"
    )
    with pytest.raises(UnsupportedError) as caught:
        from_pretrained(tmp_path / "ema.pt", model_class=lambda _: Net())
    assert caught.value.cure == "pass state_dict='params'; or pass state_dict='params_ema'"


def test_a_weight_that_is_no_tensor_is_still_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1), "when": dt.date(2024, 1, 1)}}, tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match="'when' is a date or a time"):
        open_checkpoint(tmp_path / "x.pt")
