"""What each rank reads and holds, from headers: of small files, and of a model that no machine here holds."""

from __future__ import annotations

import time

import pytest
import torch

from shardload import UnsupportedError, UsageError, plan_load, save
from shardload.cli.demo_repo import write_demo_repo
from shardload.loading.rank_amounts import Ranks, plan_of
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef
from tests.distributed.nets import NETS

PLAN = {"layers.*.up": "colwise", "layers.*.down": "rowwise", "embed": "rowwise_rep", "head": "colwise_rep"}


def test_parts_of_all_ranks_are_the_whole(tmp_path):
    save(NETS["Uneven"](), tmp_path)
    for fsdp, tp in ((2, 1), (4, 1), (1, 2), (2, 2), (3, 4), (1024, 1)):
        forecast = plan_load(tmp_path, fsdp=fsdp, tp=tp, tp_plan=PLAN if tp > 1 else None)
        assert len(forecast.ranks) == fsdp * tp
        cut = 4 * sum(
            tensor.numel()
            for name, tensor in NETS["Uneven"]().state_dict().items()
            if "down.bias" not in name
        )
        whole = 4 * sum(t.numel() for n, t in NETS["Uneven"]().state_dict().items() if "down.bias" in n)
        assert sum(rank.read for rank in forecast.ranks) == cut + tp * whole
        assert all(rank.peak >= rank.anon for rank in forecast.ranks)


