"""shardload.auto: scripts that import their names from transformers run with one changed line."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload import auto
from shardload.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from shardload.cli.demo_repo import write_demo_repo


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return str(write_demo_repo(tmp_path_factory.mktemp("auto") / "repo", formats=("safetensors",)))


def test_a_script_of_2023_runs(where):
    config = AutoConfig.from_pretrained(where, trust_remote_code=True)
    model = AutoModel.from_pretrained(
        where, config=config, trust_remote_code=True, torch_dtype=torch.float32, low_cpu_mem_usage=True
    )
    wanted = shardload.from_pretrained(where, trust_remote_code=True, dtype="float32", auto_class="AutoModel")
    assert type(model).__name__ == type(wanted).__name__
    ids = torch.tensor([[64, 65, 66]])
    assert torch.equal(model(ids).logits, wanted(ids).logits)


def test_the_entry_of_the_name_is_chosen(where):
    loaded = AutoModelForSeq2SeqLM.from_pretrained(where, trust_remote_code=True)
    assert shardload.report_of(loaded).class_from.startswith("modeling_chatglm.")
    with pytest.raises(shardload.UsageError, match="no entry AutoModelForMaskedLM"):
        auto.AutoModelForMaskedLM.from_pretrained(where, trust_remote_code=True)


def test_a_setting_of_the_config_is_passed_on(where):
    assert AutoConfig.from_pretrained(where, trust_remote_code=True, num_layers=3).num_layers == 3
    with pytest.raises(shardload.MismatchError, match="layers"):
        AutoModelForSeq2SeqLM.from_pretrained(where, trust_remote_code=True, num_layers=3)


def test_nothing_is_trusted_by_another_name(where):
    for call in (AutoModel.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(shardload.ShardloadError, match="trust_remote_code"):
            call(where)


@pytest.mark.parametrize("name", [AutoModelForCausalLM, AutoTokenizer])
def test_there_are_no_objects_of_a_name(name):
    with pytest.raises(TypeError, match=rf"call {name.__name__}\.from_pretrained"):
        name()
