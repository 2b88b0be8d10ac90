"""Print what the doctor says of three real mismatches, for README.md and docs/doctor.md.

    python scripts/doctor_examples.py

Names and shapes are those of published checkpoints; the files are headers in front of a hole, which is all that is
read of them.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Write the three pairs and run `shardload doctor` on each."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (stored, wanted) in {
            "compiled": compiled(),
            "chatglm2": chatglm2(),
            "mixtral": mixtral(),
        }.items():
            where = Path(folder)
            write_headers(where / f"{name}.safetensors", stored)
            write_headers(where / f"{name}-model.safetensors", wanted)
            command = ["doctor", f"{name}.safetensors", "--like", f"{name}-model.safetensors"]
            print(f"$ shardload {' '.join(command)}")
            done = subprocess.run(
                [sys.executable, "-m", "shardload.cli", *command],
                cwd=where,
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"{done.stdout}exit code {done.returncode}\n")


def write_headers(path: Path, shapes: Shapes) -> None:
    """Write a safetensors file of float16 tensors whose bytes are a hole in the file."""
    header, at = {}, 0
    for key, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def numbered(template: str, *counts: int) -> list[str]:
    """Return the keys of a template, its `{}` counted from 0."""
    keys = [template]
    for count in counts:
        keys = [key.replace("{}", str(number), 1) for key in keys for number in range(count)]
    return keys


def block(layers: int, shapes: Shapes) -> Shapes:
    """Return the keys of a list of layers."""
    return {key: shape for name, shape in shapes.items() for key in numbered(name, layers)}


def llama_7b() -> Shapes:
    """Return the 291 keys of a 7B decoder."""
    path = "model.layers.{}."
    return {
        "model.embed_tokens.weight": (32000, 4096),
        **block(
            32,
            {
                **{f"{path}self_attn.{name}_proj.weight": (4096, 4096) for name in "qkvo"},
                **{f"{path}mlp.{name}_proj.weight": (11008, 4096) for name in ("gate", "up")},
                f"{path}mlp.down_proj.weight": (4096, 11008),
                **{f"{path}{name}_layernorm.weight": (4096,) for name in ("input", "post_attention")},
            },
        ),
        "model.norm.weight": (4096,),
        "lm_head.weight": (32000, 4096),
    }


def compiled() -> tuple[Shapes, Shapes]:
    """Return a checkpoint saved from torch.compile inside DistributedDataParallel."""
    wanted = llama_7b()
    return {f"_orig_mod.module.{key}": shape for key, shape in wanted.items()}, wanted


def chatglm2() -> tuple[Shapes, Shapes]:
    """Return ChatGLM2-6B, and a class with Llama's names, split attention and a fused gate."""
    old, new = "transformer.encoder.layers.{}.", "model.layers.{}."
    stored = {
        "transformer.embedding.word_embeddings.weight": (65024, 4096),
        "transformer.rotary_pos_emb.inv_freq": (32,),
        **block(
            28,
            {
                f"{old}input_layernorm.weight": (4096,),
                f"{old}self_attention.query_key_value.weight": (4608, 4096),
                f"{old}self_attention.query_key_value.bias": (4608,),
                f"{old}self_attention.dense.weight": (4096, 4096),
                f"{old}post_attention_layernorm.weight": (4096,),
                f"{old}mlp.dense_h_to_4h.weight": (27392, 4096),
                f"{old}mlp.dense_4h_to_h.weight": (4096, 13696),
            },
        ),
        "transformer.encoder.final_layernorm.weight": (4096,),
        "transformer.output_layer.weight": (65024, 4096),
    }
    rows = {"q": 4096, "k": 256, "v": 256}
    wanted = {
        "model.embed_tokens.weight": (65024, 4096),
        **block(
            28,
            {
                **{f"{new}self_attn.{name}_proj.weight": (count, 4096) for name, count in rows.items()},
                **{f"{new}self_attn.{name}_proj.bias": (count,) for name, count in rows.items()},
                f"{new}self_attn.o_proj.weight": (4096, 4096),
                f"{new}mlp.gate_up_proj.weight": (27392, 4096),
                f"{new}mlp.down_proj.weight": (4096, 13696),
                **{f"{new}{name}_layernorm.weight": (4096,) for name in ("input", "post_attention")},
            },
        ),
        "model.norm.weight": (4096,),
        "lm_head.weight": (65024, 4096),
    }
    return stored, wanted


def mixtral() -> tuple[Shapes, Shapes]:
    """Return Mixtral-8x7B's experts one by one, and a class that keeps them in two tensors a layer."""
    common = {
        key: (32000, 4096) if len(shape) == 2 else shape
        for key, shape in llama_7b().items()
        if ".layers." not in key
    }
    path = "model.layers.{}."
    attention: Shapes = {
        **{f"{path}self_attn.{name}_proj.weight": (4096, 4096) for name in "qo"},
        **{f"{path}self_attn.{name}_proj.weight": (1024, 4096) for name in "kv"},
        **{f"{path}{name}_layernorm.weight": (4096,) for name in ("input", "post_attention")},
    }
    shapes = {"w1": (14336, 4096), "w2": (4096, 14336), "w3": (14336, 4096)}
    stored = {**common, **block(32, {**attention, f"{path}block_sparse_moe.gate.weight": (8, 4096)})}
    for name, shape in shapes.items():
        keys = numbered(f"{path}block_sparse_moe.experts.{{}}.{name}.weight", 32, 8)
        stored |= dict.fromkeys(keys, shape)
    fused: Shapes = {
        f"{path}mlp.gate.weight": (8, 4096),
        f"{path}mlp.experts.gate_up_proj": (8, 28672, 4096),
        f"{path}mlp.experts.down_proj": (8, 4096, 14336),
    }
    return stored, {**common, **block(32, {**attention, **fused})}


if __name__ == "__main__":
    main()
