"""`shardload demo`: write a small repo, load it, attach an adapter, run it, and show every step."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.demo_repo.sizes import SIZES
from shardload.cli.options import json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    from shardload._system.process_memory import Memory
    from shardload.adapters import AdapterReport
    from shardload.loading.report import Report

EXAMPLES = """\b
Examples:
  shardload demo
  shardload demo --format safetensors --json
  shardload demo --size 6b --folder /data/demo-6b
"""
PROMPT = tuple(range(100, 116))


@click.command("demo", epilog=EXAMPLES, short_help="Write a small checkpoint, load it, show every step.")
@click.option("--size", type=click.Choice(list(SIZES)), default="small", help="6b needs 12.5 GB of disk.")
@click.option(
    "--format", "kind", type=click.Choice(["bin", "safetensors"]), default="bin", help="Shards to load."
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where the repo is kept; by default in a cache."
)
@json_option
def command(size: str, kind: str, folder: Path | None, as_json: bool) -> int:
    """Load a ChatGLM2-architecture checkpoint with random weights, and a LoRA on top.

    The repo is written on the first run: config with auto_map, the model's own code, seven shards, an adapter.
    """
    from shardload.cli.demo_repo import write_demo_repo

    with _writing_progress() as progress:
        formats = None if size == "small" else [kind]
        folder = write_demo_repo(folder, size, formats=formats, announce=output.tell, progress=progress)
    if size == "6b":
        output.tell("two passes of 16 tokens follow; each takes a while on a CPU")
    demo = run(folder, kind, show=not as_json)
    if as_json:
        output.say_json({"folder": str(folder), "size": size, **demo.to_dict()})
    else:
        output.say("\n".join(_next_steps(folder, size)))
    if not demo.ok:
        output.complain("the forward passes gave numbers that are not sound")
    return 0 if demo.ok else 1


@dataclass(frozen=True)
class Forward:
    """The result of a forward pass on fixed token ids; `seconds` includes reading weights for the first time."""

    logits: torch.Tensor
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether no logit is infinite or NaN."""
        return bool(self.logits.isfinite().all())

    @property
    def top_token(self) -> int:
        """The likeliest next token."""
        return int(self.logits[0, -1].argmax())

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "shape": list(self.logits.shape),
            "finite": self.finite,
            "top_token": self.top_token,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Demo:
    """The demo's results: the load's report, the passes without and with the adapter, memory at each stage."""

    report: Report
    plain: Forward
    adapted: Forward
    memory: dict[str, Memory]

    @property
    def largest_change(self) -> float:
        """The largest change of a logit by the adapter."""
        return float((self.adapted.logits - self.plain.logits).abs().max())

    @property
    def ok(self) -> bool:
        """Whether all logits are finite and the adapter changed some of them."""
        return self.plain.finite and self.adapted.finite and self.largest_change > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the demo as JSON-ready data."""
        change = self.largest_change if math.isfinite(self.largest_change) else None  # JSON has no NaN
        return {
            "report": self.report.to_dict(),
            "forward": self.plain.to_dict(),
            "forward_with_adapter": {**self.adapted.to_dict(), "largest_change": change},
            "memory": {stage: held.to_dict() for stage, held in self.memory.items()},
        }


def run(folder: Path, kind: str, *, show: bool) -> Demo:
    """Load the repo, run it, attach the adapter and run it again, showing each step when it is done."""
    from shardload import from_pretrained, load_adapter, report_of
    from shardload._system.process_memory import Memory, measure
    from shardload.cli import view

    def say(*lines: str) -> None:
        if show:
            output.say("\n".join((*lines, "")))

    where = folder / "pytorch_model.bin.index.json" if kind == "bin" else folder
    model = from_pretrained(where, trust_remote_code=True, progress=None if show else False)
    report = report_of(model)
    # Measured around the weights alone: torch and the model's code were in memory before.
    memory = dict.fromkeys(("before the weights", "after the weights"), Memory(0, 0))
    if report.memory:
        memory = dict(zip(memory, (report.memory.before, report.memory.after), strict=True))
    say(*_load_lines(report, where))
    plain = _forward(model)
    memory["after the first pass"] = measure()
    say(view.heading("2. model(input_ids)"), *view.pairs(*_forward_rows(plain)))
    report.adapters.append(load_adapter(model, folder / "adapter"))
    say(view.heading('3. shardload.load_adapter(model, "…/adapter")'), *_adapter_lines(report.adapters[-1]))
    demo = Demo(report, plain, _forward(model), memory)
    memory["after the adapter and a second pass"] = measure()
    change = ("adapter", f"changed the logits by up to {demo.largest_change:.3f}")
    say(view.heading("4. model(input_ids)"), *view.pairs(*_forward_rows(demo.adapted), change))
    say(*view.growth_lines(memory))
    return demo


def _forward(model: nn.Module) -> Forward:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits.float()
    return Forward(logits, time.perf_counter() - started)


def _forward_rows(forward: Forward) -> list[tuple[str, str]]:
    return [
        ("logits", f"{list(forward.logits.shape)}, {'all finite' if forward.finite else 'NOT FINITE'}"),
        ("top token", str(forward.top_token)),
        ("time", f"{forward.seconds:.2f} s for {len(PROMPT)} tokens"),
    ]


def _load_lines(report: Report, where: Path) -> list[str]:
    from shardload.cli import view

    return [
        view.heading(f"ChatGLM2 architecture, random weights, {output.size_of(report.nbytes)}"),
        *view.pairs(("where", where)),
        "",
        view.heading("1. model = shardload.from_pretrained(where, trust_remote_code=True)"),
        *view.origin_lines(report),
        "",
        *view.shard_lines(report),
        "  Mapped, not copied: a weight's bytes are read from its file when it is first used.",
    ]


def _adapter_lines(report: AdapterReport) -> list[str]:
    from shardload.cli import view
    from shardload.keys import collapse

    modules = dict.fromkeys(row.target.partition(".lora_")[0] for row in report.rows)
    ranks = ", ".join(map(str, report.ranks))
    scales = ", ".join(f"{scale:g}" for scale in report.scales)
    return view.pairs(
        ("format", report.format),
        ("on", ", ".join(collapse(modules))),
        ("rank", f"{ranks}, scale {scales}, {report.modules} layers"),
        ("size", f"{output.size_of(report.nbytes)} in {report.seconds:.3f} s"),
    )


def _next_steps(folder: Path, size: str) -> list[str]:
    from shardload.cli import view

    lines = [
        view.heading("Your own checkpoint"),
        "  shardload inspect ./chatglm2-6b",
        "  shardload load ./chatglm2-6b --trust-remote-code --adapter ./my-lora",
        "",
        "  import shardload",
        '  model = shardload.from_pretrained("./chatglm2-6b", trust_remote_code=True)',
        '  shardload.load_adapter(model, "./my-lora")',
        "  print(shardload.report_of(model))",
        "",
        f"  The demo's repo stays in {output.escape(str(folder))}; delete it as you like.",
    ]
    if size == "small":
        need = output.size_of(SIZES["6b"].nbytes)
        lines.append(
            f"  shardload demo --size 6b does the same with the shapes of ChatGLM2-6B ({need} of disk)."
        )
    return lines


@contextlib.contextmanager
def _writing_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows the progress of the writing: a bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    if not console.is_terminal:  # a disabled bar of rich 13.0 still ends with an empty line
        yield lambda *_: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task: Any = None

        def update(name: str, done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("writing", total=total)
            bar.update(task, completed=done, description=name or "done")

        yield update
