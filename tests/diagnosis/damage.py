"""Damage: what happens to checkpoints on their way, done to numbered tensors, so that the truth is known."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from tests.diagnosis.key_sets import LAYOUTS, key_set

if TYPE_CHECKING:
    from random import Random

State = dict[str, torch.Tensor]

WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "model.",
    "net.",
    "student.model.",
)
SYNONYMS = (
    ("layers", ("h", "blocks", "layer", "block")),
    ("self_attn", ("attn", "attention", "self_attention")),
    ("mlp", ("ffn", "feed_forward", "ff")),
    ("q_proj", ("query", "q", "wq", "to_q", "q_lin")),
    ("k_proj", ("key", "k", "wk", "to_k", "k_lin")),
    ("v_proj", ("value", "v", "wv", "to_v", "v_lin")),
    ("o_proj", ("out_proj", "wo", "dense", "proj")),
    ("gate_proj", ("gate", "w1")),
    ("up_proj", ("up", "w3")),
    ("down_proj", ("down", "w2")),
    ("embed_tokens", ("tok_embeddings", "word_embeddings", "wte")),
    ("input_layernorm", ("attention_norm", "ln_1", "norm1")),
    ("post_attention_layernorm", ("ffn_norm", "ln_2", "norm2")),
    ("lm_head", ("output", "head", "output_layer")),
    ("language_model", ("llm", "text_model")),
    ("vision_tower", ("visual", "vision_model")),
)
NONSENSE = ("alpha", "bravo", "kilo", "tango", "xray", "zulu", "part_a", "part_b", "foo", "bar")


def numbered(shapes: dict[str, tuple[int, ...]]) -> State:
    """Return tensors whose elements are all different."""
    state: State = {}
    at = 1
    for key, shape in shapes.items():
        size = 1
        for length in shape:
            size *= length
        state[key] = torch.arange(at, at + size, dtype=torch.int32).reshape(shape)
        at += size
    return state


def damaged(random: Random, times: int | None = None) -> tuple[State, State, dict[str, str], list[str]]:
    """Return what a model wants, a checkpoint of it that went through one to four changes, classes, and their names."""
    layout = random.choice(list(LAYOUTS))
    shapes, classes = key_set(layout, random.choice((2, 3, 4)))
    wanted = numbered(shapes)
    state = dict(wanted)
    done = [layout]
    changes = [fuse, split, turn, rename, rename, nonsense, stack, shift, extra, wrap, inner_wrap]
    count = random.choice((1, 2, 3, 4)) if times is None else times
    for change in sorted(random.sample(changes, count), key=changes.index):
        before = state
        state = change(state, random, classes)
        if state is not before:
            done.append(change.__name__)
    return wanted, state, classes if random.random() < 0.5 else {}, done


def wrap(state: State, random: Random, _: dict[str, str]) -> State:
    prefix = random.choice(WRAPPERS)
    return {prefix + key: value for key, value in state.items()}


def inner_wrap(state: State, random: Random, _: dict[str, str]) -> State:
    name = random.choice(("_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
    return {re.sub(r"(\.\d+\.)", rf"\1{name}.", key, count=1): value for key, value in state.items()}


def rename(state: State, random: Random, _: dict[str, str]) -> State:
    """Rename some segments by a synonym each, wherever they stand; names that would meet stay apart."""
    for old, names in random.sample(SYNONYMS, random.choice((1, 3, 6, 10))):
        new = random.choice(names)
        renamed = {".".join(new if part == old else part for part in key.split(".")): key for key in state}
        if len(renamed) == len(state) and not any(new in key.split(".") for key in state):
            state = {name: state[key] for name, key in renamed.items()}
    return state


def nonsense(state: State, random: Random, _: dict[str, str]) -> State:
    """Rename a few segments by words that mean nothing."""
    segments = sorted({part for key in state for part in key.split(".")[:-1] if not part.isdigit()})
    for old in random.sample(segments, min(len(segments), random.choice((1, 2, 4)))):
        new = random.choice(NONSENSE)
        if not any(new in key.split(".") for key in state):
            state = {
                ".".join(new if part == old else part for part in key.split(".")): value
                for key, value in state.items()
            }
    return state


def fuse(state: State, random: Random, classes: dict[str, str]) -> State:
    """Put q, k and v, or gate and up, into one matrix."""
    names, fused = random.choice(
        (
            (("q_proj", "k_proj", "v_proj"), random.choice(("qkv_proj", "qkv", "query_key_value"))),
            (("gate_proj", "up_proj"), "gate_up_proj"),
            (("query", "key", "value"), "qkv"),
        )
    )
    result: State = {}
    changed = False
    for key, value in state.items():
        parts = key.split(".")
        if len(parts) > 1 and parts[-2] == names[0]:
            siblings = [".".join([*parts[:-2], name, parts[-1]]) for name in names]
            if all(name in state for name in siblings):
                result[".".join([*parts[:-2], fused, parts[-1]])] = torch.cat(
                    [state[name] for name in siblings]
                )
                changed = True
                continue
        if not (changed and len(parts) > 1 and parts[-2] in names):
            result[key] = value
    return result if changed else state


def split(state: State, random: Random, classes: dict[str, str]) -> State:
    """Cut a fused matrix into q, k and v."""
    result: State = {}
    changed = False
    for key, value in state.items():
        if ".query_key_value." not in key:
            result[key] = value
            continue
        rows = value.shape[0]
        sizes = (16, 8, 8) if rows == 32 else (rows // 3,) * 3
        for name, part in zip(("q_proj", "k_proj", "v_proj"), value.split(sizes), strict=True):
            result[key.replace("query_key_value", name)] = part
        changed = True
    return result if changed else state


def turn(state: State, random: Random, classes: dict[str, str]) -> State:
    """Turn every matrix of the blocks round, as Conv1D and Linear store them."""
    return {
        key: value.t().contiguous()
        if re.search(r"\.\d+\.", f".{key}")
        and value.dim() == 2
        and classes.get(key.rpartition(".")[0]) in {"Linear", "Conv1D", None}
        else value
        for key, value in state.items()
    }


def stack(state: State, random: Random, _: dict[str, str]) -> State:
    """Stack the experts."""
    result: State = {}
    for key, value in state.items():
        found = re.match(r"(.*\.experts)\.0\.(\w+)\.weight$", key)
        if found:
            names = [f"{found[1]}.{number}.{found[2]}.weight" for number in range(4)]
            result[f"{found[1]}.{found[2]}"] = torch.stack([state[name] for name in names])
        elif not re.search(r"\.experts\.\d", key):
            result[key] = value
    return result if len(result) != len(state) else state


def shift(state: State, random: Random, _: dict[str, str]) -> State:
    """Count layers from 1."""
    by = random.choice((1, 2))
    pattern = r"(^|\.)(layers|h|layer|blocks)\.(\d+)\."
    return {
        re.sub(pattern, lambda found: f"{found[1]}{found[2]}.{int(found[3]) + by}.", key, count=1): value
        for key, value in state.items()
    }


def extra(state: State, random: Random, _: dict[str, str]) -> State:
    """Store tables that the model computes."""
    return {**state, "rotary_emb.inv_freq": torch.arange(4, dtype=torch.int32) - 9}
