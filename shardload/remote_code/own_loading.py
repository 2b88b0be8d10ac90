"""A class's own `from_pretrained`, run around a model that is loaded already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from shardload._system.warn import warn_caller
from shardload.remote_code.failures import explain
from shardload.remote_code.repo_folder import folder_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType

    from torch import nn

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.namespace import Namespace


class LeftOut(Protocol):
    """A tensor that only the model has ("missing"), or only the checkpoint ("unexpected"), and that may be."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> str: ...  # noqa: D102


def run_around(
    model: nn.Module,
    source: Source,
    left_out: Iterable[LeftOut],
    override: CodeType,
    namespace: Namespace,
) -> str:
    """Run a class's own `from_pretrained`, whose code is `override`: see `finish_by_its_class`."""
    line = f"{override.co_filename}:{override.co_firstlineno}"
    if namespace.base == "transformers":
        return f"{line}: the class's own from_pretrained was not run: it would ask transformers' loader"
    if "super" not in _names_in(override):
        return f"{line}: the class has a loader of its own, which was not run"

    from shardload.transformers_shim.front import offered

    failed = None
    with offered(model, _loading_info(left_out)) as filled:
        try:
            type(model).from_pretrained(folder_of(source), config=model.config)  # type: ignore[attr-defined]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - any code may run here
            failed = _reason(error, namespace)
    model.eval()  # with what was added
    own = f"{line}: the class's own from_pretrained"
    if not filled.asked:
        why = f"failed before it asked for the weights: {failed}" if failed else "never asked for the weights"
        return f"{own} {why}; what it made is left out"
    if failed:
        warn_caller(
            f"{type(model).__name__}: what its own from_pretrained does once the weights are loaded failed: {failed}",
            RuntimeWarning,
        )
        return f"{own} failed after the weights were loaded: {failed}"
    return f"{own} ran around the loading"


def _names_in(code: CodeType) -> set[str]:
    return {*code.co_names, *code.co_freevars}


def _loading_info(left_out: Iterable[LeftOut]) -> dict[str, list[Any]]:
    faults = list(left_out)
    keys = {kind: [fault.key for fault in faults if fault.kind == kind] for kind in ("missing", "unexpected")}
    return {
        "missing_keys": keys["missing"],
        "unexpected_keys": keys["unexpected"],
        "mismatched_keys": [],
        "error_msgs": [],
    }


def _reason(error: BaseException, namespace: Namespace) -> str:
    told = explain(error, namespace, "loading")
    text = told.what if told is error else f"{type(error).__name__}: {error}"
    return f"{text} ({told.where})" if told.where else text
