"""Fields of a config that may be why a stored tensor has other sizes than the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shardload.diagnosis.pairing.words import opposed, parts_of, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What a field is about, by its name, and the words of the keys whose sizes it sets. The last row says least.
_ABOUT: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(hints.split()), frozenset(words.split()))
    for hints, words in (
        ("type_vocab", "type"),
        ("vocab num_embeddings", "token embed head"),
        ("position n_ctx seq_length max_len block_size n_pos context", "position wpe pos"),
        ("label class", "head class score classification"),
        ("pre_seq prefix virtual_tokens", "prefix"),
        ("intermediate ffn ffw n_inner d_ff inner mlp", "mlp up down gate fc1 fc2 wi"),
        ("expert", "experts router gate"),
        ("key_value kv group", "k v"),
        ("channel", "conv patch"),
        ("hidden d_model n_embd dim width embed", "norm embed attn q k v o"),
    )
)
_GENERAL = _ABOUT[-1][1]
_SILENT = frozenset({"num", "n", "max", "size", "len", "length", "dim", "d", "weight", "bias"})
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_WIDTHS = ("head_dim", "kv_channels", "attention_head_dim", "d_kv")
_LABELS = ("id2label", "label2id")
_LEAST_FACTOR = 8  # a smaller number divides almost any size
_DEEPEST = 4
_NO_PART = frozenset({"config", "cfg"})
_TOWERS = frozenset(
    {"encoder", "decoder", "vision", "text", "audio"}
)  # parts that flat fields name: `decoder_layers`


class Field(NamedTuple):
    """A field of a config, its value, and the value that would give the model the stored size."""

    name: str
    value: int
    new: int


def fields_of(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """Yield (name, value) of the whole numbers of a config; a dot for nested fields.

    The names of labels count as `num_labels`, the field that may say another number; the numbers in them are no sizes.
    """
    for name, value in config.items():
        if isinstance(value, Mapping) and name in _LABELS:
            if name == "id2label" and "num_labels" not in config:
                yield f"{path}num_labels", len(value)
        elif isinstance(value, Mapping) and path.count(".") < _DEEPEST:
            yield from fields_of(value, f"{path}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{path}{name}", value


def said_by(config: Mapping[str, Any], field: Field) -> str:
    """Return what config.json says of a field: its value, or the labels that it has for it."""
    path, _, own = field.name.rpartition(".")
    for name in path.split(".") if path else ():
        config = config.get(name, {})
    if own == "num_labels" and own not in config:
        return f"{path}{'.' * bool(path)}id2label has {field.value} labels"
    return f"{field.name} = {field.value}"


def fields_saying(config: Mapping[str, Any], value: int, hint: str, key: str = "") -> list[str]:
    """Return the names of a config's fields that have this value and the hint in their names; dots for nested fields.

    Of several, those that belong to the part of the model that `key` names: the vision tower's config, say.
    """
    return of_part([name for name, held in fields_of(config) if held == value and hint in name], key)


def of_part(names: Iterable[str], key: str) -> list[str]:
    """Return the fields whose names, and whose places in the config, say best that they are about a key's part."""
    ranked = [(name, rank) for name in names if (rank := _belonging(name, key))]
    best = max((rank for _, rank in ranked), default=0)
    return [name for name, rank in ranked if rank == best]


def _belonging(name: str, key: str) -> int:
    """Return 3 where field and key name one part of a model, 2 where the field names none, 1 else, 0 for opposites."""
    path, _, own = name.rpartition(".")
    placed = {word for segment in path.split(".") for word in words_of(segment)} - _NO_PART
    own_words = set(words_of(own))
    spoken = [set(words_of(segment)) for segment in key.split(".")]
    said = {
        word for words in spoken for word in words if word != "text" or "head" not in words
    }  # any has `lm_head`
    if opposed(placed, said) or opposed(own_words & _TOWERS, said):
        return 0
    about = placed | (own_words & _TOWERS)
    return 3 if about & said else 1 if about else 2


