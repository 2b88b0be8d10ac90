"""The envelope of a training checkpoint: which of the dicts in it is the model's state dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_globals import PickledDict, PickledTensor, Unreadable
from shardload.errors import Cures, NotFoundError, UnsupportedError, Wording, keyword
from shardload.keys import no_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVELOPE_KEYS = ("state_dict", "model_state_dict", "model", "module")
_INNER = (*ENVELOPE_KEYS, "shadow", "shadow_params")
_DEEPEST_ENVELOPE = 3
_DEEPEST = 8  # dicts inside dicts of one state dict
_MOST = 64  # state dicts that are looked for
_LISTED = 50
_SHOWN = 8
OTHERS = ("optimizer", "optim", "lr_scheduler", "scheduler", "scaler", "rng", "random")

State = dict[Any, Any]


class Opened(NamedTuple):
    """The state dict, the keys that lead to it, the keys beside it, and the other state dicts with their tensors."""

    state: State
    path: tuple[str, ...]
    discarded: tuple[str, ...]
    others: tuple[tuple[str, int], ...]

    def notes(self, shard: str) -> Iterator[str]:
        """Yield lines for people: where the state dict was found, and what was left aside."""
        if self.path:
            left = f"; left aside: {', '.join(self.discarded)}" if self.discarded else ""
            yield f"{shard}: the state dict was found under {'.'.join(self.path)!r}{left}"
        if self.others:
            told = ", ".join(f"{name!r} ({count:,} tensors)" for name, count in self.others[:_SHOWN])
            first = keyword("state_dict", self.others[0][0])
            yield Wording(
                "{0}: other state dicts in it: {1}; {2} takes the first of them", shard, told, first
            )


def open_envelope(top: Any, shard: str, wanted: str | None) -> Opened:
    """Return the state dict that `wanted` names, or the only one that the file can mean.

    Raises UnsupportedError for an object that is none, and where several dicts may be meant; NotFoundError for a name
    that no state dict has.
    """
    refuse_others(top, shard)
    if wanted is not None:
        return _named(top, shard, wanted)
    path, state = _usual(top, shard)
    if not path and not _has_weights(state):
        found = dict(state_dicts(top))
        if len(found) > 1:
            raise several(found, shard)
        if found:
            path = next(iter(found))
            state = _at(top, path)
    return _opened(top, state, path)


def _usual(top: State, shard: str) -> tuple[tuple[str, ...], State]:
    """Return the state dict below the usual names, each of which leads to more tensors than there are beside it."""
    path: list[str] = []
    state = top
    while True:
        here = sum(type(value) is PickledTensor for value in state.values())
        deeper = _DEEPEST_ENVELOPE - len(path)
        found = [key for key in ENVELOPE_KEYS if key in state and _reach(state[key], deeper) > here]
        if not found:
            return tuple(path), state
        if len(found) > 1:
            raise several({(*path, key): count_tensors(state[key], _DEEPEST) for key in found}, shard)
        path.append(found[0])
        state = state[found[0]]
        refuse_others(state, shard)


def _named(top: State, shard: str, wanted: str) -> Opened:
    found = dict(state_dicts(top, whole=True))
    paths = [path for path in found if ".".join(path) == wanted] or [
        path for path in found if path[-1] == wanted
    ]
    if len(paths) != 1:
        names = ", ".join(quote(".".join(path)) for path in list(found)[:_SHOWN])
        raise NotFoundError(
            f"the file holds no state dict {wanted!r}"
            if not paths
            else f"several state dicts are {wanted!r}",
            where=shard,
            cure=f"those that it holds: {names}" if names else "leave the keyword out: the file holds none",
        )
    path, state = paths[0], _at(top, paths[0])
    # An average keeps its weights beside its settings: {"shadow": …, "decay": 0.999}.
    while not _has_weights(state) and (inner := [key for key in _INNER if count_tensors(state.get(key))]):
        path, state = (*path, inner[0]), state[inner[0]]
    return _opened(top, state, path)


def _has_weights(state: State) -> bool:
    """Whether a dict holds tensors of more than one number: a step is none of the weights."""
    return any(
        type(value) is Unreadable or (type(value) is PickledTensor and any(n != 1 for n in value.shape))
        for value in state.values()
    )


def _at(top: State, path: tuple[str, ...]) -> State:
    for key in path:
        top = top[key]
    return top


def _opened(top: State, state: State, path: tuple[str, ...]) -> Opened:
    discarded: list[str] = []
    place = top
    for depth, key in enumerate(path):
        beside = [other for other in place if other != key]
        discarded += [".".join([*path[:depth], _shown(other)]) for other in beside[:_LISTED]]
        if len(beside) > _LISTED:
            discarded.append(f"and {len(beside) - _LISTED:,} more")
        place = place[key]
    others = (
        []
        if not path
        else [(".".join(other), count) for other, count in state_dicts(top) if other[: len(path)] != path]
    )
    return Opened(state, path, tuple(discarded), tuple(others))


def _shown(key: Any) -> str:
    return key if type(key) is str and key.isprintable() and len(key) <= 120 else quote(key)


def is_dict(value: Any) -> bool:
    """Whether a value is a dict of the file."""
    return type(value) is dict or type(value) is PickledDict


def count_tensors(state: Any, depth: int = 0) -> int:
    """Return the tensors of a dict, those of dicts in it included down to a depth."""
    if not is_dict(state):
        return 0
    count = sum(type(value) is PickledTensor or type(value) is Unreadable for value in state.values())
    return count + (sum(count_tensors(value, depth - 1) for value in state.values()) if depth else 0)


def state_dicts(
    top: State, path: tuple[str, ...] = (), *, whole: bool = False
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield (path, number of tensors) of the dicts below `top` that hold tensors under names; no optimizer's.

    With `whole`, dicts of such dicts come too.
    """
    for key, value in top.items():
        if type(key) is not str or not is_dict(value) or key.lower().startswith(OTHERS) or no_weight(key):
            continue
        if {"state", "param_groups"} <= value.keys() or not all(type(name) is str for name in value):
            continue
        inside = count_tensors(value, _DEEPEST)
        if not inside:
            continue
        here = (*path, key)
        own = count_tensors(value) > 0 or key in ENVELOPE_KEYS
        if own or whole:
            yield here, inside
        if (whole or not own) and len(here) < _DEEPEST:
            yield from state_dicts(value, here, whole=whole)


