"""The names that the stand-in has, by module: read from its own files, without importing them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

SHIM = "shardload.transformers_shim"

# Modules of transformers that code imports classes from without using them. The stand-in has nothing of theirs: a name
# imported from them is a placeholder, which names itself in the error when it is used.
PLACEHOLDER_MODULES = frozenset(
    {
        "data",
        "data.data_collator",
        "data.metrics",
        "data.processors",
        "data.processors.glue",
        "data.processors.squad",
        "data.processors.utils",
        "generation.beam_constraints",
        "generation.candidate_generator",
        "generation.watermarking",
        "image_processing_utils_fast",
        "image_transforms",
        "image_utils",
        "onnx",
        "onnx.utils",
        "pipelines",
        "quantizers",
        "trainer",
        "trainer_pt_utils",
        "training_args",
        "video_utils",
    }
)


# The modules between the stand-in and the loader, which transformers does not have.
_OWN = ("front", "host")


@functools.lru_cache(maxsize=1)
def names_by_module() -> dict[str, frozenset[str]]:
    """Return the names of each of the stand-in's modules, by dotted name ("" is the package itself)."""
    return {module: frozenset({*defined, *again}) for module, (defined, again) in _read().items()}


@functools.lru_cache(maxsize=1)
def homes() -> dict[str, str]:
    """Return the module that defines each public name; code may import the name from any other module."""
    found: dict[str, str] = {}
    for place in (0, 1):  # a definition wins over a re-export
        for module, names in _read().items():
            for name in names[place]:
                if not name.startswith("_"):
                    found.setdefault(name, module)
    return found


def has_module(module: str) -> bool:
    """Return whether the stand-in has a module of that dotted name, possibly one of placeholders only."""
    parts = module.split(".")
    return (
        module in names_by_module()
        or module in PLACEHOLDER_MODULES
        # The module of one model: code uses its classes in isinstance tables and seldom constructs them.
        or (parts[0] == "models" and 1 < len(parts) <= 3)
    )


def has_name(name: str) -> bool:
    """Return whether one of the stand-in's modules defines a name."""
    return name in homes()


@functools.lru_cache(maxsize=1)
def _read() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Return, for each module, the names that it defines and the names that it re-exports."""
    folder = Path(__file__).parent
    trees = {}
    for file in sorted(folder.rglob("*.py")):
        *parents, last = file.relative_to(folder).with_suffix("").parts
        if any(parent.startswith("_") for parent in parents):
            continue
        if not parents and last in _OWN:
            continue
        if last == "__init__" or not last.startswith("_"):
            module = ".".join(parents if last == "__init__" else [*parents, last])
            trees[module] = ast.parse(file.read_bytes())
    read: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for module, tree in trees.items():
        read[module] = (frozenset(_defined(tree)), frozenset(_passed_on(tree, trees)))
    return read


def _defined(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("__")}


def _passed_on(tree: ast.Module, trees: dict[str, ast.Module]) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names |= set(ast.literal_eval(node.value))
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(SHIM):
            continue
        home = str(node.module)[len(SHIM) + 1 :]
        if home in _OWN or (home.split(".")[-1].startswith("_") and home not in trees):
            continue  # names of a private file are public only where `__all__` says so
        for alias in node.names:
            names |= _defined(trees[home]) if alias.name == "*" else {alias.asname or alias.name}
    return names
