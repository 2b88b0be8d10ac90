"""from_pretrained over ranks: FSDP by structure, tensor parallelism by names or by a class's own plan."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from shardload import UsageError, attach_lora, from_pretrained, save, save_adapter
from shardload.cli.demo_repo import write_demo_repo
from shardload.placement.layout import Layout
from tests.distributed.nets import NETS
from tests.distributed.spawn import run_ranks

CASES = {
    "Tied:fsdp": "ok",
    "Tied:sizes": "ok",
    "Tied:tp": "ok",
    "Tied:once": "ok",
    "Fused:fsdp": "ok",
    "Uneven:lora+fsdp": "ok",
    "Uneven:lora+tp": "ok",
    "Uneven:lora+merge": "UnsupportedError: merge=… is not for a model that is sharded while it is loaded",
    "glm:fsdp": "ok",
    "glm:tp": "ok",
    "glm:fused": "UnsupportedError: the output of transformer.encoder.layers.0.mlp.dense_h_to_4h is fused of several",
    "Tied:half": "UnsupportedError: the plan cuts names of one parameter in different ways",
    "Tied:nowhere": "UsageError: no module of the model is 'layers.*.upp'",
    "Tied:auto": "UnsupportedError: Tied brings no plan",
    "none:fsdp": "NotFoundError",
    "Uneven:drawn": "ok",
}
OF_TRANSFORMERS = {
    "llama:auto": "ok",
    "llama:fsdp": "ok",
    "mixtral:auto": "ok",
    "tied:fsdp": "ok",
    "tied:alike": "ok",
    "tied:auto": "ok",
    "tied:half": "UsageError: transformers can't shard LlamaForCausalLM so: `tp_plan` keys ['embed']",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name in ("Tied", "Fused", "Uneven"):
        torch.manual_seed(3)
        save(NETS[name](), folder / name)
        (folder / name / "config.json").write_text("{}")
    torch.manual_seed(3)
    model = NETS["Uneven"]()
    attach_lora(model, r=3, targets=["layers.0.up", "layers.1.down"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder / "adapter")
    write_demo_repo(folder / "glm", formats=["safetensors"])
    cases = dict(CASES)
    if find_spec("transformers"):
        from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=100)).save_pretrained(folder / "llama")
        tied = LlamaConfig(**sizes, vocab_size=100, tie_word_embeddings=True)
        LlamaForCausalLM(tied).save_pretrained(folder / "tied")
        experts = MixtralConfig(**sizes, vocab_size=100, num_key_value_heads=2, num_local_experts=3)
        MixtralForCausalLM(experts).save_pretrained(folder / "mixtral")
        cases |= OF_TRANSFORMERS
    ranks = run_ranks("tests.distributed.whole", 2, ",".join(cases), folder)
    assert all(rank.code == 0 for rank in ranks), "\n".join(rank.said[-2000:] for rank in ranks)
    return {
        case: [line["said"] for rank in ranks for line in rank.lines if line["case"] == case]
        for case in cases
    }


@pytest.mark.parametrize("case", [*CASES, *OF_TRANSFORMERS])
def test_one_call_gives_each_rank_its_part_or_refuses_by_name(said, case):
    if case not in said:
        return  # transformers is not installed
    assert len(said[case]) == 2
    told = [
        re.sub(r": rank \d: ", ": ", line, count=1) for line in said[case]
    ]  # what is refused before the ranks meet
    assert all(line.startswith({**CASES, **OF_TRANSFORMERS}[case]) for line in told), told


def test_a_process_without_ranks_is_told_to_make_some(tmp_path):
    save(nn.Linear(4, 2), tmp_path)
    with pytest.raises(UsageError, match="process group"):
        from_pretrained(tmp_path, model_class=lambda _config: nn.Linear(4, 2), tp_plan="auto")
    with pytest.raises(UsageError, match="process group"):
        Layout.of(None, None, {"fsdp_size": 2})
