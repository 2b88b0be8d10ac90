"""Prints the doctor's reports on three real mismatches, or a plan, for README.md and docs/doctor.md.

    python scripts/doctor_examples.py           # three mismatches
    python scripts/doctor_examples.py --plan    # the plan of a load that fuses Mixtral's experts

Names and shapes are those of published checkpoints. The files hold headers and a hole, because only headers are read.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from shardload import KeyMap

Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Run the commands of the examples in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1:] == ["--plan"]:
            plan(Path(folder))
        else:
            doctor(Path(folder))


def doctor(where: Path) -> None:
    """Write the three pairs and run `shardload doctor` on each."""
    for name, (stored, wanted) in {
        "compiled": compiled(),
        "chatglm2": chatglm2(),
        "mixtral": mixtral(),
    }.items():
        write_headers(where / f"{name}.safetensors", stored)
        write_headers(where / f"{name}-model.safetensors", wanted)
        command = ["doctor", f"{name}.safetensors", "--like", f"{name}-model.safetensors"]
        print(f"$ shardload {' '.join(command)}")
        done = run(where, *command)
        print(f"{done.stdout}exit code {done.returncode}\n")


def plan(where: Path) -> None:
    """Write Mixtral-8x7B's headers in 19 shards and the map that fuses its experts; print `shardload plan`."""
    experts = "model.layers.{}.block_sparse_moe.experts"
    fuse = (
        KeyMap()
        .rename("{...}.block_sparse_moe.gate.weight", "{...}.mlp.gate.weight")
        .cat([experts + ".{}.w1.weight", experts + ".{}.w3.weight"], "model.layers.{}.experts.{}.gate_up")
        .stack("model.layers.{}.experts.{n}.gate_up", "model.layers.{}.mlp.experts.gate_up_proj")
        .stack(experts + ".{n}.w2.weight", "model.layers.{}.mlp.experts.down_proj")
    )
    (where / "fuse.json").write_text(fuse.to_json())
    folder = where / "mixtral-8x7b"
    folder.mkdir()
    shards = dealt(mixtral()[0], 5 * 10**9)
    for number, shapes in enumerate(shards, 1):
        by_name = dict(sorted(shapes.items()))  # in the order in which the safetensors library writes them
        write_headers(folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors", by_name, "BF16")
    print(run(where, "plan", "./mixtral-8x7b", "--map", "fuse.json").stdout, end="")


def run(where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a shardload command in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "shardload.cli", *command],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )


def dealt(shapes: Shapes, limit: int) -> list[Shapes]:
    """Divide shapes into shards of at most `limit` bytes in float16, layer after layer and expert after expert."""

    def place(key: str) -> tuple[int, list[int], str]:
        numbers = [int(segment) for segment in key.split(".") if segment.isdigit()]
        return (1 if numbers else 0 if "embed" in key else 2), numbers, key

    shards: list[Shapes] = [{}]
    size = 0
    for key in sorted(shapes, key=place):
        nbytes = 2 * math.prod(shapes[key])
        if size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = shapes[key]
        size += nbytes
    return shards


def write_headers(path: Path, shapes: Shapes, dtype: str = "F16") -> None:
    """Write a safetensors file of 16-bit tensors whose data is a hole in the file."""
    header, at = {}, 0
    for key, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the safetensors library aligns tensors so
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def numbered(template: str, *counts: int) -> list[str]:
    """Return the keys of a template, with each `{}` counted from 0."""
    keys = [template]
    for count in counts:
        keys = [key.replace("{}", str(number), 1) for key in keys for number in range(count)]
    return keys


def block(layers: int, shapes: Shapes) -> Shapes:
    """Return the shapes by key of a list of equal layers."""
    return {key: shape for name, shape in shapes.items() for key in numbered(name, layers)}


def llama_7b() -> Shapes:
    """Return the shapes by key of a 7B decoder, 291 keys."""
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
    """Return the shapes of a model saved from torch.compile inside DistributedDataParallel, and of the plain model."""
    wanted = llama_7b()
    return {f"_orig_mod.module.{key}": shape for key, shape in wanted.items()}, wanted


def chatglm2() -> tuple[Shapes, Shapes]:
    """Return the shapes of ChatGLM2-6B, and of a class with Llama's names, split attention and a fused gate."""
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
    """Return the shapes of Mixtral-8x7B with single experts, and of a class with two tensors of experts per layer."""
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
