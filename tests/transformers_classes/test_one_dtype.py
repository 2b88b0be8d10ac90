"""The one dtype in which classes of transformers are loaded; the oracle is transformers."""

from __future__ import annotations

import pytest
import torch

from shardload import build_shell, fill, from_pretrained, open_checkpoint, plan_load, report_of
from tests.tiny import write_checkpoint
from tests.transformers_classes.releases import DTYPE, RELEASE

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
}  # fmt: skip


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def clip():
    parts = {**SMALL, "image_size": 16, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=parts, vision_config=parts))


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64)
    )


@pytest.fixture(params=[llama, clip, t5], ids=lambda make: make.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param()


def write(model, folder, *, named, stored):
    """Write a model whose config names one dtype, with norms in float32 and the rest in `stored`."""
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    config.pop(DTYPE, None)
    if named is not None:
        config[DTYPE] = named
    state = {
        name: tensor if "norm" in name or not tensor.is_floating_point() else tensor.to(stored)
        for name, tensor in model.state_dict().items()
    }
    write_checkpoint(folder, state, config=config, shards=1)


def assert_same(ours, theirs):
    one, other = ours.state_dict(), theirs.state_dict()
    assert {name: tensor.dtype for name, tensor in one.items()} == {
        name: tensor.dtype for name, tensor in other.items()
    }
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    parts = [
        getattr(model.config, name)
        for name in getattr(type(ours.config), "sub_configs", ())
        for model in (ours, theirs)
    ]
    for own, other in ((ours.config, theirs.config), *zip(parts[::2], parts[1::2], strict=True)):
        named = getattr(other, DTYPE)  # until 4.55 transformers leaves out what it was not told
        assert getattr(own, DTYPE) == named or (RELEASE < (4, 56) and named is None)
    buffers = dict(theirs.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("named", ["bfloat16", "float32", None])
def test_auto_is_what_it_is_in_transformers(model, tmp_path, named, stored):
    write(model, tmp_path, named=named, stored=stored)
    ours = from_pretrained(tmp_path)
    assert_same(ours, type(model).from_pretrained(tmp_path, **{DTYPE: "auto"}))
    assert any("dtype='stored'" in note for note in report_of(ours).notes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_dtype_that_is_asked_for_is_that_of_transformers(model, tmp_path, dtype):
    write(model, tmp_path, named="bfloat16", stored=torch.bfloat16)
    ours = from_pretrained(tmp_path, dtype=dtype)
    assert_same(ours, type(model).from_pretrained(tmp_path, **{DTYPE: getattr(torch, dtype)}))
    assert not any("dtype='stored'" in note for note in report_of(ours).notes)


def test_stored_keeps_every_tensors_own(tmp_path):
    write(llama(), tmp_path, named="bfloat16", stored=torch.bfloat16)
    checkpoint = open_checkpoint(tmp_path)
    ours = from_pretrained(tmp_path, dtype="stored")
    assert report_of(ours).stated.anonymous == 0
    assert {name: parameter.dtype for name, parameter in ours.named_parameters()} == {
        name: checkpoint.read(name).dtype for name, _ in ours.named_parameters()
    }
    assert plan_load(tmp_path, dtype="stored").memory.mapped == report_of(ours).stated.mapped


def test_a_class_that_is_given_is_one_of_the_library_and_a_function_is_not(tmp_path):
    write(llama(), tmp_path, named="float32", stored=torch.bfloat16)
    assert from_pretrained(tmp_path, model_class=transformers.LlamaForCausalLM).dtype == torch.float32
    made = from_pretrained(tmp_path, model_class=lambda _: llama())
    assert made.model.embed_tokens.weight.dtype == torch.bfloat16


def test_the_callers_config_is_not_changed(tmp_path):
    write(llama(), tmp_path, named="float32", stored=torch.bfloat16)
    config = transformers.LlamaConfig(**SMALL)
    assert getattr(config, DTYPE) is None
    assert from_pretrained(tmp_path, config=config).dtype == torch.bfloat16  # of the first floating tensor
    assert getattr(config, DTYPE) is None


def test_fill_keeps_what_is_stored(tmp_path):
    write(llama(), tmp_path, named="float32", stored=torch.bfloat16)
    shell = build_shell(llama)
    fill(shell, open_checkpoint(tmp_path))
    assert shell.model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert shell.model.model.norm.weight.dtype == torch.float32


def test_a_parameter_of_torchs_old_constructor_has_the_one_dtype(tmp_path):
    """`torch.Tensor(n).uniform_()` is made in the default dtype, of which nothing tells."""
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_dim=[16, 16], conv_stride=[2, 2], conv_kernel=[3, 3], num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, dtype="float16")
    assert ours.wav2vec2.masked_spec_embed.dtype == torch.float16
    assert_same(ours, transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, **{DTYPE: torch.float16}))
