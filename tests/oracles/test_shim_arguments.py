"""Arguments of attention, losses, masks and frequencies: the same functions of transformers are the oracle."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.integrations.sdpa_attention import sdpa_attention_forward
from shardload.transformers_shim.loss.loss_utils import LOSS_MAPPING
from shardload.transformers_shim.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from shardload.transformers_shim.modeling_rope_utils import ROPE_INIT_FUNCTIONS

transformers = pytest.importorskip("transformers")


class Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("is_causal", [None, True, False])
def test_a_position_bias(mask, heads, queries, is_causal):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as theirs

    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    seen = torch.ones(1, 1, queries, 5, dtype=torch.bool).tril(5 - queries)
    given = {None: None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -1e30)}[mask]
    bias = torch.randn(1, heads, queries, 5)
    arguments = (Layer(), query, key, value, given)
    for extra in ({}, {"position_bias": bias}):
        found = sdpa_attention_forward(*arguments, is_causal=is_causal, **extra)[0]
        torch.testing.assert_close(found, theirs(*arguments, is_causal=is_causal, **extra)[0])


@pytest.mark.parametrize("name", ["ForTokenClassification", "ForSequenceClassification", "ForCausalLM"])
@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": 7}, {"use_cache": True}])
def test_losses(name, extra):
    from transformers.loss.loss_utils import LOSS_MAPPING as THEIRS

    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    arguments = {"labels": labels, **extra}
    arguments["pooled_logits" if "Sequence" in name else "logits"] = logits
    if name == "ForCausalLM":
        arguments |= {"vocab_size": 3, "labels": labels[None], "logits": logits[None]}
    ours = (
        LOSS_MAPPING[name](**arguments, config=PretrainedConfig(num_labels=3))
        if name != "ForCausalLM"
        else (LOSS_MAPPING[name](**arguments))
    )
    config = {} if name == "ForCausalLM" else {"config": transformers.PretrainedConfig(num_labels=3)}
    torch.testing.assert_close(ours, THEIRS[name](**arguments, **config))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize(
    "rows", [[[0, 1, 0, 1, 2, 0]], [[0, 1, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8]], [[0, 1, 2, 3, 4, 5]]]
)
def test_masks_of_packed_sequences(implementation, window, rows):
    from transformers import masking_utils as theirs

    positions, embeds = torch.tensor(rows), torch.zeros(len(rows), 6, 8)
    config = transformers.LlamaConfig(attn_implementation=implementation, sliding_window=window or None)
    ours = create_sliding_window_causal_mask if window else create_causal_mask
    found = ours(config, embeds, None, torch.arange(6), None, positions)
    expected = getattr(theirs, ours.__name__)(
        config=config, inputs_embeds=embeds, attention_mask=None, past_key_values=None, position_ids=positions
    )
    assert (found is None) == (expected is None)
    if found is not None:
        assert torch.equal(found.expand_as(expected), expected)


def test_frequencies_of_one_kind_of_layer():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS as THEIRS

    config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    config.rope_parameters = {
        "near": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        "far": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    }
    for kind in ("near", "far"):
        found, scale = ROPE_INIT_FUNCTIONS["linear"](config, "cpu", layer_type=kind)
        expected, their_scale = THEIRS["linear"](config, "cpu", layer_type=kind)
        torch.testing.assert_close(found, expected)
        assert scale == their_scale
