"""The gate: a repo's code runs only with the caller's consent, and only the bytes that were consented to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shardload.checkpoint.sources.names import is_commit
from shardload.errors import Cures, UntrustedCodeError, Wording, joined, keyword
from shardload.remote_code.lock_place import may_be_approved, own_approval_said
from shardload.remote_code.trust_lock import TrustLock, approving, approving_repo, lock_path, name_of

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.code import Code
    from shardload.remote_code.trust_lock import Approval
    from shardload.where import CodeTrust


def locked_commit(trust: CodeTrust, repo: str) -> str | None:
    """Return the commit at which a lock file approves the code of a Hub repo; None where no lock file is to decide."""
    if not trust.asks_for_lock:
        return None
    path = lock_path(trust.trust_remote_code)
    return TrustLock.read(path, approving_repo(repo, None, path)).commit_of(repo)


def require_trust(
    source: Source, code: Code, trust: CodeTrust, argument: Literal["revision", "code_revision"] = "revision"
) -> None:
    """Raise UntrustedCodeError unless the caller allowed this code to run.

    Only the caller's own arguments decide. With `trust_remote_code=True` a local folder's code runs, and code of a
    Hub repo where the revision that the caller passed as `argument` is a full commit, or the lock file
    approves these bytes; code of a store by the lock file alone. With "locked", or the path of a lock file, only what
    that file approves runs.
    """
    if trust.asks_for_lock:
        path = lock_path(trust.trust_remote_code)
        _require_approval(TrustLock.read(path, approving(source, path)), source, code)
        return
    missing: list[str] = [] if trust.trust_remote_code is True else [keyword("trust_remote_code", True)]
    given = trust.revision if argument == "revision" else trust.code_revision
    pinned = is_commit(given) and source.revision == given
    if not source.is_local and not pinned:
        if trust.trust_remote_code is True and _approved_by_the_usual_lock(source, code):
            return
        if source.revision is None:
            raise _in_a_store(source, code)
        missing.append(_pinned(source, trust, argument))
    if not missing:
        return
    files = ", ".join(f"{file.name} (sha256 {file.sha256[:12]}…)" for file in code.files)
    if trust.trust_remote_code is not True:
        what = f"loading {source.label} would run the repo's own code, and you have not allowed that"
    else:
        what = f"the code of {source.label} may be changed by its owner at any time: name the commit to run"
    approve = f"approve these bytes with `{approving(source)}`, which shows them"
    raise UntrustedCodeError(
        what,
        where=f"files that would run: {files}",
        cure=Cures(
            Wording("read those files, then pass {0}", joined(" and ", missing)),
            Wording("pass {model_class} and run none of them", model_class=...),
            Wording("{0}, and pass {trust_remote_code}", approve, trust_remote_code="locked")
            if trust.trust_remote_code is not True
            else approve,
        ),
    )


def _in_a_store(source: Source, code: Code) -> UntrustedCodeError:
    """Return the error for code of a place that keeps no commits: nothing but a lock file names its bytes."""
    files = ", ".join(f"{file.name} (sha256 {file.sha256[:12]}…)" for file in code.files)
    return UntrustedCodeError(
        f"the code of {source.label} may be changed by its owner at any time, and a store has no commit to name",
        where=f"files that would run: {files}",
        cure=Cures(
            Wording(
                "approve these bytes with `{0}`, which shows them, and pass {trust_remote_code}",
                approving(source),
                trust_remote_code="locked",
            ),
            Wording("pass {model_class} and run none of them", model_class=...),
        ),
    )


def _pinned(source: Source, trust: CodeTrust, argument: str) -> str:
    """Return how to name the commit: where the place names a revision itself, in the place."""
    if argument == "revision" and source.revision and trust.hub and "@" in str(trust.hub.name):
        instead = " instead of both" if trust.hub.revision else ""
        return f"{name_of(source)}@{source.revision} as the place{instead}"
    return keyword(argument, source.revision or ...)


def _approved_by_the_usual_lock(source: Source, code: Code) -> bool:
    lock = TrustLock.at(lock_path())
    if lock.nearest(source, code) is None:
        return False
    _require_approval(lock, source, code)
    return True


def _require_approval(lock: TrustLock, source: Source, code: Code) -> None:
    if lock.approves(source, code):
        return
    if lock.is_foreign(source, code):
        raise _not_by_you(lock, source, code)
    nearest = lock.nearest(source, code)
    raise _never_approved(lock, source, code) if nearest is None else _changed(lock, nearest, source, code)


def _never_approved(lock: TrustLock, source: Source, code: Code) -> UntrustedCodeError:
    names = ", ".join(file.name for file in code.files)
    return UntrustedCodeError(
        f"{lock.path.name} approves no code of {source.label}",
        where=f"{lock.path.absolute()}; files that would run: {names}",
        cure=f"read the code and approve it: {approving(source, lock.path)}",
    )


def _not_by_you(lock: TrustLock, source: Source, code: Code) -> UntrustedCodeError:
    what, cure = own_approval_said(lock.path)
    names = ", ".join(file.name for file in code.files)
    return UntrustedCodeError(
        what,
        where=f"{lock.path.absolute()}; files that would run: {names}",
        cure=Cures(f"read the code and approve it: {approving(source, lock.path)}", cure)
        if may_be_approved(lock.path, source, code)
        else cure,
    )


def _changed(lock: TrustLock, approval: Approval, source: Source, code: Code) -> UntrustedCodeError:
    changes = approval.changes(code)
    lines = [line for change in changes for line in change.lines()]
    at = f" at commit {approval.commit}" if approval.commit else ""
    cures = [f"read what changed, then approve it: {approving(source, lock.path)}"]
    if approval.commit and approval.source == name_of(source) and approval.commit != source.revision:
        cures.append(Wording("load what was approved: {revision}", revision=approval.commit))
    error = UntrustedCodeError(
        f"the code of {source.label} is not what was approved{at}: {_differ(len(changes))}",
        where="\n    ".join(lines),
        cure=Cures(*cures),
    )
    error.changes = changes
    return error


def _differ(count: int) -> str:
    return "1 file differs" if count == 1 else f"{count} files differ"


def untrusted_other_repo(reference: str) -> UntrustedCodeError:
    """Return the error for an `auto_map` entry that takes code from another repo, which is not even opened."""
    return UntrustedCodeError(
        f"auto_map takes {reference} from another repo: loading would run that repo's code, and you have not "
        "allowed that",
        where="config.json, auto_map",
        cure=Cures(
            Wording(
                "read that code, then pass {trust_remote_code} and {code_revision}, the full commit of that repo",
                trust_remote_code=True,
                code_revision=...,
            ),
            Wording("pass {model_class} and run none of it", model_class=...),
        ),
    )
