"""What a cure may load: the numbers that the files hold, under the names that the cure says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from shardload import ShardloadError, open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_MOST_NUMBERS = 3_000_000


def differs(
    model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], function: str
) -> str | None:
    """Return how a model's weights differ from those of its files; None where they do not.

    A tensor whose name and shape say where it comes from has to be equal; of any other each number has to be stored.
    """
    stored = _stored(arguments[0] if function == "from_pretrained" else arguments[1], keywords)
    if stored is None:
        return None
    table = _renamed(stored, keywords.get("key_map"))
    base = (
        f"{getattr(model, 'base_model_prefix', '')}."  # patterns may have the names of the class with a head
    )
    free = [*_patterns(keywords.get("allow_missing"))]
    numbers: torch.Tensor | None = None
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.device.type != "cpu":
            continue
        same = table.get(name)
        if same is not None and same.shape == value.shape:
            if not torch.allclose(same.to(value.dtype), value.detach(), rtol=0, atol=0, equal_nan=True):
                return f"{name} differs from the stored one"
            continue
        if (
            not value.numel()
            or any(pattern.fullmatch(full) for pattern in free for full in (name, base + name))
            or keywords.get("allow_missing") == "head"
        ):
            continue
        if numbers is None:
            numbers = torch.cat(
                [t.float().flatten() for t in stored.values() if t.is_floating_point()] or [torch.zeros(0)]
            )
        strange = ~torch.isin(value.detach().float(), numbers.to(value.dtype).float())
        if strange.any() and not name.endswith(("inv_freq", "running_mean", "running_var")):
            return f"{name} holds numbers that are not stored"
    return None


def _stored(where: Any, keywords: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    place = {
        name: keywords[name]
        for name in ("variant", "state_dict", "subfolder", "allow_links")
        if name in keywords
    }
    try:
        checkpoint = where if hasattr(where, "tensors") else open_checkpoint(where, **place)
        if sum(ref.nbytes for ref in checkpoint.tensors.values()) > 4 * _MOST_NUMBERS:
            return None
        return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    except ShardloadError:
        return None  # what could not be opened alone, as a Hub's repo, is not compared


def _renamed(stored: dict[str, torch.Tensor], names: Any) -> dict[str, torch.Tensor]:
    if names is None:
        return dict(stored)
    if not isinstance(names, dict):
        return {}  # rules that join and split: their numbers are looked for
    table: dict[str, torch.Tensor] = {}
    single = {old: wanted for old, wanted in names.items() if not isinstance(wanted, list)}
    for key, value in stored.items():
        new: str | None = key
        for old, wanted in single.items():
            pattern = (
                re.escape(old).replace(r"\{\.\.\.\}", "(.*)").replace(r"\{\}", r"(\d+)").replace(r"\*", ".*")
            )
            found = re.fullmatch(pattern, new or "")
            if found is None:
                continue
            parts = iter(found.groups())
            new = None if wanted is None else re.sub(r"\{[^}]*\}", lambda _, p=parts: next(p, ""), wanted)
        if new is not None:
            table[new] = value
    for old, several in names.items():
        if (
            isinstance(several, list) and old in table
        ):  # several names of one tensor, which are printed literally
            table |= dict.fromkeys(several, table[old])
    return table


def _patterns(allowed: Any) -> list[re.Pattern[str]]:
    texts = [allowed] if isinstance(allowed, str) else list(allowed or ())
    return [
        re.compile(re.escape(t).replace(r"\{\.\.\.\}", ".*").replace(r"\{\}", r"\d+").replace(r"\*", ".*"))
        for t in texts
    ]
