"""Keys that carry, or lack, whole segments in front: DDP's `module.`, torch.compile's `_orig_mod.`, a base model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.diagnosis.finding import Shape

_LONGEST = 4  # segments; real wrappers nest three deep


class WrapperRule:
    """Tries every leading run of segments: taken off the checkpoint's keys, or put in front of them."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return the one prefix change that settles the most keys, if it settles more than it breaks."""
        before = _fitting(case.slots, {key: ref.shape for key, ref in case.stored.items()})
        best: tuple[int, KeyMap, str] | None = None
        for key_map, cause in self._candidates(case):
            renamed = {key_map.apply(key) or key: ref.shape for key, ref in case.stored.items()}
            if len(renamed) != len(case.stored):
                continue
            gained = _fitting(case.slots, renamed) - before
            if gained > 0 and (best is None or gained > best[0]):
                best = (gained, key_map, cause)
        if best is None or best[0] < len(case.unexpected) / 2:
            return ()
        gained, key_map, cause = best
        rule = key_map.rules[0].to_dict()
        cure = f"key_map={{{rule['source']!r}: {rule['target']!r}}}"
        return (Finding("E-WRAP", cause, gained, cure, key_map),)

    def _candidates(self, case: Case) -> list[tuple[KeyMap, str]]:
        found = []
        for prefix in _prefixes(case.unexpected):
            cause = f'checkpoint keys carry "{prefix}" in front of the model\'s names'
            found.append((KeyMap().rename(f"{prefix}{{...}}", "{...}"), cause))
        for prefix in _prefixes(case.missing):
            cause = f'checkpoint keys lack "{prefix}", which the model\'s names begin with'
            found.append((KeyMap().rename("{...}", f"{prefix}{{...}}"), cause))
        return found


def _prefixes(keys: Sequence[str]) -> list[str]:
    """Return the leading runs of segments that at least half of the keys share, the shortest first.

    Braces in a key would be placeholders in a template, so such runs are left out.
    """
    counts: Counter[str] = Counter()
    for key in keys:
        segments = key.split(".")
        for length in range(1, min(_LONGEST, len(segments) - 1) + 1):
            counts[".".join(segments[:length]) + "."] += 1
    return [
        prefix for prefix, count in counts.items() if 2 * count >= len(keys) and not {"{", "}"} & set(prefix)
    ]


def _fitting(slots: Mapping[str, Shape], stored: Mapping[str, Shape]) -> int:
    return sum(slots.get(key) == shape for key, shape in stored.items())
