"""Checkpoints with strangers in them: a map gives the model its own tensors, or none and both candidates are listed."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

from shardload import MismatchError, UnsupportedError, build_shell, fill, open_checkpoint
from shardload.diagnosis import diagnose
from tests.diagnosis.scoring import case_of_state, realised
from tests.diagnosis.strangers import CHANGES, estranged, two_stored, two_wanted
from tests.diagnosis.test_damage import doubtful

COUNT = 60


def wrong_keys(case, wanted, stored):
    """Return the model's keys that the map fills with other values, without saying that they are unproven."""
    blob = torch.cat([value.flatten() for value in stored.values()])
    table = case.solution.key_map.map_headers(dict(case.stored)).tensors
    allowed, own = doubtful(case), case.solution.names
    return [
        key
        for key, value in wanted.items()
        if (made := table.get(key)) is not None
        and key not in allowed
        and own.get(made.name) != key  # its own name, where no header shows that it is another's
        and made.shape == value.shape
        and not torch.equal(realised(made, blob), value)
    ]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_stranger_gets_into_the_model(change):
    for seed in range(COUNT):
        wanted, stored, classes, done = estranged(Random(seed), change)
        case = case_of_state(stored, wanted, classes)
        assert not wrong_keys(case, wanted, stored), (seed, done)


@pytest.mark.parametrize("change", [two_stored, two_wanted], ids=lambda change: change.__name__)
def test_of_two_whole_sets_both_are_listed(change):
    for seed in range(COUNT):
        wanted, stored, classes, done = estranged(Random(seed), change)
        case = case_of_state(stored, wanted, classes)
        found = {finding.code: finding for finding in diagnose(case)}
        if "E-RANK" in found or "E-ZERO3" in found:
            continue
        assert "E-AMBIGUOUS" in found, (seed, done, list(found))
        for rival in case.solution.rivals:
            assert any(rival.segments in line for line in found["E-AMBIGUOUS"].evidence)


def test_the_cure_of_two_sets_takes_the_one_that_it_names(tmp_path):
    torch.manual_seed(1)
    sets = {name: nn.Linear(4, 3).state_dict() for name in ("student", "teacher")}
    torch.save(
        {f"{name}.{key}": value for name in sets for key, value in sets[name].items()}, tmp_path / "x.pt"
    )
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(MismatchError) as caught:
        fill(build_shell(lambda: nn.Linear(4, 3)), checkpoint)
    assert caught.value.code == "E-AMBIGUOUS"
    assert caught.value.report.key_map is None
    (finding,) = caught.value.report.findings
    for name, cure in zip(sets, finding.cure.parts, strict=True):
        shell = build_shell(lambda: nn.Linear(4, 3))
        fill(shell, checkpoint, **cure.keywords)
        assert torch.equal(shell.model.weight, sets[name]["weight"])


# One for each kind: what the checkpoint has, what the model wants, what nothing may be paired with.
GUESSES = {
    "a pooler is not another head": (
        {"embed.weight": (9, 4), "pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)},
        {"embed.weight": (9, 4), "cls.transform.dense.weight": (4, 4), "cls.transform.dense.bias": (4,), "cls.x": (4,)},
    ),
    "a head is not another, though nothing else is left": (
        {"embed.weight": (9, 4), "fc.weight": (4, 4), "pooler.dense.weight": (4, 4)},
        {"embed.weight": (9, 4), "fc.weight": (4, 4), "score.dense.weight": (4, 4)},
    ),
    "an encoder is not a decoder": (
        {f"encoder.layers.{n}.q_proj.weight": (4, 4) for n in range(3)},
        {f"decoder.layers.{n}.q_proj.weight": (4, 4) for n in range(3)},
    ),
    "a generator is not a discriminator": (
        {"generator.conv1.weight": (4, 3, 3, 3), "generator.conv2.weight": (4, 4, 3, 3)},
        {"discriminator.conv1.weight": (4, 3, 3, 3), "discriminator.conv2.weight": (4, 4, 3, 3)},
    ),
    "q is not k": ({"attn.q_proj.weight": (4, 4)}, {"attn.k_proj.weight": (4, 4)}),
    "a bias is not a weight": ({"norm.bias": (4,), "fc.weight": (3, 4)}, {"norm.weight": (4,), "fc.weight": (3, 4)}),
    "a scale is not its weight": (
        {"mlp.gate_up_proj_scales": (4, 8, 2), "mlp.gate_up_proj_blocks": (4, 8, 2, 16)},
        {"mlp.gate_up_proj": (4, 8, 64)},
    ),
    "factors of equal shape": (
        {"l.first.weight": (4, 4), "l.second.weight": (4, 4)},
        {"l.lora_A.weight": (4, 4), "l.lora_B.weight": (4, 4)},
    ),
    "layers keep their order": (
        {f"layers.{n}.{('conv', 'attn')[n % 2]}.weight": (4, 4) for n in range(4)},
        {f"layers.{n}.{('attn', 'conv')[n % 2]}.weight": (4, 4) for n in range(4)},
    ),
    "counted from one, with a layer less": (
        {f"h.{n}.attn.weight": (4, 4) for n in range(1, 5)},
        {f"layers.{n}.attn.weight": (4, 4) for n in range(5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stored", "wanted"), GUESSES.values(), ids=list(GUESSES))
def test_what_shapes_alone_suggest_is_not_proposed(stored, wanted):
    state = {key: torch.zeros(shape, dtype=torch.int32) for key, shape in stored.items()}
    target = {key: torch.zeros(shape, dtype=torch.int32) for key, shape in wanted.items()}
    case = case_of_state(state, target, {})
    made = case.solution.key_map.map_headers(dict(case.stored)).tensors
    assert {key: ref.name for key, ref in made.items() if key in wanted and ref.name != key} == {}


def test_what_is_proposed_without_a_proof_says_so_on_the_map_of_the_error(tmp_path):
    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)

    state = Rotary().state_dict()
    torch.save(
        {("wq.weight" if key == "q_proj.weight" else key): state[key] for key in state}, tmp_path / "x.pt"
    )
    with pytest.raises((MismatchError, UnsupportedError)) as caught:
        fill(build_shell(Rotary), open_checkpoint(tmp_path / "x.pt"))
    report = caught.value.report
    assert report.findings[0].unproven
    assert report.key_map.unproven == report.findings[0].unproven
    assert report.key_map.confidence == report.findings[0].confidence
