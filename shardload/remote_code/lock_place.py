"""Lock place: whether a lock file may have come with the code that it approves, and this user's notes of approvals."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.checkpoint.sources.folder import expand
from shardload.errors import UnsafeError, UsageError, Wording

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.code import Code

_REPOSITORY = (".git", ".hg", ".svn", ".jj", ".cache/huggingface/download")
"""What the root of a copied repo holds; the last one is made by `hf download --local-dir`."""

_CURE = "keep the lock file beside your own program, outside of what it approves"


def require_outside(lock: Path, source: Source) -> None:
    """Raise UnsafeError for a lock file inside the folder that is loaded, or among the files of the Hub's cache."""
    root = _root_of(source)
    if root is not None and any(folder.is_relative_to(root) for folder in _folders(lock)):
        raise UnsafeError(
            "a lock file inside the checkpoint's own folder approves nothing: it may have come with the code",
            where=str(lock.absolute()),
            cure=_CURE,
        )
    if any(_is_cached_repo(parent) for folder in _folders(lock) for parent in (folder, *folder.parents)):
        raise UnsafeError(
            "a lock file in the Hub's cache approves nothing: it was downloaded with a repo",
            where=str(lock.absolute()),
            cure=_CURE,
        )


def may_have_come(lock: Path, source: Source, code: Code) -> bool:
    """Whether a lock file and the code lie in one tree, so that both may be of one author, who is not the user.

    It lies in a folder that holds the code, in the same copied repo, or beside files with the bytes of the code.
    """
    root = _root_of(source)
    if root is not None:
        return any(_in_one_tree(folder, root) for folder in _folders(lock))
    return any(_holds(folder, code) for folder in _folders(lock))


def require_own_project(lock: Path, source: Source, code: Code) -> None:
    """Raise UnsafeError where an approval in this lock file would not count: see `may_have_come`.

    A folder that holds the code is the user's own project where the user works in it.
    """
    require_outside(lock, source)
    here = Path.cwd()
    if may_have_come(lock, source, code) and not any(here.is_relative_to(each) for each in _folders(lock)):
        raise UnsafeError(
            "the lock file would lie in one tree with the code, and you do not work in its folder",
            where=str(lock.absolute()),
            cure="run this in your project's folder, or name a lock file in a folder without the code",
        )


def may_be_approved(lock: Path, source: Source, code: Code) -> bool:
    """Whether an approval that this user makes here, in this lock file, would count."""
    try:
        require_own_project(lock, source, code)
    except UnsafeError:
        return False
    return not lock.is_symlink() and _note_of(lock, "").is_absolute()


def note(lock: Path, approved: str, *, needed: bool) -> None:
    """Note outside of every project what this user approved in this lock file: the text names the bytes.

    Raises UsageError where it can't be noted and the approval does not count without.
    """
    path = _note_of(lock, approved)
    fault = (
        None if path.is_absolute() else "it is no absolute path"
    )  # a repo could bring what a relative one names
    try:
        if not fault:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_text(f"{lock.resolve()}\n{approved}\n")
    except OSError as error:
        fault = error.strerror or str(error)
    if fault and needed:
        raise UsageError(
            f"the approval can't be noted for you: {fault}",
            where=str(path),
            cure="set XDG_STATE_HOME to a folder of yours, or name a lock file in a folder without the code",
        )


def is_noted(lock: Path, approved: str) -> bool:
    """Whether this user approved this in this lock file, as `note` recorded it."""
    path = _note_of(lock, approved)
    return path.is_absolute() and os.path.lexists(path)


def own_approval_said(lock: Path) -> tuple[str, str | Wording]:
    """Return what is wrong with approvals in a lock file that may have come with the code, and another cure."""
    return (
        f"{lock.name} lies in one tree with the code, so it may have come with it, and you approved nothing in it",
        Wording(
            "if the lock file is yours, copy it to a folder without the code and pass {trust_remote_code}, the path "
            "of the copy",
            trust_remote_code=...,
        ),
    )


def _note_of(lock: Path, approved: str) -> Path:
    """Return the file whose existence is the note: its name is the hash of what was approved where."""
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    # "~" stays where no home folder is known.
    folder = Path(base) if base else expand("~/.local/state")
    return (
        folder
        / "shardload"
        / "approved"
        / hashlib.sha256(f"{lock.resolve()}\n{approved}".encode()).hexdigest()
    )


def _root_of(source: Source) -> Path | None:
    root = getattr(source, "root", None)
    return root if isinstance(root, Path) else None


def _folders(lock: Path) -> tuple[Path, Path]:
    """Return the folder in which a lock file is named, and the one where it lies if it is a link."""
    return lock.absolute().parent.resolve(), lock.resolve().parent


def _in_one_tree(folder: Path, root: Path) -> bool:
    shared = next((each for each in (root, *root.parents) if folder.is_relative_to(each)), None)
    if shared is None:
        return False
    return shared in (folder, root) or any(_is_repository(each) for each in (shared, *shared.parents))


def _holds(folder: Path, code: Code) -> bool:
    """Whether a folder, or the root of its repo, has a file with the name and the bytes of a file of the code."""
    roots = [each for each in folder.parents if _is_repository(each)]
    return any(_is_same(each / file.name, file.content) for each in (folder, *roots) for file in code.files)


def _is_same(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _is_repository(folder: Path) -> bool:
    return any(os.path.lexists(folder / marker) for marker in _REPOSITORY)


def _is_cached_repo(folder: Path) -> bool:
    """Whether this is a repo's folder in the Hub's cache, which holds its snapshots and blobs."""
    return folder.name.startswith(("models--", "datasets--", "spaces--")) and (folder / "snapshots").is_dir()
