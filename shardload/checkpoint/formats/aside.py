"""Aside: what training programs save beside weights, and no reader of weights has to make."""

from __future__ import annotations


class Aside:
    """Stands for a harmless object that is no weight, such as `kind` "an argparse.Namespace"; nothing was made."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


_NUMPY = "a NumPy array or number"
_SETTINGS = "settings of OmegaConf"
# Names are listed one by one: modules such as numpy hold functions, too, that run what they are given.
_KINDS: dict[str, tuple[str, str]] = {
    "argparse": ("an argparse.Namespace", "Namespace"),
    "types": ("a SimpleNamespace", "SimpleNamespace"),
    "collections": ("a collection", "defaultdict deque"),
    "datetime": ("a date or a time", "datetime date time timedelta timezone"),
    "decimal": ("a decimal number", "Decimal"),
    "fractions": ("a fraction", "Fraction"),
    "uuid": ("a UUID", "UUID"),
    "typing": ("a type", "Any Union Optional"),
    "builtins": ("a type", "list dict tuple int float str bool bytes object frozenset slice range"),
    "numpy": (_NUMPY, "dtype ndarray"),
    "numpy.random.mtrand": (_NUMPY, "RandomState"),
    "numpy.random._pickle": (
        _NUMPY, "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
    "omegaconf.dictconfig": (_SETTINGS, "DictConfig"),
    "omegaconf.listconfig": (_SETTINGS, "ListConfig"),
    "omegaconf.base": (_SETTINGS, "ContainerMetadata Metadata SCMode"),
    "omegaconf.nodes": (
        _SETTINGS,
        "AnyNode StringNode IntegerNode FloatNode BooleanNode BytesNode PathNode EnumNode",
    ),
}  # fmt: skip
for _module in ("pathlib", "pathlib._local"):
    _KINDS[_module] = ("a path", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _KINDS[_module] = (_NUMPY, "scalar _reconstruct")
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _KINDS[_module] = (_NUMPY, "_frombuffer")

KINDS = {f"{module}.{name}": kind for module, (kind, names) in _KINDS.items() for name in names.split()}
"""The full names that are left aside, and what each makes, in words."""
