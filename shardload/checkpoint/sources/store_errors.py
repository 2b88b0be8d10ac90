"""Errors of obstore, turned into shardload's own. Their texts are not shown: they may hold what signs a request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.errors import AccessError, CorruptError, Cures, NotFoundError, UnsupportedError, Wording

if TYPE_CHECKING:
    from shardload.errors import ShardloadError

_STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})")
_QUOTED = re.compile(r'Path "([^"]*)"')
_WRONG_ANSWERS = {
    "non-partial response|NotPartial|RangeNotSupported": "ignores range requests",
    r"Requested \d+\.\.\d+, got|UnexpectedRange": "sends another range than it was asked for",
}
# Of each failure the sign that no other text has: a count of retries names its `retry_timeout` too.
_REASONS = {
    "timed out": "it took too long",
    "TimedOut": "it took too long",
    "dns error": "its name is not known",
    "Connection refused": "it refuses connections",
    "InvalidCertificate": "its certificate is not trusted",
    "invalid peer certificate": "its certificate is not trusted",
    "URL scheme is not allowed": "it is not reached by https, which needs allow_http",
    "BadScheme": "it is not reached by https, which needs allow_http",
}


def is_of_store(error: BaseException) -> bool:
    """Return whether an error may be obstore's: any Exception, or a panic of Rust code, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def is_cut(error: BaseException) -> bool:
    """Return whether a connection was cut inside a body: the rest can be asked for."""
    return status_of(error) is None and "body error" in str(error)


def from_store(error: BaseException, root: str, file: str | None = None) -> ShardloadError:
    """Return the typed error for what obstore raised for the store at `root`, or for a file in it."""
    thing = f"the file {file!r}" if file else "the store"
    where = f"{root}/{file}" if file else root
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFoundError(
            f"{thing} is not there", where=where, cure="check the address: scheme, bucket or host, and path"
        )
    if status in {401, 403} or type(error).__name__ in {"PermissionDeniedError", "UnauthenticatedError"}:
        return AccessError(
            f"{thing} may not be read with these credentials",
            where=where,
            cure=Cures(
                "check the store's credentials in the environment",
                Wording("pass others in {storage_options}", storage_options=...),
            ),
        )
    if type(error).__name__ == "InvalidPathError":
        named = _QUOTED.search(str(error))
        return UnsupportedError(
            "obstore can't read names with an empty part, with '.' or '..', or with control characters"
            + (f": {named[1]!r}" if named else ""),
            where=where,
            cure="rename that object, or pass the address of a folder that holds none",
        )
    if type(error).__name__ == "PreconditionError" or status == 412:
        return changed(root, file or "")
    wrong = next((said for sign, said in _WRONG_ANSWERS.items() if re.search(sign, str(error))), None)
    if wrong is not None:
        return CorruptError(
            f"the server of {file!r} {wrong}", where=where, cure="copy the checkpoint, and load that"
        )
    cure = "check the network, the address and its settings"
    reason = next((said for sign, said in _REASONS.items() if sign in str(error)), "the connection failed")
    if status is not None:
        busy = status == 429 or status >= 500
        reason = f"the server answers HTTP {status}"
        cure = "wait, then try again" if busy else "check the address and the store's settings"
    return NotFoundError(f"{thing} could not be read: {reason}", where=where, cure=cure)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of obstore names, or None."""
    found = _STATUS.search(str(error))
    return int(found[1] or found[2]) if found else None


def changed(root: str, file: str) -> CorruptError:
    """Return the error for a file that another one has replaced."""
    return CorruptError(
        f"{file!r} was changed since its header was read",
        where=f"{root}/{file}",
        cure="open the checkpoint again when nothing writes to it",
    )
