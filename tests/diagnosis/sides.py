"""Kind and Side: a small case of a kind of finding, and its twin, the near miss that must not be called that kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.diagnosis.headers import case_of, keys

Shapes = dict[str, tuple[int, ...]]
CONFIG = {
    "hidden_size": 32, "intermediate_size": 80, "vocab_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_labels": 5, "pre_seq_len": 16, "num_channels": 3,
    "num_local_experts": 8, "head_dim": 8, "type_vocab_size": 2,
}  # fmt: skip


def decoder(prefix: str = "model.", **sizes: int) -> Shapes:
    """Return the keys of a decoder with grouped attention; `sizes` are fields of `CONFIG`."""
    has = {**CONFIG, **sizes}
    hidden, ffn, rows = (
        has["hidden_size"],
        has["intermediate_size"],
        has["num_key_value_heads"] * has["head_dim"],
    )
    block, layers = f"{prefix}layers.{{}}.", has["num_hidden_layers"]
    found: Shapes = {f"{prefix}embed_tokens.weight": (has["vocab_size"], hidden)}
    for name, shape in {
        "q": (hidden, hidden),
        "k": (rows, hidden),
        "v": (rows, hidden),
        "o": (hidden, hidden),
    }.items():
        found |= keys(shape, f"{block}self_attn.{name}_proj.weight", layers)
    for name, shape in {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}.items():
        found |= keys(shape, f"{block}mlp.{name}_proj.weight", layers)
    for name in ("input", "post_attention"):
        found |= keys((hidden,), f"{block}{name}_layernorm.weight", layers)
    return {**found, f"{prefix}norm.weight": (hidden,), "lm_head.weight": (has["vocab_size"], hidden)}


@dataclass
class Side:
    """A case in words, what is stored, what the model wants, and the code of the first finding, or ""."""

    words: str
    stored: Shapes
    wanted: Shapes
    code: str
    config: dict[str, Any] = field(default_factory=lambda: CONFIG)
    dtype: str | dict[str, str] = "F16"
    says: str = ""

    def case(self):
        return case_of(self.stored, self.wanted, config=self.config, dtype=self.dtype)


@dataclass
class Kind:
    """A kind of finding: a case that is of it, and one that is not, though it looks like it."""

    name: str
    of: Side
    twin: Side
