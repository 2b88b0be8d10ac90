"""Yields the tensors of a checkpoint one by one, in the order of their bytes in the shards."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shardload.checkpoint.shard import reading_order, torch_dtype
from shardload.errors import NotFoundError, UnsupportedError, UsageError, keyword
from shardload.keymap import KeyMap, as_view
from shardload.keymap.assembly import Joins
from shardload.keys import nearest, split_key
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Mapping

    import torch

    from shardload.checkpoint.shard import AnyShard
    from shardload.keymap import Derived, Names
    from shardload.where import Where

_SHOWN = 4


def wanted(
    stored: Mapping[str, Derived],
    key_map: KeyMap | Names | str | os.PathLike[str] | None,
    names: Iterable[str] | None,
    *,
    where: str,
) -> dict[str, Derived]:
    """Return what a key map makes of stored tensors, those that match `names`; views, where they can be.

    Raises what `chosen` raises, UsageError for a map that does not fit, UnsupportedError for a dtype that torch lacks.
    """
    rules = KeyMap.of(key_map)
    mapped = rules.map_headers(stored)
    rules.require_fit(stored, mapped)
    views = {key: as_view(tensor) or tensor for key, tensor in mapped.tensors.items()}
    tensors = chosen(views, names, where=where)
    for tensor in tensors.values():
        torch_dtype(tensor)
    return tensors


def chosen(tensors: Mapping[str, Derived], names: Iterable[str] | None, *, where: str) -> dict[str, Derived]:
    """Return the tensors that match `names` (exact names or fnmatch patterns); None selects all tensors.

    Raises NotFoundError for a name or pattern that matches no tensor, UsageError when `names` is not a list of texts.
    """
    if names is None:
        return dict(tensors)
    wanted = [names] if isinstance(names, str) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in wanted):
        raise UsageError(
            "names is a list of tensor names or fnmatch patterns",
            where=f"names: {names!r}"[:200],
            cure=keyword("names", [names]) if isinstance(names, str) else None,
        )
    found: dict[str, Derived] = {}
    absent: list[str] = []
    for name in wanted:
        matches = [name] if name in tensors else [key for key in tensors if fnmatchcase(key, name)]
        found |= {key: tensors[key] for key in matches}
        if not matches:
            absent.append(name)
    if absent:
        raise no_tensor(absent, tensors, where=where)
    return found


def no_tensor(names: list[str], tensors: Iterable[str], *, where: str) -> NotFoundError:
    """Return the error for names that no tensor has; it suggests the names that are most similar to the first one.

    Where none is similar it shows one name of each kind.
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    tensors = list(tensors)
    near = nearest(names[0], tensors)
    shown = near or [*{split_key(key)[0]: key for key in tensors}.values()][:_SHOWN]
    return NotFoundError(
        f"the checkpoint has no tensor {', '.join(map(repr, names[:_SHOWN]))}{more}",
        where=where,
        cure=f"{'the nearest names' if near else 'names that it has'}: {', '.join(map(repr, shown))}"
        if shown
        else None,
    )


def in_one_piece(tensors: Mapping[str, Derived], where: Where) -> dict[str, TensorRef]:
    """Return the tensors of the checkpoint `where` by name, each in one place of one file.

    Raises UnsupportedError where a distributed checkpoint holds a tensor in several pieces: `convert` joins them.
    """
    refs = {name: ref for name, ref in tensors.items() if isinstance(ref, TensorRef)}
    if len(refs) != len(tensors):
        name = next(name for name in tensors if name not in refs)
        raise UnsupportedError(
            f"{name} lies in several pieces, and this needs tensors in one piece",
            where=str(where.name),
            cure=f"join them first: shardload convert {where.as_arguments} -o joined",
        )
    return refs


def read_in_order(
    tensors: Mapping[str, Derived],
    shards: Iterable[str],
    opened: Callable[[str, Iterable[TensorRef]], AnyShard],
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Yield (key, tensor) pairs with one shard open at a time; a joined tensor comes after the last of its parts.

    `opened` returns a shard by its name and the parts that will be read of it, before its `with` block. No reference to
    a yielded tensor is kept.
    """
    joins = Joins(tensors.items())
    for shard, parts in reading_order(tensors.items(), shards).items():
        with opened(shard, [part for _, part in parts]) as file:
            for key, part in parts:
                if key not in joins:
                    yield key, file.tensor(part)
                    continue
                joins.take(key, part, file.tensor(part))
                if (whole := joins.pop(key)) is not None:
                    yield key, whole
                    del whole
    yield from joins.without_parts()
