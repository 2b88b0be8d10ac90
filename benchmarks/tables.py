"""What is measured: the checkpoints by name, and the tables, each a list of contestants on one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.checkpoints import Spec, chatglm, llama, many

if TYPE_CHECKING:
    from collections.abc import Sequence

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
class Probe:
    """One `python -m benchmarks.probes.…`, which measures several contestants in turn and prints its figures."""

    label: str
    arguments: tuple[str, ...]
    most: int = 1


@dataclass(frozen=True)
class Column:
    """A figure of a probe, and how it is shown: "s", "ms", "us" for seconds, "x" for a ratio."""

    name: str
    title: str
    unit: str


Row = Load | Command | Probe


@dataclass(frozen=True)
class Table:
    """Contestants on one task. The part of the name before a hyphen names several tables together.

    `file` is where its results go; a run without --only measures those of "bench".
    """

    name: str
    title: str
    what: str
    rows: tuple[Row, ...]
    dtype: str = "auto"
    columns: tuple[Column, ...] = ()
    file: str = "bench"


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

_ATTACH = Table(
    "adapters-attach",
    "Attaching and loading LoRA adapters (rank 8) on linear layers of width 64, beside PEFT",
    "One process a row: the first four adapters with shardload, then with PEFT (`from_pretrained`, `load_adapter`, "
    "low_cpu_mem_usage=True, its faster way); the files are in the page cache, and the weights of the first and last "
    "layer are compared with the file. PEFT's time grows with the square of the layers, so 8,000 is measured for two.",
    (
        Probe("500 layers", ("attach", "500", "4"), most=2),
        Probe("2,000 layers", ("attach", "2000", "4")),
        Probe("8,000 layers", ("attach", "8000", "2")),
    ),
    columns=(
        Column("ours_1", "first", "s"),
        Column("peft_1", "PEFT", "s"),
        Column("times_1", "PEFT / ours", "x"),
        Column("ours_2", "second", "s"),
        Column("peft_2", "PEFT", "s"),
        Column("times_2", "PEFT / ours", "x"),
        Column("ours_4", "fourth", "s"),
        Column("peft_4", "PEFT", "s"),
        Column("times_4", "PEFT / ours", "x"),
    ),
    file="adapters",
)

_CALL = Table(
    "adapters-call",
    "What one adapted Linear costs a call (width 64, rank 8, float32, one thread), beside PEFT",
    "The bare layer, ours and PEFT's in turn, blocks of 1,000 calls; what is more than the bare layer's time is taken "
    "block by block. Both compute the same, which is checked first.",
    (
        Probe("1 row, inference mode", ("call", "1", "inference")),
        Probe("16 rows, training, forward only", ("call", "16", "training")),
    ),
    columns=(
        Column("bare_s", "bare layer", "us"),
        Column("ours_over_s", "more with ours", "us"),
        Column("peft_over_s", "more with PEFT's", "us"),
        Column("share_of_peft", "ours / PEFT", "x"),
    ),
    file="adapters",
)

_BATCH = Table(
    "adapters-batch",
    "`adapter_batch`: 32 rows with 32 adapters (rank 8) in one layer of width 4096, float32, beside PEFT",
    "In turn, in inference mode; ratios are taken round by round. PEFT's is `adapter_names=`. Both compute the same.",
    (Probe("1 token a row", ("batch", "1")), Probe("16 tokens a row", ("batch", "16"))),
    columns=(
        Column("base_s", "base alone", "ms"),
        Column("one_s", "one adapter", "ms"),
        Column("batch_s", "32 adapters", "ms"),
        Column("batch_times_one", "32 / one", "x"),
        Column("peft_one_s", "PEFT, one", "ms"),
        Column("peft_batch_s", "PEFT, 32", "ms"),
        Column("peft_batch_times_one", "PEFT, 32 / one", "x"),
    ),
    file="adapters",
)

_MERGE = Table(
    "merge",
    "Merging a LoRA adapter (rank 16, fp32) of every linear layer into a bfloat16 checkpoint on disk, beside PEFT",
    "Fresh processes in turn, base in the page cache: `merge_to_disk` (each shard flushed; read back from the disk "
    "and compared, and once without that), and PEFT's load, `merge_and_unload` and `save_pretrained`, which flushes "
    "nothing. Ratios are taken pair by pair. Peaks are anonymous memory over that after the imports. Every tensor is "
    "compared with PEFT's: one bit of difference fails the row.",
    (
        Probe("1.5 GB, 84 of 111 tensors", ("merge", "llama", "3"), most=1),
        Probe("one tensor of 512 MB", ("merge", "wide", "3"), most=1),
    ),
    columns=(
        Column("ours_wall_s", "start → done", "s"),
        Column("unverified_wall_s", "without reading back", "s"),
        Column("peft_wall_s", "PEFT", "s"),
        Column("times", "PEFT / ours", "x"),
        Column("times_work", "after the imports", "x"),
        Column("ours_cpu_s", "CPU", "s"),
        Column("peft_cpu_s", "PEFT", "s"),
        Column("ours_anon", "peak anonymous", "MB"),
        Column("peft_anon", "PEFT", "MB"),
        Column("equal", "tensors of equal bits", "n"),
        Column("tensors", "of", "n"),
    ),
)

TABLES = (_ready("safetensors"), _ready("bin"), _CAST, _MANY, _COMMANDS, _ATTACH, _CALL, _BATCH, _MERGE)


def chosen(names: Sequence[str] | None) -> list[Table]:
    """Return the tables of these names, or of names that begin so ("ready", "adapters")."""
    if names is None:
        return [table for table in TABLES if table.file == "bench"]
    return [table for table in TABLES if table.name in names or table.name.partition("-")[0] in names]


def names() -> list[str]:
    """Return the names that `chosen` knows."""
    return list(
        dict.fromkeys(
            [*(table.name.partition("-")[0] for table in TABLES), *(table.name for table in TABLES)]
        )
    )


def checkpoints_of(table: Table) -> set[str]:
    """Return the checkpoints that a table needs, as "NAME.SUFFIX"."""
    loads = {row.checkpoint for row in table.rows if isinstance(row, Load)}
    words = [word for row in table.rows if isinstance(row, Command) for word in row.arguments]
    return loads | {word[1:-1] for word in words if word.startswith("{")}
