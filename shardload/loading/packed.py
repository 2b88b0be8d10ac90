"""Packed weights on their way into a model: made plain where the model has no modules that take them as they are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from shardload.checkpoint.place import place_of_opened
from shardload.checkpoint.plain_weights import just_cast_in, weights_in, with_plain
from shardload.dequantise.fp8 import Bare
from shardload.dequantise.signatures import CONFIG_FIELDS
from shardload.diagnosis.quantised import UNREADABLE, plain_cures
from shardload.errors import Cures, ShardloadError, UnsupportedError, Wording
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import pieces
from shardload.placement.quantisation import Quantisation, is_turned
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import torch
    from torch import nn

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.dequantise import Weight
    from shardload.diagnosis.finding import Finding
    from shardload.model.shell import Shell
    from shardload.placement.any_quantisation import AnyQuantisation
    from shardload.placement.target import Target

_COMMON = frozenset({"weight", "scale", "scales"})  # last segments that other modules have too
_CODES = {f"torch.{name}": code for code, name in TORCH_NAMES.items()}


def taken_by(target: Target, checkpoint: Checkpoint, shell: Shell) -> Checkpoint:
    """Return the checkpoint that a target takes: as it is stored where it takes packed weights, else `plain_for`.

    Raises CorruptError for packed weights whose parts do not fit together.
    """
    if not target.takes(checkpoint.tensors):
        return plain_for(checkpoint, shell.slots, getattr(target, "dtype", None), shell.model)
    weights_in(checkpoint)
    return checkpoint


def plain_for(
    checkpoint: Checkpoint, slots: Collection[str], dtype: torch.dtype | None, model: nn.Module | None = None
) -> Checkpoint:
    """Return the checkpoint that a model takes: with plain weights of `dtype`, or as it is stored.

    It is as it is stored where no dtype is asked for, or where the model's slots are those of the packed parts. The
    `model` says which of its layers have weights of (inputs, outputs).
    """
    code = _CODES.get(str(dtype))
    if checkpoint.format != "gguf" and all(name in slots for name in checkpoint.tensors):
        # Whatever they hold, the model has a place for each; but what nothing scales is cast as any other weight.
        cast = just_cast_in(checkpoint) if code else []
        return with_plain(checkpoint, cast, code or "") if cast else checkpoint
    weights = weights_in(checkpoint) if code is not None or checkpoint.format == "gguf" else []
    if checkpoint.format == "gguf":
        if weights and code is None:
            return checkpoint
        own_names = not checkpoint.tensors.keys().isdisjoint(slots)
        return with_plain(checkpoint, weights, code or "", renamed=not own_names)
    if not weights or code is None or _takes(slots, weights):
        return checkpoint
    return with_plain(checkpoint, weights, code, turned=_turned(model))


def _turned(model: nn.Module | None) -> frozenset[str]:
    """Return the last segments of the names of layers whose weight is (inputs, outputs), if no other layer has them.

    The rest of a name may be another one in the checkpoint.
    """
    turned: dict[str, bool] = {}
    for name, module in model.named_modules() if model is not None else ():
        if module._parameters.get("weight") is not None:
            last = name.rpartition(".")[2]
            turned[last] = turned.get(last, True) and is_turned(module)
    return frozenset(last for last, each in turned.items() if each)


def packed_notes(checkpoint: Checkpoint) -> list[str]:
    """Return a note on the weights of a checkpoint that are made plain."""
    parts = (piece for tensor in checkpoint.tensors.values() for piece in pieces(tensor))
    decoded = [piece for piece in parts if isinstance(piece, Dequantised)]
    made = {piece.weight.name: piece.dtype for piece in decoded if piece.weight.scheme.is_packed}
    notes = []
    if bare := {piece.weight.name: piece.dtype for piece in decoded if isinstance(piece.weight.scheme, Bare)}:
        count = "1 weight is" if len(bare) == 1 else f"{len(bare):,} weights are"
        cast = TORCH_NAMES[next(iter(bare.values()))]
        notes.append(f"{count} stored in fp8 without scales, and cast to {cast}")
    if not made:
        return notes
    dtype = TORCH_NAMES[next(iter(made.values()))]
    count = "1 weight is" if len(made) == 1 else f"{len(made):,} weights are"
    return [*notes, f"{count} stored packed ({checkpoint.packing}), and dequantised to {dtype}"]


def refuse_undecided(checkpoint: Checkpoint, asked: AnyQuantisation | None = None) -> None:
    """Raise UnsupportedError for a checkpoint with packed weights, for a model that takes plain ones of a dtype.

    `asked` is what the weights are to be quantised to, which is another kind than that in which they are stored.
    """
    weights = [each for each in weights_in(checkpoint) if not isinstance(each.scheme, Bare)]
    if not weights:
        return
    and_asked = f", and {asked.kind} is asked for" if asked else ""
    raise UnsupportedError(
        f"the checkpoint is quantised: {weights[0].scheme.label}{and_asked}; in which dtype its weights are to be "
        "made plain is not said",
        where=checkpoint.label,
        cure=Cures(*(_anew_cures(checkpoint, asked) if asked else _plain_cures(checkpoint))),
        code="E-QUANT",
    )


def _plain_cures(checkpoint: Checkpoint) -> tuple[str, ...]:
    return plain_cures(place_of_opened(checkpoint)).parts[:2]


def _anew_cures(checkpoint: Checkpoint, asked: AnyQuantisation) -> Iterator[str]:
    """Yield what to do about weights that are stored in one kind and asked for in another."""
    yield Wording(
        "pass {dtype}, or float16 or float32: the weights are made plain in it, and then quantised to {0}",
        asked.kind,
        dtype="bfloat16",
    )
    stored = Quantisation.stored(checkpoint.config)
    if stored is not None and stored.takes(checkpoint.tensors):
        yield f"ask for no quantisation: the weights stay in {stored.kind}, as they are stored"


def checked(findings: Sequence[Finding], checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Return findings whose cure makes no weight plain that can't be: the kind may be known, and not these headers."""
    plain = plain_cures(place_of_opened(checkpoint))
    if not any(finding.cure == plain for finding in findings):
        return tuple(findings)
    with suppress(ShardloadError):
        if weights_in(checkpoint):
            return tuple(findings)
    return tuple(
        replace(finding, cure=UNREADABLE) if finding.cure == plain else finding for finding in findings
    )


def forget_quantiser(model: nn.Module) -> None:
    """Take the quantiser out of the config of a model whose weights are plain now: a saved one would name it."""
    config = getattr(model, "config", None)
    for name in CONFIG_FIELDS[:2]:
        if name in getattr(config, "__dict__", ()):
            delattr(config, name)


def _takes(slots: Collection[str], weights: Sequence[Weight]) -> bool:
    """Whether a model has places for the parts of packed weights, whatever the names before them are."""
    names = {name for weight in weights for name in weight.stored if name != weight.name}
    last = {name.rpartition(".")[2] for name in names} - _COMMON
    return any(slot in names or slot.rpartition(".")[2] in last for slot in slots)
