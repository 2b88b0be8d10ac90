"""What the names of a model's parts mean: `query`, `wq` and `q_proj` are one word. No model is known by name."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

# A word, and its spellings in published code.
_SPELLINGS = {
    "q": "q query queries wq qproj",
    "k": "k key keys wk kproj",
    "v": "v value values wv vproj",
    "o": "o wo",
    "qkv": "qkv wqkv",
    "gate": "gate gating g",
    "up": "up intermediate",
    "down": "down",
    "attn": "attn attention atten mha selfattention",
    "cross": "cross crossattention encdec encdecattention xattn",
    "mlp": "mlp ffn ff feedforward densereludense",
    "experts": "experts expert",
    "moe": "moe",
    "norm": "norm ln layernorm lnorm rmsnorm layrnorm groupnorm bn batchnorm",
    "embed": "embed embedding embeddings emb embedder wte wpe",
    "token": "token tokens tok word words wte",
    "position": "position positions positional pos wpe",
    "patch": "patch patches patchify patchifier patchembed",
    "layers": "layers layer blocks block h resblocks",
    "encoder": "encoder enc",
    "decoder": "decoder dec",
    "vision": "vision visual vit image",
    "text": "text language llm lm",
    "audio": "audio speech",
    "projector": "projector",
    "head": "head heads classifier",
    "final": "final last f",
    "pre": "pre before input in",
    "post": "post after output out",
    "conv": "conv convolution conv1d conv2d conv3d sconv",
    "scale": "scale scales gamma1",
    "weight": "weight kernel",
    "bias": "bias",
    "downsample": "downsample downsampler downsampling",
    "upsample": "upsample upsampler upsampling",
    "class": "class cls",
    "router": "router",
    "shared": "shared",
    "sink": "sink sinks",
    "lambda": "lambda gamma",
    "quantizer": "quantizer vq quantize",
}
_WORD_OF = {spelling: word for word, text in _SPELLINGS.items() for spelling in text.split()}
_WORDS_OF = {
    # Spellings of two words.
    "wte": ("embed", "token"),
    "wpe": ("embed", "position"),
    "selfattention": ("attn",),
    "encdecattention": ("cross", "attn"),
    "crossattention": ("cross", "attn"),
    "patchembed": ("patch", "embed"),
    "patchifier": ("patch", "embed"),
    "unembed": ("text", "head"),
}
_RUNS = {
    # Runs of parts of a segment; they are looked up before single parts.
    ("query", "key", "value"): ("qkv",),
    ("q", "k", "v"): ("qkv",),
    ("c", "attn"): ("qkv",),
    ("in", "proj"): ("qkv",),
    ("lm", "head"): ("text", "head"),
    ("embed", "out"): ("text", "head"),
    ("out", "proj"): ("o",),
    ("out", "lin"): ("o",),
    ("output", "layer"): ("text", "head"),
    ("feed", "forward"): ("mlp",),
    ("layer", "norm"): ("norm",),
    ("rms", "norm"): ("norm",),
    ("group", "norm"): ("norm",),
    ("batch", "norm"): ("norm",),
    ("self", "attn"): ("attn",),
    ("self", "attention"): ("attn",),
    ("layer", "scale"): ("layerscale",),
    ("ada", "ln"): ("adaln",),
    ("learnable", "sink", "param"): ("sink",),
    ("softmax", "offset"): ("sink",),
    ("block", "sparse", "moe"): ("mlp",),
    ("dense", "h", "to", "4h"): ("up",),
    ("dense", "4h", "to", "h"): ("down",),
    ("w", "1"): ("gate",),
    ("w", "2"): ("down",),
    ("w", "3"): ("up",),
    ("w", "13"): ("gate", "up"),
    ("wi", "0"): ("gate",),
    ("wi", "1"): ("up",),
    ("c", "fc"): ("up",),
    ("c", "proj"): ("out#",),
    ("final", "layer", "norm"): ("final", "norm"),
    ("e", "score", "correction", "bias"): ("expert", "bias"),
}
# Words that say little: names have them or leave them out at will.
_FILLERS = frozenset({
    "proj", "projection", "linear", "dense", "lin", "fc", "model", "module", "transformer", "backbone",
    "base", "self", "net", "network", "main", "the", "kernel",
})  # fmt: skip
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+h(?![a-z])|[0-9]+|\{\}")


@lru_cache(maxsize=20_000)
def parts_of(segment: str) -> tuple[str, ...]:
    """Return the parts of a segment in lower case: `LayerNorm2` has `layer`, `norm`, `2`."""
    return tuple(part.lower() for part in _PARTS.findall(segment))


@lru_cache(maxsize=20_000)
def words_of(segment: str) -> tuple[str, ...]:
    """Return the words of a segment of a key, without fillers.

    `query`, `wq` and `q_proj` are all `("q",)`; `post_attention_layernorm` is `("post", "attn", "norm")`.
    """
    parts = parts_of(segment)
    whole = "".join(parts)
    if whole in _WORDS_OF:
        return _WORDS_OF[whole]
    words: list[str] = []
    at = 0
    while at < len(parts):
        for length in (4, 3, 2):
            run = _RUNS.get(parts[at : at + length]) if len(parts) - at >= length else None
            if run is not None:
                words += run
                at += length
                break
        else:
            part = parts[at]
            if part in _WORDS_OF:
                words += _WORDS_OF[part]
            elif part not in _FILLERS:
                words.append(_WORD_OF.get(part, part))
            at += 1
    if _is_before(words):
        words.insert(0, "pre")
    return tuple(words)


def _is_before(words: Sequence[str]) -> bool:
    """Whether words are those of a norm that only says attention: it is most often the one before it."""
    return {"attn", "norm"} <= set(words) and not {"pre", "post", "q", "k", "v"} & set(words)


def stated_by(segment: str) -> tuple[str, ...]:
    """Return the words of a segment that stand there: `attention_norm` does not say that it is before attention."""
    words = words_of(segment)
    return words[1:] if words[:1] == ("pre",) and _is_before(words[1:]) else words


# Words of which a name has one: with two different ones, two names mean two tensors.
_OPPOSED = (
    {"encoder", "decoder"}, {"vision", "text", "audio"}, {"student", "teacher"}, {"generator", "discriminator"},
    {"actor", "critic"}, {"online", "target"}, {"q", "k", "v", "o", "qkv"}, {"pre", "post"},
    {"position", "token", "class", "patch"}, {"embed", "head"}, {"norm", "head"}, {"norm", "conv"}, {"attn", "conv"},
    {"router", "experts", "shared"}, {"up", "down"}, {"gate", "up"}, {"gate", "down"},
)  # fmt: skip
_LEAF_WORDS = {
    "weight": "weight gamma kernel g w scale lambda1",
    "bias": "bias beta b shift offset",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}
_LEAF_OF = {spelling: leaf for leaf, text in _LEAF_WORDS.items() for spelling in text.split()}
GENERIC_LEAVES = frozenset(_LEAF_OF)
"""Last segments that say which tensor of its module a tensor is, and nothing about the module."""


def said_by(segments: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the words of each segment of a template.

    A module `output` is an attention's last projection inside of one, and the output layer outside all layers.
    """
    said = [words_of(segment) for segment in segments]
    for place, segment in enumerate(segments[1:], 1):
        if segment == "output" and "attn" in said[place - 1]:
            said[place] = ("o", "post")
    if segments[-2:-1] == ["output"] and segments[-1] in GENERIC_LEAVES and "{}" not in segments:
        said[-2] = words_of("lm_head")
    return said


def leaf_word(segment: str) -> str:
    """Return what a last segment says a tensor is of its module: `gamma` is a weight, `dt_bias` a bias."""
    return _LEAF_OF.get(segment) or ("bias" if segment.endswith("_bias") else "weight")


def opposed(one: AbstractSet[str], two: AbstractSet[str]) -> bool:
    """Whether two sets of words name different parts of a model, such as its encoder and its decoder."""
    return any(
        (first := words & one) and (second := words & two) and not first & second for words in _OPPOSED
    )
