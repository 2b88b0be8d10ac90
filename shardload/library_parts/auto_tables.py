"""The auto classes and their tables: what a repo registers, else the names of the library's own tables.

The library's tables are read from its files as text; a name in them becomes a part when it is looked up.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from shardload.library_parts.importer import part_module, repo_of
from shardload.library_parts.model_files import home_of
from shardload.library_parts.release import Release, installed
from shardload.transformers_shim.front import auto_class

_FILES = ("models.auto.auto_mappings", "models.auto.configuration_auto", "models.auto.modeling_auto")
_OTHER_TABLES = {
    "AutoBackbone": "MODEL_FOR_BACKBONE_MAPPING_NAMES",
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "AutoModelForVision2Seq": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "AutoModelWithLMHead": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}


def auto_name(name: str) -> Any:
    """Return an auto class or a table of the auto classes, or None."""
    if name == "CONFIG_MAPPING":
        return CONFIG_MAPPING
    if name == "AutoConfig":
        return AUTO_CONFIG
    may_be_one = name.startswith("Auto") or "_MAPPING" in name  # the tables are not read for others
    tables = _tables_installed() if may_be_one else {}
    if name.endswith("_MAPPING_NAMES"):
        return tables.get(name)
    if name.endswith("_MAPPING") and f"{name}_NAMES" in tables:
        return ModelTable(f"{name}_NAMES")
    if name.startswith("Auto") and _table_of(name) in tables:
        return _auto_model(name)
    return None


def config_class_of(model_type: str) -> Any:
    """Return the config class of a `model_type`: one that the asking repo registered, else the library's, as a part."""
    return CONFIG_MAPPING[model_type]


def _tables_installed() -> dict[str, dict[str, Any]]:
    release = installed()
    return _tables(release) if release is not None else {}


@functools.lru_cache(maxsize=2)
def _tables(release: Release) -> dict[str, dict[str, Any]]:
    """Return the tables of names in the library's files, by their own names."""
    found: dict[str, dict[str, Any]] = {}
    for module in _FILES:
        path = release.file(module)
        for node in ast.parse(path.read_bytes()).body if path else ():
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                table, pairs = node.targets[0].id, _pairs(node.value)
            elif (
                isinstance(node, ast.Expr)
                and getattr(getattr(node.value, "func", None), "attr", "") == "update"
            ):
                table, pairs = str(getattr(node.value.func.value, "id", "")), _pairs(node.value)  # type: ignore[attr-defined]
            else:
                continue
            if pairs:
                found.setdefault(table, {}).update(pairs)
    return found


def _pairs(made: ast.expr) -> dict[str, Any]:
    """Return the pairs of `OrderedDict([(a, b), …])` or `….update({a: b, …})`, as far as they are plain names."""
    if not isinstance(made, ast.Call):
        return {}
    found = {}
    spread = [kw.value for kw in made.keywords if kw.arg is None]
    for node in [*(each for arg in made.args for each in getattr(arg, "elts", [arg])), *spread]:
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            try:
                key, value = ast.literal_eval(node)
            except ValueError:
                continue
            found[str(key)] = value
        elif isinstance(node, ast.Dict):
            found.update(ast.literal_eval(node))
    return found


class _ConfigTable(Mapping[str, Any]):
    """Config classes by `model_type`. What a repo registers is seen by that repo's code."""

    def __init__(self) -> None:
        self._registered: dict[tuple[str, str], Any] = {}

    def register(self, key: str, value: Any, exist_ok: bool = False) -> None:  # noqa: ARG002 - the interface
        """Record a config class of a repo under its `model_type`."""
        self._registered[repo_of(value.__module__) or value.__module__, key] = value

    def __getitem__(self, key: str) -> Any:
        own = self._registered.get((_asking_code(), key))
        if own is not None:
            return own
        name = _tables_installed().get("CONFIG_MAPPING_NAMES", {}).get(key)
        found = class_of(name) if name else None
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return (_asking_code(), key) in self._registered or key in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> dict[str, Any]:
        return _tables_installed().get("CONFIG_MAPPING_NAMES", {})


CONFIG_MAPPING = _ConfigTable()


def _asking_code() -> str:
    """Return the package of the repo whose code asks: the nearest that is neither a part nor this package."""
    frame = sys._getframe(1)
    while frame is not None:
        repo = repo_of(str(frame.f_globals.get("__name__", "")))
        if repo:
            return repo
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def class_of(name: str) -> Any:
    """Return the class of the library that a table names, as a part; None where it can't be made."""
    home = home_of(name)
    try:
        return getattr(part_module(home), name) if home else None
    except Exception:  # noqa: BLE001 - the library's file may do anything: there is no such part
        return None


class ModelTable(Mapping[Any, Any]):
    """Model classes by config class, as one of the library's tables names them."""

    def __init__(self, table: str) -> None:
        self._table = table

    def __getitem__(self, kind: Any) -> Any:
        named = self._names().get(getattr(kind, "model_type", None) or "")
        listed = [class_of(name) for name in (named if isinstance(named, (tuple, list)) else [named]) if name]
        of_the_library = (
            class_of(_tables_installed()["CONFIG_MAPPING_NAMES"].get(kind.model_type, "")) if listed else None
        )
        if not listed or listed[0] is None or not issubclass(kind, of_the_library or ()):
            raise KeyError(kind)
        return listed[0] if len(listed) == 1 else tuple(listed)

    def __iter__(self) -> Iterator[Any]:
        return (found for name in self._names() if (found := config_class_of(name)) is not None)

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> dict[str, Any]:
        return _tables_installed().get(self._table, {})


def _table_of(auto: str) -> str:
    if auto in _OTHER_TABLES:
        return _OTHER_TABLES[auto]
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in auto.removeprefix("AutoModel"))
    words = words.replace("_L_M", "_LM").replace("_C_T_C", "_CTC").replace("_X_Vector", "_XVECTOR")
    return f"MODEL{words.upper()}_MAPPING_NAMES"


@functools.cache
def _auto_model(name: str) -> Any:
    table = ModelTable(_table_of(name))

    def of_the_library(config: Any) -> Any:
        found = table.get(type(config))
        return found[0] if isinstance(found, tuple) else found

    made = auto_class(name, "transformers.models.auto", of_the_library)
    made._model_mapping = table
    return made


def _auto_config() -> Any:
    made = auto_class("AutoConfig", "transformers.models.auto", lambda _config: None)

    def register(_cls: type[Any], model_type: str, config: Any, exist_ok: bool = False) -> None:
        CONFIG_MAPPING.register(model_type, config, exist_ok)

    def for_model(_cls: type[Any], model_type: str, *args: Any, **kwargs: Any) -> Any:
        return config_class_of(model_type)(*args, **kwargs)

    made.register = classmethod(register)
    made.for_model = classmethod(for_model)
    return made


AUTO_CONFIG = _auto_config()
