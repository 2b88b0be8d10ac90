"""What `transformers` is for code that parts serve: for the repo's code, and for the files of the library themselves.

The two ask for different things under one name. A repo is written for transformers 4 and gets the stand-in, and parts
where the stand-in has only a placeholder. A file of the library gets the stand-in's bases, caches and outputs, the
library's own small files (`RUN_AS_THEY_ARE`), and the bridges for the spelling of its release.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from shardload.library_parts import bridges
from shardload.library_parts.bridges.caches import fixed_cache
from shardload.library_parts.importer import part_module
from shardload.library_parts.model_files import defines, home_of, is_model_file
from shardload.library_parts.old_stars import star_of_part
from shardload.library_parts.release import installed
from shardload.transformers_shim import front as shim
from shardload.transformers_shim.host import host

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUN_AS_THEY_ARE = frozenset(
    {
        "backbone_utils", "initialization", "integrations.moe", "integrations.sdpa_attention", "masking_utils",
        "modeling_layers", "modeling_rope_utils", "time_series_utils", "utils.backbone_utils", "utils.generic",
        "utils.output_capturing", "utils.type_validators", "vision_utils",
    }
)  # fmt: skip
"""Files of the library beside its models that parts get as they are: they compute, and know of no loader."""

RUN_FOR_WANT_OF_OTHERS = frozenset(
    {
        "activations", "audio_utils", "cache_utils", "configuration_utils", "conversion_mapping",
        "core_model_loading", "decision.configuration_utils",
        "decision.modeling_utils", "image_transforms", "image_utils", "integrations.flash_attention",
        "integrations.flex_attention", "modeling_flash_attention_utils", "modeling_outputs", "pytorch_utils",
        "utils.constants", "video_utils",
    }
)  # fmt: skip
"""Files of the library that serve a part's name where the stand-in has none."""

