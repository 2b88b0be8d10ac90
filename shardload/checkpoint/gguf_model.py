"""The model in a GGUF file: its config as transformers writes it, and its tensors under transformers' names.

What is known of an architecture is a row of `gguf_table`.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, cast

from shardload.checkpoint.gguf_layout import laid_out
from shardload.checkpoint.gguf_table import ROWS
from shardload.dequantise.gguf_values import plain_weight, undone, woven
from shardload.errors import CorruptError, UnsupportedError, Wording
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.key_map import KeyMap
from shardload.keymap.reshaped import reshaped
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardload.checkpoint.gguf_table import Architecture
    from shardload.dequantise import Weight
    from shardload.keymap import Derived

_TOKENS = {f"{name}_token_id": f"tokenizer.ggml.{told}_token_id" for name, told in (
    ("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
_ALWAYS = {"vocab_size": "rows token_embd.weight", "tie_word_embeddings": "lacks output.weight"}
# Factors of rotation are the config's, and no weights of the model.
_OF_CONFIG = ("rope_freqs", "rope_factors_long", "rope_factors_short")
# What a row has to say something of, or the config can't be made.
_MORE = ("attention.sliding_window", "expert_shared_count", "expert_count")
_SCALED = ("linear", "yarn")
_SCALING = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}


class GgufModel:
    """What a file's own values say of its model; `known` is the row of its architecture, or None."""

    def __init__(self, metadata: Mapping[str, str], tensors: Mapping[str, Derived]) -> None:
        values = json.loads(metadata["gguf"])["values"]
        self.values: dict[str, Any] = values
        self.architecture = str(values.get("general.architecture"))
        self.tensors = tensors
        prefix = f"{self.architecture}."
        self.told = {key.removeprefix(prefix): each for key, each in values.items() if key.startswith(prefix)}
        rows = ROWS.get(self.architecture, ())
        self.known = next((row for row in rows if all(map(self._holds, row.when.split(" & ")))), None)

    def _holds(self, condition: str) -> bool:
        word, _, rest = condition.partition(" ")
        if word == "named":
            return fnmatchcase(str(self.values.get("general.name")).lower(), rest)
        return not condition or bool(self.setting(condition))

    def setting(self, rule: Any) -> Any:
        """Return what a rule of a row makes of the file's values and tensors; None where these do not say it."""
        if not isinstance(rule, str):
            return rule
        word, _, rest = rule.partition(" ")
        if rest:
            return _WORDS[word](self, rest)
        return next((self.told[name] for name in word.split("|") if name in self.told), None)

    def _counts(self, name: str) -> list[int] | None:
        value = self.told.get(name)
        each: list[Any] = value if isinstance(value, list) else [value]
        return each if each and all(type(one) is int for one in each) else None

    def _ratio(self, names: str) -> int | None:
        over, under = (self.told.get(name) for name in names.split())
        return over // under if over and under and over % under == 0 else None

    def _share(self, name: str) -> float | None:
        """Return the share of a head that is rotated: all of it where nothing is said."""
        size = self._head_dim
        return (self.told.get(name) or size) / size if size else None

    @property
    def _head_dim(self) -> int | None:
        size, heads = self.told.get("embedding_length"), self.told.get("attention.head_count")
        own = self.told.get("attention.key_length")
        return own or (size // heads if type(size) is int and type(heads) is int and heads > 0 else None)

    def config(self) -> dict[str, Any] | None:
        """Return the config as config.json has it; None where the file does not say it all."""
        row = self.known
        if row is None or not row.name or "token_embd.weight" not in self.tensors or self._says_more(row):
            return None
        rules = {**_ALWAYS, **row.config}
        found = {name: self.setting(rule) for name, rule in rules.items()}
        if any(self._is_odd(rules[name], value) for name, value in found.items()):
            return None
        found = {name: _decimal(value) for name, value in found.items() if value is not None}
        if not any(type(found.get(name)) is int for name in ("hidden_size", "d_model", "n_embd")):
            return None
        if not found.get("sliding_window", True):
            del found["sliding_window"]  # 0 is none
        scaling = self._rope_scaling(row)
        return {
            "architectures": [row.name],
            "model_type": row.model_type,
            **found,
            **({"rope_scaling": scaling} if scaling else {}),
            **{name: self.values[value] for name, value in _TOKENS.items() if value in self.values},
        }

    def _is_odd(self, rule: Any, value: Any) -> bool:
        """Whether a value of the file is of another type than a setting has: one number for each layer, say."""
        rest = str(rule).partition(" ")[2]
        if rest:
            return value is None and rest in self.told
        return isinstance(rule, str) and isinstance(value, (list, str))

    def _says_more(self, row: Architecture) -> bool:
        """Whether there are values that the row makes nothing of, or tensors that a config is made of."""
        taken = {name for rule in row.config.values() if isinstance(rule, str) for name in rule.split("|")}
        if any(self.told.get(name) for name in _MORE if name not in taken):
            return True
        if any(f"{name}.weight" in self.tensors for name in _OF_CONFIG):
            return True
        scaling = self.told.get("rope.scaling.type", "none")
        more = {name for name in self.told if name.startswith("rope.scaling.")}
        known = {f"rope.scaling.{name}" for name in ("type", "finetuned", *_SCALING)}
        if (scaling != "none" or "rope.scaling.factor" in more) and (
            scaling not in _SCALED or "rope.scaling.factor" not in more or more - known
        ):
            return True
        wanted = [name for name in ("expert_count",) if name in taken]
        return any(not self.told.get(name) for name in wanted) or any(
            self.told.get(name) == value for name, value in row.refused
        )

    def _rope_scaling(self, row: Architecture) -> dict[str, Any] | None:
        kind = self.told.get("rope.scaling.type", "none")
        if kind not in _SCALED:
            return None
        own = {new: self.told.get(f"rope.scaling.{old}") for old, new in _SCALING.items()}
        found = {"rope_type": kind, **{name: value for name, value in own.items() if value is not None}}
        return {**found, **row.scaling} if kind == "yarn" else found

    def model_tensors(self, code: str = "") -> dict[str, Derived]:
        """Return the tensors under the names, in the layout and with the values that transformers has.

        What is computed comes out in the dtype of a code, or in its stored one. Those of an architecture that is not
        known stay as they are.
        """
        row = self.known
        if row is None:
            return dict(self.tensors)
        tensors = {
            name: tensor for name, tensor in self.tensors.items() if name.split(".")[0] not in _OF_CONFIG
        }
        for pair, target in row.woven.items():
            _weave(tensors, pair, target, code)
        made = {name: self._made(name, tensor, row, code) for name, tensor in tensors.items()}
        return _rules(row).map_headers(made).tensors

    def _made(self, name: str, tensor: Derived, row: Architecture, code: str) -> Derived:
        place = _place(name)
        if place in row.values:
            tensor = _taken_back(tensor, row.values[place], code)
        return laid_out(tensor, name, row.layout[place], self.told) if place in row.layout else tensor


def _decimal(value: Any) -> Any:
    """Return a float of 32 bits as the shortest decimal number that is stored so: 1e-06 for 9.999999974752427e-07."""
    if not isinstance(value, float):
        return value
    return next(
        (short for digits in range(1, 9) if _as_stored(short := float(f"{value:.{digits}g}")) == value), value
    )


def _as_stored(value: float) -> float:
    return float(unpack("<f", pack("<f", value))[0])


def _counted(make: Callable[[list[int]], Any]) -> Callable[[GgufModel, str], Any]:
    def word(model: GgufModel, name: str) -> Any:
        counts = model._counts(name)
        return None if counts is None else make(counts)

    return word


_WORDS: dict[str, Callable[[GgufModel, str], Any]] = {
    "=": lambda _, text: text,
    "has": lambda model, name: name in model.tensors,
    "lacks": lambda model, name: name not in model.tensors,
    "rows": lambda model, name: model.tensors[name].shape[0] if name in model.tensors else None,
    "ratio": GgufModel._ratio,
    "share": GgufModel._share,
    "one": _counted(lambda each: each == [1]),
    "several": _counted(lambda each: max(each) > 1),
    "most": _counted(max),
    "places": _counted(lambda each: [place for place, value in enumerate(each) if value > 0]),
}
"""What a word of a row makes of a model and the name behind it."""


def _place(name: str) -> str:
    """Return the name of a tensor in its block, without its last segment; `ssm_a` has none."""
    segments = name.split(".")
    inside = segments[2:] if segments[0] == "blk" else segments
    return ".".join(inside[:-1] if len(inside) > 1 else inside)


def _rules(row: Architecture) -> KeyMap:
    rules = KeyMap()
    for old, new in row.stacks.items():
        rules = rules.unstack(f"blk.{{}}.{old}.weight", f"model.layers.{{}}.{new}")
    for old, new in row.names.items():
        exact = old.startswith("=")
        rules = rules.rename(old[1:], new) if exact else rules.rename(f"{old}.{{...}}", f"{new}.{{...}}")
    return rules


def _taken_back(tensor: Derived, step: str, code: str) -> Derived:
    """Return a tensor with what the converter computed taken back; a bias stays."""
    if tensor.name.endswith(".bias"):
        return tensor
    return Dequantised.of(undone(_weight(tensor), step), code or tensor.dtype)


def _weight(tensor: Derived) -> Weight:
    """Return a tensor as a weight to decode."""
    if isinstance(tensor, Dequantised) and tensor.shape == tensor.weight.shape:
        return tensor.weight
    if isinstance(tensor, TensorRef) and tensor.shape and tensor.is_floating:
        return plain_weight(tensor)
    raise CorruptError(
        f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, which llama.cpp does not write",
        where=f"{tensor.shard}: {tensor.name}",
    )


def _weave(tensors: dict[str, Derived], pair: tuple[str, str], target: str, code: str) -> None:
    """Put one tensor, whose rows are those of two in turn, in the place of both: of weights, and of biases."""
    for name in [name for name in tensors if _place(name) == pair[0]]:
        other = name.replace(f".{pair[0]}.", f".{pair[1]}.")
        first, second = tensors[name], tensors.get(other)
        if second is None or second.shape != first.shape:
            raise CorruptError(f"{name} has no {other} of its shape beside it", where=first.shard)
        del tensors[name], tensors[other]
        new = target.replace("{}", name.split(".")[1])
        is_bias = name.endswith(".bias")
        if is_bias:
            first, second = (cast("Derived", reshaped(each, (*each.shape, 1))) for each in (first, second))
        *outer, rows, width = first.shape
        made = woven(_weight(first), _weight(second), (*outer, 2 * rows, width))
        whole = Dequantised.of(made, code or first.dtype)
        tensors[f"{new}_bias" if is_bias else new] = (
            cast("Derived", reshaped(whole, (*outer, 2 * rows))) if is_bias else whole
        )


def gguf_config(metadata: Mapping[str, str], tensors: Mapping[str, Derived]) -> dict[str, Any] | None:
    """Return the config of the model in a GGUF file, as config.json has it; None where the file does not say it all."""
    return GgufModel(metadata, tensors).config()


def without_class(
    metadata: Mapping[str, str], tensors: Mapping[str, Derived], label: str
) -> UnsupportedError:
    """Return the error for a GGUF file that does not make a model by itself: what is not known, and what to pass."""
    model = GgufModel(metadata, tensors)
    given = {"config": ..., "model_class": ...}
    if model.known is not None:
        what = f"the GGUF file does not say all of a config of its architecture {model.architecture!r}"
        cure = Wording("pass {config} and {model_class}: its tensors get their names and order", **given)
    else:
        what = (
            f"the GGUF architecture {model.architecture!r} is read under llama.cpp's names: which class has its "
            "tensors, and in which order of rows, is not known here"
        )
        cure = Wording("pass {config}, {model_class} and a {key_map} of these names", **given, key_map=...)
    return UnsupportedError(what, where=label, cure=cure)


def with_model_names(
    metadata: Mapping[str, str], tensors: Mapping[str, Derived], code: str = ""
) -> dict[str, Derived]:
    """Return the tensors of a GGUF file as transformers has them; see `GgufModel.model_tensors`."""
    return GgufModel(metadata, tensors).model_tensors(code)
