"""`transformers.utils.output_capturing`: the decorated `forward` of 4.54 and later, which records layers' outputs."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.transformers_shim.utils import logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

logger = logging.get_logger(__name__)


@dataclass
class OutputRecorder:
    """The modules whose outputs a class records, by class or the end of their name, and an index for tuples."""

    target_class: Any
    index: int = 0
    layer_name: str | None = None
    class_name: str | None = None

    def takes(self, name: str, module: nn.Module) -> bool:
        """Return whether the module of that dotted name is recorded."""
        by_class = self.target_class is not None and isinstance(module, self.target_class)
        by_name = self.class_name is not None and name.endswith(self.class_name)
        return (by_class or by_name) and (self.layer_name is None or self.layer_name in name)


def check_model_inputs(forward: Any = None, tie_last_hidden_states: bool = True) -> Any:
    """Decorate a `forward` that returns a ModelOutput: it gets `use_cache`, and the states and attentions asked for.

    Outputs named in the class's `_can_record_outputs` are recorded where `output_…` or the config asks for them. The
    last hidden state is by default the output's own `last_hidden_state`. With `return_dict=False` it returns a tuple.
    """
    if forward is None or isinstance(forward, bool):  # with parentheses
        tied = tie_last_hidden_states if forward is None else forward
        return functools.partial(check_model_inputs, tie_last_hidden_states=tied)
    takes_cache = _takes(forward, "use_cache")

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        use_cache = kwargs.get("use_cache")
        use_cache = getattr(self.config, "use_cache", None) if use_cache is None else use_cache
        if use_cache and self.training and getattr(self, "gradient_checkpointing", False):
            logger.warning_once(
                "`use_cache=True` is incompatible with gradient checkpointing: it is set to False"
            )
            use_cache = False
        if use_cache is not None and takes_cache:
            kwargs["use_cache"] = use_cache
        return_dict = kwargs.pop("return_dict", None)
        asked = _asked(self, kwargs)
        with _recorded(self, asked) as found:
            output = forward(self, *args, **kwargs)
        for key, values in found.items():
            _put(output, key, values, asked[key], tied=tie_last_hidden_states)
        as_output = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_output else output.to_tuple()

    return wrapper


def _takes(forward: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(forward).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _asked(model: Any, kwargs: dict[str, Any]) -> dict[str, list[OutputRecorder]]:
    """Return what to record, by the output's fields; `output_attentions` is the default for all fields."""
    given = {**kwargs, **(kwargs.get("kwargs") or {})}
    others = given.get("output_attentions", getattr(model.config, "output_attentions", False))
    asked = {}
    for key, recorders in (getattr(model, "_can_record_outputs", None) or {}).items():
        if given.get(f"output_{key}", getattr(model.config, f"output_{key}", others)):
            listed = recorders if isinstance(recorders, list) else [recorders]
            asked[key] = [_recorder(key, one) for one in listed]
    return asked


def _recorder(key: str, one: Any) -> OutputRecorder:
    if isinstance(one, OutputRecorder):
        return one
    index = 0 if "hidden_states" in key else 1
    return OutputRecorder(None, index, class_name=one) if isinstance(one, str) else OutputRecorder(one, index)


@contextlib.contextmanager
def _recorded(model: Any, asked: dict[str, list[OutputRecorder]]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Collect the modules' outputs in order during the block; hidden states begin with the first module's input."""
    found: dict[str, tuple[Any, ...]] = defaultdict(tuple)
    hooks = []

    def hook(key: str, index: int) -> Callable[..., None]:
        def record(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if key == "hidden_states" and not found[key]:
                found[key] += (args[0] if args else kwargs.get("hidden_states"),)
            value = output[index] if isinstance(output, tuple) else output
            if value is not None:
                found[key] += (value,)

        return record

    try:
        wanted = [(key, one) for key, recorders in asked.items() for one in recorders]
        for name, module in model.named_modules() if wanted else ():
            hooks += [
                module.register_forward_hook(hook(key, one.index), with_kwargs=True)
                for key, one in wanted
                if one.takes(name, module)
            ]
        yield found
    finally:
        for one in hooks:
            one.remove()


def _put(
    output: Any, key: str, values: tuple[Any, ...], recorders: list[OutputRecorder], *, tied: bool
) -> None:
    if key == "hidden_states" and tied:
        for name in ("vision_hidden_states", "last_hidden_state"):
            if hasattr(output, name):
                values = (*values[:-1], getattr(output, name))
                break
    if key == "attentions" and len(recorders) == 2:
        output[key], output[f"cross_{key}"] = values[0::2], values[1::2]
        return
    output[key] = values
