"""E-QUANT: weights that a quantiser has packed, for a class that has none of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardload.dequantise.signatures import ENDS, FP8, READABLE, SIGNATURES
from shardload.diagnosis.finding import Case, Finding
from shardload.errors import Cures, Wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.where import Where

_SCALE = "weight_scale"
UNREADABLE = "use the checkpoint's unquantised weights, or a class that defines the quantised modules"


def plain_cures(where: Where | None) -> Cures:
    """Return what to do about weights, stored at `where`, that a load can make plain."""
    place = "WHERE" if where is None else where.as_arguments
    return Cures(
        Wording(
            "pass {dtype}, or float16 or float32: the weights are dequantised while they are read",
            dtype="bfloat16",
        ),
        f"write the plain checkpoint once: shardload convert {place} -o plain --dtype bfloat16",
        "load into a class that defines the quantised modules",
    )


class QuantisedRule:
    """Recognises the quantiser by the keys beside each weight, by the dtypes and by `quantization_config`."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that declines the checkpoint, when unexpected keys are those of a known format."""
        found = _by_keys(case) or _by_scales(case) or _eetq(case) or _by_config(case)
        if found is None:
            return ()
        name, keys = found
        method = _method(case)
        told = f"{name} (config.json says {method!r})" if method and method.lower() != name.lower() else name
        return (
            Finding(
                "E-QUANT",
                f"the checkpoint is quantised: {told}; the class has no modules for it",
                len(keys),
                plain_cures(case.where) if name in READABLE else UNREADABLE,
                declines=True,
                nbytes=case.nbytes(keys),
            ),
        )


def _by_keys(case: Case) -> tuple[str, list[str]] | None:
    leaves = {key.rpartition(".")[2] for key in case.unexpected}
    for signature, name in SIGNATURES:
        if signature <= leaves:
            return name, [key for key in case.unexpected if key.rpartition(".")[2] in signature]
    ends, name = ENDS
    bases = [{key.removesuffix(end) for key in case.unexpected if key.endswith(end)} for end in ends]
    both = set.intersection(*bases)
    packed = [key for key in case.missing if key in both] if both else []
    return (name, [f"{key}{end}" for key in packed for end in ends]) if packed else None


def _by_scales(case: Case) -> tuple[str, list[str]] | None:
    """Return what the dtype of the weights says that have a scale beside them."""
    scales = [key for key in case.unexpected if key.rpartition(".")[2] == _SCALE]
    if not scales:
        return None
    weights = [ref for key in scales if (ref := case.stored.get(key.removesuffix("_scale"))) is not None]
    one = all(len(case.stored[key].shape) == 0 or case.stored[key].shape == (1,) for key in scales)
    if weights and all(ref.dtype in FP8 for ref in weights):
        return f"fp8 with one scale per {'tensor' if one else 'row'}", scales
    if _method(case) == "bitnet" or (one and any(ref.dtype == "U8" for ref in weights)):
        return "BitNet", scales
    return "int4/int8 weights with one scale per row", scales


def _eetq(case: Case) -> tuple[str, list[str]] | None:
    """Return the scales of EETQ's weights: one for each column of a matrix of bytes, which is transposed."""
    scales = [
        key
        for key in case.unexpected
        if key.rpartition(".")[2] == f"{_SCALE}s"
        and (ref := case.stored.get(key.removesuffix("_scales"))) is not None
        and ref.dtype == "I8"
        and ref.shape[1:] == case.stored[key].shape
    ]
    return ("EETQ int8", scales) if scales else None


def _by_config(case: Case) -> tuple[str, list[str]] | None:
    """Return fp8 weights that fit the model's by shape, where config.json says that they are quantised."""
    method = _method(case)
    keys = [key for key, ref in case.stored.items() if ref.dtype in FP8] if method else []
    if not method or not keys or any("scale" in key.rpartition(".")[2] for key in case.slots):
        return None
    return "fp8 weights, whose scales are not among the keys", keys


def _method(case: Case) -> str | None:
    settings = case.config.get("quantization_config")
    named = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return named if isinstance(named, str) else None
