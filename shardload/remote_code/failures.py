"""One typed error for whatever a repo's code raises: what it asked for, at which line, and the cure."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Any

from shardload.errors import Cures, RemoteCodeError, ShardloadError, Wording
from shardload.remote_code.auto_map import PASS_CLASS
from shardload.remote_code.library import is_installed, version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.remote_code.namespace import Namespace

# What pip calls the packages that published repos import under another name.
_PIP_NAMES = {
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "flash_attn": "flash-attn",
    "google": "protobuf",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


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
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _not_found(error.name, namespace, where)
    if isinstance(error, ImportError) and error.name and not error.path and "." not in error.name:
        return _not_found(error.name, namespace, where)
    failed = f"the repo's own code failed while {doing}: {type(error).__name__}: {error}"
    own_class = Wording("pass {model_class} with a class of your own", model_class=...)
    cures = ["correct that line of the repo's code", own_class]
    if namespace.base == "transformers" and version() != written_for:
        failed += f" (served by the installed {version()})"
        cures = [] if written_for else cures
        cures.append(_other_release(written_for))
    return RemoteCodeError(failed, where=where, cure=Cures(*cures))


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


def _not_found(module: str, namespace: Namespace, where: str | None) -> RemoteCodeError:
    if module.startswith(f"{namespace.package}."):
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
    package = module.split(".", maxsplit=1)[0]
    return RemoteCodeError(
        f"the repo's code needs the package {package}, which is not installed",
        where=where,
        cure=f"pip install {_PIP_NAMES.get(package, package)}",
    )


def _line_of(error: BaseException, namespace: Namespace) -> str | None:
    """Return "file:line" of the innermost frame that is the repo's own, or None."""
    files = {str(file.path) for file in namespace.code.files}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
