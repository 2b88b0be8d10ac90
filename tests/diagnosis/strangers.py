"""Strangers: tensors of a checkpoint that belong to no slot of the model, though their shapes fit one.

Each change takes (what the model wants, what the checkpoint stores) and leaves a case in which a wrong pair fits
the headers. Elements of strangers are negative, so that a model that gets one is seen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.diagnosis.damage import damaged

if TYPE_CHECKING:
    from random import Random

    from tests.diagnosis.damage import State

PARTS = (
    "pooler.dense", "cls.predictions.transform.dense", "score", "head.dense", "qa_outputs", "adapter",
    "value_head.dense", "aux.proj", "critic", "mask_token", "conv",
)  # fmt: skip
PAIRS = (
    ("student", "teacher"), ("student.backbone", "teacher.backbone"), ("model", "ema_model"),
    ("encoder_q", "encoder_k"),
    ("generator", "discriminator"), ("online", "target"), ("net", "net_ema"), ("module", "module_ema"),
    ("encoder", "decoder"), ("actor", "critic"), ("a", "b"),
)  # fmt: skip


def other_part(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """The checkpoint lacks a module and has another one of its shapes, beside it or elsewhere."""
    paths = sorted({key.rpartition(".")[0] for key in stored if key.endswith((".weight", ".bias"))})
    numbered = [path for path in paths if not re.search(r"\.[1-9][0-9]*(\.|$)", path)]
    gone = random.choice(numbered)
    new = random.choice(PARTS)
    parent, _, name = gone.rpartition(".")
    where = random.choice((gone.rpartition(".")[0], "", parent))
    pattern = re.compile(re.sub(r"\\\.0(?=\\\.|$)", r"\\.([0-9]+)", re.escape(gone)) + r"\.([^.]+)")
    result = {}
    for key, value in stored.items():
        found = pattern.fullmatch(key)
        if found is None:
            result[key] = value
            continue
        own = re.sub(rf"{re.escape(name)}$", new, key.rpartition(".")[0]) if where else new
        own = own if where or "0" not in gone.split(".") else f"extra.{found[1]}.{new}"
        result[f"{own}.{found.groups()[-1]}"] = -value
    return wanted, result if len(result) == len(stored) else stored


def two_stored(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """The checkpoint holds two whole sets, and the model is one of them, under a name that is neither."""
    one, two = random.sample(random.choice(PAIRS), 2)
    sets = [{f"{one}.{key}": value for key, value in stored.items()}]
    sets.append({f"{two}.{key}": -value for key, value in stored.items()})
    random.shuffle(sets)
    return wanted, {**sets[0], **sets[1]}


def two_wanted(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """The model has two whole sets, and the checkpoint one; nothing says which."""
    one, two = random.sample(random.choice(PAIRS), 2)
    both = {f"{name}.{key}": value for name in (one, two) for key, value in wanted.items()}
    return {key: value + 10**6 for key, value in both.items()}, stored


def layer_more(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """One side has a layer more, at either end, and the numbers of the checkpoint begin elsewhere."""
    pattern = re.compile(r"((?:^|.*?\.)(?:layers|h|layer|blocks|block)\.)([0-9]+)(\..*)")
    numbers = [int(found[2]) for key in stored if (found := pattern.fullmatch(key))]
    if not numbers:
        return wanted, stored
    gone = random.choice((min(numbers), max(numbers)))
    by = random.choice((0, 0, 1, 2))
    result = {}
    for key, value in stored.items():
        found = pattern.fullmatch(key)
        if found is None:
            result[key] = value
        elif int(found[2]) != gone:
            result[f"{found[1]}{int(found[2]) + by}{found[3]}"] = value
    return wanted, result


def alternating(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """Layers of two kinds take turns; the checkpoint begins with the other kind."""
    for at, state in ((0, wanted), (1, stored)):
        sign = -1 if at else 1
        for number in range(6):
            kind = ("mixer.in_proj", "conv.proj")[(number + at) % 2]
            state[f"stack.{number}.{kind}.weight"] = next(iter(wanted.values())).new_full(
                (3, 3), sign * (900 + number)
            )
    return wanted, stored


def scales(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """Matrices are stored as blocks with scales beside them."""
    suffix = random.choice(("_scales", "_scale", "_zeros", ".absmax", "_blocks"))
    names = [key for key, value in stored.items() if value.dim() >= 2]
    word = random.choice(names).split(".")[-2]
    result = {}
    for key, value in stored.items():
        if key in names and word in key.split("."):
            result[key + suffix] = -value.flatten()[: value.shape[0]].reshape(
                -1, *[1] * random.choice((0, value.dim() - 1))
            )
        else:
            result[key] = value
    return wanted, result


def leaf(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """Norms of the model have weights alone, those of the checkpoint have another vector alone."""
    vectors = [
        key
        for key, value in stored.items()
        if value.dim() == 1 and key.endswith(".weight") and key[:-6] + "bias" not in stored
    ]
    new = random.choice(("bias", "beta", "shift", "running_mean", "scale_inv"))
    return wanted, {
        key[:-6] + new if key in vectors else key: -value if key in vectors else value
        for key, value in stored.items()
    }


def low_rank(wanted: State, stored: State, random: Random) -> tuple[State, State]:
    """Two factors of equal shape under names that do not say which is which."""
    one, two = random.choice((("lora_A", "lora_B"), ("lora_down", "lora_up"), ("down", "up")))
    first, second = random.choice((("first", "second"), ("mat1", "mat2"), ("x", "y"), ("left", "right")))
    blank = next(iter(wanted.values())).new_full((4, 4), 7)
    wanted = {**wanted, f"extra.{one}.weight": blank, f"extra.{two}.weight": blank + 1}
    pair = [blank, blank + 1] if random.random() < 0.5 else [blank + 1, blank]
    return wanted, {**stored, f"extra.{first}.weight": pair[0], f"extra.{second}.weight": pair[1]}


CHANGES = (other_part, two_stored, two_wanted, layer_more, alternating, scales, leaf, low_rank)


def estranged(random: Random, change) -> tuple[State, State, dict[str, str], list[str]]:
    """Return a damaged checkpoint that one of the changes has put strangers in."""
    wanted, stored, classes, done = damaged(random, random.choice((0, 1, 2)))
    wanted, stored = change(dict(wanted), dict(stored), random)
    return wanted, stored, classes, [*done, change.__name__]
