"""Compares shardload with transformers on a tiny model of every model type that the installed transformers has.

    python scripts/architectures [--mode MODE] [--only NAME[,NAME]] [--parts] [--processes N]
                                 [--json FILE] [--markdown FILE]

Each model is made with a tiny config and random weights, saved by `save_pretrained`, and loaded by transformers'
`from_pretrained` and by `shardload.from_pretrained`, which is told nothing else. Names, dtypes and bytes of the
tensors, computed buffers, ties, the config's dtypes, generation settings, eval mode and, where generic inputs fit, the
outputs must be equal. Then `shardload.save` must write the tensors that `save_pretrained` writes. What transformers
itself does not save and load unchanged is left out of the count, and listed.

MODE is float32 (the default), bfloat16 (stored so) or float16 (float32 files, loaded with dtype="float16"). Each
architecture runs in a process of its own, within a time limit; all are forks of one that has imported transformers.
The exit code is 1 if an architecture is wrong, refused or written back differently, or if a process of it died.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
if __name__ == "__main__":  # Not for a test that imports this: its later processes would be offline too.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

from scripts.architectures import pool, report
from scripts.architectures.tiny import model_types
from scripts.architectures.trial import MODES, Result


def main() -> int:
    """Try the architectures, print a line for each and the counts, and return the exit code."""
    warnings.simplefilter("ignore")
    arguments = _arguments()
    names = arguments.only or model_types(arguments.parts)
    results: list[Result] = []
    for result in pool.results(names, arguments.mode, arguments.processes, arguments.seconds):
        results.append(result)
        print(f"{len(results)}/{len(names)} {report.line(result)}", flush=True)
    results.sort(key=lambda result: names.index(result.model_type))
    page = report.page(results)
    print("\n" + page)
    if arguments.json:
        arguments.json.write_text(json.dumps([result.as_dict() for result in results], indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(page)
    return 0 if report.all_right(results) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/architectures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mode", choices=MODES, default="float32")
    parser.add_argument("--only", type=_names, metavar="NAME[,NAME]", help="model types, such as llama,t5")
    parser.add_argument("--parts", action="store_true", help="also the types that are a part of another one")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=90, metavar="N", help="time limit of one architecture"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    known = set(model_types(parts=True))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is no model type of transformers")
    return names


if __name__ == "__main__":
    sys.exit(main())
