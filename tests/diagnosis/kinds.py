"""One small case for each kind of finding, and its twin: the near miss that must not be called that kind.

`python scripts/doctor_kinds.py` prints them as the table of docs/doctor.md.
"""

from __future__ import annotations

from tests.diagnosis.headers import keys
from tests.diagnosis.quantised_kinds import QUANTISED
from tests.diagnosis.sides import CONFIG, Kind, Shapes, Side, decoder

D = decoder()
INT4: Shapes = {
    "embed.weight": (110, 32), "lm_head.weight": (110, 32), "score.weight": (7, 32), "fc.weight": (64, 16),
}  # fmt: skip
WITHOUT: Shapes = {
    "embed.weight": (100, 32), "lm_head.weight": (100, 32), "score.weight": (5, 32), "fc.weight": (64, 32),
}  # fmt: skip
LINEAR: Shapes = {"norm.weight": (32,), "fc.weight": (64, 32), "out.weight": (32, 64), "head.weight": (7, 32)}


def renamed(shapes: Shapes, *changes: tuple[str, str]) -> Shapes:
    found = dict(shapes)
    for old, new in changes:
        found = {key.replace(old, new): shape for key, shape in found.items()}
    return found


def without(shapes: Shapes, *parts: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not any(part in key for part in parts)}


def fused(groups: int) -> Shapes:
    """Return a decoder whose q, k and v are one matrix."""
    rest = without(D, "q_proj", "k_proj", "v_proj")
    return rest | keys((32 + 16 * groups, 32), "model.layers.{}.self_attn.query_key_value.weight", 3)


def experts(count: int, router: int | None = None) -> Shapes:
    """Return a decoder whose feed-forward parts are stacks of experts."""
    found = without(D, "mlp")
    found |= keys((router or count, 32), "model.layers.{}.mlp.gate.weight", 3)
    found |= keys((count, 160, 32), "model.layers.{}.mlp.experts.gate_up_proj", 3)
    return found | keys((count, 32, 80), "model.layers.{}.mlp.experts.down_proj", 3)


def one_by_one(count: int) -> Shapes:
    found = without(D, "mlp") | keys((count, 32), "model.layers.{}.mlp.gate.weight", 3)
    for name, shape in {"gate": (80, 32), "up": (80, 32), "down": (32, 80)}.items():
        found |= keys(shape, f"model.layers.{{}}.mlp.experts.{{}}.{name}_proj.weight", 3, count)
    return found


def sized(words: str, key: str, model: int, stored: int, code: str, says: str = "", rest: int = 32) -> Side:
    """Return a case in which one tensor has other rows."""
    return Side(words, {**D, key: (stored, rest)}, {**D, key: (model, rest)}, code, says=says)


