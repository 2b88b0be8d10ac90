"""How llama.cpp lays a tensor out, and the tensor as transformers has it: views and joins of views, no values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError, UnsupportedError
from shardload.keymap.derived import join, narrowed, transposed, unsqueezed
from shardload.keymap.reshaped import permuted, reshaped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardload.keymap import Derived

Heads = tuple[int, int]
"""The heads of q, and those of k and v."""


def laid_out(tensor: Derived, name: str, layout: str, told: Mapping[str, Any]) -> Derived:
    """Return a tensor of a file as transformers has it; `name` is the file's, `told` are the values of the model.

    Raises UnsupportedError where the file does not say how many heads there are, CorruptError for a shape that has no
    place for them.
    """
    if layout in _WITHOUT_HEADS:
        return _WITHOUT_HEADS[layout](tensor)
    heads = _heads(name, told)
    if heads is None:
        raise UnsupportedError(
            f"{name} lies by heads, and the file does not say how many there are",
            where=f"{tensor.shard}: attention.head_count",
            cure="convert the model again with a current llama.cpp",
        )
    made = _BY_HEADS[layout](tensor, heads, name)
    if made is None:
        raise CorruptError(
            f"{name} {list(tensor.shape)} does not consist of {heads[0]} heads ({heads[1]} of k and v)",
            where=f"{tensor.shard}: {name}",
        )
    return made


def _heads(name: str, told: Mapping[str, Any]) -> Heads | None:
    """Return the heads of a layer; a model may have other numbers in each."""
    found: list[int] = []
    for key in ("attention.head_count", "attention.head_count_kv"):
        value = told.get(key, found[0] if found else None)
        if isinstance(value, list):
            layer = int(name.split(".")[1])
            value = value[layer] if layer < len(value) else None
        if type(value) is not int or value < 1:
            return None
        found.append(value)
    return found[0], found[1]


def _paired_rows(tensor: Derived, heads: Heads, name: str) -> Derived | None:
    """Put the halves of a head one behind the other, whose rows lie in pairs."""
    count = heads[".attn_k." in name]
    rows, *rest = tensor.shape
    if rows % (2 * count):
        return None
    pairs = reshaped(tensor, (count, rows // count // 2, 2, *rest))
    return _as(permuted(pairs, [0, 2, 1, *range(3, 3 + len(rest))]), tensor.shape)


def _heads_of_q_k_v(tensor: Derived, heads: Heads, name: str) -> Derived | None:  # noqa: ARG001
    """Put q, k and v of one head beside each other, which lie as all of q, all of k, all of v."""
    rows, *rest = tensor.shape
    if rows % (3 * heads[0]):
        return None
    parts = reshaped(tensor, (3, heads[0], rows // 3 // heads[0], *rest))
    return _as(transposed(parts, 0, 1), tensor.shape)


def _grouped_heads(tensor: Derived, heads: Heads, name: str) -> Derived | None:  # noqa: ARG001
    """Put the q of a group beside its k and v, which lie as all of q, all of k, all of v."""
    (many, few), rows = heads, tensor.shape[0]
    size, left = divmod(rows, many + 2 * few)
    if left or many % few:
        return None
    parts = []
    for group in range(few):
        own = many // few * size
        parts.append(narrowed(tensor, 0, group * own, own))
        parts += [narrowed(tensor, 0, (many + at * few + group) * size, size) for at in (0, 1)]
    return _as(join(parts, 0), tensor.shape)


def _transposed(tensor: Derived) -> Derived:
    """Exchange the last two dimensions of a weight; a bias stays."""
    last = len(tensor.shape) - 1
    is_weight = tensor.name.endswith(".weight") and last > 0
    return transposed(tensor, last - 1, last) if is_weight else tensor  # type: ignore[return-value]


def _middle_dimension(tensor: Derived) -> Derived:
    """Give the kernel of a convolution its dimension of size 1; a bias stays."""
    return unsqueezed(tensor, 1) if len(tensor.shape) == 2 else tensor  # type: ignore[return-value]


def _one_row(tensor: Derived) -> Derived:
    """Make a matrix of one row of what may be a vector."""
    return unsqueezed(tensor, 0) if len(tensor.shape) == 1 else tensor  # type: ignore[return-value]


def _as(tensor: Any, shape: tuple[int, ...]) -> Derived:
    made: Derived = reshaped(tensor, shape)  # type: ignore[assignment]
    return made


_WITHOUT_HEADS: dict[str, Callable[[Derived], Derived]] = {
    "transposed": _transposed,
    "middle dimension": _middle_dimension,
    "one row": _one_row,
}
_BY_HEADS: dict[str, Callable[[Derived, Heads, str], Derived | None]] = {
    "paired rows": _paired_rows,
    "heads of q, k, v": _heads_of_q_k_v,
    "grouped heads": _grouped_heads,
}