def _reach(value: Any, depth: int) -> int:
    """Return the largest number of tensors in one dict: `value`, or a dict in an envelope inside it."""
    if not is_dict(value) or depth < 1:
        return 0
    named = count_tensors(value, _DEEPEST) if all(type(key) is str for key in value) else 0
    return max(count_tensors(value), named, *(_reach(value.get(key), depth - 1) for key in ENVELOPE_KEYS))


def refuse_others(state: Any, shard: str) -> None:
    """Raise UnsupportedError for what is no dict, and for the state of an optimizer."""
    if type(state) is PickledTensor or type(state) is Unreadable:
        raise unsupported("a single tensor, not a state dict", shard)
    if not is_dict(state):
        kind = getattr(state, "kind", None) or f"a {type(state).__name__}"
        raise unsupported(f"{kind}, not a state dict", shard)
    if {"state", "param_groups"} <= state.keys() and not count_tensors(state):
        raise UnsupportedError(
            "the file is the state of an optimizer, not of a model",
            where=shard,
            cure="pass the checkpoint beside it (pytorch_model.bin, model.safetensors)",
            code="E-OPTIM",
        )


class StateDictsError(UnsupportedError):
    """A file holds several state dicts, and nothing says which one is meant; `names` are theirs."""

    code = "E-STATES"
    names: tuple[str, ...] = ()


def several(found: dict[tuple[str, ...], int], shard: str) -> StateDictsError:
    """Return the error for a file in which several dicts may be the model's."""
    names = {".".join(path): count for path, count in found.items()}
    told = [f"{quote(name)} ({count:,} tensor{'s' * (count != 1)})" for name, count in names.items()]
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    error = StateDictsError(
        f"the file holds several state dicts: {', '.join(told[:_SHOWN])}{more}; nothing says which one is meant",
        where=shard,
        cure=Cures(*(Wording("pass {state_dict}", state_dict=name) for name in list(names)[:_SHOWN])),
    )
    error.names = tuple(names)
    return error


def unsupported(what: str, where: str) -> UnsupportedError:
    """Return the error for an object that is no state dict."""
    return UnsupportedError(
        f"the checkpoint is {what}",
        where=where,
        cure="save model.state_dict(): a dict of names to tensors",
        code="E-FORMAT",
    )
