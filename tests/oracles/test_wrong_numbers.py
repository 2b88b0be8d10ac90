"""A config.json with one wrong number beside weights of transformers' classes: its cure loads them."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import MismatchError, from_pretrained
from tests.cures.kinds import choices
from tests.cures.typed import typed

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
SQUARE = {"hidden_size": 64, "intermediate_size": 64}
BERT = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32, "num_labels": 7,
}  # fmt: skip
THREE = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "cured"),
    [
        # Another field has the number that the wrong one says.
        ("Llama", LLAMA, {"hidden_size": 64, "head_dim": None}, {"hidden_size"}),
        ("Llama", {**LLAMA, **SQUARE}, {"intermediate_size": 32}, {"intermediate_size"}),
        # Wider heads are not more heads, whose number is a factor of the same sizes.
        ("Llama", {**LLAMA, "head_dim": 16}, {"head_dim": None}, None),
        ("Llama", {**LLAMA, "head_dim": 16, "num_key_value_heads": 4}, {"head_dim": None}, None),
        ("Qwen3", {**LLAMA, "head_dim": 16}, {"head_dim": 8}, {"head_dim"}),
        ("Qwen3", {**LLAMA, "head_dim": 8}, {"num_key_value_heads": 4}, {"num_key_value_heads"}),
        # The number of a label is no size; how many there are is one.
        ("Bert", BERT, THREE, {"num_labels"}),
        ("Bert", BERT, {"num_labels": 3}, {"num_labels"}),
    ],
)  # fmt: skip
def test_the_cure_of_one_wrong_number(kind, right, wrong, cured, tmp_path):
    head = "ForSequenceClassification" if kind == "Bert" else "ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(**right, architectures=[f"{kind}{head}"])
    model = getattr(transformers, f"{kind}{head}")(config)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(MismatchError) as caught:
        from_pretrained(tmp_path, progress=False)
    steps = typed(str(choices(caught.value.cure)[0]))
    assert set(steps.fields) == (cured or set()), caught.value.cure
    if cured is None:
        assert "no cure is known" in caught.value.cure
        return
    steps.edit(tmp_path)
    loaded = from_pretrained(tmp_path, progress=False).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
