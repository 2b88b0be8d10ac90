"""The whole cure names every step at once; it hides no weights that belong together."""

from __future__ import annotations

from dataclasses import replace

from shardload.diagnosis import diagnose
from shardload.diagnosis.whole_cure import NO_CURE, whole_cure
from tests.diagnosis.headers import case_of

WANTED = {"embed.weight": (9, 4), "fc.weight": (4, 5), "head.weight": (9, 4)}


def cure_of(stored, wanted=WANTED, **options):
    case = case_of(stored, wanted, **options)
    return whole_cure(case, diagnose(case))


def test_what_is_left_over_is_named_beside_the_renames():
    stored = {f"model.{key}": shape for key, shape in WANTED.items()} | {"loss.a": (3,), "loss.b.c": (2,)}
    assert cure_of(stored) == "key_map={'model.{...}': '{...}'} and allow_unexpected=['loss.*']"


def test_a_pattern_for_what_is_left_matches_no_other_key():
    stored = WANTED | {"fc.steps": (7,), "odd[0].x": (3,), "odd[0].y": (3,)}
    assert cure_of(stored) == "allow_unexpected=['fc.steps', 'odd[[]0].*']"


def test_what_is_missing_and_what_is_left_may_be_one_tensor():
    stored = {"embed.weight": (9, 4), "head.weight": (9, 4), "z": (20,)}
    assert cure_of(stored).startswith(NO_CURE)
    stored = {"embed.weight": (9, 4), "head.weight": (9, 4), "fc.codes": (7, 1)}
    assert cure_of(stored).startswith(NO_CURE)
    stored = {"embed.weight": (9, 4), "head.weight": (9, 4), "step": ()}
    assert cure_of(stored) == "allow_missing=['fc.weight'] and allow_unexpected=['step']"


def test_a_missing_embedding_may_be_another_name_of_a_stored_one():
    wanted = {"shared.weight": (9, 4), "fc.weight": (4, 5), "encoder.embed_tokens.weight": (9, 4)}
    stored = {key: shape for key, shape in wanted.items() if not key.startswith("encoder")}
    assert cure_of(stored, wanted).startswith(NO_CURE)
    assert cure_of(stored, wanted | {"encoder.embed_tokens.weight": (8, 4)}).startswith("allow_missing=")


def test_what_a_class_ignores_is_not_named():
    stored = {f"model.{key}": shape for key, shape in WANTED.items()} | {"loss.a": (3,), "step": ()}
    case = case_of(stored, WANTED)
    cure = whole_cure(case, diagnose(case), lambda kind, key: kind == "unexpected" and key == "step")
    assert cure == "key_map={'model.{...}': '{...}'} and allow_unexpected=['loss.a']"


def test_a_config_and_a_map_are_one_cure():
    wanted = WANTED | {f"layers.{n}.weight": (4, 4) for n in range(2)}
    stored = {f"module.{key}": shape for key, shape in wanted.items()} | {"module.layers.2.weight": (4, 4)}
    cure = cure_of(stored, wanted, config={"num_layers": 2})
    assert cure == "set num_layers to 3 in config.json and key_map={'module.{...}': '{...}'}"


def test_a_tensor_that_the_model_can_do_without_has_a_place():
    case = case_of({f"module.{key}": shape for key, shape in WANTED.items()} | {"module.steps": ()}, WANTED)
    case = replace(case, slots=WANTED | {"steps": ()})  # and it is not missing
    assert whole_cure(case, diagnose(case)) == "key_map={'module.{...}': '{...}'}"


def test_experts_that_are_stored_apart_are_not_left_out_for_a_stack_that_is_missing():
    stack, expert = "layers.0.mlp.experts.down_proj", "layers.0.moe.experts.{}.w2.weight"
    wanted = WANTED | {stack: (3, 4, 6)}
    assert cure_of(WANTED | {expert.format(0): (4, 6)}, wanted).startswith(NO_CURE)
    # A table of the same layer is no part of the matrix.
    cure = cure_of(WANTED | {"layers.0.rotary.inv": (4,)}, wanted)
    assert cure == f"allow_missing=['{stack}'] and allow_unexpected=['layers.0.rotary.inv']"
