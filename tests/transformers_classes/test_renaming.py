"""One name of a template renamed for all: the oracle is transformers, asked for each name."""

from __future__ import annotations

import pytest

from shardload.transformers_classes.renaming import NewName, Renaming

loading = pytest.importorskip("transformers.core_model_loading")


def renaming_of(*transforms):
    """Return a renaming, and the names that it asked transformers for."""
    asked = []

    def rename(name):
        asked.append(name)
        return loading.rename_source_key(name, list(transforms), [])

    return Renaming(transforms, rename), asked


NAMES = [f"h.{layer}.mlp.{expert}.w1.weight" for layer in range(12) for expert in range(12)]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (r"\.w1\.", ".gate_proj."),
        (r"^h\.(\d+)\.", r"layers.\1."),
        (r"h\.(\d+)\.mlp\.(\d+)", "layers.mlp"),
        (r"^(h\.\d+\.mlp)", r"model.\1"),
        (r"mlp\.([0-9]+)\.", r"mlp.experts.\1."),
    ],
)
def test_a_pattern_that_looks_at_no_number_is_asked_once(source, target):
    transform = loading.WeightRenaming(source, target)
    renaming, asked = renaming_of(transform)
    expected = [NewName(*loading.rename_source_key(name, [transform], [])) for name in NAMES]
    assert [renaming(name) for name in NAMES] == expected
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (r"^h\.0\.", "first."),
        (r"mlp\.\d\.", "few."),
        (r"mlp\.1[01]\.", "last."),
        (r"h\.(\d{1,1})\.", r"small.\1."),
    ],
)
def test_a_pattern_that_looks_at_numbers_is_asked_for_each_name(source, target):
    transform = loading.WeightRenaming(source, target)
    renaming, asked = renaming_of(transform)
    expected = [NewName(*loading.rename_source_key(name, [transform], [])) for name in NAMES]
    assert [renaming(name) for name in NAMES] == expected
    assert asked == NAMES


def test_transforms_that_keep_state_are_asked_for_each_name():
    transform = loading.GroupWeightRename(["norm0", "norm1"], ["norm1", "norm2"])
    renaming, asked = renaming_of(transform)
    assert renaming("h.0.norm1.w").name == "h.0.norm1.w"
    assert renaming("h.0.norm0.w").name == "h.0.norm1.w"
    assert renaming("h.0.norm1.w").name == "h.0.norm2.w"
    assert len(asked) == 3
