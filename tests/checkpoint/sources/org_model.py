"""The repo "org/model" that the tests of this folder read from a server on loopback, and what they look at."""

from __future__ import annotations

import random

CONFIG = b'{"model_type": "chatglm"}'


BIG = random.Random(0).randbytes(3_000_000)


HUGE = random.Random(1).randbytes(20_000_000)


FILES = {
    "config.json": CONFIG,
    "model.safetensors": BIG,
    "pytorch_model.bin": BIG[::-1],
    "vae/config.json": b"{}",
    ".gitattributes": b"*",
}


def whole(file):
    return file.read_at(0, file.size)


def cached_files(cache):
    return {p.name for p in cache.rglob("snapshots/*/*") if p.is_file()}
