"""The checkpoints by name, and the tables to measure: each lists the contestants of one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.checkpoints import Spec, chatglm, llama, many
from shardload.dequantise.gguf_blocks import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL: dict[str, Spec] = {
    "llama": llama(hidden=2048, ffn=5632, layers=16, vocab=32000),
    "chatglm": chatglm(hidden=2048, ffn=5632, layers=18, vocab=39136),  # the same bytes to 0.01%
    "llama-1gb": llama(hidden=2048, ffn=5632, layers=8, vocab=32000),
    "llama-0.9gb": llama(hidden=2048, ffn=5632, layers=6, vocab=32000),
    "many": many(layers=200, per_layer=230),
    "fewer": many(layers=50, per_layer=230, shards=15),
    "llama-fp32": llama(hidden=2048, ffn=5632, layers=8, vocab=32000, stored="float32"),
    "many-1-shard": many(layers=200, per_layer=230, shards=1),
    "many-7-shards": many(layers=200, per_layer=230, shards=7),
    "many-5k": many(layers=20, per_layer=250, shards=8),
    "many-20k": many(layers=80, per_layer=250, shards=8),
    "many-50k": many(layers=200, per_layer=250, shards=8),
    "many-100k": many(layers=400, per_layer=250, shards=8),
    "many-200k": many(layers=800, per_layer=250, shards=8),
    "many-90k": many(layers=360, per_layer=250, shards=60),
    "wide-0.3gb": many(layers=4, per_layer=2, width=4096, shards=8),
    "wide-1gb": many(layers=16, per_layer=2, width=4096, shards=8),
    "wide-2gb": many(layers=32, per_layer=2, width=4096, shards=8),
    "chatglm2-6b": chatglm(hidden=4096, ffn=13696, layers=28, vocab=65024),
}
QUICK: dict[str, Spec] = {
    "llama": llama(hidden=256, ffn=704, layers=7, vocab=2000),
    "chatglm": chatglm(hidden=256, ffn=704, layers=7, vocab=2000),
    "llama-1gb": llama(hidden=256, ffn=704, layers=7, vocab=2000),
    "llama-0.9gb": llama(hidden=256, ffn=704, layers=7, vocab=2000),
    "many": many(layers=4, per_layer=50, shards=6),
    "fewer": many(layers=2, per_layer=50, shards=3),
    "llama-fp32": llama(hidden=256, ffn=704, layers=7, vocab=2000, stored="float32"),
    "many-1-shard": many(layers=4, per_layer=50, shards=1),
    "many-7-shards": many(layers=4, per_layer=50, shards=4),
    "many-5k": many(layers=1, per_layer=50, shards=2),
    "many-20k": many(layers=2, per_layer=50, shards=2),
    "many-50k": many(layers=3, per_layer=50, shards=2),
    "many-100k": many(layers=4, per_layer=50, shards=2),
    "many-200k": many(layers=5, per_layer=50, shards=2),
    "many-90k": many(layers=5, per_layer=50, shards=3),
    "wide-0.3gb": many(layers=1, per_layer=2, width=512, shards=2),
    "wide-1gb": many(layers=2, per_layer=2, width=512, shards=2),
    "wide-2gb": many(layers=4, per_layer=2, width=512, shards=2),
    "chatglm2-6b": chatglm(hidden=256, ffn=704, layers=2, vocab=2000),
}


@dataclass(frozen=True)
class Load:
    """One loader on one checkpoint ("NAME.SUFFIX").

    `most` limits the rounds of a slow contestant. `comparable` is False if the contestant has less to do than the
    others. `dtype` replaces the dtype of the table; `spill` sends casts to a file. A contestant that `may_fail` is
    listed to show its failure. `x` is the place of the row in a plot.
    """

    loader: str
    checkpoint: str
    note: str = ""
    most: int = 99
    comparable: bool = True
    dtype: str = ""
    spill: bool = False
    may_fail: bool = False
    x: float = 0


@dataclass(frozen=True)
class Command:
    """One python command; `{NAME.SUFFIX}` stands for the folder of a checkpoint, `over` names a row to subtract."""

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
    """A figure and its unit: "s", "ms", "us" for seconds, "MB" for bytes, "n" for a count, "x" for a ratio.

    "FIGURE x LOADER" is the median over the rounds of this row's figure divided by the same figure of the loader, or of
    the row of that label.
    """

    name: str
    title: str
    unit: str


Row = Load | Command | Probe


@dataclass(frozen=True)
class Table:
    """The contestants of one task. Tables whose names have the same part before a hyphen can be chosen together.

    `file` names the file of the results; a run without --only measures the tables of "bench". With `cold`, no page of
    the checkpoint is in the page cache when the process starts. `limit` is the memory that the process may take, as a
    share of the checkpoint's bytes. With `forward`, two forward passes are timed. `plot` is the title of the x axis of
    a plot of the rows.
    """

    name: str
    title: str
    what: str
    rows: tuple[Row, ...]
    dtype: str = "auto"
    columns: tuple[Column, ...] = ()
    file: str = "bench"
    cold: bool = False
    limit: float = 0
    forward: bool = False
    plot: str = ""


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
        Command("`shardload inspect`, 90,000 tensors, `.safetensors`", (*_INSPECT, "{many-90k.safetensors}")),
        Command("`shardload inspect`, 46,000 tensors, `.bin`", (*_INSPECT, "{many.bin}")),
    ),
)

_ATTACH = Table(
    "adapters-attach",
    "Attaching and loading LoRA adapters (rank 8) on linear layers of width 64, beside PEFT",
    "One process a row: the first four adapters with shardload, then with PEFT (`from_pretrained`, `load_adapter`, its "
    "defaults; low_cpu_mem_usage=True took as long, on 1,000 layers). The files are in the page cache, and the weights "
    "of the first and last layer are compared with the file. At 8,000 layers PEFT is measured for two.",
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

_DEQUANTISE = Table(
    "dequantise",
    "Packed weights made plain while they are loaded, into bfloat16 with one thread",
    "`fill` of eight weights of 4096x2048, files in the page cache; GB of the result per second of CPU, best of three. "
    "Over the result: peak anonymous memory less the result. A cast of float32 into new memory says what the machine "
    "gives at that moment; theirs is `gguf.dequantize`, to float32 and in memory.",
    tuple(
        Probe(label, ("dequantise", name))
        for name, label in (
            ("gptq", "GPTQ, 4 bits"),
            ("gptq-order", "GPTQ, 4 bits, an order of inputs"),
            ("awq", "AWQ"),
            ("fp8", "fp8, blocks of 128x128"),
            ("nf4", "bitsandbytes nf4"),
            ("int8", "bitsandbytes int8"),
            ("mxfp4", "MXFP4, turned"),
            ("compressed-tensors", "compressed-tensors, 4 bits"),
            *((kind, f"GGUF {kind}") for kind in KINDS),
        )
    ),
    columns=(
        Column("rate", "GB/s a core", "x"),
        Column("copy", "a cast alone", "x"),
        Column("theirs", "theirs", "x"),
        Column("over", "over the result", "MB"),
        Column("stated", "stated", "MB"),
    ),
    file="dequantise",
)

_SECONDS = Column("load_s", "load alone", "s")
_PEAK = Column("anon_peak", "peak anonymous", "MB")
_CPU = Column("cpu_s", "CPU to ready, imports too", "s")

_CAST_DOWN = Table(
    "cast-down",
    "float32 → bfloat16 and float16 while loading, 2.2 GB in 7 `.safetensors` shards",
    "As above; the result is 1.1 GB. The stored values are such that no cast changes them.",
    tuple(
        Load(loader, "llama-fp32.safetensors", note, dtype=dtype)
        for dtype, note in (("bfloat16", "to bfloat16"), ("float16", "to float16"))
        for loader in ("ours", "transformers_loader")
    ),
    columns=(
        _SECONDS,
        _CPU,
        _PEAK,
        Column("resident_peak", "peak resident", "MB"),
    ),
)

_COLD = Table(
    "cold",
    "Cold page cache, every page touched: 1.9 GB in 7 `.safetensors` shards",
    "The files are evicted before each start. Load alone, and then one element of every page is read.",
    (
        Load("plain_read", "llama.safetensors"),
        Load("ours", "llama.safetensors", "transformers' class"),
        Load("transformers_loader", "llama.safetensors"),
        Load("assign", "llama.safetensors"),
    ),
    columns=(
        Column("touched_s", "loaded and touched", "s"),
        Column("touched_s x plain_read", "x plain read", "x"),
        Column("touched_s x transformers_loader", "x transformers", "x"),
        _PEAK,
    ),
    cold=True,
)

_LIMIT = Table(
    "limit",
    "A checkpoint larger than the memory: 2.1 GB in a memory cgroup of 40% of that",
    "64 Linears of width 4096 in bfloat16, files evicted first, values compared afterwards. The last column counts "
    "how often the limit was met and pages were taken back. A cast does not fit: with `spill=` it goes to a file.",
    (
        Load("ours", "wide-2gb.safetensors", "stored dtype"),
        Load("transformers_loader", "wide-2gb.safetensors", "stored dtype", may_fail=True),
        Load("ours", "wide-2gb.safetensors", "to float32, `spill=`", dtype="float32", spill=True),
        Load("ours", "wide-2gb.safetensors", "to float32", dtype="float32", may_fail=True),
        Load("transformers_loader", "wide-2gb.safetensors", "to float32", dtype="float32", may_fail=True),
    ),
    columns=(
        Column("touched_s", "loaded and touched", "s"),
        _PEAK,
        Column("limited", "limit met", "n"),
    ),
    cold=True,
    limit=0.4,
)

_FORWARD = Table(
    "forward",
    "First forward after a load: LlamaForCausalLM, 1.1 GB, 16 tokens",
    "Page cache warm, stored dtype. The first pass maps the pages that a zero-copy load left in the page cache.",
    (
        Load("ours", "llama-1gb.safetensors", "transformers' class"),
        Load("transformers_loader", "llama-1gb.safetensors"),
    ),
    columns=(
        Column("forward_s", "first forward", "s"),
        Column("forward_s x transformers_loader", "x transformers", "x"),
        Column("forward_again_s", "second", "s"),
    ),
    forward=True,
)

_PARTIAL = Table(
    "partial",
    "A region of each matrix, cold page cache: the middle quarter, 1.9 GB checkpoint",
    "Seconds, and bytes that the disk gave by bytes that were asked for, beside safetensors' `get_slice`.",
    (
        Probe("rows", ("partial", "{llama.safetensors}", "rows"), most=3),
        Probe("columns", ("partial", "{llama.safetensors}", "columns"), most=3),
    ),
    columns=(
        Column("ours_s", "shardload", "s"),
        Column("ours_times", "read / asked", "x"),
        Column("safetensors_s", "safetensors", "s"),
        Column("safetensors_times", "read / asked", "x"),
    ),
)


_RANKS_PEER, _RANKS_DCP = "transformers, DistributedConfig", "DCP, HuggingFaceStorageReader"


def _ranks(name: str, cache: str, *how: str) -> Table:
    return Table(
        name,
        f"FSDP over 2 ranks, 1.9 GB in 7 `.safetensors` shards, {cache} page cache, stored dtype",
        "Two processes with gloo, from the end of their imports until the slower one is ready, and until a byte of "
        "each page of its part was read. Asked: bytes that both read by calls, by those of the file (mapped pages are "
        "no calls). Anonymous: the most that one process took; its part is 0.95 GB. All give the same sum of all "
        "weights.",
        (
            Probe("shardload, mapped", ("ranks", "{llama.safetensors}", "mapped", "2", *how), most=9),
            Probe("shardload, `copy=True`", ("ranks", "{llama.safetensors}", "copy", "2", *how), most=9),
            Probe(_RANKS_PEER, ("ranks", "{llama.safetensors}", "transformers", "2", *how), most=9),
            Probe(_RANKS_DCP, ("ranks", "{llama.safetensors}", "dcp", "2", *how), most=9),
        ),
        file="ranks",
        columns=(
            Column("load_s", "load", "s"),
            Column("touched_s", "load and first touch", "s"),
            Column(f"touched_s x {_RANKS_PEER}", "x transformers", "x"),
            Column(f"touched_s x {_RANKS_DCP}", "x DCP", "x"),
            Column("cpu_s", "CPU, both", "s"),
            Column("asked", "asked / file", "x"),
            Column("anon", "anonymous", "MB"),
            Column("part", "its part", "MB"),
        ),
    )


_RANKS, _RANKS_WARM = _ranks("ranks", "cold"), _ranks("ranks-warm", "warm", "warm")


_REMOTE = Table(
    "remote",
    "A Llama of 0.9 GB in 7 `.safetensors` shards, in SeaweedFS on loopback by S3; ranges of the Hub's reader",
    "A fresh process for each: obstore alone, which reads all shards by four requests of 8 MiB at a time and drops "
    "the bytes, or keeps them in memory, then `from_pretrained` into LlamaForCausalLM, from the end of the imports "
    "until the model is ready; the rate is that of its weights. Beyond: the most anonymous memory of the load, without "
    "its result. Written: what the process gave to the disk. The reader of the Hub's ranges reads 8 MiB into memory, "
    "one request after another, of a server that does nothing but send; `http.client` does the same on one connection "
    "that is kept.",
    (Probe("0.9 GB", ("remote", "{llama-0.9gb.safetensors}"), most=9),),
    file="remote",
    columns=(
        Column("seconds", "shardload", "s"),
        Column("weights_s", "of it weights", "s"),
        Column("obstore_s", "obstore, dropped", "s"),
        Column("kept_s", "obstore, kept", "s"),
        Column("ours_rate", "shardload, GB/s", "x"),
        Column("rate", "obstore, dropped, GB/s", "x"),
        Column("share", "rate / dropped", "x"),
        Column("kept_share", "rate / kept", "x"),
        Column("result", "result", "MB"),
        Column("beyond", "beyond", "MB"),
        Column("written", "written", "MB"),
        Column("ranges", "ranges, GB/s", "x"),
        Column("floor", "http.client, GB/s", "x"),
    ),
)


def _quantise(kind: str) -> Table:
    theirs = "transformers with bitsandbytes"
    return Table(
        f"quantise-{kind}",
        f"Quantised to {kind} while it is loaded: a Llama of 0.9 GB in bfloat16, 7 `.safetensors` shards",
        "A fresh process a row, from the end of its imports, page cache warm. Anonymous: the most that the load took; "
        "the bound is the quantised result, the largest weight in float32 and 64 MB. Ours is then compared with "
        "transformers': every stored byte, and for int8 the logits; one bit of difference fails the row.",
        tuple(
            Probe(label, ("quantise", "{llama-0.9gb.safetensors}", kind, way), most=9)
            for way, label in (("ours", "shardload"), ("transformers", theirs))
        ),
        file="quantise",
        columns=(
            Column("load_s", "load", "s"),
            Column(f"load_s x {theirs}", "x transformers", "x"),
            Column("cpu_s", "CPU", "s"),
            Column(f"cpu_s x {theirs}", "x transformers", "x"),
            Column("anon", "anonymous", "MB"),
            Column("stated", "stated", "MB"),
            Column("result", "result", "MB"),
            Column("bound", "bound", "MB"),
            Column("equal", "tensors of equal bytes", "n"),
            Column("tensors", "of", "n"),
            Column("logits", "equal logits", "n"),
        ),
    )


def _scaling(name: str, title: str, plot: str, rows: tuple[Load, ...]) -> Table:
    what = "Linears, the class given, page cache warm, stored dtype; seconds after the imports."
    return Table(f"scaling-{name}", title, what, rows, columns=(_SECONDS, _CPU, _PEAK), plot=plot)


_SCALING = (
    _scaling(
        "tensors",
        "Time and memory against the number of tensors (16x16, 8 shards)",
        "tensors",
        tuple(
            Load(loader, f"many-{count}k.safetensors", f"{count},000", most=3, x=count * 1000)
            for loader, counts in (("ours", (5, 20, 50, 100, 200)), ("transformers_loader", (5, 20)))
            for count in counts
        ),
    ),
    _scaling(
        "shards",
        "Time and memory against the number of shards (46,000 tensors)",
        "shards",
        (
            Load("ours", "many-1-shard.safetensors", "1", most=5, x=1),
            Load("ours", "many-7-shards.safetensors", "7", most=5, x=7),
            Load("ours", "many.safetensors", "60", most=5, x=60),
        ),
    ),
    _scaling(
        "bytes",
        "Time and memory against bytes (Linears of width 4096, 8 shards)",
        "GB",
        tuple(
            Load(loader, f"wide-{size}gb.safetensors", f"{size} GB", most=3, x=x)
            for loader in ("ours", "transformers_loader")
            for size, x in (("0.3", 0.27), ("1", 1.07), ("2", 2.15))
        ),
    ),
)

_FULL_SIZE = Table(
    "full",
    "Full size: ChatGLM2-6B's shapes, 12.5 GB in 7 `.safetensors` shards, its own code",
    "Page cache as warm as the memory allows; 16 tokens. Values are compared after the figures are taken.",
    (Load("ours", "chatglm2-6b.safetensors", "remote code"),),
    columns=(
        Column("ready_s", "start → ready", "s"),
        _SECONDS,
        _PEAK,
        Column("anon_kept", "anonymous kept", "MB"),
        Column("forward_s", "first forward", "s"),
    ),
    forward=True,
    file="full",
)

TABLES = (
    _ready("safetensors"),
    _ready("bin"),
    _CAST,
    _CAST_DOWN,
    _MANY,
    _FORWARD,
    _COLD,
    _LIMIT,
    _PARTIAL,
    _RANKS,
    _RANKS_WARM,
    _REMOTE,
    _quantise("int8"),
    _quantise("nf4"),
    *_SCALING,
    _DEQUANTISE,
    _COMMANDS,
    _FULL_SIZE,
    _ATTACH,
    _CALL,
    _BATCH,
    _MERGE,
)


def chosen(names: Sequence[str] | None) -> list[Table]:
    """Return the tables with these names, or with these parts before a hyphen ("ready", "adapters")."""
    if names is None:
        return [table for table in TABLES if table.file == "bench"]
    return [table for table in TABLES if table.name in names or table.name.partition("-")[0] in names]


def names() -> list[str]:
    """Return the names that `chosen` accepts."""
    return list(
        dict.fromkeys(
            [*(table.name.partition("-")[0] for table in TABLES), *(table.name for table in TABLES)]
        )
    )


def checkpoints_of(table: Table) -> set[str]:
    """Return the checkpoints that a table needs, as "NAME.SUFFIX"."""
    loads = {row.checkpoint for row in table.rows if isinstance(row, Load)}
    words = [word for row in table.rows if not isinstance(row, Load) for word in row.arguments]
    return loads | {word[1:-1] for word in words if word.startswith("{")}
