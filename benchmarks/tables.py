"""What is measured: the checkpoints by name, and the tables, each a list of contestants on one task."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.checkpoints import Spec, chatglm, llama, many

FULL: dict[str, Spec] = {
    "llama": llama(hidden=2048, ffn=5632, layers=16, vocab=32000),
    "chatglm": chatglm(hidden=2048, ffn=5632, layers=18, vocab=39136),  # the same bytes to 0.01%
    "llama-1gb": llama(hidden=2048, ffn=5632, layers=8, vocab=32000),
    "many": many(layers=200, per_layer=230),
    "fewer": many(layers=50, per_layer=230, shards=15),
}
QUICK: dict[str, Spec] = {
    "llama": llama(hidden=256, ffn=704, layers=7, vocab=2000),
    "chatglm": chatglm(hidden=256, ffn=704, layers=7, vocab=2000),
    "llama-1gb": llama(hidden=256, ffn=704, layers=7, vocab=2000),
    "many": many(layers=4, per_layer=50, shards=6),
    "fewer": many(layers=2, per_layer=50, shards=3),
}


@dataclass(frozen=True)
class Load:
    """One loader on one checkpoint ("NAME.SUFFIX").

    `most` bounds the rounds of a slow one. `comparable` is False for one that has less to do than the others.
    """

    loader: str
    checkpoint: str
    note: str = ""
    most: int = 99
    comparable: bool = True


@dataclass(frozen=True)
class Command:
    """One python command, where `{NAME.SUFFIX}` stands for a checkpoint's folder; `over` is a row to subtract."""

    label: str
    arguments: tuple[str, ...]
    over: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    what: str
    rows: tuple[Load | Command, ...]
    dtype: str = "auto"


def _ready(suffix: str) -> Table:
    return Table(
        f"ready-{suffix}",
        f"A 1.9 GB checkpoint in 7 `.{suffix}` shards, stored dtype",
        "Fresh process, page cache warm, CPU. The class is transformers' LlamaForCausalLM (bfloat16) but for the row "
        "with remote code: a ChatGLM2-style repo (float16) of the same bytes, which transformers 5 can't load.",
        (
            Load("floor", f"llama.{suffix}"),
            Load("ours", f"chatglm.{suffix}", "remote code, transformers not imported"),
            Load("ours", f"llama.{suffix}", "transformers' class"),
            Load("transformers_loader", f"llama.{suffix}"),
            Load("accelerate_loader", f"llama.{suffix}"),
            Load("assign", f"llama.{suffix}"),
            Load("tutorial", f"llama.{suffix}", most=1),
        ),
    )


_CAST = Table(
    "cast",
    "bfloat16 → float32 while loading, 1.1 GB in 7 `.safetensors` shards",
    "As above; the result is 2.2 GB of anonymous memory that no loader can do without.",
    (
        Load("ours", "llama-1gb.safetensors", "transformers' class"),
        Load("transformers_loader", "llama-1gb.safetensors"),
        Load("accelerate_loader", "llama-1gb.safetensors"),
        Load("assign", "llama-1gb.safetensors"),
        Load("tutorial", "llama-1gb.safetensors", most=1),
    ),
    dtype="float32",
)

_MANY = Table(
    "many",
    "46,000 Linears of 16x16 in 60 shards",
    "The class is given (for transformers as a PreTrainedModel). What counts is the load after the imports.",
    (
        Load("ours", "many.safetensors", "`.safetensors`"),
        Load("ours", "many.bin", "`.bin`"),
        Load("transformers_loader", "many.safetensors", "`.safetensors`", most=2),
        Load(
            "assign",
            "fewer.safetensors",
            "a quarter of it: 11,500 in 15 `.safetensors` shards",
            comparable=False,
        ),
    ),
)

_INSPECT = ("-m", "shardload.cli", "inspect")
_COMMANDS = Table(
    "commands",
    "Imports and `shardload inspect`",
    "Whole processes, from start to exit; the difference to another row is taken round by round.",
    (
        Command("`python -c pass`", ("-c", "pass")),
        Command("`import shardload`", ("-c", "import shardload"), "`python -c pass`"),
        Command("`import torch`", ("-c", "import torch")),
        Command("`import torch, shardload`", ("-c", "import torch, shardload"), "`import torch`"),
        Command(
            "`import torch; from shardload import from_pretrained`",
            ("-c", "import torch; from shardload import from_pretrained"),
            "`import torch`",
        ),
        Command(
            "`import torch; from transformers import LlamaForCausalLM`",
            ("-c", "import torch; from transformers import LlamaForCausalLM"),
            "`import torch`",
        ),
        Command(
            "`import torch; from accelerate import load_checkpoint_and_dispatch`",
            ("-c", "import torch; from accelerate import load_checkpoint_and_dispatch"),
            "`import torch`",
        ),
        Command("`shardload inspect`, 147 tensors, `.safetensors`", (*_INSPECT, "{llama.safetensors}")),
        Command("`shardload inspect`, 147 tensors, `.bin`", (*_INSPECT, "{llama.bin}")),
        Command("`shardload inspect`, 46,000 tensors, `.safetensors`", (*_INSPECT, "{many.safetensors}")),
        Command("`shardload inspect`, 46,000 tensors, `.bin`", (*_INSPECT, "{many.bin}")),
    ),
)

TABLES = (_ready("safetensors"), _ready("bin"), _CAST, _MANY, _COMMANDS)


def checkpoints_of(table: Table) -> set[str]:
    """Return the checkpoints that a table needs, as "NAME.SUFFIX"."""
    loads = {row.checkpoint for row in table.rows if isinstance(row, Load)}
    words = [word for row in table.rows if isinstance(row, Command) for word in row.arguments]
    return loads | {word[1:-1] for word in words if word.startswith("{")}