def explaining(config: Mapping[str, Any], key: str, model: int, stored: int) -> list[Field]:
    """Return the fields that would turn a size of the model's into the stored one: those whose names fit the key best.

    A field explains a size that it equals, or of which it is a factor. Several that fit equally well are all returned.
    """
    grouped = {field.name: field for field in _groups_of_heads(config, key, model, stored)}
    if grouped:
        return [grouped[name] for name in of_part(grouped, key)]
    scored = []
    for name, value in fields_of(config):
        fit = _fit(name, key)
        if not fit or value < 1 or model % value or stored % (model // value):
            continue
        if value == model or value >= _LEAST_FACTOR or counts_groups(name):
            scored.append((2 * fit + (value == model), Field(name, value, stored // (model // value))))
    best = max((score for score, field in scored if _belonging(field.name, key)), default=0)
    fitting = {field.name: field for score, field in scored if score == best}
    return [fitting[name] for name in of_part(fitting, key)]


def _groups_of_heads(config: Mapping[str, Any], key: str, model: int, stored: int) -> Iterator[Field]:
    """Yield the fields that count the groups of keys and values in a fused qkv: rows are (heads + 2 groups) * width."""
    if "qkv" not in {word for segment in key.split(".") for word in words_of(segment)}:
        return
    levels: dict[str, dict[str, int]] = {}
    for name, value in fields_of(config):
        path, _, own = name.rpartition(".")
        levels.setdefault(path, {})[own] = value
    for path, numbers in levels.items():
        heads = next((numbers[name] for name in _HEADS if numbers.get(name, 0) > 0), 0)
        width = next((numbers[name] for name in _WIDTHS if numbers.get(name, 0) > 0), 0)
        if not heads or not (width := width or numbers.get("hidden_size", numbers.get("n_embd", 0)) // heads):
            continue
        new, rest = divmod(stored - heads * width, 2 * width)
        for name, value in numbers.items():
            if counts_groups(name) and not rest and new > 0 and model == (heads + 2 * value) * width:
                yield Field(f"{path}.{name}" if path else name, value, new)


def is_same_change(field: Field, key: str, model: int, stored: int) -> bool:
    """Whether a change of a field changes a size of a key too: it equals the field, or is its multiple or a part of it.

    The number of groups is a factor of many sizes: those that it sets have a name that fits it.
    """
    if model * field.new != stored * field.value:
        return False
    if model == field.value:
        return True
    counts = counts_groups(field.name)
    if (counts and not _fit(field.name, key)) or (field.value < _LEAST_FACTOR and not counts):
        return False
    return not model % field.value or not field.value % model


def counts_groups(name: str) -> bool:
    """Whether a field counts groups of heads, or experts: numbers that are small factors of sizes."""
    return any(hint in name for hint in ("key_value", "kv", "group", "expert"))


def is_table(key: str) -> bool:
    """Whether the name is that of an embedding of tokens or of an output layer; lists of experts have rows too."""
    *parents, _ = segments = key.split(".")
    words = {word for segment in segments[-2:] for word in words_of(segment)}
    parts = {part for segment in parents for part in parts_of(segment)}
    named = words & {"embed", "token", "head"} or _OUTPUTS & set(segments[-2:])
    return bool(named) and not words & _NO_TABLE and not parts & _NO_TABLE


_OUTPUTS = frozenset({"output", "output_layer", "shared", "decoder", "logits", "vocab_projector", "proj_out"})
_NO_TABLE = frozenset({
    "experts", "position", "type", "patch", "class", "classifier", "classification", "score", "prefix", "label",
})  # fmt: skip


def _fit(field: str, key: str) -> int:
    """Return how well the names of a field and of a key fit each other; 0 where nothing connects them."""
    name = field.rpartition(".")[2].lower()
    segments = key.split(".")
    words = {word for segment in segments for word in words_of(segment)}
    parts = {part for segment in segments for part in parts_of(segment)}
    about = next((meant for hints, meant in _ABOUT if any(hint in name for hint in hints)), frozenset())
    shared = {part for part in parts_of(name) if part not in _SILENT} & parts
    if about is _ABOUT[1][1] and not is_table(key):
        return 0
    meant = bool(about & (words | parts))
    return 2 * bool(shared) + (2 if about is _GENERAL else 3) * meant
