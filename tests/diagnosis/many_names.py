"""Checkpoints with as many names as keys: nothing in them counts, so families do not make them fewer."""

from __future__ import annotations

import random
from string import ascii_lowercase

S = (8, 8)


def names(count: int, seed: int = 1) -> list[str]:
    """Return so many names without a meaning."""
    draw = random.Random(seed)
    found = {"".join(draw.choices(ascii_lowercase, k=7)): None for _ in range(2 * count)}
    return list(found)[:count]


def of(template: str, count: int, shape=S, seed: int = 1):
    """Return keys of one shape, a name in each."""
    return {template.format(name): shape for name in names(count, seed)}


def parts(template: str, leaves: str, count: int, shape=S):
    """Return keys of one shape, with several leaves below each name."""
    own = leaves.split()
    return {template.format(name, leaf): shape for name in names(count // len(own)) for leaf in own}


MANY = {
    "an unknown rule": lambda n: (of("net.{}.weight", n), of("net.{}.weight", n, seed=2)),
    "an unknown suffix": lambda n: (of("net.{}.weight", n), of("net.{}_x.weight", n)),
    "another shape": lambda n: (of("a.{}.weight", n), of("b.{}.weight", n, (8, 16))),
    "modules of four": lambda n: (
        parts("a.{}.{}_proj.weight", "q k v o", n),
        parts("b.{}.w{}.weight", "q k v o", n),
    ),
    "suffixes": lambda n: (
        parts("m.{}.{}", "weight lora_A.weight lora_B.weight", n),
        parts("m.{}.{}", "base_layer.weight lora_A.default.weight lora_B.default.weight", n),
    ),
    "fused ones": lambda n: (
        parts("a.{}.{}_proj.weight", "q k v", n),
        of("b.{}.qkv.weight", n // 3, (24, 8)),
    ),
    "stacks": lambda n: (
        parts("a.{}.experts.{}.w", "0 1", n),
        of("b.{}.experts.w", n // 2, (2, 8, 8)),
    ),
}
"""{what is many: a function that returns the stored and the wanted shapes of about so many keys}."""
