"""Options and loaders over ranks, run on every rank: `python -m tests.distributed.options CASE,CASE FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import shardload
from shardload import KeyMap
from tests.distributed.nets import Uneven
from tests.distributed.spawn import leave, say


class Hooked(Uneven):
    """Hooks before and after its loader: one gives the stored tensors the names of today, one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.layers[1].register_load_state_dict_pre_hook(self.renamed)
        self.layers[1].register_load_state_dict_post_hook(lambda *_: self.calls.append(1))

    @staticmethod
    def renamed(_module, state, prefix, *_rest):
        for key in [key for key in state if key.startswith(prefix + "old_up.")]:
            state[key.replace("old_up.", "up.")] = -state.pop(key)


class Extra(Uneven):
    """Has a state beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


class Wide(Uneven):
    """Has a weight that is large enough to be spilled."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(1024, 1024, bias=False)


class Padded(Uneven):
    """Has more rows than are stored: the last ranks hold nothing but rows that a key map adds."""

    rows = 1100
    key_map = KeyMap().pad_rows("embed.weight", 1100, value=3).pad_rows("head.weight", 1100)


class Begun(Uneven):
    """A module whose loader fills some rows of its weight, and leaves the others as the class draws them."""

    class Some(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *_rest):
            with torch.no_grad():
                self.weight[:2].copy_(state[prefix + "some"])

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.Some(4, 6, bias=False)


KINDS = {"hooks": Hooked, "extra": Extra, "spill": Wide, "limit": Uneven, "padded": Padded, "begun": Begun}
HOWS = ("fsdp", "tp")


def shard(how: str, model: nn.Module, mesh) -> None:
    if how == "tp":
        plan = {"layers.*.up": ColwiseParallel(), "layers.*.down": RowwiseParallel()}
        parallelize_module(model, mesh, plan)
        return
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def filled(case: str, how: str | None, folder: Path, mesh=None):
    shell = shardload.build_shell(KINDS[case])
    if how is not None:
        shard(how, shell.model, mesh)
    given = {}
    if case == "spill":
        place = folder / f"spill-{how}-{dist.get_rank()}"
        place.mkdir(exist_ok=True)
        given["target"] = shardload.OnDevice(dtype=torch.bfloat16, spill=place)
    if case == "padded":
        given["key_map"] = Padded.key_map
    checkpoint = shardload.open_checkpoint(folder / case)
    torch.manual_seed(dist.get_rank() if how else 0)
    report = shardload.fill(shell, checkpoint, timeout=60, **given)
    return shell.model, report


def run(case: str, how: str, folder: Path, mesh) -> dict:
    one, _ = filled(case, None, folder)
    model, report = filled(case, how, folder, mesh)
    wanted = dict(one.named_parameters())
    for name, tensor in model.named_parameters():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        rows = 2 if (case, how, name) == ("begun", "fsdp", "begun.weight") else None  # drawn in another order
        assert torch.equal(whole[:rows], wanted[name][:rows]), f"{name} differs"
    said = {"spilled": report.stated.spilled, "steps": getattr(model, "steps", None)}
    if case == "hooks":
        said["calls"] = [len(model.calls), len(one.calls)]
    if case == "limit":
        said["refused"] = [differing(how, folder, mesh, **each) for each in DIFFERING]
        said |= limited(how, folder, mesh, report.stated.peak)
    return said


DIFFERING = (
    {"dtype": "bfloat16"},
    {"key_map": {"none": "other"}},
    {"key_map": "nowhere.json"},
    {"read": "some"},
)
"""Arguments that one rank alone passes."""


def differing(how: str, folder: Path, mesh, **arguments) -> list:
    """Pass arguments on the last rank alone: no rank loads."""
    shell = shardload.build_shell(Uneven)
    shard(how, shell.model, mesh)
    try:
        given = arguments if dist.get_rank() else {}
        shardload.fill(shell, shardload.open_checkpoint(folder / "limit"), timeout=60, **given)
    except shardload.ShardloadError as error:
        return [type(error).__name__, error.rank]
    return []


def limited(how: str, folder: Path, mesh, peak: int) -> dict:
    """Allow each rank what it states: all load. Allow the last rank one byte less: none does."""
    checkpoint = shardload.open_checkpoint(folder / "limit")
    for less in (0, 1):
        shell = shardload.build_shell(Uneven)
        shard(how, shell.model, mesh)
        try:
            shardload.fill(shell, checkpoint, max_memory=peak - less * dist.get_rank(), timeout=60)
        except shardload.MemoryLimitError as error:
            return {"less": less, "rank": error.rank}
    return {}


def main(cases: str, where: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for case in cases.split(","):
        for how in HOWS:
            try:
                said = {"ok": True, **run(case, how, Path(where), mesh)}
            except (AssertionError, shardload.ShardloadError) as error:
                said = {"ok": False, "text": f"{type(error).__name__}: {error}"}
            say(case=case, how=how, **said)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
