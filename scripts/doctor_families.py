"""Runs the doctor on each model family whose checkpoints transformers converts, one half of the families at a time.

    python scripts/doctor_families.py development
    python scripts/doctor_families.py held-out > table.md
    python scripts/doctor_families.py held-out first    # of the first split, which is used up; `second` is too

Needs transformers (the extra `oracles`). tests/diagnosis/halves.py has the rule of the split and of the counts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from shardload.keys import collapse
from tests.diagnosis import corpus
from tests.diagnosis.halves import is_held_out, is_held_out_again, is_held_out_third
from tests.diagnosis.scoring import Score, score

_SPLITS = {"first": is_held_out, "second": is_held_out_again, "third": is_held_out_third}


def main() -> None:
    """Print the table of one half and its sums."""
    half, name = (*sys.argv[1:], *("development", "third")[len(sys.argv) - 1 :])[:2]
    if half not in {"development", "held-out"} or name not in _SPLITS:
        sys.exit(__doc__)
    held_out = _SPLITS[name]
    chosen, shared, unseen = [], set(), []
    for family, package in corpus.families().items():
        pair = corpus.build(family)
        if pair is None:
            continue
        if held_out(package) == (half == "held-out"):
            chosen.append((_scored(pair), pair.shared_with))
            unseen += [chosen[-1][0]] if all(split(package) for split in _SPLITS.values()) else []
        else:
            shared.add(pair.shared_with)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    print(f"half: {half}; split: {name}; engine: commit {commit.strip()}; transformers {_version()}\n")
    print("| family | keys | right | applied | wrong | missed |\n|---|---|---|---|---|---|")
    for result, _ in chosen:
        missed = "; ".join(f"`{pattern}`" for pattern in collapse(result.missed)[:4])
        print(
            f"| {result.family} | {result.keys} | {result.right} | {result.applied} | {result.wrong} | {missed} |"
        )
    print()
    print(_sums("all", [result for result, _ in chosen]))
    own = [result for result, conversions in chosen if conversions not in shared]
    print(_sums("with a conversion that no family of the other half has", own))
    if unseen:
        print(_sums("held out by all splits", unseen))


def _scored(pair: corpus.Pair) -> Score:
    try:
        return score(pair)
    except Exception as error:  # noqa: BLE001 - a family on which the doctor fails has no right key
        return Score(pair.family, len(pair.new), missed=[f"{type(error).__name__}: {error}"])


def _sums(title: str, results: list[Score]) -> str:
    keys, right = sum(r.keys for r in results), sum(r.right for r in results)
    applied, wrong = sum(r.applied for r in results), sum(r.wrong for r in results)
    perfect = sum(r.perfect for r in results)
    return (
        f"{title}: {len(results)} families, {keys:,} keys; right {100 * right / max(keys, 1):.2f}%; "
        f"wrong among applied {wrong}/{applied:,} = {100 * wrong / max(applied, 1):.3f}%; "
        f"perfect {perfect}/{len(results)} = {100 * perfect / max(len(results), 1):.1f}%"
    )


def _version() -> str:
    import transformers

    return str(transformers.__version__)


if __name__ == "__main__":
    main()
