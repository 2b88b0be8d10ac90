"""Tensors as a tree of modules; repeated layers share a line with their exact numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardload.keys import group_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardload.keymap import Derived


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one pattern with equal dtype and shape; `nbytes` is the sum over all of them."""

    pattern: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    nbytes: int


@dataclass(slots=True)
class Node:
    """A module, or with `group` a tensor; a tensor may share its name with a module."""

    name: str
    group: TensorGroup | None = None
    children: dict[str, Node] = field(default_factory=dict)
    count: int = 0
    nbytes: int = 0


def group_tensors(tensors: Mapping[str, Derived]) -> list[TensorGroup]:
    """Collapse tensors into patterns such as `layers.{0-27}.mlp.weight`, in order of first appearance."""
    labels = {name: (ref.dtype, ref.shape) for name, ref in tensors.items()}
    groups = []
    for found in group_keys(labels):
        first = tensors[found.keys[0]]
        count = len(found.keys)
        groups.append(TensorGroup(found.pattern, first.dtype, first.shape, count, count * first.nbytes))
    return groups


def build_tree(groups: list[TensorGroup]) -> Node:
    """Return the root of the module tree; every node has the count and bytes of the tensors below it."""
    root = Node("")
    for group in groups:
        node = root
        _add(node, group)
        for part in group.pattern.split("."):
            node = node.children.setdefault(part, Node(part))
            _add(node, group)
        if node.group is None:
            node.group = group
        else:  # the same pattern with another shape: a line of its own
            twin = Node(node.name, group)
            _add(twin, group)
            node.children[f"{len(node.children)}\0{node.name}"] = twin
    return root


def _add(node: Node, group: TensorGroup) -> None:
    node.count += group.count
    node.nbytes += group.nbytes


def walk(root: Node) -> Iterator[tuple[int, str, Node]]:
    """Yield (depth, name, node) in order; a module with a single child is joined with it by a dot."""
    stack = [(0, child) for child in reversed(root.children.values())]
    while stack:
        depth, node = stack.pop()
        names = [node.name]
        while node.group is None and len(node.children) == 1:
            (node,) = node.children.values()
            names.append(node.name)
        yield depth, ".".join(names), node
        stack.extend((depth + 1, child) for child in reversed(node.children.values()))
