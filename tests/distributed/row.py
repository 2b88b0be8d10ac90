"""Rows of the matrix, run on every rank: a way to shard, every model and every way to fill it.

    python -m tests.distributed.row LAYOUT,LAYOUT FOLDER

Each model is built on meta, sharded by torch, and filled; every parameter has to be equal, bit for bit, to that of the
same model filled in one process, and the forward equal too.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import shardload
from shardload import OnDevice, build_shell, fill, open_checkpoint
from tests.distributed.nets import NETS
from tests.distributed.pipeline import stage_cell
from tests.distributed.spawn import leave, say

DEVICE = os.environ.get("SHARDLOAD_TEST_DEVICE", "cpu")
"""Where the models lie: scripts/device_check.py runs the rows on a GPU."""

WAYS = {
    "mapped": {},
    "copy": {"copy": True},
    "bf16": {"target": lambda: OnDevice(dtype=torch.bfloat16)},
    "once": {"read": "once"},
}


def fsdp2(model, mesh):
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def stage_fsdp2(model, mesh):
    """Shard a stage: it has no block where other stages have theirs."""
    for layer in model.layers:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def stage_tp(model, mesh):
    for layer in model.layers:
        if any(True for _ in layer.parameters()):
            parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def tp(model, mesh):
    parallelize_module(model, mesh, {"layers.*.up": ColwiseParallel(), "layers.*.down": RowwiseParallel()})


def fsdp2_tp(model, mesh):
    tp(model, mesh["tp"])
    fsdp2(model, mesh["dp"])


def experts(model, mesh):
    """Cut what has a first dimension for experts, and keep all else whole on every rank, as expert parallelism does."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                how = Shard(0) if name in ("experts", "gains") else Replicate()
                module._parameters[name] = torch.nn.Parameter(distribute_tensor(parameter, mesh, [how]))
    if hasattr(model, "head") and isinstance(model, NETS["Tied"]) and model.rows != NETS["Uneven"].rows:
        model.head.weight = model.embed.weight


def packed(model, mesh):
    """Cut what is packed of two halves so that every rank holds some of both, as transformers cuts gate and up."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 2 and parameter.shape[0] % 4 == 0:
                how = [_StridedShard(0, split_factor=2)]
                cut = distribute_tensor(parameter, mesh, how, src_data_rank=None)
                module._parameters[name] = torch.nn.Parameter(cut)
    if not isinstance(model, NETS["Uneven"]):
        model.head.weight = model.embed.weight


LAYOUTS = {
    "fsdp2-2": (2, fsdp2, (2,), ("dp",)),
    "fsdp2-4": (4, fsdp2, (4,), ("dp",)),
    "tp-2": (2, tp, (2,), ("tp",)),
    "tp-4": (4, tp, (4,), ("tp",)),
    "fsdp2+tp-4": (4, fsdp2_tp, (2, 2), ("dp", "tp")),
    "hsdp-4": (4, fsdp2, (2, 2), ("replicate", "shard")),
    "experts-2": (2, experts, (2,), ("ep",)),
    "experts-4": (4, experts, (4,), ("ep",)),
    "packed-2": (2, packed, (2,), ("tp",)),
    "pipeline-2": (2, None, (2,), ("pp",)),  # see pipeline.py
    "pipeline+fsdp2-4": (4, stage_fsdp2, (2, 2), ("pp", "dp")),
    "pipeline+tp-4": (4, stage_tp, (2, 2), ("pp", "tp")),
}


NO_CELLS = {
    ("fsdp2-2", "once"): "no two ranks hold the same part",
    ("fsdp2-4", "once"): "no two ranks hold the same part",
    ("packed-2", "once"): "what is cut is held once",
    ("pipeline-2", "once"): "each rank fills a model of its own",
    ("pipeline+fsdp2-4", "once"): "no two ranks hold the same part",
}
"""Cells of the matrix that make no sense, and why."""


def cells(layout: str):
    """Yield the nets and ways of a row."""
    for net in NETS:
        for way in WAYS:
            if (layout, way) not in NO_CELLS:
                yield net, way


@contextmanager
def counted():
    """Count the bytes of weights that this process asks the system for by calls."""
    asked, read = [0], os.preadv

    def counting(descriptor, buffers, offset):
        got = read(descriptor, buffers, offset)
        asked[0] += got
        return got

    os.preadv = counting
    try:
        yield asked
    finally:
        os.preadv = read


def held(model) -> int:
    """Return the bytes of memory that the parameters of this rank take."""
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    memory = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    return sum(memory.values())


def cell(layout: str, mesh, net: str, way: str, folder: Path) -> dict:
    kind = NETS[net]
    checkpoint = open_checkpoint(folder / net)
    options = {name: value() if callable(value) else value for name, value in WAYS[way].items()}
    if hasattr(kind, "key_map"):
        options["key_map"] = kind.key_map
    if layout.startswith("pipeline"):
        return stage_cell(net, kind, folder / net, mesh, LAYOUTS[layout][1], options)
    one = build_shell(kind)
    fill(one, checkpoint, **options)
    if "target" in options or DEVICE != "cpu":
        options["target"] = OnDevice(DEVICE, dtype=torch.bfloat16 if way == "bf16" else None)
    shell = build_shell(kind)
    LAYOUTS[layout][1](shell.model, mesh)
    kinds = {name: type(tensor) for name, tensor in shell.model.named_parameters()}
    with counted() as asked:
        report = fill(shell, checkpoint, **options)
    figures = {
        "nbytes": report.nbytes,
        "asked": asked[0],
        "stated": vars(report.stated),
        "held": held(shell.model),
    }
    wanted = {**dict(one.model.named_parameters()), **dict(one.model.named_buffers())}
    for name, tensor in (*shell.model.named_parameters(), *shell.model.named_buffers()):
        if isinstance(tensor, DTensor):
            local = sum(1 for size in tensor.to_local().shape if size == 0)
            assert local or tensor.to_local().is_contiguous(), f"{name} is not contiguous"
        whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
        assert kinds.get(name, type(tensor)) is type(tensor), f"{name} is a {type(tensor).__name__} now"
        assert whole.dtype == wanted[name].dtype, f"{name} is {whole.dtype}"
        assert torch.equal(whole, wanted[name]), f"{name} differs"
    if net != "Uneven":
        assert shell.model.head.weight is shell.model.embed.weight, "untied"
    x = torch.arange(12).view(2, 6) * 40
    with torch.no_grad():
        if layout.startswith(("experts", "packed")):
            return figures  # a plain tensor meets a DTensor: the model would have to route
        shell.model.eval(), one.model.eval()
        made, right = shell.model(x.to(DEVICE)).cpu(), one.model(x)
    close = 1e-4 if way != "bf16" else 1.0
    assert torch.allclose(made, right, atol=close, rtol=close), (
        f"forward differs by {(made - right).abs().max()}"
    )
    return figures


def main(layouts: str, folder: str) -> None:
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    for layout in layouts.split(","):
        _, _, shape, names = LAYOUTS[layout]
        shape = shape if dist.get_world_size() > 1 else (1,) * len(shape)  # where there is but one GPU
        mesh = init_device_mesh(DEVICE, shape, mesh_dim_names=names)
        for net, way in cells(layout):
            figures = {}
            try:
                figures, said = cell(layout, mesh, net, way, Path(folder)), "ok"
            except (AssertionError, shardload.ShardloadError) as error:
                said = f"{type(error).__name__}: {error}"
            say(cell=f"{net} {way}", said=said, layout=layout, net=net, way=way, **figures)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
