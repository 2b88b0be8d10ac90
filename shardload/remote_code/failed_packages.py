"""Errors of the packages that a repo's code imports: absent, of another release, or failing by themselves."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import TYPE_CHECKING

from shardload.errors import Cures, RemoteCodeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

# What to install for the packages that published repos import under another name than pip's.
_PIP_NAMES = {
    "Bio": "biopython",
    "PIL": "Pillow",
    "bs4": "beautifulsoup4",
    "clip": "git+https://github.com/openai/CLIP.git",
    "cv2": "opencv-python",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fla": "flash-linear-attention",
    "google": "protobuf",
    "open_clip": "open_clip_torch",
    "pkg_resources": "'setuptools<81'",
    "selective_scan_cuda": "mamba-ssm",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
# Parts of flash-attn that are built with it or beside it.
_FLASH_ATTN = (
    "dropout_layer_norm",
    "flash_attn",
    "flash_attn_2_cuda",
    "fused_dense_lib",
    "rotary_emb",
    "xentropy_cuda_lib",
)
_PIP_NAMES |= dict.fromkeys(_FLASH_ATTN, "flash-attn")
# pip's project of this name is another one.
_FROM_SOURCE = {"apex": "build NVIDIA's apex from its source: github.com/NVIDIA/apex"}

_PIP = re.compile(r"pip3? install(?: -{1,2}[\w-]+)*(?: [\w.\[\]=<>~,!-]+)+")
_LACKS_A_NAME = re.compile(r"cannot import name '([\w.]+)' from ")


def package_error(
    error: BaseException, after: Sequence[FrameType], where: str | None
) -> RemoteCodeError | None:
    """Return the error for a package that is absent, lacks a name, or fails; None where the error is of another kind.

    `after` are the frames of the traceback that follow the last one of the repo's own; `where` is that one's line.
    """
    importing = next((_top(frame) for frame in after if frame.f_code.co_name == "<module>"), None)
    if isinstance(error, ImportError) and not after and error.name is None:
        return _as_the_code_says(error, where)
    if isinstance(error, ImportError) and error.name:
        package = error.name.split(".", maxsplit=1)[0]
        lacks = _LACKS_A_NAME.match(str(error))
        if isinstance(error, ModuleNotFoundError) or (not error.path and "." not in error.name):
            if error.name == package or not _is_there(package):
                return _absent(package, importing, where)
            return _lacks(package, error.name, where)
        if lacks:
            return _lacks(package, f"{error.name}.{lacks[1]}", where)
        importing = importing or package
    return _fails(importing, error, where) if importing else None


def _top(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).split(".", maxsplit=1)[0]


def _as_the_code_says(error: ImportError, where: str | None) -> RemoteCodeError:
    """Return the error for one that the code raises itself, with what it says; that is about a package."""
    missing = error.__cause__ or error.__context__
    name = missing.name if isinstance(missing, ModuleNotFoundError) else None
    package = str(name).split(".", maxsplit=1)[0]
    what = "the repo's code says that it lacks something"
    if name and not _is_there(package):
        what = f"the repo's code needs the package {package}, which is not installed"
    command = _PIP.search(str(error))
    cure = f"as the code says: {command[0]}" if command else "do what the code says there"
    return RemoteCodeError(f"{what}: {error}", where=where, cure=cure)


def _absent(package: str, importing: str | None, where: str | None) -> RemoteCodeError:
    who = f"{installed(importing)}, which the repo's code imports," if importing else "the repo's code"
    return RemoteCodeError(
        f"{who} needs the package {package}, which is not installed",
        where=where,
        cure=_FROM_SOURCE.get(package, f"pip install {_PIP_NAMES.get(package, package)}"),
    )


def _lacks(package: str, name: str, where: str | None) -> RemoteCodeError:
    return RemoteCodeError(
        f"the repo's code needs {name}, which the installed {installed(package)} lacks",
        where=where,
        cure=f"install a release of {_distribution(package)} that has it",
    )


def _fails(package: str, error: BaseException, where: str | None) -> RemoteCodeError:
    distribution = _distribution(package)
    return RemoteCodeError(
        f"the installed {installed(package)} fails while the repo's code imports it: {type(error).__name__}: {error}",
        where=where,
        cure=Cures(
            f"install the release of {distribution} that fits {installed('torch')}",
            f"build it again here: pip install --force-reinstall --no-deps {distribution}",
        ),
    )


def installed(package: str) -> str:
    """Return the package and the version that is installed: "torchvision 0.21.0"."""
    try:
        return f"{package} {importlib.metadata.version(_distribution(package))}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _distribution(package: str) -> str:
    return importlib.metadata.packages_distributions().get(package, [package])[0]


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
