"""One architecture: transformers saves it, both libraries load it, and what they made is compared."""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import shardload
from scripts.architectures import compare
from scripts.architectures.inputs import outputs_of_both
from scripts.architectures.tiny import MAX_PARAMETERS, classes_of, tiny_configs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

MODES = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float32, torch.float16),
}
"""By mode: the dtype of the stored tensors, and the `dtype` of the load (None: as stored)."""


class NotBuiltError(Exception):
    """transformers made no tiny model of the type here."""


class NotItselfError(Exception):
    """transformers does not load what it saved itself."""


@dataclass
class Result:
    """What was seen of one architecture.

    `outcome` is "equal", "wrong", "refused", "not built" (transformers made no tiny model of it), "excluded"
    (transformers does not load what it saved), or "crashed"; `written` is "equal", "different", "refused" or "".
    """

    model_type: str
    mode: str = "float32"
    class_name: str = ""
    outcome: str = "not built"
    reason: str = ""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outputs: str = "not run"
    written: str = ""
    written_reason: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def try_architecture(model_type: str, mode: str = "float32") -> Result:
    """Save, load and compare one architecture in a temporary folder."""
    result = Result(model_type, mode)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _try(result, Path(folder))
        except NotBuiltError as error:
            result.reason = str(error)
        except NotItselfError as error:
            result.outcome, result.reason = "excluded", str(error)
    result.seconds = round(time.monotonic() - start, 1)
    return result


def _try(result: Result, folder: Path) -> None:
    stored, asked = MODES[result.mode]
    model = built(result.model_type).to(stored)
    result.class_name = type(model).__name__
    saved = folder / "saved"
    try:
        model.save_pretrained(saved)
    except Exception as error:
        raise NotItselfError(f"save_pretrained: {told(error)}") from error
    # shardload is first: nothing that a load with transformers leaves in the process may help it.
    ours, refusal = _ours(saved, asked)
    theirs = _theirs(model, saved, asked)
    if ours is None:
        result.outcome, result.reason = "refused", refusal
        return
    result.faults, result.notes = compare.models(ours, theirs)
    result.outputs, difference = outputs_of_both(ours, theirs)
    result.faults += difference
    result.outcome = "wrong" if result.faults else "equal"
    result.reason = result.faults[0] if result.faults else ""
    _write_back(result, ours, theirs, folder)


def _ours(saved: Path, asked: torch.dtype | None) -> tuple[nn.Module | None, str]:
    """Return the model as shardload loads it, or why it does not."""
    keywords = {} if asked is None else {"dtype": str(asked).removeprefix("torch.")}
    try:
        return shardload.from_pretrained(saved, **keywords), ""
    except Exception as error:  # noqa: BLE001 - every failure is a row of the table
        return None, told(error)


def built(model_type: str) -> nn.Module:
    """Return a tiny model of the first class of a type that can be made, with weights that no constructor gives."""
    import transformers

    failures: list[str] = []
    for config in _configs(model_type, failures):
        for name in _of_this_config_first(config, classes_of(model_type)):
            try:
                cls = getattr(transformers, name)
                with torch.device("meta"):
                    count = sum(parameter.numel() for parameter in cls(config).parameters())
                if count > MAX_PARAMETERS:
                    failures.append(f"{name} has {count:,} parameters with the smallest config that is known")
                    break
                torch.manual_seed(0)
                model = cls(config)
            except Exception as error:  # noqa: BLE001 - the next class or config may work
                failures.append(f"{name}: {told(error)}")
                continue
            return randomised(model.eval())
    raise NotBuiltError(failures[0] if failures else "no class")


def _of_this_config_first(config: Any, names: Iterable[str]) -> list[str]:
    """Return the names with those of other types' classes last: some types share them, some can be read by them."""
    import transformers

    def of_another(name: str) -> bool:
        try:
            made_for = getattr(getattr(transformers, name, None), "config_class", None)
        except ImportError:  # what stands for a class whose packages are absent has no attributes
            return True
        return made_for is None or not isinstance(config, made_for)

    return sorted(names, key=of_another)


def _configs(model_type: str, failures: list[str]) -> Any:
    configs = tiny_configs(model_type)
    while True:
        try:
            yield next(configs)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001
            failures.append(f"config: {told(error)}")
            return


def randomised(model: nn.Module) -> nn.Module:
    """Move all floating values that are saved a little, so that a swap or a value left out is seen."""
    generator = torch.Generator().manual_seed(1)
    never_saved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    stored = {name for name in model.state_dict() if not any(re.search(one, name) for one in never_saved)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in stored and parameter.is_floating_point():
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.05
                )
        for name, buffer in model.named_buffers():
            if name in stored and buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator).to(buffer.dtype), alpha=0.05)
    return model


def _theirs(model: nn.Module, saved: Path, asked: torch.dtype | None) -> nn.Module:
    """Return the model as transformers loads it."""
    keywords = {} if asked is None else {"dtype": asked}
    try:
        loaded = type(model).from_pretrained(saved, **keywords)
    except Exception as error:
        raise NotItselfError(f"from_pretrained: {told(error)}") from error
    lost = compare.lost_values(model, loaded)
    if lost:
        raise NotItselfError(f"{len(lost)} tensors come back with other values: {', '.join(lost[:3])}")
    return loaded


def _write_back(result: Result, ours: nn.Module, theirs: nn.Module, folder: Path) -> None:
    try:
        shardload.save(ours, folder / "ours")
    except Exception as error:  # noqa: BLE001
        result.written, result.written_reason = "refused", told(error)
        return
    theirs.save_pretrained(folder / "theirs")
    different = compare.files(folder / "ours", folder / "theirs")
    result.written = "different" if different else "equal"
    result.written_reason = "; ".join(different[:3])


def told(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says, and the next one where the first leads to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said}"[:300]
