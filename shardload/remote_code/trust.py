"""The gate: a repo's code runs only on the caller's word, and code from the Hub only at a named commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import UntrustedCodeError
from shardload.sources.names import is_commit

if TYPE_CHECKING:
    from shardload.remote_code.code import Code
    from shardload.sources.source import Source


def require_trust(
    source: Source,
    code: Code,
    *,
    trust_remote_code: bool,
    revision_given: str | None,
    argument: str = "revision",
) -> None:
    """Raise UntrustedCodeError unless the caller allowed this code to run.

    Only the caller's own arguments decide: `trust_remote_code` must be True itself, and for a repo on the Hub
    `revision_given` (what the caller passed as `argument`) a full commit. A local folder needs no commit.
    """
    missing = []
    if trust_remote_code is not True:
        missing.append("trust_remote_code=True")
    pinned = is_commit(revision_given) and source.revision in (None, revision_given)
    if not source.is_local and not pinned:
        missing.append(
            f"{argument}={source.revision!r}" if source.revision else f"{argument}=<a full commit>"
        )
    if not missing:
        return
    files = ", ".join(f"{file.name} (sha256 {file.sha256[:12]}…)" for file in code.files)
    if "trust_remote_code=True" in missing:
        what = f"loading {source.label} would run the repo's own code, and nobody has allowed that"
    else:
        what = f"the code of {source.label} may be changed by its owner at any time: name the commit to run"
    raise UntrustedCodeError(
        what,
        where=f"files that would run: {files}",
        cure=f"read those files, then pass {' and '.join(missing)}; or pass model_class=… and run none of them",
    )


def untrusted_other_repo(reference: str) -> UntrustedCodeError:
    """Return the error for an `auto_map` entry that takes code from another repo, which is not even opened."""
    return UntrustedCodeError(
        f"auto_map takes {reference} from another repo: loading would run that repo's code, and nobody has "
        "allowed that",
        where="config.json, auto_map",
        cure="read that code, then pass trust_remote_code=True and code_revision=<the full commit of that repo>; "
        "or pass model_class=… and run none of it",
    )
