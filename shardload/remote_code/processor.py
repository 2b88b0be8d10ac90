"""make_processor: the repo's own processors, run with the caller's consent, or those of an installed transformers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.json_file import read_object
from shardload.errors import (
    Cures,
    NotFoundError,
    UnsafeError,
    UnsupportedError,
    UntrustedCodeError,
    UsageError,
    keyword,
)
from shardload.remote_code.auto_map import entries
from shardload.remote_code.failures import explain
from shardload.remote_code.importer import open_code
from shardload.remote_code.library import is_installed, library, processor_class
from shardload.remote_code.repo_folder import folder_of
from shardload.remote_code.tokenizer import for_no_model, make_tokenizer, no_foreign_errors, tokenizer_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.auto_map import ClassRef
    from shardload.remote_code.importer import RepoCode
    from shardload.where import CodeTrust

KINDS = ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")
FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
# The part of a processor -> the kind that makes it.
_PARTS = {
    "image_processor": "AutoImageProcessor",
    "feature_extractor": "AutoFeatureExtractor",
    "audio_processor": "AutoFeatureExtractor",
    "video_processor": "AutoVideoProcessor",
}
# The setting by which a file names a class of transformers.
_TYPES = {
    "AutoProcessor": "processor_class",
    "AutoImageProcessor": "image_processor_type",
    "AutoFeatureExtractor": "feature_extractor_type",
    "AutoVideoProcessor": "video_processor_type",
}
_NOT_ARGUMENTS = ("auto_map", "processor_class", *_TYPES.values())


def make_processor(
    source: Source,
    config_json: Mapping[str, Any] | None,
    trust: CodeTrust,
    *,
    auto_class: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Return the processor of a repo.

    In this order: the class that `auto_map` names under AutoProcessor, AutoImageProcessor, AutoFeatureExtractor or
    AutoVideoProcessor (`auto_class` picks one; its code runs: the caller's consent is needed); the class of an
    installed transformers that the settings name, in the same order. Parts of a processor are made in the same way.
    `options` overrule the settings that the repo's own class gets.

    Raises NotFoundError when there is none of these; UntrustedCodeError; RemoteCodeError; CorruptError.
    """
    if auto_class is not None and auto_class not in KINDS:
        raise UsageError(
            f"{auto_class} makes no processor",
            where=keyword("auto_class"),
            cure=f"choose one of: {', '.join(KINDS)}",
        )
    files = {name: read_object(source, name) for name in FILES if name in source.names()}
    repo = ProcessorRepo(source, config_json or {}, trust, files, options or {})
    for kind in KINDS if auto_class is None else (auto_class,):
        made = repo.make(kind)
        if made is not None:
            return made
    raise repo.nothing(auto_class)


def processor_refs(source: Source, config_json: Mapping[str, Any] | None) -> dict[str, ClassRef]:
    """Return the processor classes that `auto_map` names in any of a repo's files, by kind."""
    files = {name: read_object(source, name) for name in FILES if name in source.names()}
    return ProcessorRepo(source, config_json or {}, None, files).refs


