"""A process without a process group loads nothing of torch.distributed."""

from __future__ import annotations

from tests.tiny import run_python

CODE = """
import sys
import torch, shardload
before = {name for name in sys.modules if name.startswith("torch.distributed")}
folder = sys.argv[1]
shardload.save(torch.nn.Linear(4, 2), folder)
model = shardload.from_pretrained(folder, model_class=lambda config: torch.nn.Linear(4, 2), dtype="bfloat16")
shell = shardload.build_shell(lambda: torch.nn.Linear(4, 2))
shardload.fill(shell, shardload.open_checkpoint(folder))
shardload.save(shell.model, folder + "/again")
print(sorted({name for name in sys.modules if name.startswith("torch.distributed")} - before))
"""


def test_nothing_of_torch_distributed_is_imported(tmp_path):
    assert run_python(CODE, str(tmp_path / "out")).stdout == "[]\n"
