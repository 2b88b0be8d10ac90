"""Each pickle that would run code ends in one typed error, and no code runs."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys

import pytest

from shardload.errors import CorruptError, ShardloadError, UnsafeError, UnsupportedError

from .files import LEGACY_START, read, read_bytes, torch_zip
from .opcodes import EMPTY, FLOAT, ORDERED, REBUILD, call, text


class Reduced:
    """An object whose pickle calls `function` with `args`."""

    def __init__(self, function, *args):
        self.recipe = (function, args)

    def __reduce__(self):
        return self.recipe


TOUCH = text("touch SENTINEL")
CODE = text("open('SENTINEL', 'w').close()")
PROLOGUE = b"\x80\x02"

CALLS = {
    "os.system": call("os.system", TOUCH),
    "posix.system": call("posix.system", TOUCH),
    "nt.system": call("nt.system", TOUCH),
    "os.popen": call("os.popen", TOUCH),
    "os.execv": call("os.execv", text("/bin/true"), b"]"),
    "os.remove": call("os.remove", text("SENTINEL")),
    "subprocess.Popen": call("subprocess.Popen", TOUCH),
    "subprocess.check_output": call("subprocess.check_output", TOUCH),
    "builtins.eval": call("builtins.eval", CODE),
    "builtins.exec": call("builtins.exec", CODE),
    "__builtin__.eval": call("__builtin__.eval", CODE),
    "builtins.compile": call("builtins.compile", CODE, text("x"), text("exec")),
    "builtins.__import__": call("builtins.__import__", text("antigravity")),
    "builtins.open": call("builtins.open", text("SENTINEL"), text("w")),
    "builtins.getattr": call("builtins.getattr", b"cos\npath\n", text("join")),
    "builtins.print": call("builtins.print", TOUCH),
    "builtins.map": call("builtins.map", b"N", b"N"),
    "runpy.run_path": call("runpy.run_path", text("SENTINEL.py")),
    "runpy._run_code": call("runpy._run_code", CODE, b"}"),
    "importlib.import_module": call("importlib.import_module", text("antigravity")),
    "pickle.loads": call("pickle.loads", text("x")),
    "torch.load": call("torch.load", text("SENTINEL")),
    "torch.serialization.load": call("torch.serialization.load", text("SENTINEL")),
    "torch.storage._load_from_bytes": call("torch.storage._load_from_bytes", text("x")),
    "torch.hub.load": call("torch.hub.load", text("a/b"), text("c")),
    "torch.jit.load": call("torch.jit.load", text("SENTINEL")),
    "torch._dynamo.guards.GuardBuilder.get": call("torch._dynamo.guards.GuardBuilder.get", CODE),
    "torch._inductor.codecache.compile_file": call("torch._inductor.codecache.compile_file", TOUCH),
    "torch.utils.bottleneck.__main__.run_prof": call("torch.utils.bottleneck.__main__.run_prof", CODE),
    "torch.utils.collect_env.run": call("torch.utils.collect_env.run", TOUCH),
    "torch.utils.data.datapipes.utils.decoder.basichandlers": call(
        "torch.utils.data.datapipes.utils.decoder.basichandlers", text("pickle"), text("x")
    ),
    "operator.attrgetter": call("operator.attrgetter", text("system")),
    "functools.partial": call("functools.partial", b"cos\nsystem\n", TOUCH),
    "types.CodeType": call("types.CodeType", b"K\x00"),
    "types.FunctionType": call("types.FunctionType", b"N", b"}"),
    "timeit.timeit": call("timeit.timeit", CODE),
    "code.interact": call("code.interact"),
    "pdb.run": call("pdb.run", CODE),
    "cProfile.run": call("cProfile.run", CODE),
    "trace.main": call("trace.main"),
    "ctypes.CDLL": call("ctypes.CDLL", text("libc.so.6")),
    "socket.create_connection": call("socket.create_connection", text("localhost")),
    "urllib.request.urlopen": call("urllib.request.urlopen", text("http://localhost/")),
    "webbrowser.open": call("webbrowser.open", text("http://localhost/")),
    "shutil.rmtree": call("shutil.rmtree", text("SENTINEL")),
    "collections.OrderedDict.fromkeys": call("collections.OrderedDict.fromkeys", b"]"),
    "collections.namedtuple": call("collections.namedtuple", text("a"), text("b")),
    "_codecs.lookup": call("_codecs.lookup", text("idna")),
    "copyreg._reconstructor": call("copyreg._reconstructor", b"N", b"N", b"N"),
    "transformers.training_args.TrainingArguments": call("transformers.training_args.TrainingArguments"),
}


# Allowed names and plain opcodes in uses that no weight file has.
TRICKS = {
    "build on a function": REBUILD + b"}" + text("__globals__") + b"K\x01sb.",
    "build on a class": ORDERED + b"}" + text("__init__") + b"K\x01sb.",
    "build on a dict": b"}}" + text("x") + b"K\x01sb.",
    "build on a storage type": FLOAT + b"}" + text("dtype") + b"K\x01sb.",
    "newobj of a dict": ORDERED + b")\x81.",
    "newobj of a text": text("a") + b")\x81.",
    "reduce of a text": text("os.system") + b"(" + TOUCH + b"tR.",
    "reduce of a dtype": b"ctorch\nfloat16\n)R.",
    "reduce of a storage type": FLOAT + b"(K\x04tR.",
    "rebuild by an arbitrary function": call("torch._tensor._rebuild_from_type_v2", b"cos\nsystem\n", b"NN)N") + b".",
    "instance": b"(" + TOUCH + b"ios\nsystem\n.",
    "object": b"(cos\nsystem\n" + TOUCH + b"o.",
    "extension": b"\x82\x01.",
    "extension of 4 bytes": b"\x84\x01\x00\x00\x00.",
    "stack global": text("os") + text("system") + b"\x93" + TOUCH + b"\x85R.",
    "newobj with keywords": ORDERED + b")}\x92.",
    "persistent id in text": b"Pstorage\n.",
}  # fmt: skip

BROKEN = {
    "reduce without arguments": ORDERED + b"NR.",
    "too many arguments": call("torch.Size", b"K\x01", b"K\x02") + b".",
    "terabytes of bytearray": call("builtins.bytearray", b"\x8a\x06\x00\x00\x00\x00\x00\x10") + b".",
    "codec with a side": call("_codecs.encode", text("a"), text("idna")) + b".",
    "memo bomb": b"}r\xff\xff\xff\xff.",
    "memo read that was never written": b"h\x05.",
    "long text": b"X\xff\xff\xff\xffabc",
    "huge long": b"\x8b\xff\xff\xff\x7f\x01.",
    "frame": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "unhashable key": b"}]K\x01s.",
    "dict as a key": b"}}K\x01s.",
    "list among keys": b"}(K\x01K\x01]K\x01u.",
    "key twice": b"}(" + text("a") + b"K\x01" + text("a") + b"K\x02u.",
    "odd items": b"}(K\x01u.",
    "items into a list": b"](K\x01K\x02u.",
    "append to a dict": b"}K\x01a.",
    "appends to a tuple": b")(K\x01e.",
    "pop from nothing": b"R.",
    "no mark": b"K\x01t.",
    "no stop": b"}",
    "nothing": b"",
    "text not UTF-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "global without an end": b"c" + b"a" * 2000,
    "persistent id of another kind": b"(" + text("os") + b"tQ.",
    "persistent id that is no tuple": b"K\x01Q.",
    "storage of -1 elements": b"("
    + text("storage")
    + FLOAT
    + text("0")
    + text("cpu")
    + b"J\xff\xff\xff\xfftQ.",
    "tensor without a storage": REBUILD + b"(NK\x00K\x01\x85K\x01\x85\x89" + EMPTY + b"tR.",
    "an integer with a gradient": REBUILD
    + b"(("
    + text("storage")
    + b"ctorch\nIntStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x00NtQK\x00))\x88"
    + EMPTY
    + b"tR.",
    "metadata that is no dict": EMPTY + b"}" + text("_metadata") + b"}" + text("") + b"K\x01sssb.",
}


def wrap(pickled: bytes, legacy: bool) -> bytes:
    body = PROLOGUE + pickled
    return LEGACY_START + body + b"\x80\x02]." if legacy else torch_zip(body)


BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@BOTH
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_unsafe_and_named(tmp_path, name, legacy):
    state = b"}" + text("weight") + CALLS[name] + b"s."
    with pytest.raises(UnsafeError) as caught:
        read_bytes(tmp_path, wrap(state, legacy), "evil.bin")
    message = str(caught.value)
    first = "os.path" if name == "builtins.getattr" else name.replace("__builtin__", "builtins")
    assert first.split(".")[-1] in message or name in message
    assert "evil.bin" in message
    assert "safetensors" in message


@BOTH
@pytest.mark.parametrize("name", TRICKS)
def test_tricks_are_unsafe(tmp_path, name, legacy):
    with pytest.raises(UnsafeError, match="nothing was run"):
        read_bytes(tmp_path, wrap(TRICKS[name], legacy))


@BOTH
@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles_are_corrupt(tmp_path, name, legacy):
    with pytest.raises(CorruptError) as caught:
        read_bytes(tmp_path, wrap(BROKEN[name], legacy))
    assert "model.bin" in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_real_gadget_of_every_protocol(tmp_path, protocol):
    sentinel = tmp_path / "sentinel"
    gadget = pickle.dumps({"w": Reduced(exec, f"open({str(sentinel)!r}, 'w').close()")}, protocol)
    for data in (torch_zip(gadget), LEGACY_START + gadget + b"\x80\x02].", gadget):
        with pytest.raises((UnsafeError, UnsupportedError, CorruptError)):
            read_bytes(tmp_path, data)
    assert not sentinel.exists()


def test_nothing_opens_runs_or_imports(tmp_path):
    """All pickles above are read in a process whose audit hook records every event."""
    programs = (
        {f"call {name}": b"}" + text("w") + body + b"s." for name, body in CALLS.items()} | TRICKS | BROKEN
    )
    for index, body in enumerate(programs.values()):
        (tmp_path / f"{index}.bin").write_bytes(wrap(body, legacy=bool(index % 2)))
    script = """
