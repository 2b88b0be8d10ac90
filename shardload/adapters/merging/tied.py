"""Tied embeddings: a merge that changes one of two tied tensors would corrupt the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.adapter import AdapterContent
    from shardload.adapters.merging.change import Change
    from shardload.checkpoint.checkpoint import Checkpoint

_HEADS = ("lm_head", "output_layer", "embed_out", "output", "score_head", "cls.predictions.decoder")
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
    tables = _tables(checkpoint, config)
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
    if len(tables) > 1:
        return len(touched) < len(tables) and tied is True
    if tied is None and not _generates(config):
        return False
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


def _tables(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Return the stored tensors with a row for each token: (vocabulary, width)."""
    rows = _stated(config, "vocab_size") or _stated(config, "padded_vocab_size")
    shapes = {name: ref.shape for name, ref in checkpoint.tensors.items() if len(ref.shape) == 2}
    heads = tuple(f"{head}.weight" for head in _HEADS)
    return [
        name
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and (shape[0] == rows if isinstance(rows, int) else "embed" in name or name.endswith(heads))
    ]


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