KINDS = [
    Kind(
        "whole segments too many",
        Side(
            "every key begins with `module.`",
            {f"module.{key}": shape for key, shape in D.items()},
            D,
            "E-WRAP",
        ),
        Side(
            "the model has a child `module` too",
            {f"module.{key}": shape for key, shape in D.items()},
            {f"module.{key}": shape for key, shape in D.items()},
            "",
        ),
    ),
    Kind(
        "other names",
        Side(
            "`h.{}.attn.key` for `layers.{}.self_attn.k_proj`",
            renamed(D, ("layers", "h"), ("k_proj", "key")),
            D,
            "E-RENAME",
        ),
        Side(
            "the names of an encoder for those of a decoder",
            renamed(D, ("model.", "encoder.")),
            renamed(D, ("model.", "decoder.")),
            "E-OTHER",
        ),
    ),
    Kind(
        "numbered from another layer on",
        Side(
            "layers 1 to 3 for 0 to 2",
            {
                ".".join(str(int(part) + 1) if part.isdigit() else part for part in key.split(".")): shape
                for key, shape in D.items()
            },
            D,
            "E-OFFSET",
        ),
        Side("layers 1 and 2 of 0 to 2", without(D, "layers.0."), D, "E-LAYERS"),
    ),
    Kind(
        "one matrix here, several there",
        Side("a fused `query_key_value`", fused(2), D, "E-SPLIT"),
        Side("a fused matrix of other rows", fused(3), D, ""),
    ),
    Kind(
        "several matrices here, one there",
        Side("q, k and v for a fused one", D, fused(2), "E-CAT"),
        Side("one name of the three says nothing", renamed(D, ("v_proj", "zulu")), fused(2), ""),
    ),
    Kind(
        "experts one by one, or in one tensor",
        Side("eight experts for a stack of eight", one_by_one(8), experts(8), "E-STACK"),
        Side("seven for a stack of eight", one_by_one(7), experts(8), "E-CONFIG"),
    ),
    Kind(
        "experts in one tensor, or one by one",
        Side("a stack of eight for eight experts", experts(8), one_by_one(8), "E-UNSTACK"),
        Side("a stack of four for eight experts", experts(4), one_by_one(8), "E-CONFIG"),
    ),
    Kind(
        "parts of weights",
        Side(
            "`weight_orig` of pruning for `weight`",
            renamed(D, ("q_proj.weight", "q_proj.weight_orig")),
            D,
            "E-DERIVED",
        ),
        Side(
            "the model is pruned too",
            renamed(D, ("q_proj.weight", "q_proj.weight_orig")),
            renamed(D, ("q_proj.weight", "q_proj.weight_orig")),
            "",
        ),
    ),
    Kind(
        "transposed",
        Side(
            "the feed-forward matrices the other way round",
            {key: shape[::-1] if "mlp" in key else shape for key, shape in D.items()},
            D,
            "E-TRANSPOSE",
        ),
        Side(
            "a square matrix the other way round shows nothing",
            {"a.weight": (32, 32)},
            {"a.weight": (32, 32)},
            "",
        ),
    ),
    Kind(
        "one copy of two",
        Side(
            "no head, and the config ties it",
            without(D, "lm_head"),
            D,
            "E-TIE",
            {**CONFIG, "tie_word_embeddings": True},
        ),
        Side(
            "the config says that they differ",
            without(D, "lm_head"),
            D,
            "E-HEAD",
            {**CONFIG, "tie_word_embeddings": False},
        ),
    ),
    Kind(
        "recomputed tables",
        Side("a stored `inv_freq`", {**D, "model.rotary_emb.inv_freq": (4,)}, D, "W-BUF"),
        Side("a stored table of another name", {**D, "model.rotary_emb.zulu": (4,)}, D, ""),
    ),
    Kind(
        "the vocabulary",
        Side(
            "embedding and head have 110 rows for 100",
            decoder(vocab_size=110),
            D,
            "E-VOCAB",
            says="set vocab_size to 110",
        ),
        sized("an adapter has 110 rows for 100", "model.adapter.weight", 100, 110, ""),
    ),
    Kind(
        "labels",
        sized("a classifier has 7 rows for 5", "classifier.weight", 5, 7, "E-CONFIG", "set num_labels to 7"),
        sized("a head of tokens has them", "lm_head.weight", 100, 110, "E-VOCAB", "set vocab_size to 110"),
    ),
    Kind(
        "positions",
        sized(
            "a table of positions has 128 rows for 64",
            "model.wpe.weight",
            64,
            128,
            "E-CONFIG",
            "set max_position_embeddings to 128",
        ),
        sized("another tensor has them", "model.zulu.weight", 64, 128, ""),
    ),
    Kind(
        "types of tokens",
        sized(
            "a table of types has 3 rows for 2",
            "model.token_type_embeddings.weight",
            2,
            3,
            "E-CONFIG",
            "set type_vocab_size to 3",
        ),
        sized("a classifier of two has 3", "model.pair.weight", 2, 3, ""),
    ),
    Kind(
        "a prefix",
        sized(
            "a prefix has 24 rows for 16",
            "prefix_encoder.embedding.weight",
            16,
            24,
            "E-CONFIG",
            "set pre_seq_len to 24",
        ),
        sized("another tensor has them", "model.zulu.weight", 16, 24, ""),
    ),
    Kind(
        "groups of keys and values",
        Side(
            "k and v have 32 rows for 16",
            decoder(num_key_value_heads=4),
            D,
            "E-CONFIG",
            says="set num_key_value_heads to 4",
        ),
        Side(
            "in one layer alone",
            {**D, "model.layers.0.self_attn.k_proj.weight": (32, 32)},
            D,
            "",
        ),
    ),
    Kind(
        "groups in a fused matrix",
        Side(
            "a fused qkv of 4 groups for 2",
            fused(4),
            fused(2),
            "E-CONFIG",
            says="set num_key_value_heads to 4",
        ),
        Side(
            "a fused qkv of rows that no number of groups gives",
            {**fused(2), **keys((68, 32), "model.layers.{}.self_attn.query_key_value.weight", 3)},
            fused(2),
            "",
        ),
    ),
    Kind(
        "channels",
        Side(
            "a patch embedding of 1 channel for 3",
            {**LINEAR, "patch_embed.proj.weight": (32, 1, 4, 4)},
            {**LINEAR, "patch_embed.proj.weight": (32, 3, 4, 4)},
            "E-CONFIG",
            says="set num_channels to 1",
        ),
        Side(
            "a patch of other sides",
            {**LINEAR, "patch_embed.proj.weight": (32, 3, 8, 8)},
            {**LINEAR, "patch_embed.proj.weight": (32, 3, 4, 4)},
            "",
        ),
    ),
    Kind(
        "the number of experts",
        Side("4 experts for 8", experts(4), experts(8), "E-CONFIG", says="set num_local_experts to 4"),
        Side("4 experts, and a router for 8", experts(4, 8), experts(8), ""),
    ),
    Kind(
        "the feed-forward size",
        Side("96 for 80", decoder(intermediate_size=96), D, "E-CONFIG", says="set intermediate_size to 96"),
        Side(
            "40 for 80, and all else whole",
            decoder(intermediate_size=40),
            D,
            "E-CONFIG",
            says="set intermediate_size to 40",
        ),
    ),
    Kind(
        "layers",
        Side("no layer 1 of 0 to 2", without(D, "layers.1."), D, "E-LAYERS", says="fetch the shards"),
        Side(
            "no layer 2 of 0 to 2", without(D, "layers.2."), D, "E-LAYERS", says="set num_hidden_layers to 2"
        ),
    ),
    Kind(
        "one rank of several",
        Side(
            "every matrix has half its rows, norms are whole",
            {key: (shape[0] // 2, *shape[1:]) if len(shape) == 2 else shape for key, shape in D.items()},
            D,
            "E-RANK",
        ),
        Side(
            "norms are half too",
            {key: tuple(size // 2 for size in shape) for key, shape in D.items()},
            D,
            "E-CONFIG",
        ),
    ),
    Kind(
        "placeholders of ZeRO-3",
        Side("every tensor has shape [0]", dict.fromkeys(D, (0,)), D, "E-ZERO3"),
        Side("one tensor has", {**D, "model.norm.weight": (0,)}, D, ""),
    ),
    Kind(
        "packed int4",
        Side(
            "bytes with half the columns",
            {key: (shape[0], shape[1] // 2) if "mlp" in key else shape for key, shape in D.items()},
            D,
            "E-INT4",
            {**CONFIG, "quantization_bit": 4},
            {key: "I8" for key in D if "mlp" in key},
        ),
        Side(
            "16-bit numbers with half the columns",
            {key: (shape[0], shape[1] // 2) if "mlp" in key else shape for key, shape in D.items()},
            D,
            "E-CONFIG",
            {**CONFIG, "quantization_bit": 4},
        ),
    ),
    Kind(
        "packed int4, and a vocabulary",
        Side(
            "`quantization_bit` is read before sizes are blamed",
            INT4,
            WITHOUT,
            "E-INT4",
            {**CONFIG, "quantization_bit": 4},
            {"fc.weight": "I8"},
        ),
        Side(
            "without the field, and with most sizes other",
            INT4,
            WITHOUT,
            "E-CONFIG",
            dtype={"fc.weight": "I8"},
        ),
    ),
    *QUANTISED,
    Kind(
        "an adapter",
        Side(
            "`lora_A` and `lora_B` alone",
            keys((8, 32), "base_model.model.layers.{}.q_proj.lora_A.weight", 3)
            | keys((32, 8), "base_model.model.layers.{}.q_proj.lora_B.weight", 3),
            D,
            "E-ADAPTER",
        ),
        Side("a whole model with one of them", {**D, "model.q.lora_A.weight": (8, 32)}, D, ""),
    ),
    Kind(
        "another architecture",
        Side(
            "no key has a place",
            {f"zulu.{number}.tango.kilo": (number + 3, 5) for number in range(9)},
            D,
            "E-OTHER",
        ),
        Side("one key has none", {**D, "zulu.weight": (3, 5)}, D, ""),
    ),
    Kind(
        "ambiguous",
        Side(
            "two whole sets, and the model is one of them",
            {f"{name}.{key}": shape for name in ("student", "teacher") for key, shape in D.items()},
            D,
            "E-AMBIGUOUS",
        ),
        Side(
            "one set, and a tensor of the other",
            {**{f"student.{key}": shape for key, shape in D.items()}, "teacher.zulu": (3,)},
            D,
            "E-WRAP",
        ),
    ),
]
