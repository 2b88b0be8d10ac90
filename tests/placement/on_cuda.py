"""A model over a GPU, memory and the disk against the same model on the GPU alone, for scripts/device_check.py."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload import OnDevices, attach_lora, build_shell, fill, open_checkpoint, save

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS = 8
WANTED = {
    "": 0,
    "blocks.2": "cpu",
    "blocks.3": "cpu",
    "blocks.5": "disk",
    "blocks.6": "disk",
    "blocks.7": "disk",
}


class Block(nn.Module):
    """A block of linears; its buffer is computed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of the input and what the block computes."""
        return x + self.down(torch.relu(self.up(self.norm(x)))) * self.scale


class Net(nn.Module):
    """An embedding that is tied to the head, and blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.head = nn.Linear(width, 1000, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def check(
    width: int = 2048,
    target: Callable[[Any], OnDevices] = OnDevices,
    strict: Callable[[OnDevices], AbstractContextManager[Any]] = lambda _target: nullcontext(),
) -> int:
    """Print a line per comparison; return 0 where all agree, 1 where one does not, and 2 without a GPU."""
    on_gpu = target is OnDevices
    if on_gpu and not torch.cuda.is_available():
        print(f"no CUDA device here (torch {torch.__version__}): nothing ran")
        return 2
    torch.manual_seed(5)
    with tempfile.TemporaryDirectory() as folder:
        save(Net(width), folder)
        checkpoint = open_checkpoint(folder)
        maps: dict[str, Any] = {"one device": {"": 0 if on_gpu else "cpu"}, "three places": WANTED}
        found = {
            name: _run(checkpoint, width, target(wanted), strict, on_gpu) for name, wanted in maps.items()
        }
    whole, spread = found["one device"], found["three places"]
    rows = [
        ("forward", torch.allclose(whole["out"], spread["out"], rtol=1e-3, atol=1e-3)),
        ("state dict", all(torch.equal(whole["state"][key], spread["state"][key]) for key in whole["state"])),
        ("tie", spread["tied"]),
        ("LoRA gradients", _close(whole["grads"], spread["grads"])),
        ("none is zero", all(each.abs().sum() > 0 for each in spread["grads"].values())),
        ("no parameter on meta", spread["real"]),
    ]
    for name, agrees in rows:
        print(f"  {name:<22}  {'equal' if agrees else 'WRONG'}")
    for name, run in found.items():
        print(
            f"  {name:<22}  forward {run['seconds'] * 1000:.0f} ms, peak {run['peak'] / 1e6:,.0f} MB of device memory"
        )
    return 0 if all(agrees for _, agrees in rows) else 1


def _run(checkpoint: Any, width: int, target: OnDevices, strict: Any, on_gpu: bool) -> dict[str, Any]:
    shell = build_shell(lambda: Net(width))
    fill(shell, checkpoint, target=target)
    model: Any = shell.model.eval()
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    machine = target.machine
    ids = machine.moved(torch.arange(64).reshape(2, 32), machine.where(model.embed.weight))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with strict(target), torch.no_grad():
        model(ids)
        started = time.perf_counter()
        out = model(ids).cpu()
        seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    attach_lora(model, r=4, alpha=8, targets=["up", "down"], init="gaussian", seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.01)
    with strict(target):
        model(ids).square().mean().backward()
    grads = {name: each.grad.cpu() for name, each in model.named_parameters() if each.grad is not None}
    return {
        "out": out, "state": state, "grads": grads, "seconds": seconds, "peak": peak,
        "tied": model.head.weight is model.embed.weight,
        "real": not any(each.is_meta for each in model.parameters()),
    }  # fmt: skip


def _close(whole: dict[str, torch.Tensor], spread: dict[str, torch.Tensor]) -> bool:
    names = whole.keys() == spread.keys() and len(whole) >= 4 * BLOCKS
    return names and all(torch.allclose(whole[key], spread[key], rtol=1e-2, atol=1e-4) for key in whole)
