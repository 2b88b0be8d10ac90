"""Tables that classes of transformers compute, in a checkpoint of half precision: its own loader is the oracle."""

from __future__ import annotations

import pytest
import torch

from shardload import build_shell, from_pretrained
from shardload.model.rebuild import class_values
from tests.tiny import assert_same_state, meta_names

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SPEECH = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
GPT = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "rotary_dim": 8,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
RWKV = {**SMALL, "context_length": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

CLASSES = {
    "table cast to the default dtype": ("M2M100Model", {"d_model": 16, "vocab_size": 64, **SPEECH}),
    "the same, without layers of its own": ("XGLMModel", {"d_model": 16, "vocab_size": 64, "num_layers": 1}),
    "table of .float()": ("GPTJModel", GPT),
    "table of a named dtype": ("LlamaModel", {**SMALL, **HEADS}),
    "slopes": ("MptModel", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64}),
    "tables of a vision tower": ("SiglipVisionModel", {**SMALL, **HEADS, "image_size": 16, "patch_size": 8}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", CLASSES)
def test_tables_are_those_of_transformers_own_loader(kind, dtype, tmp_path):
    name, settings = CLASSES[kind]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    cls(cls.config_class(**settings)).to(dtype).save_pretrained(tmp_path)
    theirs = cls.from_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, model_class=cls, config=cls.config_class.from_pretrained(tmp_path))
    assert_same_state(ours, theirs)
    assert meta_names(ours) == []
    for (path, buffer), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert buffer.dtype == other.dtype, path
        assert torch.equal(buffer, other), path


def test_initial_values_that_come_from_tables_are_those_of_the_class():
    def make() -> torch.nn.Module:
        return transformers.RwkvModel(transformers.RwkvConfig(**RWKV))

    shell, real = build_shell(make), dict(make().named_parameters())
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    names = [name for name in real if "time_" in name]
    values = class_values(shell, names)
    assert len(names) == 14
    for name in names:
        assert torch.equal(values[name], real[name]), name


@pytest.mark.parametrize("name", ["DFineModel", "Deimv2Model", "PPDocLayoutV3Model", "PPDocLayoutV4Model"])
def test_a_class_that_copies_its_normalisations_has_all_parameters_on_meta(name):
    cls = getattr(transformers, name)
    model = build_shell(lambda: cls(cls.config_class())).model
    assert all(parameter.is_meta for parameter in model.parameters())
    with torch.device("meta"):
        other = cls(cls.config_class())
    expected = {path: (one.shape, one.dtype) for path, one in other.state_dict().items()}
    assert {path: (one.shape, one.dtype) for path, one in model.state_dict().items()} == expected
