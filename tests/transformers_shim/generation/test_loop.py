"""The loop itself: the entry points of the releases before 4.39, and what is recorded of each step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shardload.transformers_shim.generation import GenerationConfig
from shardload.transformers_shim.generation._loop import LoopMixin, Record
from shardload.transformers_shim.generation.utils import GenerationMixin
from tests.transformers_shim.generation.small_repos import PREPARE, likeliest, model, prompt


def test_the_entry_points_before_4_39(tmp_path):
    from shardload.transformers_shim.generation import (
        LogitsProcessorList,
        MaxLengthCriteria,
        StoppingCriteriaList,
        TopKLogitsWarper,
    )

    made = model(tmp_path)
    mask = torch.ones(1, 5, dtype=torch.long)
    criteria = StoppingCriteriaList([MaxLengthCriteria(11)])
    greedy = made.greedy_search(prompt(), stopping_criteria=criteria, attention_mask=mask, use_cache=True)
    assert greedy[0].tolist() == likeliest(made, prompt(), 6)
    torch.manual_seed(0)
    sampled = made.sample(
        prompt(),
        logits_processor=LogitsProcessorList(),
        stopping_criteria=criteria,
        logits_warper=LogitsProcessorList([TopKLogitsWarper(4)]),
        attention_mask=mask,
        use_cache=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    torch.manual_seed(0)
    assert torch.equal(sampled.sequences, made.generate(prompt(), do_sample=True, top_k=4, max_length=11))
    assert len(sampled.scores) == 6
    first = greedy[0, 5].item()
    ended = made.greedy_search(prompt(), max_length=30, eos_token_id=first, attention_mask=mask)
    assert ended.shape == (1, 6)
    with pytest.raises(ValueError, match="nothing would end"):
        made.greedy_search(prompt())


OWN_SAMPLE = """
    def sample(self, input_ids, logits_processor=None, stopping_criteria=None, logits_warper=None,
               pad_token_id=None, eos_token_id=None, output_scores=None, return_dict_in_generate=None,
               synced_gpus=False, streamer=None, **model_kwargs):
        assert len(logits_warper) == 1 and model_kwargs["use_cache"]
        return torch.cat([input_ids, torch.tensor([[pad_token_id]])], 1)
"""


def test_a_sample_of_the_repos_own(tmp_path):
    made = model(tmp_path, PREPARE + OWN_SAMPLE)
    ids = made.generate(prompt(), do_sample=True, top_k=3, max_new_tokens=5, pad_token_id=9)
    assert ids[0].tolist() == [3, 1, 4, 1, 5, 9]
    assert made.generate(prompt(), max_new_tokens=5)[0].tolist() == likeliest(made, prompt(), 5)


@pytest.mark.parametrize("name", ["greedy_search", "_greedy_search"])
def test_a_greedy_loop_of_the_classs_own_is_the_one_that_runs(tmp_path, name):
    own = f"""
    def {name}(self, input_ids, logits_processor=None, stopping_criteria=None, eos_token_id=None, **kwargs):
        self.ran = sorted(kwargs)
        while True:
            input_ids = torch.cat([input_ids, torch.full_like(input_ids[:, :1], 7)], 1)
            if bool(torch.as_tensor(stopping_criteria(input_ids, None)).all()):
                return input_ids
"""
    made = model(tmp_path, PREPARE + own)
    assert made.generate(prompt(), max_new_tokens=3)[0, -4:].tolist() == [5, 7, 7, 7]
    assert {"pad_token_id", "streamer", "synced_gpus", "use_cache"} <= set(made.ran)


def test_every_entry_point_is_the_loops_own():
    for name in ("sample", "greedy_search", "_greedy_search", "_sample"):
        assert getattr(GenerationMixin, name) is getattr(LoopMixin, name)


def test_a_loop_that_nothing_would_end_is_refused(tmp_path):
    made = model(tmp_path)
    with pytest.raises(ValueError, match="nothing would end the text"):
        made.greedy_search(prompt())
    assert made.greedy_search(prompt(), max_length=7)[0].tolist() == likeliest(made, prompt(), 2)


def test_a_record_keeps_what_is_asked_for_and_nothing_else():
    step = SimpleNamespace(attentions=("a",), hidden_states=("h",), decoder_attentions=None)
    scores, logits = torch.ones(1, 3), torch.zeros(1, 3)
    none = Record(GenerationConfig(output_scores=True))
    none.keep(step, scores, logits)
    assert none.scores is None
    assert none.output(SimpleNamespace(), "ids", {}) == "ids"
    record = Record(
        GenerationConfig(return_dict_in_generate=True, output_scores=True, output_attentions=True)
    )
    assert record.wanted_of_model == {"output_attentions": True, "output_hidden_states": False}
    record.keep(step, scores, logits)
    record.keep(step, 2 * scores, logits)
    output = record.output(
        SimpleNamespace(is_encoder_decoder=False), torch.ones(1, 2), {"past_key_values": "cache"}
    )
    assert [kept[0, 0].item() for kept in output.scores] == [1, 2]
    assert output.attentions == (("a",), ("a",))
    assert output.logits is output.hidden_states is None
    assert output.past_key_values == "cache"


def test_a_decoders_own_values_come_before_the_models():
    step = SimpleNamespace(
        attentions=None, decoder_attentions=("d",), decoder_hidden_states=("h",), cross_attentions=("c",)
    )
    record = Record(
        GenerationConfig(return_dict_in_generate=True, output_attentions=True, output_hidden_states=True)
    )
    record.keep(step, torch.ones(1, 1), torch.ones(1, 1))
    encoder = {"attentions": "e", "hidden_states": None}
    output = record.output(
        SimpleNamespace(is_encoder_decoder=True), torch.ones(1, 2), {"encoder_outputs": encoder}
    )
    assert (output.decoder_attentions, output.cross_attentions) == ((("d",),), (("c",),))
    assert (output.encoder_attentions, output.decoder_hidden_states) == ("e", (("h",),))