# One of each in this world, wherever a file of the library defines its own.
_THE_STAND_INS = frozenset({"ModelOutput", "ExplicitEnum", "PaddingStrategy", "TensorType", "logging"})
_GENERIC = ("can_return_tuple", "is_flash_attention_requested", "maybe_autocast", "GeneralInterface")
_REAL_ENDINGS = ("Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "FeatureExtractor")
_FIXED_CACHES = frozenset({"HybridCache", "SlidingWindowCache", "StaticCache"})
_NAMES_ONLY = _FIXED_CACHES | {"QuantizedCache", "SinkCache"}
_REAL_AUTO = frozenset({"AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"})


class Front(ModuleType):
    """A module of transformers as code that parts serve sees it. Nothing is looked up before it is asked for."""

    def __init__(self, inside: str, *, for_part: bool) -> None:
        super().__init__(f"transformers.{inside}" if inside else "transformers")
        self.__path__: list[str] = []
        self._inside = inside
        self._for_part = for_part

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return vars(shim.module_of(""))[name]
        if name.startswith("__"):
            raise AttributeError(name)
        if self._for_part:
            return _for_part(self._inside, name)
        found = _for_repo(self._inside, name)
        return _stand_ins(self._inside, name, sys._getframe(1)) if found is None else found


def _stand_ins(inside: str, name: str, frame: FrameType) -> Any:
    return shim.looked_up(shim.module_of(inside), name, frame)


@functools.cache
def _front(inside: str, *, for_part: bool) -> Front:
    return Front(inside, for_part=for_part)


def import_for(name: str, frame: FrameType, fromlist: Iterable[str] | None = ()) -> ModuleType:
    """Import a module ("transformers.x") for the line of repo code in `frame`, which takes the names of `fromlist`.

    Raises MissingFromShimError where neither the stand-in nor a part has an answer for the module or one of the names.
    """
    host()
    inside = name.partition(".")[2]
    if is_model_file(inside):
        part = _part_or_none(inside)
        if part is not None:
            _require_names(name, part, frame, fromlist)
            return star_of_part(part, frame) if "*" in (fromlist or ()) else part
    front = _front(inside, for_part=False)
    unserved = [each for each in fromlist or () if each == "*" or _for_repo(inside, each) is None]
    if unserved or not fromlist:
        stand_in = shim.import_for(name, frame, unserved)
        if "*" in unserved:
            return stand_in if inside else _star_of_top(frame)
    return front


def _star_of_top(frame: FrameType) -> ModuleType:
    def find(name: str) -> Any:
        found = _for_repo("", name)
        return shim.answer(shim.module_of(""), name, frame) if found is None else found

    return shim.star_module("transformers", frame, find, vars(shim.module_of("")))


def transformers() -> ModuleType:
    """Return the module that `import transformers.x` binds."""
    return _front("", for_part=False)


def _require_names(name: str, part: ModuleType, frame: FrameType, fromlist: Iterable[str] | None) -> None:
    lacking = [each for each in fromlist or () if each != "*" and each not in vars(part)]
    if lacking:
        shim.import_for(name, frame, lacking)


def older_name(inside: str, name: str, frame: FrameType) -> Any:
    """Return the stand-in's answer for a name that a model's file does not have; raise AttributeError without one."""
    return _stand_ins(inside, name, frame)


def module_for_part(inside: str) -> ModuleType:
    """Return the module of transformers that an import statement of a part means.

    Another model file is imported as a part; its error, where it can't be, is the importing file's own.
    """
    host()
    if is_model_file(inside) and not inside.startswith("models.auto."):
        return part_module(inside)
    return _front(inside, for_part=True)


def _for_repo(inside: str, name: str) -> Any:
    """Return what repo code gets for a name, where that is not the stand-in's; None where the stand-in answers."""
    own = f"{inside}.{name}" if inside else name
    if name in _REAL_AUTO or (name.endswith(_REAL_ENDINGS) and home_of_processor(name)):
        return _real(name)
    found = bridges.for_repo(inside, name)
    if found is not None:
        return found
    if is_model_file(own):
        return _part_or_none(own)
    if own == "models" or inside == "models":
        return _front(own, for_part=False)
    if inside.startswith("models.") or not _has(inside, name):
        home = home_of(name, inside if inside.startswith("models.") else "")
        found = _attribute(_part_or_none(home), name) if home else None
        if found is None and inside in RUN_AS_THEY_ARE | RUN_FOR_WANT_OF_OTHERS:
            found = _attribute(_part_or_none(inside), name)
    return found


def _for_part(inside: str, name: str) -> Any:
    """Return what a file of the library gets for a name of a module of transformers: the first answer there is."""
    found = next((each for each in _answers_for_part(inside, name) if each is not None), None)
    return shim.placeholder_of_any(inside, name) if found is None else found


def _answers_for_part(inside: str, name: str) -> Iterator[Any]:
    own = f"{inside}.{name}" if inside else name
    yield bridges.for_part(inside, name)
    if name in _FIXED_CACHES:
        yield fixed_cache(name)
    if is_model_file(own) and not own.startswith("models.auto."):
        yield part_module(own)
    if own == "models" or inside == "models":
        yield _front(own, for_part=True)
    if inside.startswith("models.") and (home := home_of(name, inside)):
        yield getattr(part_module(home), name)
    place = "utils.generic" if name in _GENERIC else "cache_utils" if name in _NAMES_ONLY else inside
    if place in RUN_AS_THEY_ARE or name in _NAMES_ONLY:
        yield None if name in _THE_STAND_INS else _attribute(_part_or_none(place), name)
    yield shim.known(shim.module_of(inside), name)
    if not inside and (home := home_of(name)):
        yield _attribute(_part_or_none(home), name)
    for each in sorted(RUN_AS_THEY_ARE | RUN_FOR_WANT_OF_OTHERS):
        if each == inside or (
            each.rpartition(".")[0] == inside and defines(each, name)
        ):  # a package lists names
            yield _attribute(_part_or_none(each), name)
    if _is_module(own):
        yield _front(own, for_part=True)


def _has(inside: str, name: str) -> bool:
    return shim.known(shim.module_of(inside), name) is not None


def _is_module(own: str) -> bool:
    release = installed()
    return release is not None and release.file(own) is not None


def _attribute(module: ModuleType | None, name: str) -> Any:
    return None if module is None else vars(module).get(name)


_failed: dict[str, str] = {}


def _part_or_none(inside: str) -> ModuleType | None:
    """Return the module of a part, or None where its file is not there or fails: the stand-in's placeholder serves.

    A file that failed once is not tried again in this process.
    """
    release = installed()
    if inside in _failed or release is None or release.file(inside) is None:
        return None
    try:
        return part_module(inside)
    except Exception as error:  # noqa: BLE001 - the library's file may do anything; a placeholder stands for it
        _failed[inside] = f"{type(error).__name__}: {error}"
        return None


def failures() -> dict[str, str]:
    """Return the files of the library that could not be run as parts, with what each raised."""
    return dict(_failed)


def home_of_processor(name: str) -> bool:
    """Return whether the installed library has a tokenizer or a processor of that name, by the names of its folders."""
    small = name.lower()
    release = installed()
    if release is None:
        return False
    folders = (each.name.replace("_", "") for each in (release.folder / "models").iterdir())
    return any(small.startswith(folder) for folder in folders)


def _real(name: str) -> Any:
    """Return a tokenizer or processor of the library itself: these hold no weights, and know of no model."""
    return host().guarded(getattr(importlib.import_module("transformers"), name, None))
