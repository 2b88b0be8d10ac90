"""Tied embeddings: a merge that changes one of two tied tensors would corrupt the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.adapter import AdapterContent
    from shardload.adapters.merging.change import Change
    from shardload.checkpoint.checkpoint import Checkpoint

_HEADS = (
    "lm_head",
    "lm_head.decoder",
    "generator_lm_head",
    "predictions.decoder",
    "output_layer",
    "output_projection",
    "output",
    "embed_out",
    "proj_out",
    "vocab_projector",
    "pred_layer.proj",
    "score_head",
    "head",
)
_EMBEDDING = ("embed", "wte", "shared.")
_OF_NO_TOKEN = ("position", "pos_emb", "wpe", "type_emb")
_GENERATING = (
    "LMHeadModel",
    "ForCausalLM",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "WithLMHead",
    "ForPreTraining",
)


def has_to_be_untied(checkpoint: Checkpoint, changes: Mapping[str, Change]) -> bool:
    """Return whether the merge unties the embeddings, which config.json must say: both are stored, and one changes.

    Raises UnsupportedError where one stored tensor is both: the head would change with the embedding.
    """
    config = checkpoint.config or {}
    tied = _stated(config, "tie_word_embeddings")
    embeddings, heads = _tables(checkpoint, config)
    tables = [*embeddings, *heads]
    touched = [name for name in tables if name in changes and changes[name].apart]
    followers = [name for name in tables if name in changes and name not in touched]
    if tied is True and followers and len(followers) < len(tables) and not touched:
        raise UnsupportedError(
            "the adapter changes the embedding and what is tied to it, and the base stores the two apart",
            where=", ".join(tables),
            cure="merge in memory: from_pretrained, load_adapter, merge, save",
        )
    if not touched or tied is False:
        return False
    ties = tied is True or _generates(config)
    if heads or not ties:
        return ties
    raise UnsupportedError(
        "the adapter changes the embedding, which is the output layer too: merged, it would change both",
        where=f"{touched[0]} (config.json: tie_word_embeddings = {tied if tied is not None else 'not said'})",
        cure="merge in memory, which takes the two apart: from_pretrained, load_adapter, merge, save",
    )


def refuse_absent_head(checkpoint: Checkpoint, content: AdapterContent) -> None:
    """Raise UnsupportedError for an adapter of an output layer that is not stored, as it is tied to the embedding."""
    config = checkpoint.config or {}
    if _stated(config, "tie_word_embeddings") is False:
        return
    heads = tuple(f".{head}" for head in _HEADS)
    paths = [entry.path for entry in content.loras] + [entry.path for entry in content.replaced]
    for path in (*paths, *(entry.path for entry in content.rows)):
        last = next((head for head in heads if f".{path}".endswith(head)), None)
        stored = last is None or any(f".{name}".endswith(f"{last}.weight") for name in checkpoint.tensors)
        if not stored and (_stated(config, "tie_word_embeddings") or _generates(config)):
            raise UnsupportedError(
                "the adapter changes the output layer, which the base does not store: it is tied to the embedding",
                where=f"{path} of {checkpoint.label}",
                cure="merge in memory, which takes the two apart: from_pretrained, load_adapter, merge, save",
            )


def _tables(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the stored embeddings of tokens, and of the stored output layers.

    Where the config states the vocabulary, they have a row for each token. Other tensors may have as many rows, so a
    head is known by its name alone: a merge that takes another tensor for it would leave the model without one.
    """
    rows = _stated(config, "vocab_size") or _stated(config, "padded_vocab_size")
    known = isinstance(rows, int)
    embeddings: list[str] = []
    heads: list[str] = []
    others: list[str] = []
    for name, ref in checkpoint.tensors.items():
        if len(ref.shape) != 2 or not name.endswith(".weight") or (known and ref.shape[0] != rows):
            continue
        if f".{name}".endswith(tuple(f".{head}.weight" for head in _HEADS)):
            heads.append(name)
        elif not any(word in name for word in _OF_NO_TOKEN):
            (embeddings if any(word in name for word in _EMBEDDING) else others).append(name)
    return embeddings or (others if known else []), heads


def _stated(config: Mapping[str, Any], field: str) -> Any:
    """Return a setting of the config, or of the text model inside it; None where neither has it."""
    for where in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(where, dict) and where.get(field) is not None:
            return where[field]
    return None


def _generates(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures")
    auto_map = config.get("auto_map")
    text = [str(name) for name in names] if isinstance(names, list) else []
    text += list(auto_map) if isinstance(auto_map, dict) else []
    return any(name.endswith(_GENERATING) for name in text)
