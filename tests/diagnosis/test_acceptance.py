"""The sixteen cases that the doctor was designed for, each with the twin in which the answer is another."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shardload import MismatchError, check, fill, from_pretrained, open_checkpoint
from shardload.diagnosis import diagnose, whole_cure
from shardload.doctor import examine
from shardload.keymap import Joined, KeyMap, Rename, Split, Transpose
from shardload.model.shell import build_shell
from tests.diagnosis.headers import case_of, cures, findings_of, keys, numbered, refs
from tests.tiny import Net, random_state, save_safetensors, write_checkpoint


def llama(layers=32, width=4096, ffn=11008, vocab=32000, prefix="model.", head=True):
    """The keys of a decoder with rotary attention and a gated feed-forward part."""
    block = f"{prefix}layers.{{}}."
    found = {f"{prefix}embed_tokens.weight": (vocab, width)}
    for name in ("q", "k", "v", "o"):
        found |= keys((width, width), f"{block}self_attn.{name}_proj.weight", layers)
    for name in ("gate", "up"):
        found |= keys((ffn, width), f"{block}mlp.{name}_proj.weight", layers)
    found |= keys((width, ffn), block + "mlp.down_proj.weight", layers)
    for name in ("input", "post_attention"):
        found |= keys((width,), f"{block}{name}_layernorm.weight", layers)
    found[f"{prefix}norm.weight"] = (width,)
    if head:
        found["lm_head.weight"] = (vocab, width)
    return found


# 1 ------------------------------------------------------------------------------------------------------------


def test_01_compiled_inside_ddp():
    wanted = llama()
    stored = {f"_orig_mod.module.{key}": shape for key, shape in wanted.items()}
    assert len(stored) == 291
    case = case_of(stored, wanted)
    (finding,) = diagnose(case)
    assert (finding.code, finding.explained, finding.confidence) == ("E-WRAP", 291, 1.0)
    assert finding.nbytes == case.nbytes(stored)
    assert finding.key_map.rules == (Rename("_orig_mod.module.{...}", "{...}"),)
    assert cures(case)


def test_01_twin_a_real_child_called_module_is_not_stripped():
    wanted = {f"module.{key}": shape for key, shape in llama(layers=2).items()}
    assert not diagnose(case_of(wanted, wanted))
    # One wrapper around it goes, the real child stays.
    case = case_of({f"module.{key}": shape for key, shape in wanted.items()}, wanted)
    assert [finding.code for finding in diagnose(case)] == ["E-WRAP"]
    assert cures(case)


# 2 ------------------------------------------------------------------------------------------------------------


def test_02_fsdp_leaves_its_segment_in_the_middle():
    block = "encoder.block.{}.layer.{}."
    wanted = {"shared.weight": (32128, 512), "encoder.final_layer_norm.weight": (512,)}
    for name in "qkvo":
        wanted |= keys((512, 512), f"encoder.block.{{}}.layer.0.SelfAttention.{name}.weight", 6)
    wanted |= keys((512,), block + "layer_norm.weight", 6, 2)
    stored = {}
    for key, shape in wanted.items():
        inner = key.replace("encoder.block.", "encoder.block.")
        parts = inner.split(".")
        if parts[:2] == ["encoder", "block"]:
            parts.insert(3, "_fsdp_wrapped_module")
        stored[".".join(["_fsdp_wrapped_module", *parts])] = shape
    assert (
        "_fsdp_wrapped_module.encoder.block.0._fsdp_wrapped_module.layer.0.SelfAttention.q.weight" in stored
    )
    case = case_of(stored, wanted)
    (finding,) = diagnose(case)
    assert finding.code == "E-WRAP"
    assert finding.key_map.rules == (Rename("_fsdp_wrapped_module", "", everywhere=True),)
    assert cures(case)


# 3 ------------------------------------------------------------------------------------------------------------


def test_03_envelope_and_wrapper(tmp_path):
    state = random_state(Net())
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"state": {}}}, tmp_path / "last.pth")
    found = examine(tmp_path / "last.pth", model_class=lambda _=None: Net())
    assert [finding.code for finding in found.findings] == ["E-WRAP"]
    assert (found.cured, found.exit_code) == (True, 3)
    assert any("found under 'state_dict'" in note for note in found.notes)


def test_03_twin_the_optimizers_file(tmp_path):
    optimizer = torch.optim.AdamW(Net().parameters())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = examine(tmp_path / "optimizer.pt", model_class=lambda _=None: Net())
    (finding,) = found.findings
    assert finding.code == "E-OPTIM"
    assert "state of an optimizer" in finding.cause
    assert found.key_map is None
    assert found.exit_code == 1


# 4 ------------------------------------------------------------------------------------------------------------

CONV1D = {
    "attn.c_attn": (768, 2304),
    "attn.c_proj": (768, 768),
    "mlp.c_fc": (768, 3072),
    "mlp.c_proj": (3072, 768),
}


def conv1d_model():
    found = {"wte.weight": (50257, 768)}
    for name, (rows, columns) in CONV1D.items():
        found |= keys((rows, columns), f"h.{{}}.{name}.weight", 12)
        found |= keys((columns,), f"h.{{}}.{name}.bias", 12)
    return found


def turned(shapes):
    return {
        key: shape[::-1] if ".c_" in key and key.endswith("weight") else shape
        for key, shape in shapes.items()
    }


def test_04_linear_weights_for_conv1d_squares_too():
    wanted = conv1d_model()
    classes = {f"h.{layer}.{name}": "Conv1D" for layer in range(12) for name in CONV1D}
    case = case_of(turned(wanted), wanted, classes=classes)
    (finding,) = diagnose(case)
    assert finding.code == "E-TRANSPOSE"
    assert {rule.source for rule in finding.key_map.rules} == {f"h.{{}}.{name}.weight" for name in CONV1D}
    assert all(isinstance(rule, Transpose) for rule in finding.key_map.rules)
    assert not finding.unproven
    assert finding.explained == 48
    assert cures(case)


def test_04_without_classes_the_square_is_unproven():
    wanted = conv1d_model()
    (finding,) = diagnose(case_of(turned(wanted), wanted))
    assert len(finding.key_map.rules) == 4
    assert any("square" in doubt for doubt in finding.unproven)


def test_04_twin_a_square_of_another_class_stays():
    wanted = conv1d_model()
    stored = turned(wanted)
    classes = {
        f"h.{layer}.{name}": "Linear" if name == "attn.c_proj" else "Conv1D"
        for layer in range(12)
        for name in CONV1D
    }
    (finding,) = diagnose(case_of(stored, wanted, classes=classes))
    assert "h.{}.attn.c_proj.weight" not in {rule.source for rule in finding.key_map.rules}


# 5 and 6 ------------------------------------------------------------------------------------------------------

GLM_BLOCK = {
    "self_attention.query_key_value.weight": (4608, 4096),
    "self_attention.query_key_value.bias": (4608,),
    "self_attention.dense.weight": (4096, 4096),
    "mlp.dense_h_to_4h.weight": (27392, 4096),
    "mlp.dense_4h_to_h.weight": (4096, 13696),
    "input_layernorm.weight": (4096,),
    "post_attention_layernorm.weight": (4096,),
}


def glm(layers=28):
    found = {
        "transformer.embedding.word_embeddings.weight": (65024, 4096),
        "transformer.rotary_pos_emb.inv_freq": (32,),
    }
    for name, shape in GLM_BLOCK.items():
        found |= keys(shape, f"transformer.encoder.layers.{{}}.{name}", layers)
    return {
        **found,
        "transformer.encoder.final_layernorm.weight": (4096,),
        "transformer.output_layer.weight": (65024, 4096),
    }


def llama_with_fused_gate(vocab, layers=28):
    block = "model.layers.{}."
    found = {"model.embed_tokens.weight": (vocab, 4096)}
    for name, rows in (("q", 4096), ("k", 256), ("v", 256)):
        found |= keys((rows, 4096), f"{block}self_attn.{name}_proj.weight", layers)
        found |= keys((rows,), f"{block}self_attn.{name}_proj.bias", layers)
    found |= keys((4096, 4096), block + "self_attn.o_proj.weight", layers)
    found |= keys((27392, 4096), block + "mlp.gate_up_proj.weight", layers)
    found |= keys((4096, 13696), block + "mlp.down_proj.weight", layers)
    for name in ("input", "post_attention"):
        found |= keys((4096,), f"{block}{name}_layernorm.weight", layers)
    return {**found, "model.norm.weight": (4096,), "lm_head.weight": (vocab, 4096)}


def test_05_fused_and_renamed():
    wanted = llama_with_fused_gate(65024)
    case = case_of(glm(), wanted)
    found = {finding.code: finding for finding in diagnose(case)}
    splits = [rule for rule in found["E-SPLIT"].key_map.rules if isinstance(rule, Split)]
    assert {rule.sizes for rule in splits} == {(4096, 256, 256)}
    assert {rule.targets[0].rpartition(".")[2] for rule in splits} == {"weight", "bias"}
    assert [target.split(".")[4] for target in splits[0].targets] == ["q_proj", "k_proj", "v_proj"]
    assert found["E-SPLIT"].unproven, "interleaved heads have the same shape"
    assert found["W-BUF"].evidence == ("transformer.rotary_pos_emb.inv_freq",)
    assert cures(case)


def test_05_a_wrong_vocabulary_is_said_first():
    stored, wanted = glm(), llama_with_fused_gate(64789)
    config = {"padded_vocab_size": 64789}
    found = diagnose(case_of(stored, wanted, config=config))
    assert found[0].code == "E-VOCAB"
    assert "padded_vocab_size to 65024" in found[0].cure


def test_06_packed_int4():
    wanted, stored, dtypes = glm(), {}, {}
    for key, shape in wanted.items():
        packed = len(shape) == 2 and ".layers." in key
        stored[key] = (shape[0], shape[1] // 2) if packed else shape
        dtypes[key] = "I8" if packed else "F16"
        if packed:
            stored[f"{key}_scale"] = (shape[0],)
            dtypes[f"{key}_scale"] = "F16"
    case = case_of(stored, wanted, dtype=dtypes, config={"quantization_bit": 4})
    found = diagnose(case)
    assert [finding.code for finding in found][:1] == ["E-INT4"]
    assert all(finding.key_map is None for finding in found)
    assert "int4 repo itself" in found[0].cure


# 7 ------------------------------------------------------------------------------------------------------------


def mixtral(layers, experts, width=4096, ffn=14336):
    stored, wanted = {}, {}
    block = "model.layers.{}."
    for name, shape in (("w1", (ffn, width)), ("w2", (width, ffn)), ("w3", (ffn, width))):
        stored |= keys(shape, f"{block}block_sparse_moe.experts.{{}}.{name}.weight", layers, experts)
    stored |= keys((experts, width), block + "block_sparse_moe.gate.weight", layers)
    wanted |= keys((experts, 2 * ffn, width), block + "mlp.experts.gate_up_proj", layers)
    wanted |= keys((experts, width, ffn), block + "mlp.experts.down_proj", layers)
    wanted |= keys((experts, width), block + "mlp.gate.weight", layers)
    return stored, wanted


@pytest.mark.parametrize("layers", [32, 8], ids=["32 layers", "twin: as many layers as experts"])
def test_07_experts_are_stacked_gate_first(layers):
    stored, wanted = mixtral(layers, 8)
    case = case_of(stored, wanted)
    found = {finding.code: finding for finding in diagnose(case)}
    assert cures(case)
    table = case.solution.key_map.map_headers(dict(case.stored)).tensors
    fused = table["model.layers.5.mlp.experts.gate_up_proj"]
    assert isinstance(fused, Joined)
    names = [part.name for part in _leaves(fused)]
    first = [name for name in names if ".experts.0." in name]
    assert [name.split(".")[-2] for name in first] == ["w1", "w3"]
    assert all(".layers.5." in name for name in names)
    assert found["E-STACK"].confidence >= 0.9
    bound = case.solution.key_map.bind(dict(case.stored))
    assert bound.resident_bytes is not None


def _leaves(tensor):
    from shardload.keymap import leaves

    return list(leaves(tensor))


# 8 ------------------------------------------------------------------------------------------------------------


def test_08_towers_under_other_prefixes():
    text = llama(layers=32, prefix="")
    tower = {"embeddings.class_embedding": (1024,)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tower |= keys((1024, 1024), f"encoder.layers.{{}}.self_attn.{name}.weight", 24)
    projector = {"linear_1.weight": (4096, 1024), "linear_2.weight": (4096, 4096)}
    head = text.pop("lm_head.weight")
    stored = {f"language_model.model.{key}": shape for key, shape in text.items()}
    stored |= {"language_model.lm_head.weight": head}
    stored |= {f"vision_tower.vision_model.{key}": shape for key, shape in tower.items()}
    stored |= {f"multi_modal_projector.{key}": shape for key, shape in projector.items()}
    wanted = {f"model.language_model.{key}": shape for key, shape in text.items()}
    wanted |= {"lm_head.weight": head}
    wanted |= {f"model.vision_tower.vision_model.{key}": shape for key, shape in tower.items()}
    wanted |= {f"model.multi_modal_projector.{key}": shape for key, shape in projector.items()}
    case = case_of(stored, wanted)
    assert cures(case)
    assert len(case.solution.key_map.rules) <= 4
    assert {finding.code for finding in diagnose(case)} <= {"E-RENAME", "E-WRAP"}


# 9 ------------------------------------------------------------------------------------------------------------


def test_09_weight_norm_the_right_way_round():
    path = "encoder.pos_conv_embed.conv."
    stored = {path + "weight_g": (1, 1, 128), path + "weight_v": (768, 48, 128), path + "bias": (768,)}
    new = path + "parametrizations.weight.original"
    wanted = {new + "0": (1, 1, 128), new + "1": (768, 48, 128), path + "bias": (768,)}
    case = case_of(stored, wanted)
    rules = case.solution.key_map.rules
    assert {(rule.source, rule.target) for rule in rules} == {
        (path + "weight_g", new + "0"),
        (path + "weight_v", new + "1"),
    }
    assert cures(case)


# 10 -----------------------------------------------------------------------------------------------------------


def test_10_one_rank_of_eight():
    wanted = {"word_embeddings.weight": (150528, 12288)}
    stored = {"word_embeddings.weight": (18816, 12288)}
    wanted |= keys((12288,), "layers.{}.input_layernorm.weight", 4)
    stored |= keys((12288,), "layers.{}.input_layernorm.weight", 4)
    wanted |= keys((36864, 12288), "layers.{}.attention.query_key_value.weight", 4)
    stored |= keys((4608, 12288), "layers.{}.attention.query_key_value.weight", 4)
    wanted |= keys((12288, 12288), "layers.{}.attention.dense.weight", 4)
    stored |= keys((12288, 1536), "layers.{}.attention.dense.weight", 4)
    (finding,) = diagnose(case_of(stored, wanted))
    assert finding.code == "E-RANK"
    assert "one rank of 8" in finding.cause
    assert "8 files are needed" in finding.cure


def test_10_the_embedding_alone():
    norm = keys((12288,), "layers.{}.input_layernorm.weight", 4)
    stored = {"word_embeddings.weight": (18816, 12288), **norm}
    found = findings_of(stored, {"word_embeddings.weight": (150528, 12288), **norm})
    assert list(found) == ["E-RANK"]


def test_10_twin_norms_scaled_too_is_a_wrong_config():
    stored, wanted = llama(layers=2, width=512, ffn=1024), llama(layers=2, width=1024, ffn=2048)
    found = findings_of(stored, wanted, config={"hidden_size": 1024, "intermediate_size": 2048})
    assert "E-RANK" not in found
    assert "hidden_size to 512" in found["E-CONFIG"].cure
    assert "intermediate_size to 1024" in found["E-CONFIG"].cure


# 11 -----------------------------------------------------------------------------------------------------------


def test_11_resized_vocabulary():
    stored, wanted = llama(vocab=32064), llama(vocab=32016)
    (finding,) = diagnose(case_of(stored, wanted, config={"text_config": {"vocab_size": 32016}}))
    assert finding.code == "E-VOCAB"
    assert "text_config.vocab_size to 32064" in finding.cure
    assert "nothing is lost" in finding.cure
    assert "slice_rows" in finding.cure
    assert finding.key_map is None


# 12 -----------------------------------------------------------------------------------------------------------


class Stack(nn.Module):
    """Eighty layers of one parameter."""

    def __init__(self, config=None, layers=80):
        super().__init__()
        layers = getattr(config, "num_layers", layers)
        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(layers))


def in_three_files(folder, numbers, named):
    """Write layers in three files; `named` are those that the index names."""
    folder.mkdir()
    weight_map = {}
    for part in range(3):
        name = f"model-{part + 1:05d}-of-00003.safetensors"
        state = {f"layers.{n}.weight": torch.zeros(2, 2) for n in numbers if min(n // 27, 2) == part}
        save_safetensors(state, folder / name)
        weight_map |= dict.fromkeys(state, name)
    weight_map |= dict.fromkeys((f"layers.{n}.weight" for n in named), "model-00004-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def make_stack(config=None):
    return Stack(config)


HOLES = [n for n in range(80) if not 45 <= n <= 49]


def test_12_layers_absent_three_verdicts(tmp_path):
    named = in_three_files(tmp_path / "a", HOLES, range(45, 50))
    (first,) = examine(named, model_class=make_stack).findings
    assert first.code == "E-SHARDS"
    assert first.evidence == ("layers.{45-49}.weight",)
    assert "model-00004-of-00003.safetensors" in first.cause

    (second,) = examine(in_three_files(tmp_path / "b", HOLES, ()), model_class=make_stack).findings
    assert second.code == "E-LAYERS"
    assert "no layers layers.{45-49}, and has {0-44,50-79}" in second.cause
    assert "incomplete" in second.cause

    whole = in_three_files(tmp_path / "c", range(80), ())
    (whole / "config.json").write_text('{"num_layers": 3}')
    (third,) = examine(whole, model_class=make_stack).findings
    assert third.code == "E-LAYERS"
    assert "config.json says num_layers = 3" in third.cause
    assert "set num_layers to 80" in third.cure


# 13 -----------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """An embedding and a head that share nothing, whatever the config says."""

    def __init__(self, config=None, tied=False):
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 4)
        self.lm_head = nn.Linear(4, 6, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight


def test_13_a_tie_that_only_the_text_config_says(tmp_path):
    write_checkpoint(
        tmp_path,
        {"embed_tokens.weight": torch.randn(6, 4)},
        shards=1,
        config={"text_config": {"tie_word_embeddings": True}},
    )
    found = examine(tmp_path, model_class=Heads)
    (finding,) = found.findings
    assert finding.code == "E-TIE"
    assert "text_config.tie_word_embeddings" in finding.evidence[0]
    assert not finding.unproven
    assert found.exit_code == 3
    model = from_pretrained(tmp_path, model_class=Heads, key_map=found.key_map)
    assert torch.equal(model.lm_head.weight, model.embed_tokens.weight)


@pytest.mark.parametrize("prefix", ["model.", "base."])
def test_13_without_a_word_in_the_config_it_is_shared_or_new_and_neither_is_done(prefix):
    stored = {key.replace("model.", prefix): shape for key, shape in llama(layers=1, head=False).items()}
    case = case_of(stored, llama(layers=1))
    findings = diagnose(case)
    finding = next(finding for finding in findings if finding.code == "E-TIE")
    assert (finding.key_map, finding.margin) == (None, 0.0)
    assert "lm_head.weight" not in case.solution.filled
    shared, new = whole_cure(case, findings).parts
    assert "lm_head.weight" in KeyMap.of(shared.keywords["key_map"]).map_headers(dict(case.stored)).tensors
    assert "allow_missing" not in shared.keywords
    assert new.keywords["allow_missing"] == ["lm_head.weight"]


@pytest.mark.parametrize("places", [{}, {"text_config": {"tie_word_embeddings": False}}])
def test_13_a_head_that_the_config_calls_untied_is_not_the_embedding(tmp_path, places):
    config = {"tie_word_embeddings": False, **places}
    write_checkpoint(tmp_path, {"embed_tokens.weight": torch.randn(6, 4)}, shards=1, config=config)
    found = examine(tmp_path, model_class=Heads)
    (finding,) = found.findings
    assert finding.code == "E-HEAD"
    assert found.key_map is None
    assert finding.evidence[0] == "tie_word_embeddings = false"
    model = from_pretrained(tmp_path, model_class=Heads, **finding.cure.keywords)
    assert not torch.equal(model.lm_head.weight, model.embed_tokens.weight)


def test_13_a_head_that_the_callers_map_drops_is_stored(tmp_path):
    state = {"embed_tokens.weight": torch.randn(6, 4), "lm_head.weight": torch.randn(6, 4)}
    write_checkpoint(tmp_path, state, shards=1, config={"tie_word_embeddings": False})
    dropping = {"lm_head.weight": None}
    with pytest.raises(MismatchError, match="lm_head.weight: stored, and dropped by the key map") as caught:
        from_pretrained(tmp_path, model_class=Heads, key_map=dropping)
    assert caught.value.code == "E-DROPPED"
    assert "fetch" not in caught.value.cure
    assert caught.value.report.key_map is None
    allowed = {"allow_missing": caught.value.cure.keywords["allow_missing"]}
    from_pretrained(tmp_path, model_class=Heads, key_map=dropping, **allowed)
    assert torch.equal(from_pretrained(tmp_path, model_class=Heads).lm_head.weight, state["lm_head.weight"])


def test_13_a_config_that_says_both_proves_nothing():
    config = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    (finding,) = diagnose(case_of(llama(layers=1, head=False), llama(layers=1), config=config))
    assert (finding.code, finding.key_map, len(finding.choices)) == ("E-TIE", None, 2)
    assert "text_config.tie_word_embeddings = true, tie_word_embeddings = false" in finding.cause


def test_13_twin_two_copies_are_compared_and_never_overwritten(tmp_path):
    state = {"embed_tokens.weight": torch.randn(6, 4), "lm_head.weight": torch.randn(6, 4)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    shell = build_shell(lambda: Heads(tied=True))
    report = check(shell, checkpoint)
    assert any("two copies, compared at load" in note for note in report.notes)
    with pytest.raises(MismatchError, match="one parameter in the model, and differ"):
        fill(shell, checkpoint)


# 14 -----------------------------------------------------------------------------------------------------------


def test_14_an_adapters_names():
    stored = {}
    for part, names in (
        ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mlp", ("gate_proj", "up_proj", "down_proj")),
    ):
        for name in names:
            path = f"base_model.model.layers.{{}}.{part}.{name}"
            rows = 11008 if name in {"gate_proj", "up_proj"} else 4096
            columns = 11008 if name == "down_proj" else 4096
            stored |= keys((8, columns), path + ".lora_A.weight", 32)
            stored |= keys((rows, 8), path + ".lora_B.weight", 32)
    assert len(stored) == 448
    wanted = {
        key.replace("base_model.model.", "base_model.model.model.").replace(
            ".weight", ".default.weight"
        ): shape
        for key, shape in stored.items()
    }
    case = case_of(stored, wanted)
    assert cures(case)
    assert len(case.solution.key_map.rules) <= 2
    assert sum(finding.explained for finding in diagnose(case)) == 448


# 15 -----------------------------------------------------------------------------------------------------------


def test_15_no_name_says_which_is_which():
    stored = dict.fromkeys("abcd", (4096, 4096))
    case = case_of(stored, dict.fromkeys(("w", "x", "y", "z"), (4096, 4096)))
    found = diagnose(case)
    assert [finding.code for finding in found if finding.code != "E-OTHER"] == ["E-AMBIGUOUS"]
    assert all(finding.key_map is None for finding in found)
    assert not case.solution.key_map.rules


def test_15_equal_gates_are_not_guessed():
    stored = keys((11008, 4096), "layers.{}.mlp.first.weight", 2) | keys(
        (11008, 4096), "layers.{}.mlp.second.weight", 2
    )
    wanted = keys((11008, 4096), "layers.{}.mlp.gate_proj.weight", 2) | keys(
        (11008, 4096), "layers.{}.mlp.up_proj.weight", 2
    )
    case = case_of(stored, wanted)
    assert "E-AMBIGUOUS" in {finding.code for finding in diagnose(case)}
    assert not case.solution.key_map.rules


# 16 -----------------------------------------------------------------------------------------------------------


def test_16_an_encoder_under_new_names():
    old, new = "encoder.layer.{}.", "layers.{}."
    names = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "layernorm_before",
        "layernorm_after": "layernorm_after",
    }
    shapes = {"intermediate.dense": (3072, 768), "output.dense": (768, 3072)}
    stored, wanted = {}, {}
    for before, after in names.items():
        shape = (768,) if "norm" in before else shapes.get(before, (768, 768))
        for leaf, size in (("weight", shape), ("bias", shape[:1])):
            stored |= keys(size, f"{old}{before}.{leaf}", 12)
            wanted |= keys(size, f"{new}{after}.{leaf}", 12)
    stored["embeddings.cls_token"] = wanted["embeddings.cls_token"] = (1, 1, 768)
    case = case_of(stored, wanted)
    assert cures(case)
    assert len(case.solution.key_map.rules) <= 10
    pairs = case.solution.key_map.map_keys(stored)
    for before, after in names.items():
        assert pairs[f"encoder.layer.3.{before}.bias"] == f"layers.3.{after}.bias"


def test_the_map_of_a_case_is_a_file_that_loads(tmp_path):
    state = random_state(Net())
    checkpoint = write_checkpoint(tmp_path / "w", {f"module.{key}": value for key, value in state.items()})
    found = examine(checkpoint, model_class=lambda _=None: Net())
    (tmp_path / "map.json").write_text(found.key_map.to_json())
    shell = build_shell(Net)
    fill(shell, open_checkpoint(checkpoint), key_map=KeyMap.read(tmp_path / "map.json"))
    assert torch.equal(shell.model.head.weight, state["head.weight"])


def test_numbered_helper_counts():
    assert numbered("a.{}.b.{}", 2, [5]) == ["a.0.b.5", "a.1.b.5"]
    assert refs({"a": (2, 3)})["a"].nbytes == 12
