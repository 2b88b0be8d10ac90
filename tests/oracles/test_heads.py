"""Bases with new heads, and heads left out, for ten families: what is loaded is what transformers loads."""

from __future__ import annotations

import pytest
import torch

from shardload import MismatchError, from_pretrained, report_of

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64}
DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64}
VIT = {**SMALL, "image_size": 16, "patch_size": 8}
ELECTRA = {**SMALL, "embedding_size": 16}
FAMILIES = {
    "Bert": (SMALL, "BertForMaskedLM", "BertForSequenceClassification", "BertModel"),
    "Roberta": (SMALL, "RobertaForMaskedLM", "RobertaForTokenClassification", "RobertaModel"),
    "DistilBert": (DISTIL, "DistilBertForMaskedLM", "DistilBertForQuestionAnswering", "DistilBertModel"),
    "Electra": (ELECTRA, "ElectraForPreTraining", "ElectraForSequenceClassification", "ElectraModel"),
    "Llama": (SMALL, "LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel"),
    "Qwen2": (SMALL, "Qwen2ForCausalLM", "Qwen2ForTokenClassification", "Qwen2Model"),
    "Mistral": (SMALL, "MistralForCausalLM", "MistralForSequenceClassification", "MistralModel"),
    "GPT2": (GPT2, "GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2Model"),
    "DeiT": (VIT, "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel"),
    "Albert": (ELECTRA, "AlbertForMaskedLM", "AlbertForSequenceClassification", "AlbertModel"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["base to head", "head to base", "head to another"])
def test_what_is_loaded_is_what_transformers_loads(family, way, tmp_path):
    settings, head, other, base = FAMILIES[family]
    stored, wanted = {
        "base to head": (base, head),
        "head to base": (head, base),
        "head to another": (head, other),
    }[way]
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    getattr(transformers, stored)(config).save_pretrained(tmp_path)
    cls = getattr(transformers, wanted)
    theirs, told = cls.from_pretrained(tmp_path, output_loading_info=True)
    allow = {}
    try:
        ours = from_pretrained(tmp_path, model_class=cls)
    except MismatchError as error:
        allow = {
            name: "head" for name in ("allow_missing", "allow_unexpected") if f"{name}='head'" in error.cure
        }
        ours = from_pretrained(tmp_path, model_class=cls, **allow)
    new = {
        fault.key
        for faults in report_of(ours).allowed.values()
        for fault in faults
        if fault.kind == "missing"
    }
    assert {name for name in told["missing_keys"] if name in new} == new
    one, two = ours.state_dict(), theirs.state_dict()
    assert one.keys() == two.keys()
    assert [
        name for name in one if name not in told["missing_keys"] and not torch.equal(one[name], two[name])
    ] == []
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
