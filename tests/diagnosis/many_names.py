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


def sized(template: str, count: int, *, least: int = 3, seed: int = 1):
    """Return keys that each have a shape of their own."""
    return {template.format(name): (least + at, 8) for at, name in enumerate(names(count, seed))}


def towers(template: str, count: int, seed: int = 1):
    """Return towers of four tensors, all alike."""
    leaves = "q.weight k.weight up.weight norm.weight".split()
    shapes = {"up.weight": (16, 8), "norm.weight": (8,)}
    return {
        template.format(name) + leaf: shapes.get(leaf, S)
        for name in names(count // 4, seed)
        for leaf in leaves
    }


def lists(template: str, count: int, layers: int):
    """Return lists of layers, with one tensor in each layer."""
    return {template.format(name, layer): S for name in names(count // 3) for layer in range(layers)}


CONFIG = {"num_labels": 5, "vocab_size": 100, "hidden_size": 8, "type_vocab_size": 2}
"""The config of all of them."""

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
    "turned ones": lambda n: (of("a.{}.weight", n, (8, 16)), of("a.{}.weight", n, (16, 8))),
    "turned ones of other shapes": lambda n: (
        sized("a.{}.weight", n),
        {key: shape[::-1] for key, shape in sized("a.{}.weight", n).items()},
    ),
    "cut ones": lambda n: (
        {key: (3 * rows, 8) for key, (rows, _) in sized("a.{}.qkv.weight", n // 3).items()},
        {f"a.{name}.{r}.weight": (3 + at, 8) for at, name in enumerate(names(n // 3)) for r in "qkv"},
    ),
    "tables": lambda n: (
        of("a.{}.inv_freq", n, (4,)) | of("a.{}.bias", n // 4, (1, 1, 8, 8)) | {"w": S},
        {"w": S},
    ),
    "tables of the model": lambda n: (of("a.{}.weight", n), of("a.{}.weight", n) | of("a.{}.inv_freq", n)),
    "shapes of their own": lambda n: (sized("net.{}.weight", n), sized("other.{}.weight", n, seed=2)),
    "other sizes of their own": lambda n: (
        sized("net.{}.weight", n),
        sized("net.{}.weight", n, least=5),
    ),
    "labels": lambda n: (
        {key: (7, rows) for key, (rows, _) in sized("a.{}.classifier.weight", n // 2).items()}
        | {key: (5, rows) for key, (rows, _) in sized("b.{}.classifier.weight", n // 2).items()},
        {key: (5, rows) for key, (rows, _) in sized("a.{}.classifier.weight", n // 2).items()}
        | {key: (5, rows) for key, (rows, _) in sized("b.{}.classifier.weight", n // 2).items()},
    ),
    "labels of differing sizes": lambda n: (
        {key: (7 + rows, 8) for key, (rows, _) in sized("a.{}.classifier.weight", n // 2).items()}
        | of("b.{}.classifier.weight", n // 2, (6, 5)),
        dict.fromkeys(sized("a.{}.classifier.weight", n // 2), (5, 8))
        | of("b.{}.classifier.weight", n // 2, (6, 5)),
    ),
    "squares": lambda n: (
        of("a.{}.weight", n) | {"x.weight": (8, 16), "y.weight": (8, 24)},
        of("a.{}.weight", n) | {"x.weight": (16, 8), "y.weight": (24, 8)},
    ),
    "ends of their own": lambda n: (
        {f"a.{kind}.mid.base.{name}": (at, 8) for at, name in enumerate(names(n // 2)) for kind in "xy"},
        {f"b.{kind}.mid.base.{name}": (at, 8) for at, name in enumerate(names(n // 2)) for kind in "xy"},
    ),
    "towers": lambda n: (towers("a.{}.net.", n), towers("b.{}.body.", n)),
    "towers of other names": lambda n: (towers("a.{}.", n), towers("b.{}.", n, seed=2)),
    "lists of layers": lambda n: (lists("a.{}.layers.{}.w", n, 3), lists("a.{}.layers.{}.w", n, 4)),
    "lists with a hole": lambda n: (
        {key: shape for key, shape in lists("a.{}.layers.{}.w", n, 3).items() if ".1." not in key},
        lists("a.{}.layers.{}.w", n, 3),
    ),
    "heads that are tied": lambda n: (
        of("a.{}.embed.weight", n, (100, 8)),
        of("a.{}.embed.weight", n, (100, 8)) | of("a.{}.lm_head.weight", n, (100, 8)),
    ),
}
"""{what is many: a function that returns the stored and the wanted shapes of about so many keys}."""
