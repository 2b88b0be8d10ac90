"""Solution: the stages together, the map tried on the headers, and names of both sides."""

from __future__ import annotations

import pytest

from shardload import KeyMap
from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.pairing.solution import Solution, solve
from shardload.keymap import Split
from tests.diagnosis.headers import keys, refs
from tests.diagnosis.key_sets import LAYOUTS, key_set


def solution(stored, wanted, config=None, classes=None):
    return Solution.of(refs(stored), wanted, config or {}, classes or {})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_that_fits_has_nothing_to_solve(name):
    shapes, classes = key_set(name, 2)
    found = solution(shapes, shapes, classes=classes)
    assert found.filled == set(shapes)
    assert (found.key_map.rules, found.board.links, found.failed) == ((), [], "")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrapped_checkpoint_is_filled_and_its_names_lead_back(name):
    shapes, classes = key_set(name, 2)
    found = solution({f"module.{key}": shape for key, shape in shapes.items()}, shapes, classes=classes)
    assert found.filled == set(shapes)
    assert found.names == {f"module.{key}": key for key in shapes}
    assert sorted(found.stored_names(shapes)) == sorted(f"module.{key}" for key in shapes)


def test_links_are_listed_by_their_kind():
    stored = keys((6, 4), "h.{}.qkv.weight", 2) | keys((4,), "h.{}.ln_1.weight", 2)
    wanted = keys((4,), "h.{}.norm1.weight", 2)
    for name in "qkv":
        wanted |= keys((2, 4), f"h.{{}}.{name}_proj.weight", 2)
    found = solution(stored, wanted)
    assert found.filled == set(wanted)
    assert [link.kind for link in found.links("split")] == ["split"]
    assert {link.kind for link in found.links("split", "rename")} == {"split", "rename"}
    assert found.links("stack") == []


def test_what_nothing_explains_stays_open():
    board = solve(families_of({"zebra": (3, 5)}), families_of({"giraffe": (5, 7)}))
    assert ([f.template for f in board.stored], [f.template for f in board.wanted]) == (
        ["zebra"],
        ["giraffe"],
    )
    found = solution({"zebra": (3, 5)}, {"giraffe": (5, 7)})
    assert (found.filled, found.key_map.rules) == (set(), ())


def test_a_tie_is_looked_for_in_the_config():
    stored = {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,)}
    wanted = {**stored, "lm_head.weight": (9, 4)}
    tied = solution(stored, wanted, {"tie_word_embeddings": True})
    assert tied.filled == set(wanted)
    assert [link.kind for link in tied.board.links] == ["alias"]


def test_rules_that_can_not_be_applied_leave_no_map_and_say_why():
    stored, wanted = {"a.w": (2, 4), "norm": (2,)}, {"b.w": (2, 4), "norm": (2,)}
    found = solution(stored, wanted)
    assert found.filled == set(wanted)
    wrong = Split("b.w", ("x", "y"), (5, 5))
    found.cure.structure.append((found.board.links[0], (wrong,)))
    found.key_map = KeyMap()
    found._try(refs(stored), wanted)
    assert "can't be cut into [5, 5]" in found.failed
    assert found.key_map.rules == ()
    assert found.filled == {"norm"}


def paired(stored, wanted):
    """Return {stored key: the model's key} of what the map moves, and the model's keys that stay open."""
    found = solution(stored, wanted)
    moved = {ref.name: key for key, ref in found.table.items() if key in wanted}
    return moved, set(wanted) - found.filled


def test_a_number_is_a_name_where_the_other_side_has_a_name_for_it():
    shapes = {"weight": [(12, 4), (4, 12)], "bias": [(12,), (4,)]}
    stored, wanted, right = {}, {}, {}
    for layer in range(3):
        for leaf, both in shapes.items():
            for place, shape in enumerate(both):
                old, new = f"layers.{layer}.fc{place + 1}.{leaf}", f"layers.{layer}.mlp.layers.{place}.{leaf}"
                stored[old], wanted[new], right[old] = shape, shape, new
        key = f"layers.{layer}.norm.weight"
        stored[key], wanted[key], right[key] = (4,), (4,), key
    assert paired(stored, wanted) == (right, set())


def test_what_is_left_below_two_paths_is_paired_by_exact_shapes():
    stored, wanted, right = {}, {}, {}
    for norm, layers in (("input_norm", 3), ("post_norm", 2)):
        for layer in range(layers):
            own = f"layers.{layer}.{norm}."
            for old, new, shape in (
                ("weight", "weight", (16,)),
                ("W_down.weight", "mlp.fc1.weight", (4, 16)),
                ("W_up.weight", "mlp.fc2.weight", (16, 4)),
            ):
                stored[own + old], wanted[own + new], right[own + old] = shape, shape, own + new
    found = solution(stored, wanted)
    assert paired(stored, wanted) == (right, set())
    assert all(link.unproven for link in found.board.links)  # no name says so


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (("attn_ln", "mlp_ln"), ("post_attention_layernorm", "post_mlp_layernorm")),
        (("attn_ln", "mlp_ln"), ("input_layernorm", "post_attention_layernorm")),
        # Two of four norms have their names: the others are the first and the second of those that are open.
        (
            ("norm1", "norm2", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
            (
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ),
        ),
    ],
)
def test_norms_are_told_apart_by_what_their_names_state_and_by_their_order(stored, wanted):
    def of(norms):
        return {f"layers.{n}.{norm}.weight": (4,) for norm in norms for n in range(3)}

    beside = {f"layers.{n}.mlp.down_proj.weight": (4, 12) for n in range(3)}
    right = {
        old: new
        for pair in zip(stored, wanted, strict=True)
        for old, new in zip(*(of([norm]) for norm in pair), strict=True)
    }
    moved, open_keys = paired(beside | of(stored), beside | of(wanted))
    assert (moved, open_keys) == (right | {key: key for key in beside}, set())


def test_the_module_before_says_what_a_tensor_is_where_the_last_one_says_only_in_or_out():
    stored = {"conditioners.num_speakers.output_proj.weight": (8, 5), "net.ada_ln.1.weight": (6, 2)}
    wanted = {"model.num_speakers_proj.weight": (8, 5), "head.adaln_proj.weight": (6, 2)}
    shared = {"embed.weight": (9, 4), "q.weight": (4, 4), "k.weight": (4, 3), "norm.weight": (4,)}
    moved, open_keys = paired(shared | stored, shared | wanted)
    assert open_keys == set()
    assert moved | dict(zip(stored, wanted, strict=True)) == moved
