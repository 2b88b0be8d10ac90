from __future__ import annotations

import itertools
import random
import re

from shardload.keys import collapse, group_keys, ranges, split_key


def test_numbers_become_placeholders():
    assert split_key("h.3.experts.0.w1") == ("h.{}.experts.{}.w1", (3, 0))
    assert split_key("norm.weight") == ("norm.weight", ())


def test_a_number_that_does_not_print_back_is_a_name():
    assert split_key("block.007.w") == ("block.007.w", ())


def test_ranges_are_exact():
    assert ranges([0, 1, 2, 3]) == "{0-3}"
    assert ranges([0, 1, 2, 40]) == "{0-2,40}"
    assert ranges([5]) == "5"


def test_holes_show():
    keys = [f"layers.{n}.w" for n in (*range(12), 40)]
    assert collapse(keys) == ["layers.{0-11,40}.w"]


def test_labels_separate():
    groups = group_keys({"l.0.w": (2,), "l.1.w": (2,), "l.2.w": (3,)})
    assert [(g.pattern, g.label, len(g.keys)) for g in groups] == [("l.{0-1}.w", (2,), 2), ("l.2.w", (3,), 1)]


def _expand(pattern: str) -> set[str]:
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([part])
            continue
        values = []
        for run in part.split(","):
            low, _, high = run.partition("-")
            values += [str(n) for n in range(int(low), int(high or low) + 1)]
        choices.append(values)
    return {"".join(choice) for choice in itertools.product(*choices)}


def test_patterns_name_exactly_their_keys():
    """A pattern with two ranges must not claim a product that is not there: 500 random index sets."""
    rng = random.Random(0)
    for _ in range(500):
        pairs = {(rng.randrange(5), rng.randrange(5)) for _ in range(rng.randrange(1, 20))}
        keys = {f"l.{a}.e.{b}.w" for a, b in pairs}
        patterns = collapse(sorted(keys))
        expanded = [key for pattern in patterns for key in _expand(pattern)]
        assert sorted(expanded) == sorted(keys)


def test_names_that_look_like_templates_collapse_into_themselves():
    assert collapse(["a.{}.0", "a.{}.1", "{}", "{}.0.{}"]) == ["a.{}.0", "a.{}.1", "{}", "{}.0.{}"]
    digits = "9" * 5000
    assert collapse([f"a.{digits}", "a.3", "a.4"]) == [f"a.{digits}", "a.{3-4}"]
