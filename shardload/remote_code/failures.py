"""One typed error for whatever a repo's code raises: what it asked for, at which line, and the cure."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Any

from shardload.errors import Cures, RemoteCodeError, ShardloadError, Wording
from shardload.remote_code.auto_map import PASS_CLASS
from shardload.remote_code.failed_packages import package_error
from shardload.remote_code.library import is_installed, version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from shardload.remote_code.namespace import Namespace

# The names under which huggingface_hub and transformers keep the repo that they are asked for.
_ASKED_FOR = ("repo_id", "path_or_repo_id", "pretrained_model_name_or_path")
_with_parts: dict[str, str] = {}  # what code raised with parts, by the code's hash
_REPO = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def explain(
    error: BaseException, namespace: Namespace, doing: str, written_for: str | None = None
) -> ShardloadError:
    """Return the error to raise for one that escaped from a repo's code while `doing` ("importing …").

    `written_for` is the release of transformers that the repo names, if any: installing it is the cure for code that
    the installed release can't serve. A ShardloadError is returned as it is.
    """
    if isinstance(error, ShardloadError):
        return error
    where = _line_of(error, namespace)
    if isinstance(error, ImportError) and str(error.name).split(".")[0] == "transformers" and is_installed():
        return RemoteCodeError(
            f"the repo's code does not fit the installed {version()}: {error}",
            where=where,
            cure=_other_release(written_for),
        )
    if isinstance(error, ImportError) and str(error.name).startswith(f"{namespace.package}."):
        if isinstance(error, ModuleNotFoundError):
            return _own_file(str(error.name), namespace, where)
    else:
        own, after = _split(error, namespace)
        about = package_error(error, after, where) or _other_repo(error, own, after, where)
        if about is not None:
            return about
    failed = f"the repo's own code failed while {doing}: {type(error).__name__}: {error}"
    own_class = Wording("pass {model_class} with a class of your own", model_class=...)
    cures = ["correct that line of the repo's code", own_class]
    if namespace.base == "transformers" and version() != written_for:
        failed += f" (served by the installed {version()}"
        before = _with_parts.get(namespace.code.sha256("shim"))
        failed += f"; before, with parts of it: {before})" if before else ")"
        cures = [] if written_for else cures
        cures.append(_other_release(written_for))
    return RemoteCodeError(failed, where=where, cure=Cures(*cures))


def note_failure(error: BaseException, namespace: Namespace) -> None:
    """Keep what code raised with parts of the library, for the error where the whole library fails as well."""
    if namespace.base == "parts":
        first = str(error).strip().split("\n", maxsplit=1)[0]
        line = _line_of(error, namespace)
        kept = f"{type(error).__name__}: {first}" + (f" at {line}" if line else "")
        _with_parts[namespace.code.sha256("shim")] = kept


def _other_release(written_for: str | None) -> str:
    if written_for is None:
        return "install the release of transformers that the code was written for"
    install = (
        f"install the release that its config.json names (pip install {written_for.replace(' ', '==')}), in an "
        "environment of its own where the others need a newer one"
    )
    return Cures(install, PASS_CLASS)


def release_of(config_json: Mapping[str, Any] | None) -> str | None:
    """Return the release of transformers that a config.json was saved by ("transformers 4.41.0"), or None."""
    named = re.match(r"\d+\.\d+(\.\d+)?", str((config_json or {}).get("transformers_version")))
    return f"transformers {named[0]}" if named else None


def lacks_a_name(error: BaseException) -> bool:
    """Return whether the error says that the stand-in for transformers lacks a name."""
    from shardload.transformers_shim.front import is_lacking

    return is_lacking(error)


def as_lacking(error: BaseException, namespace: Namespace, written_for: str | None = None) -> ShardloadError:
    """Return the error for a name that the stand-in lacks: the name, the line of code, the choices."""
    from shardload.transformers_shim.front import with_choices

    return with_choices(error, _line_of(error, namespace), written_for)


def _own_file(module: str, namespace: Namespace, where: str | None) -> RemoteCodeError:
    file = module.removeprefix(f"{namespace.package}.").replace(".", "/")
    if not namespace.code.untaken.isdisjoint({f"{file}.py", f"{file}/__init__.py"}):
        return RemoteCodeError(
            f"the repo's code imports its own file {file}.py under a name that is computed while it runs: "
            "such a file was not listed when the code was trusted, so it does not run",
            where=where,
            cure=Cures("name the module in an import statement", PASS_CLASS),
        )
    return RemoteCodeError(
        f"the repo's code imports its own file {file}.py, which {namespace.code.label} does not have",
        where=where,
        cure="download the repo's .py files as well",
    )


def _other_repo(
    error: BaseException, own: list[FrameType], after: list[FrameType], where: str | None
) -> RemoteCodeError | None:
    """Return the error for code that asks for files of another repo, which the libraries can't get; None for others."""
    asked = next((found for frame in reversed(after) if (found := _asked_of_the_hub(frame))), None)
    if asked is None:
        return None
    first = str(error).strip().split("\n", maxsplit=1)[0]
    cures: list[str] = [f"connect to the Hub, or fetch it before: hf download {asked}"]
    setting = next((name for frame in reversed(own) if (name := _setting(frame, asked))), None)
    if setting:
        cures.append(Wording("pass {config} whose {0} is a folder that has it", setting, config=...))
    return RemoteCodeError(
        f"the repo's code asks for files of another repo, {asked}, which are not at hand: {first}",
        where=where,
        cure=Cures(*cures, PASS_CLASS),
    )


def _asked_of_the_hub(frame: FrameType) -> str | None:
    module = str(frame.f_globals.get("__name__"))
    if not module.startswith("huggingface_hub") and not module.endswith(("utils.hub", "configuration_utils")):
        return None
    values = (frame.f_locals.get(name) for name in _ASKED_FOR)
    return next((value for value in values if isinstance(value, str) and _REPO.fullmatch(value)), None)


def _setting(frame: FrameType, value: str) -> str | None:
    """Return the name of the setting of the config that has this value, where the frame has a config."""
    config = getattr(frame.f_locals.get("self"), "config", frame.f_locals.get("config"))
    settings = getattr(config, "__dict__", {})
    return next((name for name, each in settings.items() if each == value), None)


def _split(error: BaseException, namespace: Namespace) -> tuple[list[FrameType], list[FrameType]]:
    """Return the frames of the traceback up to the repo's last one, and those that follow it."""
    files = {str(file.path) for file in namespace.code.files}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = max((place for place, f in enumerate(frames) if f.f_code.co_filename in files), default=-1)
    return frames[: last + 1], frames[last + 1 :]


def _line_of(error: BaseException, namespace: Namespace) -> str | None:
    """Return "file:line" of the innermost frame that is the repo's own, or None."""
    files = {str(file.path) for file in namespace.code.files}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
