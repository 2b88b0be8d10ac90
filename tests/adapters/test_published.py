"""Adapters of published layers on classes of transformers that have them elsewhere; the oracle is PEFT."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import shardload
from shardload import MismatchError, UnsupportedError, inspect_adapter, load_adapter, merge, save_adapter
from shardload.adapters.module_index import ModuleIndex
from shardload.adapters.published import Names
from shardload.keymap import leaves

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")
peft = pytest.importorskip("peft")

# PEFT looks for the patterns of parameters among the modules, and says that it ignores those that it takes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
IDS = torch.arange(2, 12)[None]
PREFIX = "base_model.model."


def qwen3_moe():
    torch.manual_seed(0)
    sizes = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "head_dim": 8,
        "decoder_sparse_step": 1,
    }
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **sizes)).eval()


def mixtral(width=48):
    torch.manual_seed(0)
    sizes = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": width}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).eval()


def llava():
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    text = transformers.LlamaConfig(**SIZES)
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=90)
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def filled(model):
    """Give the factors of a fresh adapter of PEFT values."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


def write(folder, tensors, **settings):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "task_type": "CAUSAL_LM",
        "peft_version": "0.13.2",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def of_each_expert(folder, model, inside, parts, *, gate=False, leave_out=()):
    """Write an adapter as PEFT made it beside transformers 4, where each expert has linear layers of its own."""
    width = SIZES["hidden_size"]
    inner = model.model.layers[0].mlp.experts.down_proj.shape[2]
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def add(path, out, into):
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(4, into, generator=generator) * 0.2
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(out, 4, generator=generator) * 0.2

    for layer in range(2):
        for expert in range(4):
            for part in parts:
                shape = (width, inner) if part in {"down_proj", "w2"} else (inner, width)
                if (expert, part) not in leave_out:
                    add(f"model.layers.{layer}.{inside}.experts.{expert}.{part}", *shape)
        if gate:
            add(f"model.layers.{layer}.{inside}.gate", 4, width)
    return write(folder, tensors, target_modules=[*parts, *(["gate"] if gate else [])])


KINDS = {
    "qwen3_moe": (qwen3_moe, "mlp", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": (mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    "square experts": (lambda: mixtral(32), "block_sparse_moe", ("w1", "w3", "w2")),
}


@pytest.mark.parametrize("gate", [False, True], ids=["experts", "router too"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_single_experts_are_loaded_saved_and_merged_as_by_peft(kind, gate, tmp_path):
    make, inside, parts = KINDS[kind]
    folder = of_each_expert(tmp_path / "old", make(), inside, parts, gate=gate)
    other = peft.PeftModel.from_pretrained(make(), folder).eval()
    wanted = logits(other)
    model = make()
    report = load_adapter(model, folder)
    assert torch.equal(logits(model), wanted)
    assert report.ranks == {8: 2, 4: 4 if gate else 2}

    save_adapter(model, tmp_path / "ours")  # in the layout that PEFT writes beside transformers 5
    other.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(make(), tmp_path / "ours").eval()), wanted)
    for written in ("ours", "theirs"):  # PEFT names the parameters in its patterns of ranks and alphas
        again = make()
        if (kind, written) == ("square experts", "theirs"):
            # It still names the release that wrote the old file, which had no layout of such parameters.
            with pytest.raises(
                UnsupportedError, match="square experts in 'gate_up_proj'|square experts in 'down_proj'"
            ):
                load_adapter(again, tmp_path / written)
            continue
        load_adapter(again, tmp_path / written)
        assert torch.equal(logits(again), wanted)

    make().save_pretrained(tmp_path / "base")
    merged = shardload.from_pretrained(tmp_path / "base", adapter=str(folder), merge=True)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)


