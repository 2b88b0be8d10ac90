"""Measures what the conversion of a class of transformers adds to a plan, in CPU seconds: `conversion [times]`.

The shells have the sizes of Qwen3-235B-A22B and of Mixtral-8x7B; their checkpoints are files of headers without a byte
of weights, once as they are published, with each expert apart, and once under the class's own names, which need no
conversion. `plan_cpu_s` is `check` of the one, `fits_cpu_s` of the other; the least of several runs of each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import torch
import transformers

from shardload import build_shell, check, open_checkpoint
from shardload.keymap import KeyMap
from shardload.model.shell import modules_of
from shardload.tensor_ref import Span, TensorRef
from shardload.transformers_classes import conversions

MODELS = {
    "qwen3-235b": (
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig(
            vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=94,
            num_attention_heads=64, num_key_value_heads=4, head_dim=128, moe_intermediate_size=1536, num_experts=128,
            num_experts_per_tok=8, tie_word_embeddings=False,
        ),
    ),
    "mixtral-8x7b": (transformers.MixtralForCausalLM, transformers.MixtralConfig()),
}  # fmt: skip


def main(times: int = 5) -> None:
    figures: dict[str, dict[str, float]] = {}
    for name, (cls, config) in MODELS.items():
        shell = build_shell(lambda cls=cls, config=config: cls(config), dtype=torch.bfloat16)
        own = {key: slot.shape for key, slot in shell.slots.items() if slot.is_stored}
        with tempfile.TemporaryDirectory() as folder:
            fits = open_checkpoint(write(Path(folder) / "fits.safetensors", own))
            published = open_checkpoint(
                write(Path(folder) / "published.safetensors", apart(shell.model, own))
            )
            planned, other = ([seconds(shell, each) for _ in range(times)] for each in (published, fits))
        figures[name] = {
            "tensors": len(published.tensors),
            "parameters": len(fits.tensors),
            "plan_cpu_s": min(planned),
            "fits_cpu_s": min(other),
            "added_cpu_s": min(planned) - min(other),
        }
    print(json.dumps(figures))


def seconds(shell, checkpoint):
    start = time.process_time()
    report = check(shell, checkpoint)
    used = time.process_time() - start
    assert not report.faults, report
    return used


def apart(model, own):
    """Return the names and shapes that `save_pretrained` would write."""
    rules = conversions(set(map(type, model.modules())), modules_of(model), own)
    refs = {key: TensorRef(key, "BF16", shape, "", Span(0, 2 * prod(shape))) for key, shape in own.items()}
    made = KeyMap(rules).invert().map_headers(refs).tensors
    return {key: ref.shape for key, ref in made.items()}


def write(path, shapes):
    """Write the header of a safetensors file; what follows is a hole of the right size."""
    header, at = {}, 0
    for key, shape in sorted(shapes.items()):  # as the safetensors library orders them
        size = 2 * prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return path


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
