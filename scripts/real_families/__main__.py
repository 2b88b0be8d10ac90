"""Loads the code of published models with shardload, and compares each bit with torch's own `load_state_dict`.

    python scripts/real_families FOLDER [--oracle PYTHON] [--remote-base WHO] [--pretend-cuda]
                                        [--output TABLE.md] [--only NAME …]

FOLDER holds one folder per repo, with `config.json` (scaled down) and the repo's own .py files; `inputs.json` describes
the arguments of a forward pass that does not take token ids (`Family.inputs`). Weights are random, in 7 shards, once as
.bin and once as .safetensors, in the config's `torch_dtype`. The oracle is the same class, built on the CPU and filled
by `load_state_dict(assign=True)`. The packages that the code needs (einops, numpy, accelerate …) must be importable.
PYTHON is an interpreter with transformers 4.41.2, whose generated tokens are compared.

A step is a function of a Family that returns the text of its cell, or raises an error; each file of steps lists them
in `STEPS` by column.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
import traceback
from pathlib import Path

import generation
import loading
import pretend_cuda
import torch
from family import Family

# A class may lack these features.
CLASS_MAY_FAIL = ("training", "left padding", "sampling", "beam search")
STEPS = {**loading.STEPS, **generation.STEPS}


def check(folder: Path, arguments: argparse.Namespace) -> tuple[list[str], bool, str]:
    """Return a row of the table, whether every step passed, and the tracebacks of failures."""
    with tempfile.TemporaryDirectory() as work:
        family = Family(folder, Path(work), arguments.remote_base)
        family.transformers, family.pretends_cuda = arguments.oracle, arguments.pretend_cuda
        cells, details, good = [], "", True
        for column, step in STEPS.items():
            try:
                cells.append(step(family))
            except loading.ClassFailsError as error:
                good = good and column in CLASS_MAY_FAIL
                cells.append(f"the class itself fails: {error}")
            except Exception as error:  # noqa: BLE001 - the table shows every failure
                good = False
                cells.append(f"**{type(error).__name__}**")
                details += f"\n{folder.name}, {column}:\n{traceback.format_exc()}"
                if column in ("import", "build"):  # all other steps need these two
                    cells += ["-"] * (len(STEPS) - len(cells))
                    break
        return [folder.name, family.served_by or "-", *cells], good, details


def main() -> int:
    """Check every repo of a folder, print the table, and return 1 if a step failed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--oracle", help="an interpreter with transformers 4.41.2")
    parser.add_argument("--remote-base", choices=("auto", "shim", "transformers"), default="auto")
    parser.add_argument("--pretend-cuda", action="store_true", help="answer CUDA's calls on the CPU")
    parser.add_argument("--only", nargs="*", help="the folders to check")
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers"):
        beside = f"installed and imported, {importlib.metadata.version('transformers')}"
        importlib.import_module("transformers")
    else:
        beside = "not installed"

    if arguments.pretend_cuda:
        importlib.import_module("shardload.transformers_shim.utils.import_utils")
        pretend_cuda.begin()
    repos = sorted(path.parent for path in arguments.folder.glob("*/config.json"))
    header = ("repo", "its transformers is", *STEPS)
    lines = [
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, transformers: {beside}",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header))),
    ]
    print("\n".join(lines), flush=True)
    verdicts = []
    for repo in repos:
        if not arguments.only or repo.name in arguments.only:
            cells, good, details = check(repo, arguments)
            verdicts.append(good)
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            print(details, end="", file=sys.stderr, flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0 if verdicts and all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
