"""The installed transformers as a repo's code sees it: its auto classes run no code but what the caller allowed.

Code that was approved may ask transformers for a tokenizer or a processor with `trust_remote_code=True`. That would
run files of any repo that nobody has read. Here such a request is answered by shardload where it is for the repo
itself, under the consent that was given for it. Others reach the library's own classes alone: the keyword is False.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from shardload.errors import UntrustedCodeError
from shardload.remote_code.auto_map import parse_reference
from shardload.remote_code.config import load_config
from shardload.remote_code.consents import consent_for
from shardload.remote_code.namespaces import namespace_of
from shardload.remote_code.processor import KINDS, make_processor, processor_refs
from shardload.remote_code.tokenizer import make_tokenizer, tokenizer_ref

if TYPE_CHECKING:
    from types import FrameType

    from shardload.remote_code.consents import Consent
    from shardload.remote_code.namespace import Namespace

# Said to a loader, and nothing to the object that it makes.
_FOR_LOADERS = frozenset({
    "_commit_hash", "_from_auto", "cache_dir", "code_revision", "force_download", "local_files_only", "proxies",
    "resume_download", "revision", "token", "trust_remote_code", "use_auth_token", "use_fast",
})  # fmt: skip


def guarded(value: Any) -> Any:
    """Return what a repo's code gets for a value of the installed transformers: mostly the value itself.

    Modules answer with guarded names, auto classes and processors load no code that was not allowed, and neither do
    `pipeline` and the functions by which transformers runs files of repos.
    """
    if isinstance(value, ModuleType):
        return _module(value) if value.__name__.partition(".")[0] == "transformers" else value
    if isinstance(value, type) and type(value) is type and value.__module__.startswith("transformers."):
        auto = value.__module__.startswith("transformers.models.auto.")
        processes = any(base.__name__ == "ProcessorMixin" for base in value.__mro__)
        return _class(value) if (auto or processes) and hasattr(value, "from_pretrained") else value
    if isinstance(value, FunctionType) and value.__module__.startswith("transformers."):
        return _FUNCTIONS.get(value.__name__, lambda same: same)(value)
    return value


def own_object(kind: str, place: Any, options: dict[str, Any]) -> Any:
    """Return what a repo's own code stands for under an auto class ("AutoTokenizer"), where `place` is that repo.

    It is made as by `load_tokenizer`, `load_processor` or `load_config`, under the consent that the caller gave for the
    repo: UntrustedCodeError where that does not cover the files. None where no code of the repo makes such an object,
    where the place is another, and where no repo's code asks.
    """
    namespace = _asking()
    if namespace is None or not isinstance(place, (str, os.PathLike)) or options.get("subfolder"):
        return None
    consent = consent_for(namespace.code, place)
    if consent is None:
        return None
    given = {name: value for name, value in options.items() if name not in _FOR_LOADERS}
    return _made(kind, consent, replace(consent.trust, remote_base=namespace.base), given)


def _made(kind: str, consent: Consent, trust: Any, given: dict[str, Any]) -> Any:
    source, config_json = consent.source, consent.config_json
    if kind == "AutoConfig":
        settings = {**(config_json or {}), **given}
        return load_config(source, settings, trust).config if "AutoConfig" in _auto_map(settings) else None
    refs = processor_refs(source, config_json) if kind in KINDS else {}
    if refs and (kind == "AutoProcessor" or kind in refs):
        wanted = kind if kind in refs else None
        return make_processor(source, config_json, trust, auto_class=wanted, options=given)
    if kind in ("AutoTokenizer", "AutoProcessor") and tokenizer_ref(source, config_json) is not None:
        return make_tokenizer(source, config_json, trust, options=given)
    return None


def _auto_map(settings: Any) -> dict[str, Any]:
    found = settings.get("auto_map") if isinstance(settings, dict) else getattr(settings, "auto_map", None)
    return found if isinstance(found, dict) else {}


def _frame() -> FrameType | None:
    """Return the nearest frame of a repo's code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and namespace_of(str(frame.f_globals.get("__name__", ""))) is None:
        frame = frame.f_back
    return frame


def _asking() -> Namespace | None:
    frame = _frame()
    return None if frame is None else namespace_of(str(frame.f_globals["__name__"]))


def _refused(what: str, place: Any) -> UntrustedCodeError:
    frame = _frame()
    return UntrustedCodeError(
        f"the repo's code asks transformers for {what} of {place}, which would run code that was not approved with it",
        where=f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else None,
        cure="read that code, load the object by itself with shardload, and give it to the model",
    )