@dataclass
class ProcessorRepo:
    """A repo's files of settings, and what makes processors of them. `trust` None: nothing is made."""

    source: Source
    config_json: Mapping[str, Any]
    trust: CodeTrust | None
    files: dict[str, dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refs(self) -> dict[str, ClassRef]:
        """The repo's own classes by kind; where files disagree, the first file's."""
        found: dict[str, ClassRef] = {}
        for document in (*self.files.values(), self.config_json):
            auto_map = document.get("auto_map")
            if isinstance(auto_map, dict):
                named = {kind: auto_map[kind] for kind in KINDS if kind in auto_map}
                found = {**entries({"auto_map": named}), **found}
        return found

    def make(self, kind: str) -> Any:
        """Return the processor of a kind, or None where the repo names none."""
        ref = self.refs.get(kind)
        if ref is not None:
            assert self.trust is not None
            with for_no_model():
                code = open_code(self.source, None, ref, self.trust, beside=tuple(self.refs.values()))
                return self._from_code(code, kind, ref)
        return self._from_library(kind)

    def _from_code(self, repo: RepoCode, kind: str, ref: ClassRef) -> Any:
        cls, namespace = repo.loaded(ref)
        try:
            if kind != "AutoProcessor":
                settings = self._settings(kind)
                return cls.from_dict(settings) if hasattr(cls, "from_dict") else cls(**settings)
            return cls(**self._parts(cls, namespace.base), **self._own_settings(cls))
        except Exception as error:
            if repo.fall_back(error, namespace):
                return self._from_code(repo, kind, ref)
            raise explain(error, namespace, f"making the processor {ref}") from error

    def _settings(self, kind: str) -> dict[str, Any]:
        wanted = FILES[2] if kind == "AutoVideoProcessor" and FILES[2] in self.files else FILES[1]
        settings = {**self.files.get(wanted, {}), **self.options}
        return {name: value for name, value in settings.items() if name not in _NOT_ARGUMENTS}

    def _own_settings(self, cls: Any) -> dict[str, Any]:
        """Return the entries of processor_config.json that the constructor names."""
        named = {name for owner in cls.__mro__ if "__init__" in vars(owner) for name in _named(owner)}
        own = {**self.files.get(FILES[0], {}), **self.options}
        return {n: v for n, v in own.items() if n in named and n not in _PARTS and n not in _NOT_ARGUMENTS}

    def _parts(self, cls: Any, base: str) -> dict[str, Any]:
        names = getattr(cls, "attributes", None) or cls.get_attributes()
        parts = {}
        for name in names:
            part = self._tokenizer(base) if name == "tokenizer" else None
            if name in _PARTS:
                part = self.make(_PARTS[name]) or self._by_name(
                    getattr(cls, f"{name}_class", None), _PARTS[name]
                )
            if part is None:
                raise UnsupportedError(
                    f"{cls.__name__} is made of {', '.join(names)}, and the repo says nothing of its {name}",
                    where=self.source.label,
                    cure=f"download the settings of its {name} as well, or make the processor from its parts",
                )
            parts[name] = part
        return parts

    def _tokenizer(self, base: str) -> Any:
        """Return the tokenizer; classes of the real transformers take only its own tokenizers."""
        assert self.trust is not None
        settings = self.files.get("tokenizer_config.json", {})
        own = tokenizer_entry(settings, "tokenizer_config.json") or tokenizer_entry(
            self.config_json, "config.json"
        )
        if base != "transformers" or own is not None:
            trust = replace(self.trust, remote_base=base)  # type: ignore[arg-type]
            return make_tokenizer(self.source, self.config_json, trust)
        self.source.open("tokenizer.json").local_path()
        with no_foreign_errors("transformers can't make the tokenizer", self.source.label):
            return library().AutoTokenizer.from_pretrained(
                folder_of(self.source), trust_remote_code=False, local_files_only=True
            )

    def _from_library(self, kind: str) -> Any:
        documents = (*self.files.values(), self.config_json)
        return next(
            (m for d in documents if (m := self._by_name(d.get(_TYPES[kind]), kind)) is not None), None
        )

    def _by_name(self, name: Any, kind: str) -> Any:
        """Return the processor of an installed transformers' class of that name and kind, or None."""
        if isinstance(name, str):
            self._refuse_file_of_another_repo()
        cls = processor_class(name, kind) if isinstance(name, str) else None
        if cls is None:
            return None
        if kind == "AutoProcessor" and self._has_code():
            return cls(**self._parts(cls, "transformers"), **self._own_settings(cls))
        if kind == "AutoProcessor":
            self._refuse_other_places()
        with no_foreign_errors(f"transformers' {name} can't be made of the repo's files", self.source.label):
            return cls.from_pretrained(folder_of(self.source), trust_remote_code=False, local_files_only=True)

    def _refuse_other_places(self) -> None:
        """Raise UntrustedCodeError where a file names the class and the place of an audio tokenizer, a whole model.

        transformers would take both as they are: ask the Hub, and ask on the terminal whether to run code from there.
        """
        older = "audio_tokenizer_config.json"
        named = older if older in self.source.names() else FILES[0]
        if named == older or "audio_tokenizer" in self.files.get(FILES[0], {}):
            raise UntrustedCodeError(
                "the repo's settings make transformers load an audio tokenizer, a model, from a place that they name",
                where=f"{self.source.label}/{named}",
                cure="remove it from the settings, load it by itself, and make the processor from its parts",
            )

    def _refuse_file_of_another_repo(self) -> None:
        """Raise UnsafeError where a class would fetch a table of names from another repo, as OneFormer's does."""
        for name, settings in self.files.items():
            table, place = settings.get("class_info_file"), settings.get("repo_path")
            if not isinstance(table, str) or (isinstance(place, str) and Path(place, table).is_file()):
                continue
            raise UnsafeError(
                f"the settings make transformers fetch {table} from another repo, "
                f"{place or 'which its class names'}",
                where=f"{self.source.label}/{name}, repo_path",
                cure=f"download that file, and set repo_path to its folder in {name}",
            )

    def _has_code(self) -> bool:
        settings = self.files.get("tokenizer_config.json", {})
        return bool(self.refs) or tokenizer_entry(settings, "tokenizer_config.json") is not None

    def nothing(self, auto_class: str | None) -> NotFoundError:
        """Return the error for a repo without a processor."""
        documents = (*self.files.values(), self.config_json)
        kinds = KINDS if auto_class is None else (auto_class,)
        named = [d[_TYPES[kind]] for kind in kinds for d in documents if isinstance(d.get(_TYPES[kind]), str)]
        what = (
            "the repo has no processor: no auto_map names one, and no settings name a class of transformers"
        )
        cures = [f"download {FILES[1]} or {FILES[0]} as well"]
        if named:
            what = f"the repo's settings name {named[0]}, a class of transformers that is not here"
            cures = ["install a transformers that has it"] if is_installed() else ["pip install transformers"]
        elif any(name.startswith("tokenizer") for name in self.source.names()):
            cures.append("its tokenizer: load_tokenizer")
        return NotFoundError(what, where=self.source.label, cure=Cures(*cures))


def _named(owner: Any) -> set[str]:
    return set(inspect.signature(vars(owner)["__init__"]).parameters) - {"self", "args", "kwargs"}