import sys, json, pathlib
from shardload.errors import ShardloadError
from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.sources.folder import LocalFile
files = [LocalFile(path.name, path) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.bin"))]
seen, watching = [], False
def hook(event, args):
    itself = event == "open" and (args[0] == str(file.local_path()) or isinstance(args[0], int))
    if watching and not itself and event not in {"gc.get_objects", "object.__getattr__", "sys._getframe"}:
        seen.append([event, repr(args)[:200]])
sys.addaudithook(hook)
before = set(sys.modules)
kinds = []
for file in files:
    watching = True
    try:
        format_of(file).read_header(file)
        kinds.append("accepted")
    except ShardloadError as error:
        kinds.append(type(error).__name__)
    finally:
        watching = False
print(json.dumps([seen, kinds, sorted(set(sys.modules) - before)]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    seen, kinds, imported = json.loads(done.stdout)
    assert len(kinds) == len(programs) >= 90
    assert set(kinds) == {"UnsafeError", "CorruptError"}
    assert seen == []
    assert imported == []
    assert not list(tmp_path.glob("SENTINEL*"))


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


# Functions make the bombs one at a time: all together would take a gigabyte.
BOMBS = {
    "marks": lambda: b"(" * 30_000_000,
    "empty tuples": lambda: b")" * 60_000_000,
    "floats": lambda: b"G@\x09\x21\xfb\x54\x44\x2d\x18" * 7_000_000,
    "sets of one list": lambda: b"](" + b"".join(b"M" + struct.pack("<H", i) for i in range(1000)) + b"e" + put(0)
    + b"c__builtin__\nset\n" + put(1) + b"h\x01h\x00\x85R" * 2_000_000,
    "one wide text": lambda: b"X" + struct.pack("<I", 40_000_004) + b"a" * 40_000_000 + "\U0001f600".encode(),
    "wide texts": lambda: (b"X" + struct.pack("<I", 4000) + b"a" * 3996 + "\U0001f600".encode()) * 10_000,
    "short texts": lambda: b"U\x02\xc3\xa9" * 8_000_000,
    "lists of lists of lists": lambda: b"}" + text("w") + b"]" + put(0)
    + b"".join(b"j" + struct.pack("<I", i) + b"\x86" + put(i + 1) for i in range(40)) + b"s",
    "one tensor of many names": lambda: b"}"
    + text("t") + REBUILD + b"(" + b"(" + text("storage") + FLOAT + text("0") + text("cpu") + b"K\x00NtQ"
    + b"K\x00K\x00\x85K\x01\x85\x89" + EMPTY + b"tR" + put(0) + b"s("
    + b"".join(b"U\x06%06d" % i + b"h\x00" for i in range(400_000)) + b"u",
    "ints that hash alike": lambda: b"}(" + b"".join(
        b"\x8a\x0c" + ((2**61 - 1) * (i + 1)).to_bytes(12, "little") + b"N" for i in range(300_000)
    ) + b"u",
    "dict of many ints": lambda: b"}("
    + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(1_500_000)) + b"u",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_small_and_quick(tmp_path, name):
    """Each bomb ends in one typed error, in less than 200 MB and 20 s of its own process."""
    path = tmp_path / "bomb.bin"
    path.write_bytes(LEGACY_START + PROLOGUE + BOMBS[name]() + b".\x80\x02].")
    assert_small_and_quick(path)


def assert_small_and_quick(path):
    script = """
import re, sys, pathlib
from shardload.errors import ShardloadError
from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.sources.folder import LocalFile
from tests.calls import has_an_end
path = pathlib.Path(sys.argv[1])
file = LocalFile(path.name, path)
try:
    with has_an_end(20):
        format_of(file).read_header(file)
    kind = "accepted"
except ShardloadError as error:
    kind = type(error).__name__
print(kind, int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1000)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kind, megabytes = done.stdout.split()
    assert kind in {"UnsupportedError", "CorruptError", "UnsafeError"}
    assert int(megabytes) < 200


def test_deeply_nested_tuples_are_no_crash(tmp_path):
    """Hashing or printing such a tuple recurses in C until the stack overflows."""
    deep = b")" + b"\x85" * 1_000_000
    for body in (b"}" + deep + b"K\x01s.", b"}" + text("w") + deep + b"s.", call("torch.Size", deep) + b"."):
        with pytest.raises(ShardloadError):
            read_bytes(tmp_path, wrap(body, legacy=False))


def test_an_object_inside_itself_is_refused(tmp_path):
    loop = b"}" + text("w") + b"]q\x00h\x00as."
    with pytest.raises(UnsupportedError, match="nested"):
        read_bytes(tmp_path, wrap(loop, legacy=False))


def test_the_gadget_in_the_unread_part_is_seen_too(tmp_path):
    """The whole pickle is checked: a gadget beside the state dict is refused although no load needs it."""
    import torch

    whole = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": Reduced(print, "ran")}, whole)
    path = tmp_path / "model.ckpt"
    path.write_bytes(whole.getvalue())
    with pytest.raises(UnsafeError, match="builtins.print"):
        read(path)
