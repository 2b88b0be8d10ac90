"""The loader that the stand-in serves, as one object that is handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class ClassCode(NamedTuple):
    """The code that a class belongs to: the class's module inside the repo, and the bytes that ran, by file name."""

    module: str
    files: dict[str, bytes]


class Host(NamedTuple):
    """What the stand-in needs from the loader.

    `save(model, folder, max_shard_size=…)` writes weights and config. `is_constructing()` says whether this thread is
    building a model without weights. `tokenizer_arguments(where, cls, **hub)` returns the keyword arguments that
    construct a tokenizer class from a folder or a Hub repo. `code_of(cls)` returns the repo code of a class, or None.
    The modules of all repos have names that begin with `repos`. `own_object(kind, place, options)` returns what the
    asking repo's own code stands for under an auto class, or None where the place is another. `guarded(value)` returns
    what a repo's code gets for a value of an installed transformers: its loaders run no code that was not approved.
    """

    save: Callable[..., object]
    is_constructing: Callable[[], bool]
    tokenizer_arguments: Callable[..., dict[str, Any]]
    code_of: Callable[[type[Any]], ClassCode | None]
    repos: str
    own_object: Callable[[str, Any, dict[str, Any]], Any]
    guarded: Callable[[Any], Any]


_giver: Callable[[], Host] | None = None
_host: Host | None = None


def hand_in(giver: Callable[[], Host] | None) -> None:
    """Name the function that makes the host; it is called once, when the stand-in first needs the loader."""
    global _giver, _host
    _giver, _host = giver, None


def host() -> Host:
    """Return the loader. Raises UsageError where none was handed in."""
    global _host  # noqa: PLW0603
    if _host is None:
        if _giver is None:
            from shardload.errors import UsageError

            raise UsageError(
                "the stand-in for transformers has no loader: it can neither read nor write checkpoints",
                cure="call shardload.transformers_shim.host.hand_in first; importing shardload does it",
            )
        _host = _giver()
    return _host


def is_repo_module(name: str) -> bool:
    """Return whether a module of that name is code of a repo. No repo's code runs before the host is there."""
    return _host is not None and name.startswith(_host.repos)
