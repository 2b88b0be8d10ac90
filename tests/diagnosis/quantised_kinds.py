"""A case for each way to quantise, and its twin that looks like it."""

from __future__ import annotations

from typing import Any

from tests.diagnosis.sides import Kind, Side


def beside(words: str, parts: dict[str, tuple[tuple[int, ...], str]], code: str, **more: Any) -> Side:
    """Return a case in which `fc` is stored with other tensors beside it."""
    stored = {
        "norm.weight": (32,),
        "out.weight": (32, 64),
        **{key: shape for key, (shape, _) in parts.items()},
    }
    dtype = {key: code for key, (_, code) in parts.items()}
    wanted = {"norm.weight": (32,), "out.weight": (32, 64), "fc.weight": (64, 32), **more.pop("also", {})}
    return Side(words, stored, wanted, code, dtype=dtype, **more)


QUANTISED = [
    Kind(
        "GPTQ",
        beside(
            "`qweight`, `qzeros`, `scales`, `g_idx`",
            {
                "fc.qweight": ((4, 64), "I32"),
                "fc.qzeros": ((1, 8), "I32"),
                "fc.scales": ((1, 64), "F16"),
                "fc.g_idx": ((32,), "I32"),
            },
            "E-QUANT",
            says="GPTQ",
        ),
        beside(
            "`scales` alone, beside the weight",
            {"fc.weight": ((64, 32), "F16"), "fc.scales": ((1, 64), "F16")},
            "",
        ),
    ),
    Kind(
        "AWQ",
        beside(
            "`qweight`, `qzeros`, `scales`",
            {"fc.qweight": ((32, 8), "I32"), "fc.qzeros": ((1, 8), "I32"), "fc.scales": ((1, 64), "F16")},
            "E-QUANT",
            says="AWQ",
        ),
        beside(
            "the class has these tensors",
            {
                "fc.qweight": ((32, 8), "I32"),
                "fc.qzeros": ((1, 8), "I32"),
                "fc.scales": ((1, 64), "F16"),
                "fc.weight": ((64, 32), "F16"),
            },
            "",
            also={"fc.qweight": (32, 8), "fc.qzeros": (1, 8), "fc.scales": (1, 64)},
        ),
    ),
    Kind(
        "AQLM",
        beside(
            "`codes`, `codebooks`, `scales`",
            {
                "fc.codes": ((64, 4, 1), "I8"),
                "fc.codebooks": ((1, 256, 1, 8), "F16"),
                "fc.scales": ((64, 1, 1, 1), "F16"),
            },
            "E-QUANT",
            says="AQLM",
        ),
        beside(
            "`codebooks` alone, beside the weight",
            {"fc.weight": ((64, 32), "F16"), "quantizer.codebooks": ((1, 256, 8), "F16")},
            "",
        ),
    ),
    Kind(
        "HQQ",
        beside(
            "`W_q` and its metadata",
            {"fc.W_q": ((32, 32), "U8"), "fc.scale": ((64, 1), "F16"), "fc.zero": ((64, 1), "F16")},
            "E-QUANT",
            says="HQQ",
        ),
        beside(
            "`scale` and `zero` alone, beside the weight",
            {"fc.weight": ((64, 32), "F16"), "fc.scale": ((64, 1), "F16"), "fc.zero": ((64, 1), "F16")},
            "",
        ),
    ),
    Kind(
        "BitNet",
        beside(
            "bytes with one scale, a quarter of the rows",
            {"fc.weight": ((16, 32), "U8"), "fc.weight_scale": ((1,), "F32")},
            "E-QUANT",
            says="BitNet",
        ),
        beside(
            "bytes of all rows, one scale a row",
            {"fc.weight": ((64, 32), "I8"), "fc.weight_scale": ((64, 1), "F32")},
            "E-QUANT",
            says="int4/int8 weights with one scale per row",
        ),
    ),
    Kind(
        "MXFP4",
        beside(
            "`…_blocks` and `…_scales` of one parameter",
            {"fc.weight_blocks": ((64, 1, 16), "U8"), "fc.weight_scales": ((64, 1), "U8")},
            "E-QUANT",
            says="MXFP4",
        ),
        beside(
            "`…_blocks` alone, beside the weight",
            {"fc.weight": ((64, 32), "F16"), "fc.weight_blocks": ((64, 1, 16), "U8")},
            "",
        ),
    ),
    Kind(
        "NVFP4",
        beside(
            "`weight_scale` and `weight_scale_2`",
            {
                "fc.weight": ((64, 16), "U8"),
                "fc.weight_scale": ((64, 2), "F8_E4M3"),
                "fc.weight_scale_2": ((), "F32"),
            },
            "E-QUANT",
            says="NVFP4",
        ),
        beside("bytes of half the columns without them", {"fc.weight": ((64, 16), "U8")}, "E-INT4"),
    ),
    Kind(
        "fp8 with one scale per tensor",
        beside(
            "8-bit weights and a single `weight_scale`",
            {"fc.weight": ((64, 32), "F8_E4M3"), "fc.weight_scale": ((), "F32")},
            "E-QUANT",
            says="fp8 with one scale per tensor",
        ),
        beside("8-bit weights and nothing beside them", {"fc.weight": ((64, 32), "F8_E4M3")}, ""),
    ),
    Kind(
        "fp8 in blocks",
        beside(
            "`weight_scale_inv`",
            {"fc.weight": ((64, 32), "F8_E4M3"), "fc.weight_scale_inv": ((1, 1), "F32")},
            "E-QUANT",
            says="fp8 blocks",
        ),
        beside(
            "one scale for each row",
            {"fc.weight": ((64, 32), "F8_E4M3"), "fc.weight_scale": ((64, 1), "F32")},
            "E-QUANT",
            says="fp8 with one scale per row",
        ),
    ),
    Kind(
        "compressed-tensors by keys",
        beside(
            "`weight_packed`",
            {
                "fc.weight_packed": ((64, 4), "I32"),
                "fc.weight_scale": ((64, 1), "F16"),
                "fc.weight_shape": ((2,), "I64"),
            },
            "E-QUANT",
            says="compressed-tensors",
        ),
        beside(
            "`weight_shape` alone, beside the weight",
            {"fc.weight": ((64, 32), "F16"), "fc.weight_shape": ((2,), "I64")},
            "",
        ),
    ),
    Kind(
        "compressed-tensors by config",
        beside(
            "8-bit weights, and the config names it",
            {"fc.weight": ((64, 32), "F8_E4M3")},
            "E-QUANT",
            config={"quantization_config": {"quant_method": "compressed-tensors"}},
            says="compressed-tensors",
        ),
        beside(
            "plain weights, and the config names it",
            {"fc.weight": ((64, 32), "F16")},
            "",
            config={"quantization_config": {"quant_method": "compressed-tensors"}},
        ),
    ),
    Kind(
        "bitsandbytes",
        beside(
            "`SCB`",
            {"fc.weight": ((64, 32), "I8"), "fc.SCB": ((64,), "F32")},
            "E-QUANT",
            says="bitsandbytes 8-bit",
        ),
        beside(
            "`absmax` alone, beside the weight",
            {"fc.weight": ((64, 32), "F16"), "fc.absmax": ((1,), "F32")},
            "",
        ),
    ),
]
