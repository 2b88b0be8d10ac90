"""E-INT4: two four-bit numbers in each byte, so that matrices have half their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.diagnosis.quantised import plain_cures
from shardload.errors import Cures
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence

_BYTES = frozenset({"I8", "U8"})


class PackedRule:
    """Applies when matrices are stored as bytes with half the model's columns."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that declines the checkpoint."""
        halved = [
            key
            for key in case.shape_mismatches
            if (ref := case.stored.get(key)) is not None
            and ref.dtype in _BYTES
            and len(ref.shape) == 2
            and case.slots.get(key) == (ref.shape[0], 2 * ref.shape[1])
        ]
        bits = case.config.get("quantization_bit")
        if not halved or (not bits and 2 * len(halved) < len(case.shape_mismatches)):
            return ()
        if any(key.endswith(".weight_scale_2") for key in case.unexpected):
            return ()  # numbers of another kind: E-QUANT
        key = halved[0]
        shown = f"{collapse(halved)[0]}: {key} {list(case.stored[key].shape)} {case.stored[key].dtype}"
        return (
            Finding(
                "E-INT4",
                f"{len(halved)} matrices are packed int4: bytes with half the model's columns",
                explained=len(halved),
                nbytes=case.nbytes(halved),
                cure=Cures(
                    *(plain_cures(case.where).parts[:2] if f"{key}_scale" in case.unexpected else ()),
                    "use the config and code of the int4 repo itself (they define the packed modules), "
                    "or the repo's unquantised weights",
                ),
                evidence=(
                    shown + f", the model's is {list(case.slots[key])}",
                    *([f"config.json says quantization_bit = {bits}"] if bits else []),
                ),
                declines=True,
            ),
        )
