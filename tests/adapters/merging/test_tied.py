"""Merges on disk into bases whose head is tied to the embedding, by config and headers."""

from __future__ import annotations

import pytest
import torch

from shardload import MismatchError, UnsupportedError, open_checkpoint
from shardload.adapters.adapter import ReadOptions
from shardload.adapters.merging.changes import changes_on_disk
from shardload.adapters.merging.tied import has_to_be_untied
from shardload.where import Where
from tests.adapters.tiny import PREFIX, config, write
from tests.tiny import write_checkpoint


def changes(base, adapter):
    return changes_on_disk(open_checkpoint(base), [adapter], ReadOptions(), Where(base))[0]


def test_a_head_that_is_stored_beside_the_embedding_is_taken_apart(tmp_path):
    state = {"model.embed_tokens.weight": torch.ones(10, 4), "lm_head.weight": torch.ones(10, 4)}
    tensors = {f"{PREFIX}lm_head.lora_A.weight": torch.ones(2, 4)}
    tensors |= {f"{PREFIX}lm_head.lora_B.weight": torch.ones(10, 2)}
    adapter = write(tmp_path / "a", tensors)
    for tied in (True, False):
        said = {"architectures": ["TinyForCausalLM"], "vocab_size": 10, "tie_word_embeddings": tied}
        base = write_checkpoint(tmp_path / str(tied), state, config=said)
        assert has_to_be_untied(open_checkpoint(base), changes(base, adapter)) is tied


def lora_of(folder, module, shape):
    rows, columns = shape
    factors = {"lora_embedding_A": torch.ones(2, rows), "lora_embedding_B": torch.ones(columns, 2)}
    return write(folder, {f"{PREFIX}{module}.{name}": tensor for name, tensor in factors.items()})


@pytest.mark.parametrize(
    ("architecture", "embedding", "beside"),
    [
        ("GPT2LMHeadModel", "transformer.wte", {"transformer.wpe": (10, 4)}),
        ("GPT2LMHeadModel", "transformer.wte", {"transformer.h.0.mlp.c_proj": (10, 4)}),
        (
            "BertForMaskedLM",
            "bert.embeddings.word_embeddings",
            {"bert.embeddings.position_embeddings": (10, 4)},
        ),
        ("TinyForCausalLM", "table", {"layers.0.q_proj": (10, 4)}),
        (
            "BartForConditionalGeneration",
            "model.shared",
            {"model.encoder.embed_tokens": (10, 4), "model.decoder.embed_positions": (10, 4)},
        ),
    ],
)
@pytest.mark.parametrize("tied", [True, None])
def test_what_has_as_many_rows_as_the_vocabulary_is_no_head(tmp_path, architecture, embedding, beside, tied):
    said = {"architectures": [architecture], "vocab_size": 10}
    said |= {} if tied is None else {"tie_word_embeddings": tied}
    state = {f"{name}.weight": torch.ones(shape) for name, shape in {embedding: (10, 4), **beside}.items()}
    base = write_checkpoint(tmp_path / "base", state, config=said)
    adapter = lora_of(tmp_path / "a", embedding, (10, 4))
    with pytest.raises(UnsupportedError, match="which is the output layer too") as caught:
        has_to_be_untied(open_checkpoint(base), changes(base, adapter))
    assert "merge in memory" in caught.value.cure


@pytest.mark.parametrize(
    "head",
    ["lm_head", "cls.predictions.decoder", "lm_head.decoder", "embed_out", "output", "vocab_projector"],
)
@pytest.mark.parametrize("tied", [True, None])
def test_a_stored_head_is_known_by_its_name(tmp_path, head, tied):
    said = {"architectures": ["TinyForMaskedLM"], "vocab_size": 10}
    said |= {} if tied is None else {"tie_word_embeddings": tied}
    state = {"model.embed_tokens.weight": torch.ones(10, 4), f"{head}.weight": torch.ones(10, 4)}
    base = write_checkpoint(tmp_path / "base", state, config=said)
    adapter = lora_of(tmp_path / "a", "model.embed_tokens", (10, 4))
    assert has_to_be_untied(open_checkpoint(base), changes(base, adapter))


def test_a_layer_of_a_square_shape_is_no_embedding(tmp_path):
    said = {"architectures": ["TinyForCausalLM"], "vocab_size": 10, "tie_word_embeddings": True}
    state = {"model.embed_tokens.weight": torch.ones(10, 10), "model.q_proj.weight": torch.ones(10, 10)}
    tensors = {f"{PREFIX}model.q_proj.lora_A.weight": torch.ones(2, 10)}
    tensors |= {f"{PREFIX}model.q_proj.lora_B.weight": torch.ones(10, 2)}
    base = write_checkpoint(tmp_path / "base", state, config=said)
    adapter = write(tmp_path / "a", tensors)
    assert not has_to_be_untied(open_checkpoint(base), changes(base, adapter))


@pytest.mark.parametrize("tied", [True, None])
@pytest.mark.parametrize("what", ["lora", "saved", "rows"])
def test_a_head_that_is_not_stored_is_tied_and_merged_in_memory(tmp_path, what, tied):
    said = {"architectures": ["TinyForCausalLM"], "vocab_size": 10}
    said |= {} if tied is None else {"tie_word_embeddings": tied}
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": torch.ones(10, 4)}, config=said)
    tensors = {
        "lora": {"lm_head.lora_A.weight": torch.ones(2, 4), "lm_head.lora_B.weight": torch.ones(10, 2)},
        "saved": {"lm_head.weight": torch.ones(10, 4)},
        "rows": {"lm_head.token_adapter.trainable_tokens_delta": torch.ones(1, 4)},
    }[what]
    settings = config(modules_to_save=["lm_head"] if what == "saved" else None)
    settings |= {"trainable_token_indices": {"lm_head": [3]}} if what == "rows" else {}
    folder = write(tmp_path / "a", {PREFIX + name: tensor for name, tensor in tensors.items()}, settings)
    with pytest.raises(UnsupportedError, match="which the base does not store") as caught:
        changes(base, folder)
    assert caught.value.where.startswith("lm_head of")
    assert "merge in memory" in caught.value.cure


def test_a_head_that_the_base_lacks_though_it_is_untied_is_no_module(tmp_path):
    said = {"architectures": ["TinyForCausalLM"], "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": torch.ones(10, 4)}, config=said)
    tensors = {f"{PREFIX}lm_head.lora_A.weight": torch.ones(2, 4)}
    tensors |= {f"{PREFIX}lm_head.lora_B.weight": torch.ones(10, 2)}
    with pytest.raises(MismatchError, match="disagree"):
        changes(base, write(tmp_path / "a", tensors))
