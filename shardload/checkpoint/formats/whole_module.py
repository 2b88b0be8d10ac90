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
    open_pickle: Callable[[bool], TorchPickle], wanted: str | None
) -> tuple[TorchPickle, Any]:
    """Return the reader and the object of `open_pickle(False)`; where that holds a module, what lies beside it.

    `open_pickle(True)` leaves modules aside. That happens for the state dict that the caller names, and to name those
    that lie beside the module in the error.
    """
    reader = open_pickle(False)
    try:
        return reader, reader.load()
    except (UnsafeError, UnsupportedError) as error:
        if not reader.has_module:
            raise
        refused = error.with_traceback(None)  # nothing of the first reading stays in memory
    reader = open_pickle(True)
    try:
        top = reader.load()
        others = state_dicts(top) if is_dict(top) else ()
        names = [".".join(path) for path, _ in others]
    except ShardloadError:
        raise refused from None
    if not names:
        raise refused
    if wanted is not None:
        return reader, top
    offered = [Wording("{0}, which lies beside it", keyword("state_dict", name)) for name in names[:_OFFERED]]
    refused.cure = Cures(*offered, refused.cure or "save it again")
    raise refused
