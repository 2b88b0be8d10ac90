"""The installed transformers: its classes, never its loader. It is imported only when a function here needs it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from shardload.errors import RemoteCodeError
from shardload.library_parts.release import installed
from shardload.remote_code.auto_map import architectures, model_type

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_installed() -> bool:
    """Return whether the real transformers can be imported; does not import it."""
    return importlib.util.find_spec("transformers") is not None


def library() -> Any:
    """Return the real transformers, imported."""
    return importlib.import_module("transformers")


def version() -> str:
    """Return "transformers x.y.z"; does not import it."""
    release = installed()
    return release.name if release is not None else f"transformers {library().__version__}"


def model_class_for(settings: Mapping[str, Any], auto_class: str | None = None) -> Any:
    """Return the class of an installed transformers that config.json asks for, or None.

    It is the one that `architectures` names, or that `auto_class` maps the model type to.
    """
    if not is_installed():
        return None
    if auto_class is None:
        found = (_named(name, "PreTrainedModel") for name in architectures(settings))
        return next((cls for cls in found if cls is not None), None)
    mapping = getattr(getattr(library(), auto_class, None), "_model_mapping", None)
    config_class = config_class_for(settings)
    if mapping is None or config_class not in mapping:
        return None
    cls = mapping[config_class]
    return cls[0] if isinstance(cls, (list, tuple)) else cls


def tokenizer_class(name: str) -> Any:
    """Return the tokenizer class of that name of an installed transformers, or None."""
    return _named(name, "PreTrainedTokenizerBase") if is_installed() else None


_PROCESSORS = {
    "AutoProcessor": ("processing_utils", "ProcessorMixin"),
    "AutoImageProcessor": ("image_processing_utils", "ImageProcessingMixin"),
    "AutoFeatureExtractor": ("feature_extraction_utils", "FeatureExtractionMixin"),
    "AutoVideoProcessor": ("video_processing_utils", "BaseVideoProcessor"),
}
# What to install for the packages that transformers calls by other names.
_BACKENDS = {"vision": "Pillow", "speech": "torchaudio", "tf": "tensorflow"}


def processor_class(name: str, kind: str) -> Any:
    """Return the class of that name and kind ("AutoImageProcessor") of an installed transformers, or None.

    Raises RemoteCodeError for one whose packages are not installed.
    """
    if not is_installed():
        return None
    cls = _brought(name)
    if type(cls).__name__ == "DummyObject" and not name.startswith("Auto"):
        packages = [_BACKENDS.get(backend, backend) for backend in getattr(cls, "_backends", ())]
        raise RemoteCodeError(
            f"transformers' {name} needs {', '.join(packages)}, which is not installed",
            cure=f"pip install {' '.join(packages)}",
        )
    module, base = _PROCESSORS[kind]
    home = importlib.import_module(f"transformers.{module}")
    return cls if isinstance(cls, type) and issubclass(cls, getattr(home, base)) else None


def _named(name: str, base: str) -> Any:
    """Return the class that a file names, if it is of the right kind: a config's word opens no other door.

    Auto classes are none of these: they read the repo's `auto_map`, and would ask whether to run its code.
    """
    cls = _brought(name)
    return cls if isinstance(cls, type) and issubclass(cls, getattr(library(), base)) else None


def _brought(name: str) -> Any:
    """Return what the library has under a name, or None. Raises RemoteCodeError where a package that it needs fails."""
    try:
        return getattr(library(), name, None)
    except Exception as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise RemoteCodeError(
            f"{version()} fails while it imports {name}: {type(first).__name__}: {first}",
            cure="install releases of its packages (torchvision, torchaudio) that fit the installed torch",
        ) from error


def config_class_for(settings: Mapping[str, Any]) -> Any:
    """Return the configuration class that an installed transformers has for the model, or None."""
    if not is_installed():
        return None
    kind = model_type(settings)  # classes whose name `architectures` gives read it too
    cls = model_class_for(settings)
    if cls is not None:
        return getattr(cls, "config_class", None)
    known = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    return known[kind] if kind in known else None  # noqa: SIM401 - `get` would skip its lazy import
