"""What `transformers` is for code that parts serve."""

from __future__ import annotations

import pytest
import torch

from shardload.errors import RemoteCodeError
from shardload.library_parts import front
from shardload.library_parts.importer import part_module
from shardload.library_parts.release import is_part
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_utils import PreTrainedModel
from tests.remote_code.repos import build, tiny, write

transformers = pytest.importorskip("transformers")

MODEL = """
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, LlamaConfig, LlamaModel, AutoTokenizer, LlamaTokenizerFast
from transformers.models.llama.modeling_llama import LlamaFlashAttention2, LlamaRMSNorm, rotate_half
from transformers.models.qwen2 import Qwen2Model
import transformers.models.bert.modeling_bert as bert
from transformers.models.bert import modeling_bert
try:
    from transformers.models.llama.modeling_llama import LlamaNoSuchThing
except ImportError:
    LlamaNoSuchThing = None

from .configuration_tiny import TinyConfig
HAS = (hasattr(transformers, "Qwen2ForCausalLM"), hasattr(transformers, "NoSuchThing"))

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = LlamaRMSNorm(4)
        self.linear = nn.Linear(4, 4)
"""


def module_of(folder, model=MODEL, base="parts"):
    import sys

    made = build(*tiny(folder, model=model), remote_base=base)
    return sys.modules[type(made).__module__], made


def test_a_repo_gets_the_stand_in_parts_real_tokenizers_and_placeholders(tmp_path):
    code, made = module_of(tmp_path)
    assert (code.PreTrainedModel, code.PretrainedConfig) == (PreTrainedModel, PretrainedConfig)
    for part in (code.LlamaConfig, code.LlamaModel, code.LlamaRMSNorm, code.Qwen2Model, code.bert.BertModel):
        assert is_part(part)
    assert code.bert is code.modeling_bert
    assert (
        code.AutoTokenizer._guarded is transformers.AutoTokenizer
    )  # which runs no code that was not approved
    assert code.LlamaTokenizerFast is transformers.LlamaTokenizerFast
    assert code.LlamaNoSuchThing is None
    assert code.HAS == (True, False)
    assert type(made.norm) is part_module("models.llama.modeling_llama").LlamaRMSNorm
    if not hasattr(transformers.models.llama.modeling_llama, "LlamaFlashAttention2"):
        with pytest.raises(RemoteCodeError, match="LlamaFlashAttention2"):
            code.LlamaFlashAttention2()


def test_a_name_that_nobody_has_is_told(tmp_path):
    with pytest.raises(RemoteCodeError, match="dynamic_module_utils"):
        module_of(tmp_path, "from transformers.dynamic_module_utils import get_class_in_module\n" + MODEL)


def test_a_file_that_fails_leaves_the_placeholder(tmp_path, monkeypatch):
    monkeypatch.setitem(front._failed, "models.llama.modeling_llama", "it failed")
    code = MODEL.replace("LlamaRMSNorm(4)", "nn.Identity()").replace(", rotate_half", "")
    module, _ = module_of(tmp_path, code)
    assert not is_part(module.LlamaModel)
    assert front.failures()["models.llama.modeling_llama"] == "it failed"
    with pytest.raises(RemoteCodeError, match="LlamaModel"):
        module.LlamaModel(None)


def test_a_part_sees_its_own_spelling():
    config = part_module("models.llama.configuration_llama").LlamaConfig
    assert issubclass(config, PretrainedConfig)
    assert front.module_for_part("modeling_utils").PreTrainedModel is not PreTrainedModel
    assert issubclass(front.module_for_part("modeling_utils").PreTrainedModel, PreTrainedModel)
    assert front.module_for_part("utils").is_no_such_thing_available() is False


STAR = """
from transformers.models.llama.modeling_llama import *
from transformers.modeling_outputs import TokenClassifierOutput
from transformers import *

def _mask(size: torch.Size, dtype: torch.dtype, length: Optional[int] = None):
    return None

@add_start_docstrings("x", LLAMA_START_DOCSTRING)
class TinyModel(LlamaPreTrainedModel):
    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config) for _ in range(2)])
        self.other = BertPreTrainedModel

    def forward(self, states, past_key_values=None, use_cache=True):
        pairs = []
        for place, layer in enumerate(self.layers):
            past = past_key_values[place] if past_key_values else None
            states, pair = layer(states, past_key_value=past, use_cache=use_cache)
            pairs.append(pair)
        return states, tuple(pairs)
"""


def test_a_star_import_brings_what_older_files_had(tmp_path):
    settings = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 19, "model_type": "llama",
    }  # fmt: skip
    source = write(tmp_path, {"code.py": STAR}, {**settings, "auto_map": {"AutoModel": "code.TinyModel"}})
    made = build(*source, remote_base="auto").eval()
    assert is_part(made.other)
    assert type(made.config) is part_module("models.llama.configuration_llama").LlamaConfig
    states = torch.randn(1, 5, 16)
    with torch.no_grad():
        whole, pairs = made(states)
        _, begun = made(states[:, :3])
        rest, again = made(states[:, 3:4], begun)
    assert [key.shape for key, _ in pairs] == [(1, 2, 5, 4)] * 2
    assert torch.allclose(rest, whole[:, 3:4], atol=1e-6)
    assert again[0][0].shape == (1, 2, 4, 4)
