"""rename_rules: few rules, and on every key they do what the pairs say."""

from __future__ import annotations

import random

import pytest

from shardload.diagnosis.pairing.renames import rename_rules


def tried(pairs, kept=()):
    """Return the number of rules, after trying them on every key."""
    names = {old.format(3, 5): new.format(3, 5) for old, new in pairs.items()}
    names |= {key.format(3, 5): key.format(3, 5) for key in kept}
    key_map = rename_rules(pairs, kept, names)
    assert {key: key_map.apply(key) for key in names} == names
    return len(key_map.rules)


def test_a_subtree_that_moves_as_one_is_one_rule():
    parts = ("q.weight", "q.bias", "k.weight", "v.weight")
    assert tried({f"h.{{}}.{part}": f"model.layers.{{}}.{part}" for part in parts}) == 1
    assert tried({f"h.{{}}.{part}": f"model.layers.{{}}.{part}" for part in parts}, kept=["head.weight"]) == 1


def test_a_subtree_that_does_not_move_whole_is_no_one_rule():
    pairs = {"h.{}.q.weight": "l.{}.q.weight", "h.{}.k.weight": "l.{}.k.weight"}
    assert tried(pairs, kept=["h.{}.mask"]) == 2


def test_first_and_last_segments_may_change_around_a_middle_that_stays():
    pairs = {f"enc.{name}.{{}}.w.gamma": f"encoder.{name}.{{}}.w.weight" for name in ("a", "b", "c")}
    assert tried(pairs) == 1


def test_a_list_of_layers_that_is_numbered_from_another_one_on_is_one_rule():
    pairs = {f"h.{{}}.{name}.weight": f"h.{{-1}}.{name}.weight" for name in ("norm", "mlp.up", "mlp.down")}
    names = {old.format(2): new.replace("{-1}", "1") for old, new in pairs.items()}
    (rule,) = rename_rules(pairs, ["embed.weight"], names).rules
    assert (rule.source, rule.target) == ("h.{}.{...}", "h.{-1}.{...}")


def test_nothing_to_rename_is_no_rule():
    assert tried({"a": "a"}, kept=["b"]) == 0


@pytest.mark.parametrize(
    "pairs", [{"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}, {"x.{}": "y.{}", "y.{}": "x.{}"}]
)
def test_names_that_are_exchanged_move_aside_first(pairs):
    assert tried(pairs) == len(pairs) + 1


@pytest.mark.parametrize("seed", range(30))
def test_random_pairs_come_true(seed):
    rng = random.Random(seed)
    words = ["a", "b", "c", "layers.{}", "mlp", "attn", "q", "weight", "bias"]

    def name(numbers):
        parts = [word for word in rng.sample(words, rng.randint(2, 4)) if "{}" not in word]
        parts[1:1] = ["layers", "{}"] * numbers
        return ".".join(parts)

    old, new = {}, {}
    for _ in range(rng.randint(1, 9)):
        numbers = rng.randint(0, 1)
        old.setdefault(name(numbers), numbers)
    for numbers in old.values():
        found = name(numbers)
        while found in new:
            found += ".x"
        new[found] = numbers
    tried(dict(zip(old, new, strict=True)))