def _untrusting(call: Any, what: str, place: Any, *args: Any, **options: Any) -> Any:
    """Call the library's own loader without trust; what it then refuses is named."""
    try:
        return call(*args, **{**options, "trust_remote_code": False})
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise _refused(what, place) from error


class _SameInstances(type):
    """The class of a guarded class: instances and subclasses of the library's own are its, too."""

    def __instancecheck__(cls, instance: Any) -> bool:
        real = vars(cls).get("_guarded")
        return super().__instancecheck__(instance) if real is None else isinstance(instance, real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        real = vars(cls).get("_guarded")
        return super().__subclasscheck__(subclass) if real is None else issubclass(subclass, real)


@functools.cache
def _class(real: Any) -> Any:
    def from_pretrained(cls: Any, /, place: Any = None, *args: Any, **options: Any) -> Any:
        place = options.pop("pretrained_model_name_or_path", place)
        own = own_object(real.__name__, place, options) if cls is made else None
        if own is not None:
            return own
        call = real.from_pretrained if cls is made else super(made, cls).from_pretrained
        return _untrusting(call, cls.__name__, place, place, *args, **options)

    def from_config(cls: Any, /, config: Any, **options: Any) -> Any:
        own = _own_class(_auto_map(config).get(cls.__name__), config)
        if own is not None:
            options.pop("trust_remote_code", None)
            return own._from_config(config, **options)
        place = getattr(config, "_name_or_path", "a config")
        return _untrusting(real.from_config, cls.__name__, place, config, **options)

    body: dict[str, Any] = {"__module__": real.__module__, "__doc__": real.__doc__, "_guarded": real}
    body["from_pretrained"] = classmethod(from_pretrained)
    if hasattr(real, "from_config"):
        body["from_config"] = classmethod(from_config)
    made: Any = _SameInstances(real.__name__, (real,), body)
    return made


def _own_class(reference: Any, config: Any) -> Any:
    """Return the class that a config of the asking repo names, where its file is among the approved ones; or None."""
    namespace = _asking()
    if namespace is None or not isinstance(reference, str):
        return None
    if namespace_of(type(config).__module__) is not namespace:
        return None
    return _class_in(namespace, reference)


def _class_in(namespace: Namespace, reference: str) -> Any:
    ref = parse_reference(reference)
    names = frozenset(file.name for file in namespace.code.files)
    file = next((each for each in _files(ref.module) if each in names), None)
    if file is None:
        return None
    module = importlib.import_module(f"{namespace.package}.{namespace.code.module_of(file)}")
    return getattr(module, ref.name, None)


def _files(module: str) -> tuple[str, str]:
    return f"{module.replace('.', '/')}.py", f"{module}.py"


def _dynamic_class(_real: Any) -> Any:
    def get_class_from_dynamic_module(
        class_reference: str, pretrained_model_name_or_path: Any = None, **_options: Any
    ) -> Any:
        place = parse_reference(class_reference).repo or pretrained_model_name_or_path
        namespace = _asking()
        if namespace is not None and consent_for(namespace.code, place) is not None:
            found = _class_in(namespace, class_reference)
            if found is not None:
                return found
        raise _refused(class_reference, place)

    return get_class_from_dynamic_module


def _module_class(_real: Any) -> Any:
    def get_class_in_module(class_name: str, module_path: Any, **_options: Any) -> Any:
        raise _refused(class_name, module_path)

    return get_class_in_module


def _pipeline(real: Any) -> Any:
    @functools.wraps(real)
    def pipeline(task: Any = None, model: Any = None, *args: Any, **options: Any) -> Any:
        return _untrusting(real, "a pipeline", model or task, task, model, *args, **options)

    return pipeline


_FUNCTIONS: dict[str, Any] = {
    "get_class_from_dynamic_module": functools.cache(_dynamic_class),
    "get_class_in_module": functools.cache(_module_class),
    "pipeline": functools.cache(_pipeline),
}


class _GuardedModule(ModuleType):
    """A module of the library that answers with guarded names; what is set on it is set on the library's own."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        vars(self)["_real"] = real

    def __getattr__(self, name: str) -> Any:
        return guarded(getattr(vars(self)["_real"], name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_real"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(vars(self)["_real"], name)

    def __dir__(self) -> list[str]:
        return dir(vars(self)["_real"])


@functools.cache
def _module(real: ModuleType) -> ModuleType:
    made = _GuardedModule(real)
    for name in ("__file__", "__path__", "__spec__", "__loader__", "__package__"):
        if hasattr(real, name):
            vars(made)[name] = getattr(real, name)
    return made
