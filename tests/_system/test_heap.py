"""Memory that was freed goes back to the kernel; the kernel's own figures tell."""

from __future__ import annotations

import pytest

from shardload._system.heap import _trim, give_back
from shardload._system.process_memory import measure
from tests.tiny import run_python

MEGABYTE = 10**6

pytestmark = pytest.mark.skipif(_trim() is None, reason="only glibc can be asked")


def test_freed_blocks_between_blocks_in_use_are_given_back():
    blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]
    del blocks[::2]
    before = measure().anon
    give_back()
    assert before - measure().anon > 80 * MEGABYTE


def test_large_tables_leave_nothing_but_themselves():
    """Each table is computed from float32, which is twice as large, and freed in blocks that the heap keeps."""
    code = """
import torch
from torch import nn
from shardload import build_shell
from shardload._system.process_memory import measure

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        angles = torch.outer(torch.arange(8192).float(), torch.arange(256).float() + 1)
        self.register_buffer("cos", angles.cos().to(torch.get_default_dtype()), persistent=False)

build_shell(Table, dtype=torch.bfloat16)
torch.ones(7 * 2**20)  # once a block of 28 MB has been freed, malloc takes such blocks from its heap
before = measure().anon
shell = build_shell(lambda: nn.ModuleList(Table() for _ in range(32)), dtype=torch.bfloat16)
print(measure().anon - before, sum(table.nbytes for table in shell.model.buffers()))
"""
    added, tables = map(int, run_python(code).stdout.split())
    assert tables == 32 * 8192 * 256 * 2
    assert added < tables + 24 * MEGABYTE
