"""The parts of a model by the names in its checkpoint alone, for a plan without a model. Does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.placement.device_map import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_EARLY = ("emb", "wte", "wpe")

NOTE = (
    "blocks are told by the names of tensors, embeddings first and numbered blocks in their order: the class may run "
    "them in another one, and its ties and the tables that it computes are not counted"
)


def parts_by_name(nbytes: Mapping[str, int]) -> list[Part]:
    """Return the blocks of a model whose tensors take so many bytes, in an order that most models run in."""
    blocks = blocks_by_name(nbytes)
    return [
        Part((block,), tuple(((name,), nbytes[name]) for name in names)) for block, names in blocks.items()
    ]


def blocks_by_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the tensors of each block: embeddings first, numbered blocks by their numbers, then what is left.

    A checkpoint does not say in which order its blocks run.

    >>> from shardload.placement.named_blocks import blocks_by_name
    >>> list(blocks_by_name(["lm_head.weight", "layers.10.w", "layers.2.mlp.w", "embed.weight"]))
    ['embed', 'layers.2', 'layers.10', 'lm_head']
    """
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(_block(name), []).append(name)
    return {block: blocks[block] for block in sorted(blocks, key=_order)}


def _block(name: str) -> str:
    """Return the block of a tensor: up to the first number in its name, else the name of its module."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return ".".join(parts[: number + 1] if number is not None else parts[:-1]) or name


def _order(block: str) -> tuple[Any, ...]:
    stem, _, last = block.rpartition(".")
    if last.isdigit():
        return 1, stem, int(last)
    return (0 if any(word in block.lower() for word in _EARLY) else 2), block, 0
