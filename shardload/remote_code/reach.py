"""What a Python file imports, and which of its calls reach outside the process: found by parsing, never by running.

The list is for a reader and is no gate: code that hides its calls is not found out, and trusted code can do anything.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from typing import Literal

Kind = Literal["process", "network", "file", "eval", "native", "environment"]
"""What a call reaches: other processes; the network; files that it writes; code made at run time (pickles, `eval`,
imports by a computed name, the interpreter's internals); machine code; environment variables."""


@dataclass(frozen=True, slots=True)
class Reach:
    """A call or an attribute lookup that reaches outside the process."""

    kind: Kind
    what: str
    line: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file imports (top-level packages, and modules of its repo as written), and its reaches."""

    imports: tuple[str, ...]
    reaches: tuple[Reach, ...]


# By the beginning of the dotted name; the longest match counts.
_KINDS: dict[str, Kind | None] = {
    **dict.fromkeys(
        (
            "subprocess",
            "multiprocessing",
            "torch.multiprocessing",
            "pty",
            "os.system",
            "os.popen",
            "os.fork",
            "signal",
        ),
        "process",
    ),
    **dict.fromkeys(
        ("os.exec", "os.spawn", "os.posix_spawn", "os.kill", "asyncio.create_subprocess"), "process"
    ),
    **dict.fromkeys(
        (
            "socket",
            "ssl",
            "http.client",
            "http.server",
            "urllib.request",
            "urllib3",
            "requests",
            "httpx",
            "aiohttp",
        ),
        "network",
    ),
    **dict.fromkeys(
        ("ftplib", "smtplib", "telnetlib", "xmlrpc", "websockets", "paramiko", "webbrowser"), "network"
    ),
    **dict.fromkeys(
        ("huggingface_hub", "modelscope", "torch.hub", "torch.distributed.init", "wandb"), "network"
    ),
    **dict.fromkeys(
        ("shutil", "tempfile", "torch.save", "numpy.save", "sqlite3", "zipfile", "tarfile"), "file"
    ),
    **dict.fromkeys(
        (
            "os.remove",
            "os.unlink",
            "os.rename",
            "os.replace",
            "os.rmdir",
            "os.removedirs",
            "os.mkdir",
            "os.makedirs",
        ),
        "file",
    ),
    **dict.fromkeys(
        ("os.open", "os.write", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate"), "file"
    ),
    **dict.fromkeys(
        ("eval", "exec", "compile", "__import__", "code", "codeop", "runpy", "marshal", "types"), "eval"
    ),
    **dict.fromkeys(
        ("importlib.import_module", "importlib.util", "importlib.machinery", "importlib.reload"), "eval"
    ),
    **dict.fromkeys(
        (
            "pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib.load",
            "torch.load",
            "numpy.load",
            "shelve",
            "yaml.load",
        ),
        "eval",
    ),
    **dict.fromkeys(
        ("sys.settrace", "sys.setprofile", "gc.get_objects", "inspect.currentframe", "atexit"), "eval"
    ),
    **dict.fromkeys(
        (
            "ctypes",
            "cffi",
            "torch.utils.cpp_extension",
            "torch.ops.load_library",
            "torch.classes.load_library",
        ),
        "native",
    ),
    **dict.fromkeys(("triton.compile", "cupy.RawKernel", "cupy.RawModule", "kernels", "mmap"), "native"),
    **dict.fromkeys(
        ("os.environ", "os.getenv", "os.putenv", "os.getlogin", "getpass", "keyring"), "environment"
    ),
    # Looked at often, and harmless.
    **dict.fromkeys(("importlib.util.find_spec", "multiprocessing.cpu_count", "types.MethodType"), None),
    **dict.fromkeys(("types.SimpleNamespace", "types.MappingProxyType"), None),
}
# Ways into the interpreter that need no import.
_INSIDES = frozenset({
    "__globals__", "__builtins__", "__subclasses__", "__code__", "__closure__", "__loader__", "f_globals", "f_locals",
    "f_builtins", "gi_frame", "tb_frame", "__reduce__", "__reduce_ex__", "__mro__",
})  # fmt: skip
_WRITERS = frozenset(
    {"write_text", "write_bytes", "unlink", "rmdir", "symlink_to", "hardlink_to", "rename", "touch"}
)
_BUILTINS = frozenset(vars(builtins))


def contents_of(content: bytes, name: str) -> Contents:
    """Return what a file of code imports and reaches.

    Raises SyntaxError, or ValueError for bytes that are not Python source.
    """
    tree = ast.parse(content, filename=name)
    reader = _Reader()
    reader.names_of(tree)
    reader.visit(tree)
    reaches = sorted(set(reader.reaches), key=lambda reach: (reach.line, reach.kind, reach.what))
    return Contents(tuple(sorted(reader.imports)), tuple(reaches))


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.reaches: list[Reach] = []
        self._names: dict[str, str] = {}

    def names_of(self, tree: ast.AST) -> None:
        """Return what each imported name stands for, wherever the import is."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports.add(alias.name.partition(".")[0])
                    top = alias.name.partition(".")[0]
                    self._names[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                self.imports.add(module if node.level else module.partition(".")[0])
                for alias in node.names:
                    self._names[alias.asname or alias.name] = f"{module}.{alias.name}"
                    if alias.name == "*" and self._kind(module) is not None:
                        self._add(node, f"from {module} import *")

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        if name in {"open", "io.open", "codecs.open"}:
            if _may_write(node, 1):
                self._add(node, f"{name}(…, {_mode(node, 1)})", "file")
        elif name in {"getattr", "vars", "globals", "locals", "setattr", "delattr"}:
            self._dynamic(node, name)
        elif (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in _WRITERS
            and not _is_module(name, self._names)
        ):
            self._add(node, f".{node.func.attr}()", "file")
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "open" and _may_write(node, 0):
            self._add(node, f".open({_mode(node, 0)})", "file")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _INSIDES:
            self._add(node, f".{node.attr}", "eval")
        name = self._dotted(node)
        if name is None or not _INSIDES.isdisjoint(name.split(".")[:-1]):
            self.generic_visit(node)
            return
        self._add(node, name)  # the parts of the chain add nothing

    def visit_Name(self, node: ast.Name) -> None:
        name = self._names.get(node.id, node.id)
        if node.id == "__builtins__":
            self._add(node, node.id, "eval")
        elif name == node.id and node.id not in _BUILTINS:
            return
        elif self._kind(name) is not None and not _is_whole_module(name, node.id, self._names):
            self._add(node, name)

    def _dynamic(self, node: ast.Call, name: str) -> None:
        """Record a lookup on a module by a computed name: parsing can't tell what it finds."""
        if name in {"globals", "locals"} and not node.args:
            return
        target = self._dotted(node.args[0]) if node.args else None
        computed = len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)
        if target is not None and _is_module(target, self._names) and (computed or name == "vars"):
            self._add(node, f"{name}({target}, …) by a computed name", "eval")
        elif target is not None and name == "getattr" and not computed and len(node.args) > 1:
            attribute = node.args[1]
            full = f"{target}.{attribute.value!s}" if isinstance(attribute, ast.Constant) else target
            if self._kind(full) is not None:
                self._add(node, full)

    def _dotted(self, node: ast.AST) -> str | None:
        """Return `a.b.c` with `a` replaced by what it was imported as; None for anything but a chain of names."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id if node.id in _BUILTINS else None)
        if isinstance(node, ast.Attribute):
            inner = self._dotted(node.value)
            return None if inner is None else f"{inner}.{node.attr}"
        return None

    def _kind(self, name: str) -> Kind | None:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            head = ".".join(parts[:count])
            if head in _KINDS:
                return _KINDS[head]
        # exec*, spawn*: a family under one beginning.
        return next((kind for start, kind in _KINDS.items() if "." in start and name.startswith(start)), None)

    def _add(self, node: ast.AST, what: str, kind: Kind | None = None) -> None:
        kind = kind or self._kind(what.removeprefix("from ").partition(" ")[0])
        if kind is not None:
            self.reaches.append(Reach(kind, what[:120], int(getattr(node, "lineno", 0))))


def _is_module(name: str | None, names: dict[str, str]) -> bool:
    return name is not None and name in names.values()


def _is_whole_module(name: str, used: str, names: dict[str, str]) -> bool:
    """Return whether a name is a module itself: `import subprocess` reaches nothing until the code uses it."""
    return names.get(used) == name and "." not in name and name not in _BUILTINS


def _mode(node: ast.Call, place: int) -> str:
    given = next((keyword.value for keyword in node.keywords if keyword.arg == "mode"), None)
    if given is None and len(node.args) > place:
        given = node.args[place]
    if given is None:
        return "'r'"
    return ascii(given.value) if isinstance(given, ast.Constant) else "a computed mode"


def _may_write(node: ast.Call, place: int) -> bool:
    mode = _mode(node, place)
    return mode == "a computed mode" or any(letter in mode for letter in "wax+")
