"""load_beside_modules: the state dicts of a file in which a whole module is pickled, too. Nothing of it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.checkpoint.formats.envelope import is_dict, state_dicts
from shardload.errors import Cures, ShardloadError, UnsafeError, UnsupportedError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.checkpoint.formats.torch_pickle import TorchPickle

_OFFERED = 8


def load_beside_modules(
    read: Callable[[bool], tuple[TorchPickle, Any]], wanted: str | None
) -> tuple[TorchPickle, Any]:
    """Return the reader and the object of `read(False)`; of a file with a whole module in it the rest, if it is wanted.

    `read(True)` leaves modules aside. That happens for the state dict that the caller names, and to name those that lie
    beside the module in the error.
    """
    try:
        return read(False)
    except (UnsafeError, UnsupportedError) as error:
        refused = error
    try:
        reader, top = read(True)
        others = state_dicts(top) if is_dict(top) else ()
        names = [".".join(path) for path, _ in others]
    except ShardloadError:
        raise refused from None
    if not reader.has_module or not names:
        raise refused
    if wanted is not None:
        return reader, top
    offered = [Wording("{0}, which lies beside it", keyword("state_dict", name)) for name in names[:_OFFERED]]
    refused.cure = Cures(*offered, refused.cure or "save it again")
    raise refused
