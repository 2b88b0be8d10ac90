"""The stand-in ties embeddings as transformers does; where 5.x can serve the same code, it is the oracle."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from shardload import MismatchError, RemoteCodeError, from_pretrained, save
from shardload.transformers_shim._embeddings import EmbeddingsMixin
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from tests.tiny import write_checkpoint

CODE = """
from torch import nn
from transformers import PreTrainedModel, PretrainedConfig

class Config(PretrainedConfig):
    model_type = "tied"
    {config}

class Model(PreTrainedModel):
    config_class = Config
    _tied_weights_keys = {keys}

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(9, 4)
        {early}
        self.head = nn.Linear(4, 9, bias=False)
        {late}

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return self.embed

    {output}
"""
HEAD = "def get_output_embeddings(self): return self.head"
BY_NAME = {"head.weight": "embed.weight"}
TEXT = """def __init__(self, text_config=None, **kwargs):
        self.text_config = PretrainedConfig(**(text_config or {}))
        super().__init__(**kwargs)"""
FIRST = """def __init__(self, tie_word_embeddings=False, **kwargs):
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)"""
TABLE, OTHER = (torch.arange(36.0).view(9, 4) + start for start in (0, 1))


def write(folder, settings, stored, **code):
    parts = {"config": "", "keys": None, "early": "", "late": "self.post_init()", "output": HEAD, **code}
    folder.mkdir(exist_ok=True)
    (folder / "modeling_tied.py").write_text(CODE.format(**parts))
    named = {"AutoConfig": "modeling_tied.Config", "AutoModelForCausalLM": "modeling_tied.Model"}
    write_checkpoint(folder, stored, config={"model_type": "tied", "auto_map": named, **settings})
    return folder


def load(folder, base="shim"):
    return from_pretrained(folder, trust_remote_code=True, remote_base=base)


def is_tied(model):
    return model.head.weight is model.embed.weight


ONE, BOTH = {"embed.weight": TABLE}, {"embed.weight": TABLE, "head.weight": OTHER}


@pytest.mark.parametrize("keys", [None, ["head.weight"]])
@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("stored", [ONE, {"head.weight": TABLE}], ids=["table", "head"])
def test_a_class_that_never_calls_post_init_is_tied_by_the_loader(tmp_path, keys, settings, stored):
    model = load(write(tmp_path, settings, stored, keys=keys, late=""))
    assert is_tied(model)
    assert torch.equal(model.head.weight, TABLE)
    save(model, tmp_path / "saved")
    assert is_tied(load(tmp_path / "saved"))


@pytest.mark.parametrize("late", ["", "self.post_init()"])
def test_nothing_is_tied_where_the_config_says_so(tmp_path, late):
    where = write(tmp_path, {"tie_word_embeddings": False}, BOTH, late=late)
    model = load(where)
    assert not is_tied(model)
    assert torch.equal(model.head.weight, OTHER)
    with pytest.raises(MismatchError, match="1 missing"):
        load(write(tmp_path / "one", {"tie_word_embeddings": False}, ONE, late=late))


def test_two_copies_that_differ_are_an_error_in_a_class_without_post_init_too(tmp_path):
    with pytest.raises(MismatchError, match="one parameter in the model, and differ"):
        load(write(tmp_path, {}, BOTH, late=""))


def test_the_head_is_not_asked_for_where_the_config_ties_nothing(tmp_path):
    """Published: phi-2 of the mixformer kind calls post_init in a part that has no head yet."""
    code = {"early": "self.post_init()", "late": "", "output": HEAD.replace("self.head", "self.head.linear")}
    where = write(tmp_path, {"tie_word_embeddings": False}, BOTH, **code)
    assert not is_tied(load(where))
    with pytest.raises(RemoteCodeError, match="head"):
        load(write(tmp_path / "tied", {}, ONE, **code))


def test_a_head_of_its_own_kind_is_tied_by_the_class(tmp_path):
    """`_tie_weights` of a module runs after the constructor too."""
    code = (
        HEAD.replace("self.head", "None")
        + "\n    def _tie_weights(self): self.head.weight = self.embed.weight"
    )
    assert is_tied(load(write(tmp_path, {}, ONE, late="", output=code)))


CASES = {
    "names": ({"tie_word_embeddings": True}, ONE, {"keys": BY_NAME, "output": ""}),
    "patterns": ({"tie_word_embeddings": True}, ONE, {"keys": {"hea.": "embed"}, "output": ""}),
    "a config that ties nothing": ({"tie_word_embeddings": False}, BOTH, {"keys": BY_NAME}),
    "a config that says it first": ({}, BOTH, {"keys": BY_NAME, "config": FIRST}),
    "a config whose class says it": (
        {}, BOTH, {"keys": BY_NAME, "config": "tie_word_embeddings: bool = False"},
    ),
    "a text config that ties nothing": (
        {"text_config": {"tie_word_embeddings": False}}, BOTH, {"keys": BY_NAME, "config": TEXT},
    ),
    "a text config that would tie": (
        {"text_config": {"tie_word_embeddings": True}, "tie_word_embeddings": False},
        BOTH,
        {"keys": BY_NAME, "config": TEXT},
    ),
}  # fmt: skip


def _has_transformers_5():
    installed = importlib.util.find_spec("transformers") is not None
    return installed and importlib.util.find_spec("transformers.core_model_loading") is not None


@pytest.mark.parametrize("case", CASES)
def test_code_for_transformers_5_is_tied_as_there(tmp_path, case):
    settings, stored, code = CASES[case]
    where = write(tmp_path, settings, stored, **code)
    ours = load(where)
    assert is_tied(ours) is (stored is ONE)
    if _has_transformers_5():
        theirs = load(where, "transformers")
        assert is_tied(theirs) is is_tied(ours)
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_every_second_name_follows_in_turn():
    class Heads(EmbeddingsMixin, nn.Module):
        _tied_weights_keys = {r"heads.(?!0|1)\d": r"heads.(0|1)\."}  # noqa: RUF012

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.heads = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(4))
            self.tie_weights()

    heads = Heads(PretrainedConfig()).heads
    assert heads[2].weight is heads[0].weight
    assert heads[3].weight is heads[1].weight
    assert heads[0].weight is not heads[1].weight
    apart = Heads(PretrainedConfig(tie_word_embeddings=False)).heads
    assert len({id(head.weight) for head in apart}) == 4
