"""No function that computes swallows an argument: it is computed as transformers does, or refused by name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch

import shardload.transformers_shim as shim
from shardload import UnsupportedError
from shardload.transformers_shim._missing import NotServedError, refuse_unknown
from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.integrations.sdpa_attention import sdpa_attention_forward
from shardload.transformers_shim.loss import loss_utils
from shardload.transformers_shim.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from shardload.transformers_shim.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update


class Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


def inputs(queries: int = 4, keys: int = 4):
    torch.manual_seed(0)
    return torch.randn(2, 4, queries, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)


def plain_attention(query, key, value, bias, seen):
    key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_a_position_bias_is_added_to_the_scores(mask, heads):
    query, key, value = inputs()
    bias, seen = torch.randn(1, heads, 4, 4), torch.ones(4, 4, dtype=torch.bool).tril()
    given = {
        None: None,
        "bool": seen[None, None],
        "float": torch.zeros(1, 1, 4, 4).masked_fill(~seen, torch.finfo(torch.float32).min),
    }[mask]
    found, _ = sdpa_attention_forward(Layer(), query, key, value, given, position_bias=bias)
    torch.testing.assert_close(found, plain_attention(query, key, value, bias, seen))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "head_mask", "sinks", "some_new_thing"])
def test_what_the_kernel_cannot_compute_is_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=f"{name}="):
        sdpa_attention_forward(Layer(), *inputs(), None, **{name: torch.ones(1)})
    sdpa_attention_forward(Layer(), *inputs(), None, **{name: None})


def test_a_window_has_to_be_in_the_mask_or_wider_than_the_keys():
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(UnsupportedError, match="sliding_window="):
        sdpa_attention_forward(Layer(), *inputs(), None, sliding_window=2)
    sdpa_attention_forward(Layer(), *inputs(), seen, sliding_window=2)
    sdpa_attention_forward(Layer(), *inputs(), None, sliding_window=4)


def test_arguments_of_a_forward_are_passed_on_without_effect():
    given = {"position_ids": torch.arange(4)[None], "use_cache": True, "num_items_in_batch": 3}
    plain = sdpa_attention_forward(Layer(), *inputs(), None)[0]
    assert torch.equal(sdpa_attention_forward(Layer(), *inputs(), None, **given)[0], plain)


def test_a_mask_and_is_causal_do_not_exclude_each_other():
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    seen[..., 0] = False
    masked = sdpa_attention_forward(Layer(), *inputs(), seen)[0]
    assert torch.equal(sdpa_attention_forward(Layer(), *inputs(), seen, is_causal=True)[0], masked)


@pytest.mark.parametrize("name", ["ForTokenClassification", "ForSequenceClassification"])
def test_a_loss_divides_by_the_number_of_items(name):
    config = PretrainedConfig(num_labels=3)
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    loss = loss_utils.LOSS_MAPPING[name]
    summed = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    arguments = {"labels": labels, "config": config}
    arguments["pooled_logits" if "Sequence" in name else "logits"] = logits
    torch.testing.assert_close(loss(**arguments, num_items_in_batch=7), summed / 7)
    torch.testing.assert_close(loss(**arguments, use_cache=True), summed / 2)
    with pytest.raises(UnsupportedError, match="label_smoothing="):
        loss(**arguments, label_smoothing=0.1)


def test_a_cache_begins_with_the_pairs_that_it_is_given():
    pairs = [(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)) for _ in range(2)]
    assert DynamicCache(pairs).get_seq_length(1) == 3
    assert torch.equal(DynamicCache(_distributed_cache_data=pairs)[1][1], pairs[1][1])
    assert len(DynamicCache(4)) == len(DynamicCache(config=PretrainedConfig(), offloading=True)) == 0
    with pytest.raises(UnsupportedError, match="nbits="):
        DynamicCache(nbits=4)


def test_frequencies_of_one_kind_of_layer():
    config = PretrainedConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    config.rope_parameters = {
        "near": {"rope_type": "default", "rope_theta": 100.0},
        "far": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    }
    steps = torch.arange(0, 8, 2) / 8
    near, _ = ROPE_INIT_FUNCTIONS["default"](config, layer_type="near")
    far, _ = ROPE_INIT_FUNCTIONS["linear"](config, layer_type="far")
    torch.testing.assert_close(near, 100.0**-steps)
    torch.testing.assert_close(far, 5000.0**-steps / 4)
    with pytest.raises(UnsupportedError, match="ntk_alpha="):
        ROPE_INIT_FUNCTIONS["default"](None, dim=8, base=10.0, ntk_alpha=2)

    class Rotary:
        rope_type = {"near": "default", "far": "dynamic"}  # noqa: RUF012

        @dynamic_rope_update
        def forward(self, x, position_ids, layer_type=None):
            return x

    rotary = Rotary()
    assert rotary.forward(3, None, "near") == 3
    with pytest.raises(UnsupportedError, match="dynamic"):
        rotary.forward(3, None, layer_type="far")


def packed_by_hand(positions: torch.Tensor, window: int = 0) -> torch.Tensor:
    """Every token sees the earlier tokens of its own sequence, which begins where the positions do not go on."""
    length = positions.shape[1]
    seen = torch.zeros(len(positions), 1, length, length, dtype=torch.bool)
    for row, ids in enumerate(positions.tolist()):
        start = 0
        for query in range(length):
            start = query if query and ids[query] != ids[query - 1] + 1 else start
            seen[row, 0, query, max(start, query - window + 1 if window else 0) : query + 1] = True
    return seen


@pytest.mark.parametrize("rows", [[[0, 1, 0, 1, 2, 0]], [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]])
def test_packed_sequences_do_not_see_one_another(rows):
    positions = torch.tensor(rows)
    config = PretrainedConfig(attn_implementation="sdpa")
    embeds = torch.zeros(len(rows), 6, 8)
    mask = create_causal_mask(config, embeds, None, torch.arange(6), None, positions)
    assert torch.equal(mask, packed_by_hand(positions))
    assert create_causal_mask(config, embeds, None, torch.arange(6), None, torch.arange(6)[None]) is None


@pytest.mark.parametrize("make", [create_causal_mask, create_sliding_window_causal_mask])
def test_a_mask_of_another_kind_is_refused_by_name(make):
    config = PretrainedConfig(attn_implementation="sdpa", sliding_window=4)
    plain = (config, torch.zeros(1, 6, 8), None, torch.arange(6), None)
    with pytest.raises(UnsupportedError, match="block_sequence_ids="):
        make(*plain, block_sequence_ids=torch.zeros(1, 6))
    make(*plain, block_sequence_ids=None)


def test_nothing_asked_for_is_nothing_refused():
    refuse_unknown("f", {"a": None, "b": False, "c": 1}, ("c",))
    with pytest.raises(NotServedError, match="a="):
        refuse_unknown("f", {"a": 0})


MAY_SWALLOW = {
    # They refuse, ignore what has no effect on values, or hand the arguments on.
    "_missing.py", "_placeholders.py", "hub_kernels.py", "doc.py", "modeling_flash_attention_utils.py", "generic.py",
    "hub.py",
}  # fmt: skip
HARMLESS = {
    "unwrap_model", "__init__", "_set_gradient_checkpointing", "_has_unfinished_sequences", "register",
    "adjust_logits_during_generation", "_reorder_cache", "save_pretrained", "tokenize", "_decode", "__call__",
    "_update_model_kwargs_for_generation", "from_pretrained", "deprecate_kwarg", "available",
}  # fmt: skip
"""Functions whose unused arguments change no value: each was read beside transformers' own."""


def test_no_other_function_takes_arguments_that_it_does_not_look_at():
    found = set()
    for path in Path(inspect.getfile(shim)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            swallows = isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
            if swallows and node.args.kwarg.arg.startswith("_") and path.name not in MAY_SWALLOW:
                found.add(node.name)
    assert found <= HARMLESS
