"""Ranks that do not do what the others do, run on every rank: `python -m tests.distributed.astray FOLDER`."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import shardload
from tests.distributed.faults import Net
from tests.distributed.spawn import free_port, leave, say

WORLD = 3
ASTRAY = 2


class InPlace(nn.Linear):
    def _load_from_state_dict(self, state, prefix, *_rest):
        with torch.no_grad():
            self.weight.copy_(state[prefix + "weight"])
            self.bias.copy_(state[prefix + "bias"])


class WithLoader(Net):
    """The tensors of the net, and a module that loads itself."""

    def __init__(self) -> None:
        super().__init__()
        self[3] = InPlace(16, 16)


class Astray:
    """What each case does, on every rank; `is_astray` on the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_astray = folder, dist.get_rank() == ASTRAY
        self.all = DeviceMesh("cpu", list(range(WORLD)))
        self.some = DeviceMesh("cpu", list(range(ASTRAY)))
        self.one = DeviceMesh("cpu", [0])

    def filled(self, make=Net, mesh=None, timeout: float = 60):
        shell = shardload.build_shell(make)
        fully_shard(shell.model, mesh=mesh or self.all)
        shardload.fill(shell, shardload.open_checkpoint(self.folder / "net"), timeout=timeout)
        return shell.model

    def placed(self, mesh, dim: int = 0):
        shell = shardload.build_shell(Net)
        for module in shell.model:
            for name, tensor in list(module.named_parameters()):
                place = [Shard(dim if tensor.ndim > 1 else 0)]
                setattr(module, name, nn.Parameter(distribute_tensor(tensor.detach(), mesh, place)))
        return shell

    def save_key_map(self) -> None:
        given = {"key_map": "nowhere.json"} if self.is_astray else {}
        shardload.save(self.filled(), self.folder / "out", **given)

    def save_size(self) -> None:
        size = "many" if self.is_astray else "5GB"
        shardload.save(self.filled(), self.folder / "out", max_shard_size=size)

    def adapter_name(self) -> None:
        shell = shardload.build_shell(Net)
        shardload.attach_lora(shell.model, r=2, alpha=4, targets=["0"], seed=0)
        fully_shard(shell.model, mesh=self.all)
        shardload.fill(shell, shardload.open_checkpoint(self.folder / "net"))
        name = "other" if self.is_astray else "default"
        shardload.save_adapter(shell.model, self.folder / "out", name)

    def another_call(self) -> None:
        model = self.filled()
        if self.is_astray:
            shardload.save(model, self.folder / "out")
        else:
            self.filled()

    def another_loader(self) -> None:
        self.filled(WithLoader if self.is_astray else Net)

    def another_cut(self) -> None:
        shell = self.placed(self.all, 1 if self.is_astray else 0)
        shardload.fill(shell, shardload.open_checkpoint(self.folder / "net"))

    def another_dtype(self) -> None:
        shell = shardload.build_shell(lambda: Net().to(torch.float16 if self.is_astray else torch.float32))
        fully_shard(shell.model, mesh=self.all)
        shardload.fill(shell, shardload.open_checkpoint(self.folder / "net"))

    def keyword(self) -> None:
        self.from_pretrained(self.all, **({"load_in_4bit": True} if self.is_astray else {}))

    def unknown_keyword_of_fill(self) -> None:
        shell = self.placed(self.all)
        given = {"dtypes": "float32"} if self.is_astray else {}
        shardload.fill(shell, shardload.open_checkpoint(self.folder / "net"), **given)

    def unknown_keyword_of_save(self) -> None:
        given = {"max_size": "1GB"} if self.is_astray else {}
        shardload.save(self.filled(), self.folder / "out", timeout=60, **given)

    def unknown_keyword_of_save_adapter(self) -> None:
        given = {"adapter_nam": "x"} if self.is_astray else {}
        shardload.save_adapter(self.filled(), self.folder / "out", **given)

    def unknown_keyword_of_from_pretrained(self) -> None:
        self.from_pretrained(self.all, **({"dtypes": "float32"} if self.is_astray else {}))

    def missing_argument(self) -> None:
        shell = self.placed(self.all)
        if self.is_astray:
            shardload.fill(shell)
        shardload.fill(shell, shardload.open_checkpoint(self.folder / "net"))

    def no_model(self) -> None:
        shell = self.placed(self.all)
        shardload.fill("net" if self.is_astray else shell, shardload.open_checkpoint(self.folder / "net"))

    def outside_fill(self) -> None:
        shardload.fill(self.placed(self.some), shardload.open_checkpoint(self.folder / "net"))

    def outside_from_pretrained(self) -> None:
        self.from_pretrained(self.some)

    def outside_save(self) -> None:
        shell = self.placed(self.one)
        if dist.get_rank():
            shardload.save(shell.model, self.folder / "out")

    def numbers_of_groups(self) -> None:
        if not self.is_astray:
            self.from_pretrained(self.some)
        ranks = torch.ones(1)
        dist.all_reduce(ranks, group=dist.new_group(list(range(WORLD))))
        assert int(ranks) == WORLD

    def skipped(self) -> None:
        if not self.is_astray:
            self.filled(timeout=1)

    def after_it_was_skipped(self) -> None:
        self.filled()

    def and_again(self) -> None:
        self.filled()

    def from_pretrained(self, mesh, **given):
        options = {"model_class": lambda _config: Net(), "config": {}, "timeout": 60, **given}
        return shardload.from_pretrained(self.folder / "net", device_mesh=mesh, **options)


CASES = [
    name for name in vars(Astray) if name not in ("filled", "placed", "from_pretrained") and name[0] != "_"
]


def main(folder: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    astray = Astray(Path(folder))
    for case in CASES:
        dist.barrier()
        said: dict = {"error": None, "rank": None}
        try:
            getattr(astray, case)()
        except (shardload.ShardloadError, TypeError) as error:
            said = {"error": type(error).__name__, "rank": getattr(error, "rank", None), "text": str(error)}
        say(case=case, **said)
    last = dist.get_rank()
    say(case="another_group", **in_another_group(astray))
    if last:
        leave()
    sys.stdout.flush()
    os._exit(0)


def in_another_group(astray: Astray) -> dict:
    """Load in a process group of the last two ranks, whose new numbers are those of other ranks before."""
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    if rank == 1:
        store.set("port", str(free_port()))
    os.environ.update(MASTER_PORT=store.get("port").decode(), RANK=str(rank - 1), WORLD_SIZE="2")
    dist.barrier()
    if rank == 0:
        store.wait([f"left/{each}" for each in (1, 2)], timedelta(seconds=60))
        return {"loaded": True}
    dist.destroy_process_group()
    store.set(f"left/{rank}", "")
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    mesh = DeviceMesh("cpu", [0, 1], mesh_dim_names=("dp",))  # torch takes equal meshes of two groups for one
    model = astray.filled(mesh=mesh, timeout=20)
    return {"loaded": not any(each.is_meta for each in model.parameters())}


if __name__ == "__main__":
    main(*sys.argv[1:])
