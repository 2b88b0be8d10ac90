"""PEFT as the oracle: what it saves is loaded by shardload with the same logits, gradients and dropout."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch

from shardload import merge_to_disk, open_checkpoint
from shardload.adapters import activate, load_adapter, save_adapter
from tests.adapters.tiny import TOKENS, Tiny, error

peft = pytest.importorskip("peft")

LINEARS = ["q", "up", "down"]

CASES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"layers.1.up": 5, "q": 1}},
    "alpha_pattern": {"alpha_pattern": {r"layers\.1\..*": 3, "up": 32}},
    "both patterns, rslora": {
        "rank_pattern": {"^layers.0.down": 6},
        "alpha_pattern": {"down": 2.5},
        "use_rslora": True,
    },
    "bias none, lora_bias": {"lora_bias": True},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["score"]},
    "modules_to_save, all biases": {"modules_to_save": ["score", "norm"], "bias": "all"},
    "embedding and head saved": {"modules_to_save": ["embed", "score"]},
    "dropout": {"lora_dropout": 0.3},
    "regular expression": {"target_modules": r".*\.(q|up)"},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "everything": {
        "use_rslora": True,
        "rank_pattern": {"up": 3},
        "alpha_pattern": {"q": 9},
        "bias": "lora_only",
        "lora_bias": True,
        "modules_to_save": ["score"],
        "lora_dropout": 0.1,
    },
}


def trained(model, settings, seed=3):
    """A PEFT model whose every trainable tensor looks trained."""
    options = {"r": 4, "lora_alpha": 10, "target_modules": LINEARS, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random, dtype=parameter.dtype) / 2)
    return wrapped.eval()


def save(wrapped, folder, form="safetensors"):
    with warnings.catch_warnings():
        # PEFT takes the bias of B, which has one dimension, for a tensor that was not gathered.
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder, safe_serialization=form == "safetensors")
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", CASES)
def test_logits(tmp_path, case, dtype, limit, form):
    wrapped = trained(Tiny(dtype), CASES[case])
    model = Tiny(dtype)
    plain = model(TOKENS)
    report = load_adapter(model, save(wrapped, tmp_path, form))
    wanted = wrapped(TOKENS)
    assert error(plain, wanted) > 0.05
    assert error(model(TOKENS), wanted) <= limit
    assert report.warnings == ()


@pytest.mark.parametrize("case", CASES)
def test_scales_and_ranks(tmp_path, case):
    wrapped = trained(Tiny(), CASES[case])
    report = load_adapter(Tiny(), save(wrapped, tmp_path))
    wanted = {}
    for path, module in wrapped.base_model.model.named_modules():
        if hasattr(module, "scaling"):
            wanted[path] = (module.r["default"], module.scaling["default"])
    ours = {
        row.target.removesuffix(".lora_A.default.weight"): (row.shape[0], row.scale)
        for row in report.rows
        if row.target.endswith(".lora_A.default.weight")
    }
    assert ours == wanted


@pytest.mark.parametrize(
    "case", ["plain", "rslora", "modules_to_save", "bias lora_only", "bias none, lora_bias"]
)
def test_gradients(tmp_path, case):
    wrapped = trained(Tiny(torch.float64), CASES[case])
    model = Tiny(torch.float64)
    load_adapter(model, save(wrapped, tmp_path), trainable=True)
    model.train()
    wrapped.train()
    wrapped(TOKENS).square().mean().backward()
    model(TOKENS).square().mean().backward()
    wanted = {}
    for name, parameter in wrapped.base_model.model.named_parameters():
        if parameter.grad is not None:
            ours_called = name.replace("base_layer.", "").replace("modules_to_save.default.", "")
            wanted[ours_called] = parameter.grad
    ours = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert ours.keys() == wanted.keys()
    assert all(error(ours[name], wanted[name]) <= 1e-10 for name in wanted)


def test_dropout_draws_as_peft_does(tmp_path):
    wrapped = trained(Tiny(torch.float64), CASES["dropout"])
    model = Tiny(torch.float64)
    load_adapter(model, save(wrapped, tmp_path))
    for each in (model, wrapped):
        each.train()
    torch.manual_seed(11)
    wanted = wrapped(TOKENS)
    torch.manual_seed(11)
    assert error(model(TOKENS), wanted) <= 1e-10


@pytest.mark.parametrize(("base", "limit"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_bases(tmp_path, base, limit, autocast):
    """fp32 factors over a half base (PEFT's default), and half over half."""
    source = Tiny(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, target_modules=LINEARS, init_lora_weights=False)
        wrapped = peft.get_peft_model(source, config, autocast_adapter_dtype=autocast).eval()
    model = Tiny(base)
    report = load_adapter(model, save(wrapped, tmp_path))
    assert {row.dtype for row in report.rows} == {"F32"} if autocast else {"F16", "BF16"}
    logits, wanted = model(TOKENS), wrapped(TOKENS)
    assert logits.dtype == wanted.dtype == base
    assert error(logits.float(), wanted.float()) <= limit


def test_switching_gives_what_peft_gives(tmp_path):
    wrapped = trained(Tiny(), {})
    save(wrapped, tmp_path / "one")
    save(trained(Tiny(), {"r": 2, "target_modules": ["q"], "use_rslora": True}, seed=4), tmp_path / "two")
    model = Tiny()
    load_adapter(model, tmp_path / "one")
    load_adapter(model, tmp_path / "two", name="two")
    wrapped.load_adapter(tmp_path / "two", adapter_name="two")
    assert error(model(TOKENS), wrapped(TOKENS)) <= 1e-5
    wrapped.set_adapter("two")
    activate(model, {"two": 1.0})
    assert error(model(TOKENS), wrapped(TOKENS)) <= 1e-5
    wrapped.base_model.set_adapter(["default", "two"])
    activate(model, {"default": 1.0, "two": 1.0})
    assert error(model(TOKENS), wrapped(TOKENS)) <= 1e-5
    with wrapped.disable_adapter():
        activate(model, {})
        assert error(model(TOKENS), wrapped(TOKENS)) == 0


def test_a_named_adapter_lies_in_a_subfolder(tmp_path):
    wrapped = trained(Tiny(), {})
    wrapped.add_adapter("other", peft.LoraConfig(r=3, target_modules=["q"], init_lora_weights=False))
    save(wrapped, tmp_path)
    model = Tiny()
    assert load_adapter(model, tmp_path, subfolder="other", name="other").ranks == {3: 2}
    wrapped.set_adapter("other")
    assert error(model(TOKENS), wrapped(TOKENS)) <= 1e-5


def test_a_whole_state_dict_saved_from_a_peft_model(tmp_path):
    """Keys with the adapter's name in them, as people save them by hand."""
    wrapped = trained(Tiny(), {})
    save(wrapped, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    state = {key: value for key, value in wrapped.state_dict().items() if ".lora_" in key}
    torch.save(state, tmp_path / "adapter_model.bin")
    model = Tiny()
    load_adapter(model, tmp_path)
    assert error(model(TOKENS), wrapped(TOKENS)) <= 1e-5


def test_pissa_converted_to_plain_lora(tmp_path):
    base = Tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["q", "up"], init_lora_weights="pissa")
        wrapped = peft.get_peft_model(copy.deepcopy(base), config).eval()
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(tmp_path / "start")
        wrapped.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.3)
        wrapped.save_pretrained(
            tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    load_adapter(base, tmp_path / "end")
    assert error(base(TOKENS), wrapped(TOKENS)) <= 1e-5


def test_a_llama_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(12).view(2, 6)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    wrapped = trained(copy.deepcopy(base), settings)
    plain = base(tokens).logits
    folder = save(wrapped, tmp_path)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    report = load_adapter(base, folder)
    wanted = wrapped(tokens).logits
    assert error(plain, wanted) > 0.01
    assert error(base(tokens).logits, wanted) <= 1e-5
    assert report.modules == 6
    assert base.lm_head.weight is base.model.embed_tokens.weight


@pytest.mark.parametrize("way", ["modules_to_save", "save_embedding_layers"])
def test_tied_embeddings_of_transformers(tmp_path, way):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(12).view(2, 6)
    settings = {"target_modules": ["q_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way == "modules_to_save":
            wrapped = trained(copy.deepcopy(base), {**settings, "modules_to_save": ["embed_tokens"]})
            wrapped.save_pretrained(tmp_path)
        else:
            wrapped = trained(copy.deepcopy(base), settings)
            with torch.no_grad():
                wrapped.get_input_embeddings().weight.mul_(1.5)
            wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    plain = base(tokens).logits
    load_adapter(base, tmp_path)
    wanted = wrapped(tokens).logits
    assert error(plain, wanted) > 0.05
    assert error(base(tokens).logits, wanted) <= 1e-5


def test_a_classifier_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(config).eval()
    tokens = torch.arange(12).view(2, 6)
    wrapped = trained(copy.deepcopy(base), {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"})
    load_adapter(base, save(wrapped, tmp_path))
    assert error(base(tokens).logits, wrapped(tokens).logits) <= 1e-5


@pytest.mark.parametrize("kind", ["encoder and decoder", "decoder"])
def test_rows_of_an_embedding_go_to_all_that_is_tied_to_it(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    tokens = torch.arange(12).view(2, 6)
    torch.manual_seed(0)
    if kind == "decoder":
        config = transformers.LlamaConfig(**small, num_attention_heads=4, tie_word_embeddings=True)
        base, inputs = transformers.LlamaForCausalLM(config).eval(), {"input_ids": tokens}
    else:
        base = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
        inputs = {"input_ids": tokens, "decoder_input_ids": tokens}
    base.save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["q", "q_proj"], "trainable_token_indices": [3, 5]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = trained(copy.deepcopy(base), settings)
        save(wrapped, tmp_path / "lora")
    plain, wanted = base(**inputs).logits, wrapped(**inputs).logits
    assert error(plain, wanted) > 0.05
    load_adapter(base, tmp_path / "lora")
    assert error(base(**inputs).logits, wanted) <= 1e-5
    save_adapter(base, tmp_path / "again")
    names = [open_checkpoint(tmp_path / folder).tensors.keys() for folder in ("lora", "again")]
    assert names[0] == names[1]
    merge_to_disk(tmp_path / "base", tmp_path / "again", tmp_path / "merged")
    merged = type(base).from_pretrained(tmp_path / "merged").eval()
    assert error(merged(**inputs).logits, wanted) <= 1e-4
