"""Errors of the Hub's client, turned into shardload's own."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.errors import AccessError, CorruptError, Cures, NotFoundError, ShardloadError, Wording

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NOT_THE_HUB = (ValueError, KeyError, TypeError)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Asked:
    """A request to the Hub: a repo at a revision, or one file of it, with or without a token."""

    repo: str
    revision: str
    file: str | None = None
    has_token: bool = False

    @property
    def place(self) -> str:
        """`org/name@revision`, and the file."""
        return f"{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")

    @property
    def thing(self) -> str:
        """The subject of a sentence about it."""
        return f"the file {self.file!r} of {self.repo!r}" if self.file else f"the repo {self.repo!r}"

    @property
    def page(self) -> str:
        """The repo's page for people."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repo}"


def client_errors() -> tuple[type[BaseException], ...]:
    """Return what the client may raise for a request, whichever HTTP library its generation is built on.

    `HfHubHTTPError` derives from that library's own base error. ValueError, KeyError and TypeError come
    from an answer of another server, such as a captive portal; RuntimeError comes from the Xet library.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError, EntryNotFoundError, *_NOT_THE_HUB, RuntimeError)


def status_of(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status behind `error` and the Hub's own error code; None where no server answered."""
    for link in _chain(error):
        response: Any = getattr(link, "response", None)
        if response is not None:
            return int(response.status_code), str(response.headers.get("X-Error-Code") or "")
    return None, ""


def is_unreachable(error: BaseException) -> bool:
    """Whether the Hub did not answer, or answered that it can't now: the cache may be used instead."""
    status, _ = status_of(error)
    return status is None or is_transient(status)


def is_broken_connection(error: BaseException) -> bool:
    """Whether an answer was not HTTP, or the server hung up, as happens on a connection kept open too long."""
    names = {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}
    return status_of(error)[0] is None and bool(names & {"ProtocolError", "ReadError", "RemoteDisconnected"})


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed when it is sent again."""
    status, _ = status_of(error)
    return is_broken_connection(error) if status is None else is_transient(status)


def is_transient(status: int) -> bool:
    """Whether a request that got this status may succeed when it is sent again."""
    return status in {408, 429} or status >= 500


def from_client(error: BaseException, asked: Asked) -> ShardloadError:
    """Return the typed error for what the client raised."""
    status, code = status_of(error)
    if status is not None:
        return from_status(status, code, asked)
    if any("consistency check" in str(link).lower() for link in _chain(error)):
        return CorruptError(
            f"the download of {asked.file!r} ended with another size than the server had announced",
            where=asked.place,
            cure="try again: the download was deleted; if it fails again, the file on the server is damaged",
        )
    if any(_is_local(link) for link in _chain(error)):
        return ShardloadError(
            f"{asked.thing} could not be written into the cache: {_one_line(error)}",
            where=asked.place,
            cure=Cures(
                "make room or give permission there", Wording("pass another {cache_dir}", cache_dir=...)
            ),
        )
    if isinstance(error, _NOT_THE_HUB):
        return NotFoundError(
            f"another server answered for the Hub: {_one_line(error)}",
            where=asked.place,
            cure="check HF_ENDPOINT, and whether a proxy or a log-in page is in between",
        )
    return NotFoundError(
        f"the Hub could not be reached: {_one_line(error)}",
        where=asked.place,
        cure=Cures("check the path, if a folder of this disk is meant", "check the network and HF_ENDPOINT"),
    )


def from_status(status: int, code: str, asked: Asked) -> ShardloadError:
    """Return the typed error for an HTTP `status` and the Hub's `X-Error-Code` ("" for none)."""
    if is_transient(status):
        busy = "is limiting this caller's rate" if status == 429 else "can't serve at the moment"
        return NotFoundError(
            f"{asked.thing} could not be fetched: the server {busy} (HTTP {status})",
            where=asked.place,
            cure="wait, then try again",
        )
    if status == 416:
        return CorruptError(f"{asked.thing} is shorter than the Hub's listing says", where=asked.place)
    refused_token = status == 401 and asked.has_token and code != "RepoNotFound"
    if code == "GatedRepo" or status == 403 or refused_token:
        return _refused(code, asked, refused_token=refused_token)
    if status in {401, 404} or code:
        return _missing(status, code, asked)
    return NotFoundError(f"{asked.thing} could not be fetched: HTTP {status}", where=asked.place)


def _refused(code: str, asked: Asked, *, refused_token: bool) -> AccessError:
    if code == "GatedRepo":
        return AccessError(
            f"{asked.repo!r} is gated: its files are served only to those who accepted its licence",
            where=asked.place,
            cure=Wording(
                "accept the licence at {0}, then pass that account's {token} or run `hf auth login`",
                asked.page,
                token=...,
            ),
        )
    if refused_token:
        return AccessError(
            f"the Hub refused the token for {asked.repo!r}",
            where=asked.place,
            cure=Cures(
                Wording("pass a valid {token} with read access", token=...),
                Wording("pass {token} for a public repo", token=False),
            ),
        )
    return AccessError(
        f"{asked.thing} may not be read {'with this token' if asked.has_token else 'without a token'}",
        where=asked.place,
        cure=Wording("ask for access at {0}, and pass a {token} whose account has it", asked.page, token=...),
    )


def _missing(status: int, code: str, asked: Asked) -> NotFoundError:
    if code == "RevisionNotFound":
        return NotFoundError(
            f"the repo {asked.repo!r} has no revision {asked.revision!r}",
            where=asked.place,
            cure=f"its branches, tags and commits are listed at {asked.page}/commits/main",
        )
    if code == "EntryNotFound" or (status == 404 and asked.file and code != "RepoNotFound"):
        return NotFoundError(
            f"{asked.thing} is not there",
            where=asked.place,
            cure=f"its files are listed at {asked.page}/tree/{asked.revision}",
        )
    return NotFoundError(
        f"there is no repo {asked.repo!r} on the Hub that this caller may see, and no such folder here",
        where=asked.place,
        cure=Wording(
            "check the spelling; a private repo needs {token}; a local folder must exist", token=...
        ),
    )


def not_cached(repo: str, revision: str, cache: Path, reason: str) -> NotFoundError:
    """Return the error for a revision that is not in the cache, when the Hub may not be asked."""
    return NotFoundError(
        Wording("{0!r} at {1!r} is not in the cache, and {2}", repo, revision, reason),
        where=str(cache),
        cure=Cures(
            "load it once with the network on",
            Wording("pass the {cache_dir} or {revision} that is there", cache_dir=..., revision=...),
        ),
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_local(error: BaseException) -> bool:
    """Whether the error is about this disk: such errors name a file, network errors do not."""
    return isinstance(error, OSError) and (error.errno in _NO_ROOM or error.filename is not None)


def _one_line(error: BaseException) -> str:
    last = list(_chain(error))[-1]
    return (str(last).splitlines() or [""])[0].rstrip(".") or type(last).__name__