def test_layers_that_are_not_adapted_are_zeros_in_the_factors_of_the_whole(tmp_path):
    """PEFT refuses a file without the other half of a fused pair; here the delta of what it holds is exact."""
    left_out = {(0, "w1"), (1, "w1"), (1, "w3"), (3, "w2")}
    folder = of_each_expert(
        tmp_path / "some", mixtral(), "block_sparse_moe", ("w1", "w3", "w2"), leave_out=left_out
    )
    file = load_file(folder / "adapter_model.safetensors")
    model, plain = mixtral(), mixtral()
    load_adapter(model, folder)
    merge(model, keep_copies=True)
    for layer in range(2):
        experts, before = model.model.layers[layer].mlp.experts, plain.model.layers[layer].mlp.experts
        for expert in range(4):
            for part, weight, base in (
                ("w1", experts.gate_up_proj[expert, :48], before.gate_up_proj[expert, :48]),
                ("w3", experts.gate_up_proj[expert, 48:], before.gate_up_proj[expert, 48:]),
                ("w2", experts.down_proj[expert], before.down_proj[expert]),
            ):
                path = f"{PREFIX}model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}"
                a, b = (file.get(f"{path}.lora_{factor}.weight") for factor in "AB")
                delta = torch.zeros(()) if a is None else 2 * b @ a
                torch.testing.assert_close(weight, base + delta, rtol=1e-5, atol=1e-5)


def test_experts_with_different_scales_are_refused_by_name(tmp_path):
    folder = of_each_expert(tmp_path / "old", mixtral(), "block_sparse_moe", ("w1", "w3", "w2"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"experts.2.w1": 3}}))
    with pytest.raises(
        UnsupportedError, match=r"scales parts differently, of model\.layers\.0\.mlp\.experts"
    ):
        load_adapter(mixtral(), folder)


def published(folder, new, model):
    """Write an adapter of the model's own names again under those of its checkpoints."""
    names = Names.of(model, ModuleIndex(model))
    stored = {next(leaves(ref)).name: key for key, ref in names.written(names.rules()).items()}
    tensors = {}
    for key, tensor in load_file(new / "adapter_model.safetensors").items():
        path, part = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB]\.weight)", key).groups()
        tensors[f"{PREFIX}{stored[path + '.weight'].rpartition('.')[0]}.{part}"] = tensor
    return write(folder, tensors, target_modules=["q_proj", "v_proj", "fc1"])


def test_an_adapter_of_the_names_of_older_classes_finds_its_layers(tmp_path):
    """PEFT 0.21 attaches such a file and leaves all of its factors out."""
    other = filled(
        peft.get_peft_model(
            llava(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1"])
        )
    )
    other.save_pretrained(tmp_path / "new")
    folder = published(tmp_path / "old", tmp_path / "new", llava())
    assert any(
        key.startswith(f"{PREFIX}language_model.model.layers")
        for key in load_file(folder / "adapter_model.safetensors")
    )
    model = llava()
    load_adapter(model, folder)
    assert torch.equal(logits(model), logits(other))
    save_adapter(model, tmp_path / "again")  # as PEFT writes it: PEFT does not find the older names
    assert (
        load_file(tmp_path / "again" / "adapter_model.safetensors").keys()
        == load_file(tmp_path / "new" / "adapter_model.safetensors").keys()
    )
    assert torch.equal(
        logits(peft.PeftModel.from_pretrained(llava(), tmp_path / "again").eval()), logits(other)
    )
    found = inspect_adapter(folder, llava())
    assert (found.faults, found.coverage.fitting) == ((), 10)


def test_a_path_that_no_release_had_is_still_a_fault(tmp_path):
    factors = {"lora_A.weight": torch.ones(4, 32), "lora_B.weight": torch.ones(32, 4)}
    tensors = {f"{PREFIX}model.layers.0.mlp.experts.0.w9.{part}": tensor for part, tensor in factors.items()}
    folder = write(tmp_path / "odd", tensors, target_modules=["w9"])
    with pytest.raises(MismatchError, match="the model has no module"):
        load_adapter(mixtral(), folder)