def test_a_cast_part_is_anonymous_and_a_stored_one_is_not(tmp_path):
    save(NETS["Tied"](), tmp_path)
    stored = plan_load(tmp_path, fsdp=2).ranks
    assert all(rank.anon == 0 for rank in stored)
    cast = plan_load(tmp_path, fsdp=2, dtype="bfloat16").ranks
    assert [rank.anon for rank in cast] == [rank.file // 2 for rank in stored]
    read = plan_load(tmp_path, fsdp=2, copy=True).ranks
    assert [rank.anon for rank in read] == [rank.file for rank in stored]


def test_what_is_no_plan_is_refused(tmp_path):
    save(NETS["Tied"](), tmp_path)
    with pytest.raises(UnsupportedError, match="which layers"):
        plan_load(tmp_path, tp=2)
    with pytest.raises(UsageError, match="no number of ranks"):
        plan_load(tmp_path, fsdp=0)
    assert plan_of(None, None, 1, {}) == {}
    with pytest.raises(UsageError, match="'layers.*.upp' or 'head'") as caught:
        plan_load(tmp_path, tp=2, tp_plan={"layers.*.upp": "colwise", "head": "colwise_rep"})
    assert "layers.*.up" in caught.value.cure
    with pytest.raises(UsageError, match="'column' is no style"):
        plan_load(tmp_path, tp=2, tp_plan={"layers.*.up": "column"})
    for ranks in ({}, {"fsdp": 2}):
        with pytest.raises(UsageError, match="cuts nothing") as caught:
            plan_load(tmp_path, tp_plan=PLAN, **ranks)
        assert caught.value.cure == "say over how many ranks: tp=…"


def test_a_plan_that_a_load_refuses_is_refused_in_the_same_words(tmp_path):
    """The words of a load are those of tests/placement/test_layout.py."""
    save(NETS["Uneven"](), tmp_path)
    fused = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
    for plan, said in (
        (
            {"layers.*.up": "colwise"},
            "the output of layers.0.up stays cut: no rowwise layer stands beside it",
        ),
        (
            {"layers.*.down": "rowwise"},
            "the input of layers.0.down is whole: no colwise layer stands beside it",
        ),
    ):
        with pytest.raises(UnsupportedError) as caught:
            plan_load(tmp_path, tp=2, tp_plan=plan)
        assert caught.value.what == said
    assert plan_load(tmp_path, tp=2, tp_plan=fused).ranks
    write_demo_repo(tmp_path / "glm", formats=["safetensors"])
    mlp = "transformer.encoder.layers.*.mlp"
    plan = {f"{mlp}.dense_h_to_4h": "colwise", f"{mlp}.dense_4h_to_h": "rowwise"}
    with pytest.raises(UnsupportedError, match=r"mlp.dense_h_to_4h is fused of several: \d+ features"):
        plan_load(tmp_path / "glm", tp=2, tp_plan=plan)


def test_the_tied_head_of_a_plan_is_noted(tmp_path):
    save(NETS["Tied"](), tmp_path)
    assert [note for note in plan_load(tmp_path, tp=2, tp_plan=PLAN).notes if "head" in note] == [
        "the plan names 'head', which no tensor is"
    ]


def deepseek_v3():
    """The names, shapes and shards of DeepSeek-V3: 671 billion weights in fp8, with a scale a block of 128 x 128."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}

    def fp8(name, rows, columns):
        shapes[f"{name}.weight"] = "F8_E4M3", (rows, columns)
        shapes[f"{name}.weight_scale_inv"] = "F32", (-(-rows // 128), -(-columns // 128))

    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = "BF16", (129280, 7168)
    shapes["model.norm.weight"] = "BF16", (7168,)
    for layer in range(61):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.{name}.weight": ("BF16", (7168,))
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        shapes[f"{at}.self_attn.q_a_layernorm.weight"] = "BF16", (1536,)
        shapes[f"{at}.self_attn.kv_a_layernorm.weight"] = "BF16", (512,)
        fp8(f"{at}.self_attn.q_a_proj", 1536, 7168)
        fp8(f"{at}.self_attn.q_b_proj", 24576, 1536)
        fp8(f"{at}.self_attn.kv_a_proj_with_mqa", 576, 7168)
        fp8(f"{at}.self_attn.kv_b_proj", 32768, 512)
        fp8(f"{at}.self_attn.o_proj", 7168, 16384)
        if layer < 3:
            feed = {f"{at}.mlp": 18432}
        else:
            feed = {f"{at}.mlp.experts.{expert}": 2048 for expert in range(256)} | {
                f"{at}.mlp.shared_experts": 2048
            }
            shapes[f"{at}.mlp.gate.weight"] = "BF16", (256, 7168)
            shapes[f"{at}.mlp.gate.e_score_correction_bias"] = "F32", (256,)
        for name, width in feed.items():
            fp8(f"{name}.gate_proj", width, 7168)
            fp8(f"{name}.up_proj", width, 7168)
            fp8(f"{name}.down_proj", 7168, width)
    refs = {}
    offset = 0
    total = sum(count_of(shape) * DTYPE_BITS[code] // 8 for code, shape in shapes.values())
    for name, (code, shape) in shapes.items():
        nbytes = count_of(shape) * DTYPE_BITS[code] // 8
        shard = 1 + offset * 163 // total
        refs[name] = TensorRef(
            name, code, shape, f"model-{shard:05d}-of-000163.safetensors", Span(offset, offset + nbytes)
        )
        offset += nbytes
    return refs


def count_of(shape):
    return int(torch.Size(shape).numel())


@pytest.mark.parametrize(("fsdp", "tp"), [(256, 1), (32, 8)])
def test_256_ranks_of_deepseek_v3(fsdp, tp):
    refs = deepseek_v3()
    weights = sum(count_of(ref.shape) for name, ref in refs.items() if not name.endswith("_inv"))
    assert 670e9 < weights < 672e9
    plan = {
        "self_attn.q_b_proj": "colwise", "self_attn.kv_b_proj": "colwise", "self_attn.o_proj": "rowwise",
        "gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise",
        "embed_tokens": "rowwise_rep", "lm_head": "colwise_rep",
    }  # fmt: skip
    shards = sorted({ref.shard for ref in refs.values()})
    assert len(shards) == 163
    started = time.perf_counter()
    ranks = Ranks(fsdp, tp, plan if tp > 1 else {})
    amounts = ranks.amounts(refs, shards)
    seconds = time.perf_counter() - started
    share = sum(ref.nbytes for ref in refs.values()) / 256
    assert len(amounts) == 256
    largest, least = max(rank.read for rank in amounts), min(rank.read for rank in amounts)
    print(
        f"{seconds:.1f} s; read {least / share:.4f} to {largest / share:.4f} of a share of {share / 1e9:.2f} GB"
    )
    assert 0.98 * share < least <= largest < 1.02 * share
