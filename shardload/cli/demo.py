"""`shardload demo`: write a small repo, load it, put an adapter on it, run it, and show every step."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.options import json_option
from shardload.demo.sizes import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from shardload.memory import Memory

EXAMPLES = """\b
Examples:
  shardload demo
  shardload demo --format safetensors --json
  shardload demo --size 6b --folder /data/demo-6b
"""
PROMPT = tuple(range(100, 116))


@click.command("demo", epilog=EXAMPLES)
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
    from shardload.demo import write_demo_repo

    with _writing_progress() as progress:
        formats = None if size == "small" else [kind]
        folder = write_demo_repo(folder, size, formats=formats, announce=output.tell, progress=progress)
    shown = show_json if as_json else show
    return shown(run(folder, kind, quiet=as_json), size)


@dataclass(frozen=True)
class Forward:
    """What a forward pass on fixed token ids gave, without and with the adapter."""

    shape: tuple[int, ...]
    finite: bool
    top_token: int
    top_token_without_adapter: int
    largest_change: float
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the numbers are sound and the adapter did something."""
        return self.finite and self.largest_change > 0


@dataclass(frozen=True)
class Demo:
    """All that the demo shows."""

    folder: Path
    where: Path
    model: nn.Module
    memory: dict[str, Memory]
    forward: Forward


def run(folder: Path, kind: str, *, quiet: bool) -> Demo:
    """Load, run, attach the adapter, run again."""
    from shardload import from_pretrained, load_adapter, report_of
    from shardload.memory import measure

    where = folder / "pytorch_model.bin.index.json" if kind == "bin" else folder
    memory = {"before the load": measure()}
    model = from_pretrained(where, trust_remote_code=True, progress=False if quiet else None)
    memory["after the load"] = measure()
    plain, _ = _last_logits(model)
    memory["after a forward pass"] = measure()
    report_of(model).adapters.append(load_adapter(model, folder / "adapter"))
    adapted, seconds = _last_logits(model)
    memory["with the adapter, after another"] = measure()
    forward = Forward(
        shape=tuple(adapted.shape),
        finite=bool(plain.isfinite().all() and adapted.isfinite().all()),
        top_token=int(adapted[0, -1].argmax()),
        top_token_without_adapter=int(plain[0, -1].argmax()),
        largest_change=float((adapted - plain).abs().max()),
        seconds=seconds,
    )
    return Demo(folder, where, model, memory, forward)


def _last_logits(model: nn.Module) -> tuple[Any, float]:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits.float()
    return logits, time.perf_counter() - started


def show_json(demo: Demo, size: str) -> int:
    """Write the demo's JSON document; return the exit code."""
    from shardload import report_of

    output.say_json(
        {
            "folder": str(demo.folder),
            "size": size,
            "report": report_of(demo.model).to_dict(),
            "memory": {stage: held.to_dict() for stage, held in demo.memory.items()},
            "forward": asdict(demo.forward),
        }
    )
    return 0 if demo.forward.ok else 1


def show(demo: Demo, size: str) -> int:
    """Write the demo for people; return the exit code."""
    from shardload import report_of
    from shardload.cli import view

    report, forward = report_of(demo.model), demo.forward
    lines = [
        view.heading(f"1. Load {demo.where}"),
        *view.origin_lines(report),
        "",
        *view.shard_lines(report),
        "  The weights are the mapped files: their bytes are read when they are first used.",
        "",
        view.heading("2. Attach an adapter"),
        *("  " + line for line in output.escape_lines(str(report.adapters[-1])).split("\n")),
        "",
        view.heading("3. Run it"),
        *view.pairs(
            ("input", f"{len(PROMPT)} token ids"),
            ("logits", f"{list(forward.shape)}, {'all finite' if forward.finite else 'NOT FINITE'}"),
            ("top token", f"{forward.top_token} (without the adapter {forward.top_token_without_adapter})"),
            ("adapter", f"changed the logits by up to {forward.largest_change:.3f}"),
            ("time", f"{forward.seconds:.2f} s"),
        ),
        "",
        *view.memory_lines(demo.memory),
        "",
        view.heading("Your own checkpoint"),
        *_next_steps(demo, size),
    ]
    output.say("\n".join(lines))
    if not forward.ok:
        output.complain("the forward pass gave numbers that are not sound")
    return 0 if forward.ok else 1


def _next_steps(demo: Demo, size: str) -> list[str]:
    lines = [
        "  shardload inspect ./chatglm2-6b",
        "  shardload load ./chatglm2-6b --trust-remote-code --adapter ./my-lora",
        "",
        "  import shardload",
        '  model = shardload.from_pretrained("./chatglm2-6b", trust_remote_code=True)',
        '  shardload.load_adapter(model, "./my-lora")',
        "  print(shardload.report_of(model))",
        "",
        f"  The demo's repo stays in {output.escape(str(demo.folder))}; delete it as you like.",
    ]
    if size == "small":
        need = output.size_of(SIZES["6b"].nbytes)
        lines.append(
            f"  shardload demo --size 6b does the same with the shapes of ChatGLM2-6B ({need} of disk)."
        )
    return lines


@contextlib.contextmanager
def _writing_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows how far the writing is, as a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task: Any = None

        def update(name: str, done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("writing", total=total)
            bar.update(task, completed=done, description=name or "done")

        yield update
