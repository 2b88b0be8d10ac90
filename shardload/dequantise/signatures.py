"""Signatures: the names that quantisers give to the tensors beside each packed weight, and to their formats."""

from __future__ import annotations

SIGNATURES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"qweight", "qzeros", "scales", "g_idx"}), "GPTQ"),
    (frozenset({"qweight", "qzeros", "scales"}), "AWQ or GPTQ"),
    (frozenset({"codes", "codebooks", "scales"}), "AQLM"),
    (frozenset({"weight_scale_inv"}), "fp8 blocks"),
    (frozenset({"absmax", "quant_map"}), "bitsandbytes 4-bit"),
    (frozenset({"SCB"}), "bitsandbytes 8-bit"),
    (frozenset({"weight_packed"}), "compressed-tensors"),
    (frozenset({"W_q"}), "HQQ"),
    (frozenset({"_data", "_scale"}), "quanto"),
    (frozenset({"B", "s"}), "Marlin"),
    (frozenset({"weight_scale", "weight_scale_2"}), "NVFP4"),
)
"""The last segments of the keys that a format writes beside each packed weight, and the name of the format."""

ENDS = (("_blocks", "_scales"), "MXFP4")
"""The same for ends of a whole parameter's name: experts.gate_up_proj_blocks."""

_OF_MODULE = ("SCB", "weight_format")
_OF_WEIGHT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_STATE = ".weight.quant_state."


def weight_of(name: str) -> tuple[str, str] | None:
    """Return the weight that a part of bitsandbytes' packing belongs to, and the end of the part's own name.

    None for any other name. These are the weights that a model can hold as they are stored.

    >>> weight_of("head.SCB"), weight_of("head.weight.absmax"), weight_of("head.weight")
    (('head.weight', 'SCB'), ('head.weight', 'weight.absmax'), None)
    """
    before, _, last = name.rpartition(".")
    if last in _OF_MODULE and before:
        return f"{before}.weight", last
    if last in _OF_WEIGHT and before.endswith(".weight"):
        return before, f"weight.{last}"
    before, found, kind = name.partition(_STATE)
    return (f"{before}.weight", f"{_STATE[1:]}{kind}") if found else None


FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""The dtypes in which weights are numbers by themselves, up to a scale."""

CONFIG_FIELDS = ("quantization_config", "compression_config", "quantization_bit")
"""The fields of config.json that name a quantiser."""

READABLE = frozenset(
    {
        "GPTQ",
        "AWQ or GPTQ",
        "fp8 blocks",
        "fp8 with one scale per tensor",
        "fp8 with one scale per row",
        "int4/int8 weights with one scale per row",
        "bitsandbytes 4-bit",
        "bitsandbytes 8-bit",
        "compressed-tensors",
        "MXFP4",
    }
)
"""The formats whose weights a load can make plain, where a dtype is asked for."""
