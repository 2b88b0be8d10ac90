"""Calls that the type checker has to accept or refuse; it is run on this file with the package, and nothing imports it.

An ignore that is not needed is an error of its own: a misspelt keyword that were accepted would be one.
"""

from __future__ import annotations

from pathlib import Path

import torch

import shardload


def accepted(folder: Path) -> None:
    """Keywords of the groups, of the function itself, and all defaults left out."""
    shardload.open_checkpoint("org/name", revision="main", token=True, cache_dir=folder, variant="fp16")
    shardload.load_config(folder, trust_remote_code="locked", remote_base="shim", dtype="float32")
    shardload.load_tokenizer(folder, trust_remote_code=folder / "shardload.lock", remote_base="transformers")
    shardload.plan_load(shardload.open_checkpoint(folder), device="cuda", local_files_only=True)
    model = shardload.from_pretrained(folder, subfolder="inner", allow_links=True, code_revision=None)
    shardload.load_adapter(model, folder, trainable=True, revision="main")
    answer, history = model.chat(shardload.load_tokenizer(folder, padding_side="left"), "hello", history=[])
    model.generate(None, max_new_tokens=len(answer) + len(history))
    linear = shardload.from_pretrained(
        folder, model_class=lambda _: torch.nn.Linear(4, 2), torch_dtype="auto"
    )
    linear.in_features.bit_length()
    shardload.from_pretrained(folder, num_labels=3, low_cpu_mem_usage=True, attn_implementation="eager")
    shardload.save(model, folder, max_shard_size="2GB")


def refused(folder: Path) -> None:
    """A misspelt keyword, another function's, and a value of another type."""
    shardload.from_pretrained(folder, num_lables=3)  # type: ignore[call-arg]
    shardload.from_pretrained(folder, model_class=lambda _: torch.nn.Linear(4, 2)).chat()  # type: ignore[operator]
    shardload.open_checkpoint(folder, revison="main")  # type: ignore[call-arg]
    shardload.from_pretrained(folder, trust_remotecode=True)  # type: ignore[call-arg]
    shardload.load_config(folder, variant="fp16")  # type: ignore[call-arg]
    shardload.plan_load(folder, merge=True)  # type: ignore[call-arg]
    shardload.diff(folder, folder, torch_dtype="float16")  # type: ignore[call-arg]
    shardload.convert(folder, folder, low_cpu_mem_usage=True)  # type: ignore[call-arg]
    shardload.load_tokenizer(folder, remote_base="real")  # type: ignore[arg-type]
    shardload.open_checkpoint(folder, allow_links="yes")  # type: ignore[arg-type]
    shardload.build_shell(dict, device="cuda")  # type: ignore[call-arg, arg-type]
