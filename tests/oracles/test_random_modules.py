"""Random module trees, states and shards: what torch's load_state_dict does, fill does, or both refuse.

Trees hold shared modules, ties, buffers of both kinds, hooks and overrides at any depth; states lack keys, have
others, other shapes, or names that only a hook knows. A failure prints its seed.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from shardload import MismatchError, build_shell, check, fill, open_checkpoint
from tests.tiny import meta_names, write_checkpoint


class Leaf(nn.Module):
    """Parameters and buffers of random shapes and dtypes."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        for number in range(rng.randint(0, 3)):
            shape = [rng.randint(0, 4) for _ in range(rng.randint(0, 3))]
            dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64])
            self.register_parameter(f"p{number}", nn.Parameter(torch.zeros(shape, dtype=dtype)))
        if rng.random() < 0.2:
            self.register_parameter("none", None)
        for number in range(rng.randint(0, 2)):
            dtype = rng.choice([torch.float32, torch.int64, torch.bool])
            value = torch.full((rng.randint(1, 3),), 1).to(dtype)
            self.register_buffer(f"b{number}", value, persistent=rng.random() < 0.6)


class Overriding(nn.Sequential):
    """Looks at what comes and goes on as usual."""

    def _load_from_state_dict(self, state, prefix, *args) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}very_old.")]:
            state[prefix + key[len(prefix) + 9 :]] = state.pop(key)
        super()._load_from_state_dict(state, prefix, *args)


def rename(module, state, prefix, *_args) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}old_")]:
        state[prefix + key[len(prefix) + 4 :]] = state.pop(key)


def forgive(_module, incompatible) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith("p1")]


def tree(rng: random.Random, depth: int = 0) -> nn.Module:
    kind = rng.random()
    if depth == 3 or (depth and kind < 0.35):
        module = rng.choice([
            lambda: Leaf(rng), lambda: nn.Linear(rng.randint(1, 3), rng.randint(1, 3)), lambda: nn.LayerNorm(2),
            lambda: nn.BatchNorm1d(2), lambda: nn.Embedding(3, 2), lambda: nn.LSTM(2, 2), lambda: nn.ReLU(),
            lambda: nn.ParameterList([torch.zeros(2), torch.zeros(1)]),
        ])()  # fmt: skip
    else:
        cls = Overriding if rng.random() < 0.15 else nn.Sequential
        children = [tree(rng, depth + 1) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.2:
            children.append(children[0])  # one module under two paths
        module = cls(*children)
    if rng.random() < 0.12:
        module.register_load_state_dict_pre_hook(rename)
    if rng.random() < 0.05:
        module.register_load_state_dict_post_hook(forgive)
    return module


def model_of(seed: int) -> nn.Module:
    rng = random.Random(seed)
    model = tree(rng)
    holders = [(m, n, p) for m in model.modules() for n, p in m._parameters.items() if p is not None]
    for module, name, parameter in holders:
        if rng.random() < 0.1 and not isinstance(module, nn.LSTM):
            same = [other for _, _, other in holders if other.shape == parameter.shape]
            module.register_parameter(name, rng.choice(same))
    return model


def groups(model: nn.Module) -> list[set[str]]:
    """Names of the state dict that are one tensor."""
    names: dict[int, set[str]] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), set()).add(key)
    return list(names.values())


def state_of(model: nn.Module, rng: random.Random) -> dict[str, torch.Tensor]:
    """Values for every name; the names of one tensor get equal ones."""
    state = dict(model.state_dict())
    for names in groups(model):
        template = state[min(names)]
        value = torch.randint(
            1, 9, template.shape, generator=torch.Generator().manual_seed(rng.randint(0, 9**9))
        )
        state.update({name: value.to(template.dtype).clone() for name in names})
    return state


def disturb(state: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """Rename, drop, add or misshape; three times in ten nothing."""
    for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 1, 2, 3, 5])):
        if not state:
            break
        key = rng.choice(list(state))
        path, _, leaf = key.rpartition(".")
        segments = key.split(".")
        place = rng.randrange(len(segments))
        what = rng.random()
        if what < 0.3:
            new = ".".join([*segments[:place], "old_" + segments[place], *segments[place + 1 :]])
            state[new] = state.pop(key)
        elif what < 0.4:
            state[".".join([*segments[:place], "very_old", *segments[place:]])] = state.pop(key)
        elif what < 0.6:
            del state[key]
        elif what < 0.8:
            state[rng.choice([f"{key}.x", f"{path}.q.{leaf}" if path else "q", "stray", f"{key}x"])] = (
                torch.ones(2)
            )
        else:
            state[key] = torch.ones(*state[key].shape, 2)
    return state


def lacks_only_a_copy(model: nn.Module, missing: list[str]) -> bool:
    """Whether every missing name is one of a tensor that is there under another: fill takes that, torch doesn't."""
    return all(any(key in names and names - set(missing) for names in groups(model)) for key in missing)


def torchs_verdict(seed: int, state: dict[str, torch.Tensor]) -> tuple[nn.Module, list[str] | None]:
    """Return the oracle, and the names that it lacks but for a copy; None where torch refuses the state."""
    model = model_of(seed)
    try:
        result = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError:
        return model, None
    takes = not result.unexpected_keys and lacks_only_a_copy(model_of(seed), result.missing_keys)
    return model, result.missing_keys if takes else None


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_fill_does_what_torch_does_or_both_refuse(tmp_path, first):
    accepted = 0
    for seed in range(first, first + 50):
        rng = random.Random(seed)
        state = disturb(state_of(model_of(seed), rng), rng)
        if not state:
            continue
        folder = write_checkpoint(
            tmp_path / str(seed),
            state,
            kind=rng.choice(["safetensors", "bin"]),
            shards=rng.randint(1, min(4, len(state))),
        )
        oracle, lacking = torchs_verdict(seed, state)
        filled = model_of(seed) if rng.random() < 0.3 else build_shell(lambda seed=seed: model_of(seed))
        model = filled if isinstance(filled, nn.Module) else filled.model
        before = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
        checkpoint = open_checkpoint(folder)
        faults = check(filled, checkpoint).faults
        assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == before, seed
        assert (lacking is not None) == (not faults), (seed, faults)
        if lacking is None:
            with pytest.raises(MismatchError):
                fill(filled, checkpoint)
            assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == before, seed
            continue
        accepted += 1
        fill(filled, checkpoint)
        ours, theirs = model.state_dict(), oracle.state_dict()
        assert list(ours) == list(theirs), seed
        for key, value in theirs.items():
            if key not in lacking:
                assert ours[key].dtype == value.dtype, (seed, key)
                assert torch.equal(ours[key], value), (seed, key)
        assert meta_names(model) == [], seed
        assert groups(model) == groups(model_of(seed)), seed
    assert accepted > 10
