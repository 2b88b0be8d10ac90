"""Mappings of files: what is written to a private one stays out of the file, and no descriptor is held."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
from pathlib import Path

import pytest

from shardload._system.file_mapping import (
    PrivateMappings,
    advise,
    forget_pages,
    map_file,
    map_shared,
    private_memory,
)

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "weights"
    made.write_bytes(os.urandom(3 * PAGE))
    return made


def mapped(path, size=3 * PAGE):
    with path.open("rb") as file:
        return map_file(file.fileno(), size)


def address(buffer):
    return ctypes.addressof(buffer)


def test_a_private_mapping_is_the_file_until_it_is_written_to(path):
    content = path.read_bytes()
    buffer = mapped(path)
    assert bytes(buffer) == content
    buffer[0:4] = b"mine"
    assert bytes(buffer)[:4] == b"mine"
    assert path.read_bytes() == content
    assert bytes(mapped(path)) == content


@linux
def test_a_mapping_holds_no_descriptor_and_ends_with_its_last_reference(path):
    before = len(os.listdir("/proc/self/fd"))
    kept = [mapped(path) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert Path("/proc/self/maps").read_text().count(str(path)) >= 1
    view = memoryview(kept[0])[5:9]
    kept.clear()
    gc.collect()
    assert bytes(view) == path.read_bytes()[5:9]  # a view keeps the memory
    del view
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_shared_mapping_is_written_to_the_file(path):
    content = path.read_bytes()
    with path.open("r+b") as file:
        buffer = map_shared(file.fileno(), PAGE, PAGE)
        buffer[0:4] = b"ours"
        del buffer
        gc.collect()
    assert path.read_bytes() == content[:PAGE] + b"ours" + content[PAGE + 4 :]


@linux
def test_pages_that_are_let_go_of_come_from_the_file_again(path):
    content = path.read_bytes()
    buffer = mapped(path)
    for place in (0, PAGE, 2 * PAGE):
        buffer[place : place + 4] = b"mine"
    forget_pages(buffer, 1, 2 * PAGE + 7)  # of three pages only the middle one lies wholly between
    seen = bytes(buffer)
    assert [seen[place : place + 4] == b"mine" for place in (0, PAGE, 2 * PAGE)] == [True, False, True]
    assert seen[PAGE : 2 * PAGE] == content[PAGE : 2 * PAGE]
    forget_pages(buffer, 0, PAGE - 1)
    assert bytes(buffer)[:4] == b"mine"


@linux
def test_private_memory_is_zero_and_goes_back_to_the_kernel():
    def held():
        return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE

    before = held()
    buffer = private_memory(64 << 20)
    assert held() - before >= 64 << 20
    assert bytes(buffer[:10]) == bytes(10)
    del buffer
    gc.collect()
    assert held() - before < 32 << 20
    with pytest.raises(MemoryError, match="not available"):
        private_memory(1 << 62)


def test_a_file_that_can_not_be_mapped_is_an_error(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises((OSError, ValueError)):
        map_file(descriptor, PAGE)
    with path.open("rb") as file, pytest.raises((OSError, ValueError)):
        map_file(file.fileno(), 0)


@linux
def test_advice_is_for_whole_pages(path):
    buffer = mapped(path)
    assert advise(address(buffer), PAGE, mmap.MADV_WILLNEED) is True
    assert advise(address(buffer) + 1, PAGE, mmap.MADV_WILLNEED) is False


@linux
def test_an_address_leads_to_its_file_and_place(path):
    buffer, anonymous = mapped(path), private_memory(PAGE)
    with path.open("r+b") as file:
        shared = map_shared(file.fileno(), 0, PAGE)
    mappings = PrivateMappings()
    inode = path.stat().st_ino
    assert mappings.place_of(address(buffer)) == (inode, 0)
    assert mappings.place_of(address(buffer) + 2 * PAGE + 5) == (inode, 2 * PAGE + 5)
    assert mappings.place_of(address(anonymous)) is None
    assert mappings.place_of(address(shared)) is None
    assert mappings.place_of(0) is None
