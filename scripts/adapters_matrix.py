"""Runs the matrix of adapter formats, layers and variants, and writes docs/adapters_matrix.md.

    python scripts/adapters_matrix.py            # write the page
    python scripts/adapters_matrix.py --check    # exit with 1 when the committed page differs

Needs peft, loralib and transformers: each tool writes the file of its cell and computes the logits to compare with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.adapters.cells import Cell

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.adapters.test_matrix import CELLS, LIMITS, Outcome, outcome  # noqa: E402

PAGE = ROOT / "docs" / "adapters_matrix.md"
HEAD = """# What loads, cell by cell

Each cell is a file that its own tool wrote for a small model, loaded with `load_adapter` into a model with the same
base weights. *attached* is the largest difference between the logits and the tool's, over the largest logit, with the
adapter attached in both; *merged* is the same after `merge` in memory, against the tool's own merge (`unmerge` gives
the attached logits again, bit for bit); *on disk* after `merge_to_disk` of the stored base, which sees headers and no
module. fp32 has to be within 1e-5 and fp64 within 1e-10 (`<=` says that it is). The oracles are PEFT {peft} and loralib
{loralib}; MiniMind, mlx-lm, torchtune, PEFT 0.2 and the experts of PEFT 0.17 are one line of arithmetic each. PEFT's
files are safetensors in fp32 and `.bin` in fp64.

*impossible*: the tool refuses the combination itself, or fails on it; its own words are given. *declined*: shardload
refuses it by name, with the reason and the cure. *refused*: the headers alone do not tell enough; `merge` does it.

This page is written by `scripts/adapters_matrix.py`; `tests/adapters/test_matrix.py` runs the same cells.
"""


def main() -> int:
    """Run every cell in both precisions, write or check the page, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed page")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    text = page()
    if check:
        same = PAGE.read_text() == text
        print(
            "the page is up to date"
            if same
            else "the page differs from the results: run the script without --check"
        )
        return 0 if same else 1
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return 0


def page() -> str:
    """Run all cells and return the text of the page."""
    from importlib.metadata import version

    found = {cell: [run(cell, dtype) for dtype in LIMITS] for cell in CELLS}
    counts = {
        status: sum(both[0].status == status or both[1].status == status for both in found.values())
        for status in ("passed", "impossible", "declined")
    }
    total = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [
        HEAD.format(peft=version("peft"), loralib=version("loralib")),
        f"{len(found)} cells: {total}.",
        "",
    ]
    lines += [
        "| format | layer | variant | attached fp32 | fp64 | merged fp32 | fp64 | note |",
        "|" + "---|" * 8,
    ]
    lines += [row(cell, *both) for cell, both in found.items()]
    return "\n".join(lines) + "\n"


def run(cell: Cell, dtype: torch.dtype) -> Outcome:
    """Run one cell in a new folder."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcome(cell, dtype, Path(folder) / "adapter")


def row(cell: Cell, single: Outcome, double: Outcome) -> str:
    """Return a cell's line of the table."""
    both = list(zip((single, double), LIMITS.values(), strict=True))
    numbers = [verdict(found, found.attached, limit) for found, limit in both]
    numbers += [verdict(found, found.merged, limit, found.no_merge) for found, limit in both]
    numbers += [verdict(found, found.on_disk, limit, found.no_merge, found.no_disk) for found, limit in both]
    notes = [found.why if found.status == "impossible" else found.no_merge for found, _ in both]
    notes += [found.no_disk and f"on disk: {first_sentence(found.no_disk)}" for found, _ in both]
    notes += [first_line(found.why) for found, _ in both if found.status == "declined"]
    note = "; ".join(dict.fromkeys(note.replace("|", "/") for note in notes if note))
    return f"| {cell.format} | {cell.layer} | {cell.variant} | {' | '.join(numbers)} | {note} |"


def verdict(found: Outcome, error: float | None, limit: float, no_merge: str = "", no_disk: str = "") -> str:
    """Return the text for one number of a cell."""
    if found.status != "passed":
        return found.status
    if error is None:
        return "impossible" if no_merge else "refused" if no_disk else "-"
    return f"<= {limit:.0e}" if error <= limit else f"FAILED {error:.0e}"


def first_sentence(text: str) -> str:
    """Return a reason without the key that may follow it."""
    return text.partition(" base_model.")[0]


def first_line(text: str) -> str:
    """Return the reason of an error, without its where and cure."""
    reason, _, rest = text.partition("\n")
    where = rest.partition("where:")[2].partition("\n")[0].partition(": ")[2].strip()
    return f"{reason}: {where}" if where and "/" not in where else reason


if __name__ == "__main__":
    sys.exit(main())
