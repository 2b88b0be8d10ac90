"""Damages checkpoints a thousand times, and counts what the doctor's map makes of their keys.

    python scripts/doctor_damages.py [COUNT]

`wrong` are keys that the map fills with other values than the model's own, without calling that unproven.
tests/diagnosis/damage.py has the damages.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.diagnosis.test_damage import COUNT, outcome


def main() -> None:
    """Print the counts of keys, and of checkpoints without an open key."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    keys: Counter[str] = Counter()
    whole, kinds = 0, Counter()
    for seed in range(count):
        counts, wrong, done = outcome(seed)
        keys += counts
        keys["wrong"] += len(wrong)
        whole += counts["right"] == sum(counts.values()) and not wrong
        kinds.update(done[1:])
    print(json.dumps({"damages": count, "whole": whole, **keys, "kinds": dict(sorted(kinds.items()))}))


if __name__ == "__main__":
    main()
