"""E-QUANT: weights that a quantiser has packed, for a class that has none of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

# The last segments of the keys that a format writes beside each packed weight, and the name of the format.
_SIGNATURES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"qweight", "qzeros", "scales", "g_idx"}), "GPTQ"),
    (frozenset({"qweight", "qzeros", "scales"}), "AWQ or GPTQ"),
    (frozenset({"weight_scale_inv"}), "fp8 blocks"),
    (frozenset({"absmax", "quant_map"}), "bitsandbytes 4-bit"),
    (frozenset({"SCB"}), "bitsandbytes 8-bit"),
    (frozenset({"weight_packed"}), "compressed-tensors"),
    (frozenset({"W_q"}), "HQQ"),
    (frozenset({"_data", "_scale"}), "quanto"),
    (frozenset({"B", "s"}), "Marlin"),
    (frozenset({"weight_scale"}), "int4/int8 weights with one scale per row"),
)


class QuantisedRule:
    """Recognises the quantiser by the keys beside each weight."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that declines the checkpoint, when unexpected keys are those of a known format."""
        leaves = {key.rpartition(".")[2] for key in case.unexpected}
        for signature, name in _SIGNATURES:
            if signature <= leaves:
                count = sum(key.rpartition(".")[2] in signature for key in case.unexpected)
                settings = case.config.get("quantization_config")
                named = settings.get("quant_method") if isinstance(settings, Mapping) else None
                told = f"{name} (config.json says {named!r})" if named else name
                return (
                    Finding(
                        "E-QUANT",
                        f"the checkpoint is quantised: {told}; the class has no modules for it",
                        count,
                        "use the checkpoint's unquantised weights, or a class that defines the quantised modules",
                        declines=True,
                    ),
                )
        return ()
