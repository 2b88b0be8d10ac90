"""Weights that classes of transformers tie, and that a checkpoint has different values of: transformers unties them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.transformers_classes.one_dtype import is_library_class

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shardload.model.shell import Shell


def untie(
    shell: Shell,
    names: Sequence[str],
    stored: Collection[str],
    equal: Callable[[str, str], bool],
    undo: list[Callable[[], None]],
) -> list[str]:
    """Divide a tied weight into parameters of their own as transformers 5 does; return notes, none if it does not.

    `names` are the names of the weight, `equal` compares the stored copies of two of them. `undo` takes a function
    that reverts the change. `shell` has its slots and ties as they are afterwards.
    """
    model: Any = shell.model
    followers = getattr(model, "all_tied_weights_keys", None)
    if not is_library_class(type(model)) or not isinstance(followers, dict):
        return []
    pairs = [(target, source) for target, source in followers.items() if {target, source} <= set(names)]
    filled, apart = _filled_by(pairs, [name for name in names if name in stored], equal)
    places = {name: _place(model, name) for name in names}
    wanted = {(id(module), leaf, filled.get(name)) for name, (module, leaf) in places.items()}
    if not apart or None in map(filled.get, names) or len(wanted) > len({place[:2] for place in wanted}):
        return []  # nothing says how, or one module is asked to hold two values
    if not all(leaf in module._parameters for module, leaf in places.values()):
        return []  # a buffer
    old = {name: module._parameters[leaf] for name, (module, leaf) in places.items()}
    own = {name: _like(old[names[0]]) for name in set(filled.values()) - {filled[names[0]]}}
    for name, (module, leaf) in places.items():
        module._parameters[leaf] = own.get(filled[name], old[name])
    model.all_tied_weights_keys = {name: source for name, source in followers.items() if name not in apart}

    def again() -> None:
        model.all_tied_weights_keys = followers
        for name, (module, leaf) in places.items():
            module._parameters[leaf] = old[name]
        shell.surveyed()

    undo.append(again)
    shell.surveyed()
    return [
        f"{target}: its class ties it to {followers[target]}; both are stored, and differ: not tied, as in transformers"
        for target in apart
    ]


def _filled_by(
    pairs: Sequence[tuple[str, str]], stored: Collection[str], equal: Callable[[str, str], bool]
) -> tuple[dict[str, str], list[str]]:
    """Return the stored name that fills each name, and the followers that differ from the name they would follow.

    This is what `tie_weights(missing_keys=…)` of transformers 5 does, pair by pair in the class's order.
    """
    filled = {name: name for name in stored}
    apart = []
    for place, (follower, followed) in enumerate(pairs):
        if follower in filled and followed in filled:
            if not equal(filled[followed], filled[follower]):
                apart.append(follower)
            else:
                filled[follower] = filled[followed]
        elif follower in filled:
            filled[followed] = filled[follower]
        elif followed in filled:
            filled[follower] = filled[followed]
        else:  # the first of the other followers that is stored; the name that all follow comes later
            others = [other for other, same in pairs[place + 1 :] if same == followed and other in filled]
            if others:
                filled[follower] = filled[others[0]]
    return filled, apart


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _like(old: nn.Parameter | None) -> nn.Parameter:
    """Return a parameter like another one, without values."""
    assert old is not None
    new = nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new
