"""Sharded, in one process on a mesh of one rank; `tests/distributed` has the ranks."""

from __future__ import annotations

from torch import nn

from shardload import OnDevice, Shell
from shardload.placement import sharded
from tests.tiny import run_python

HEAD = """
import sys, torch, shardload
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from shardload.placement.sharded import Sharded, sharded
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
folder = sys.argv[1] + "/base"
shardload.save(make(), folder)
base = shardload.open_checkpoint(folder)
"""


def printed(tmp_path, code):
    return run_python(HEAD + code, str(tmp_path)).stdout.splitlines()


def test_a_model_is_filled_again_after_a_forward_that_left_it_whole(tmp_path):
    code = """
shell = shardload.build_shell(make)
fully_shard(shell.model, mesh=mesh)
for turn in range(2):
    shardload.fill(shell, base)
    print(all(isinstance(p, DTensor) for p in shell.model.parameters()))
    with torch.no_grad():
        print(torch.equal(shell.model(torch.ones(2, 8)), make()(torch.ones(2, 8))))
"""
    assert printed(tmp_path, code) == ["True"] * 4


def test_a_checked_model_is_judged_by_its_whole_shapes(tmp_path):
    code = """
shell = shardload.build_shell(make)
fully_shard(shell.model, mesh=mesh)
print(shardload.check(shell, base).ok)
other = shardload.build_shell(lambda: nn.Sequential(nn.Linear(8, 13), nn.Linear(13, 8)))
fully_shard(other.model, mesh=mesh)
print(sorted(fault.key for fault in shardload.check(other, base).faults))
"""
    assert printed(tmp_path, code) == ["True", "['0.bias', '0.weight', '1.weight']"]


def test_a_target_that_assigns_and_a_sum_that_is_due_are_refused(tmp_path):
    code = """
class Own(shardload.OnDevice):
    def put(self, module, name, tensor):
        super().put(module, name, tensor)
shell = shardload.build_shell(make)
fully_shard(shell.model, mesh=mesh)
try:
    shardload.fill(shell, base, target=Own())
except shardload.UsageError as error:
    print(error.what)
model = make()
model[0].weight = nn.Parameter(DTensor.from_local(model[0].weight.detach(), mesh, [Partial()]))
try:
    shardload.fill(model, base)
except shardload.UnsupportedError as error:
    print(error.where)
"""
    assigns, due = printed(tmp_path, code)
    assert assigns.startswith("Own assigns tensors itself")
    assert due.startswith("0.weight: (12, 8) as (Partial(sum),)")


def test_buffers_are_parts_too(tmp_path):
    code = """
def make():
    torch.manual_seed(0)
    return nn.BatchNorm1d(6)
source = make(); source.running_mean.normal_(); source.num_batches_tracked += 3
shardload.save(source, folder + "2")
model = make()
model.running_mean = distribute_tensor(model.running_mean, mesh, [Shard(0)])
shardload.fill(model, shardload.open_checkpoint(folder + "2"))
print(isinstance(model.running_mean, DTensor), torch.equal(model.running_mean.full_tensor(), source.running_mean))
print(int(model.num_batches_tracked))
"""
    assert printed(tmp_path, code) == ["True True", "3"]


def test_a_model_of_one_process_keeps_its_target():
    target = OnDevice()
    assert sharded.sharded(Shell.of(nn.Linear(4, 2)), target) is target
