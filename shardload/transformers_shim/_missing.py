"""The stand-in's errors for names that it lacks, and for names that it has only to be imported."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from shardload.errors import Cures, RemoteCodeError, ShardloadError, UnsupportedError, Wording
from shardload.transformers_shim._index import SHIM
from shardload.transformers_shim.host import is_repo_module

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import FrameType


def choices(release: str | None = None) -> str:
    """Return the cure for a name that the stand-in lacks; `release` is the release that the repo was written for."""
    package = (release or "transformers").replace(" ", "==")
    return Cures(
        Wording(
            "install transformers (`pip install {0}`) so that it serves this repo's code as a whole "
            "({remote_base} says so from the start)",
            package,
            remote_base="transformers",
        ),
        Wording("pass {model_class} with a class of your own", model_class=...),
    )


class MissingFromShimError(RemoteCodeError, ImportError):
    """An import of a transformers name that the stand-in lacks: an ImportError, so guards catch it."""

    code = "E-SHIM"


class MissingAttributeError(RemoteCodeError, AttributeError):
    """An attribute of a transformers module that the stand-in lacks: an AttributeError, so `hasattr` works."""

    code = "E-SHIM"


class NotServedError(UnsupportedError):
    """The use of a class that the stand-in has by name only: the real transformers may serve it."""

    code = "E-SHIM"


def lacking(kind: type[RemoteCodeError], name: str) -> RemoteCodeError:
    """Return the error for `name` ("transformers.x.Y"), with the line of the repo's code that uses it."""
    return kind(
        f"the code asks for {name}, which shardload's own stand-in for transformers lacks",
        where=_asking_line(),
        cure=choices(),
    )


def is_lacking(error: BaseException) -> bool:
    """Return whether an error says that the stand-in lacks a name."""
    if isinstance(error, (MissingAttributeError, MissingFromShimError, NotServedError)):
        return True
    # `transformers.modeling_utils.Something`, where Python itself raised the error.
    owner = getattr(error, "obj", None) if isinstance(error, AttributeError) else None
    return str(getattr(owner, "__spec__", None) and getattr(owner, "__name__", "")).startswith(SHIM)


def with_choices(error: BaseException, where: str | None, release: str | None = None) -> ShardloadError:
    """Return an error that `is_lacking` as a typed error with the missing name, the place and the choices.

    `release` is the release of transformers that the repo was written for ("transformers 4.41.0"), if known.
    """
    if isinstance(error, ShardloadError):
        if error.code == "E-SHIM":
            error.cure = choices(release)
        return error
    assert isinstance(error, AttributeError)
    owner = str(getattr(error.obj, "__name__", SHIM)).replace(SHIM, "transformers", 1)
    return MissingAttributeError(
        f"the code asks for {owner}.{error.name}, which shardload's own stand-in for transformers lacks",
        where=where,
        cure=choices(release),
    )


def _asking_line() -> str | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_repo_module(str(frame.f_globals.get("__name__", ""))):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def later(name: str, cure: str | None = None) -> NoReturn:
    """Raise the UnsupportedError for a feature of transformers that the stand-in does not have."""
    raise UnsupportedError(_only_the_name(name), cure=cure)


def refuse_unknown(function: str, given: Mapping[str, Any], harmless: Collection[str] = ()) -> None:
    """Raise NotServedError for an argument that a function does not know: it might change what is computed.

    None and False ask for nothing; `harmless` are names that transformers' own function does not compute with either.
    """
    for name, value in given.items():
        if value is not None and value is not False and name not in harmless:
            raise not_served(f"the argument {name}= of transformers' {function}")


OF_A_FORWARD = frozenset(
    {
        "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "head_mask", "labels", "logits_to_keep", "max_length_k",
        "max_length_q", "num_items_in_batch", "num_logits_to_keep", "output_attentions", "output_hidden_states",
        "output_router_logits", "past_key_value", "past_key_values", "position_embeddings", "position_ids",
        "return_dict", "use_cache",
    }
)  # fmt: skip
"""Arguments of a model's forward that code passes on to every function in it: none but the model computes with them."""


def later_class(name: str, home: str) -> type[Any]:
    """Return a class that can be imported, subclassed and tested with isinstance, but not constructed."""

    def refuse(self: Any, *_args: Any, **_kwargs: Any) -> None:
        raise not_served(f"transformers' {name} (used by {type(self).__qualname__})")

    def refuse_loading(cls: type[Any], *args: Any, **_kwargs: Any) -> None:
        asked = ", ".join(repr(argument) for argument in args if isinstance(argument, str))
        raise not_served(f"transformers' {name}.from_pretrained({asked}) (used by {cls.__qualname__})")

    def register_for_auto_class(cls: type[Any], auto_class: str = "") -> None:
        cls._auto_class = auto_class

    body: dict[str, Any] = {
        "__init__": refuse,
        "from_pretrained": classmethod(refuse_loading),
        "register_for_auto_class": classmethod(register_for_auto_class),
        "__doc__": f"The name of transformers' {name}: constructing one raises UnsupportedError.",
        "__module__": home,
    }
    return type(name, (), body)


def not_served(name: str) -> NotServedError:
    """Return the error for the use of something that the stand-in has only by name."""
    return NotServedError(_only_the_name(name), where=_asking_line(), cure=choices())


def _only_the_name(name: str) -> str:
    return (
        f"{name} is not implemented: shardload's stand-in for transformers has only the name, "
        "so that code which imports it can be loaded"
    )
