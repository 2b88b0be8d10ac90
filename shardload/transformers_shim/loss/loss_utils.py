"""`transformers.loss.loss_utils`: the losses for `model.loss_function`, by the ending of the class's name."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from shardload.transformers_shim._missing import OF_A_FORWARD, refuse_unknown


def fixed_cross_entropy(
    source: torch.Tensor,
    target: torch.Tensor,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the mean cross entropy, or the sum divided by `num_items_in_batch` where that is given."""
    refuse_unknown("fixed_cross_entropy", kwargs, OF_A_FORWARD)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = functional.cross_entropy(source, target, ignore_index=ignore_index, reduction=reduction)
    if num_items_in_batch is None:
        return loss
    count = num_items_in_batch
    return loss / (count.to(loss.device) if isinstance(count, torch.Tensor) else count)


def ForCausalLMLoss(  # noqa: N802 - transformers' name
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the loss of predicting each next token, in float32."""
    if shift_labels is None:
        shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    target = shift_labels.reshape(-1).to(logits.device)
    return fixed_cross_entropy(
        logits.float().view(-1, vocab_size), target, num_items_in_batch, ignore_index, **kwargs
    )


def ForMaskedLMLoss(  # noqa: N802
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the loss of predicting the labels in place, in float32."""
    target = labels.view(-1).to(logits.device)
    return fixed_cross_entropy(
        logits.float().view(-1, vocab_size), target, num_items_in_batch, ignore_index, **kwargs
    )


def ForSequenceClassificationLoss(  # noqa: N802
    labels: torch.Tensor, pooled_logits: torch.Tensor, config: Any, **kwargs: Any
) -> torch.Tensor:
    """Return the loss for the config's `problem_type`, which otherwise follows from the labels' dtype."""
    labels = labels.to(pooled_logits.device)
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        else:
            whole = labels.dtype in (torch.long, torch.int)
            config.problem_type = "single_label_classification" if whole else "multi_label_classification"
    if config.problem_type == "single_label_classification":
        return fixed_cross_entropy(pooled_logits.view(-1, config.num_labels), labels.view(-1), **kwargs)
    refuse_unknown("ForSequenceClassificationLoss", kwargs, OF_A_FORWARD)
    if config.problem_type == "regression":
        return functional.mse_loss(pooled_logits.squeeze(), labels.squeeze())
    return functional.binary_cross_entropy_with_logits(pooled_logits, labels)


def ForTokenClassification(  # noqa: N802
    logits: torch.Tensor, labels: torch.Tensor, config: Any, **kwargs: Any
) -> torch.Tensor:
    """Return the loss of labelling each token, in float32."""
    target = labels.view(-1).to(logits.device)
    return fixed_cross_entropy(logits.view(-1, config.num_labels).float(), target, **kwargs)


LOSS_MAPPING: dict[str, Any] = {
    "ForCausalLM": ForCausalLMLoss,
    "ForConditionalGeneration": ForCausalLMLoss,
    "ForMaskedLM": ForMaskedLMLoss,
    "ForSequenceClassification": ForSequenceClassificationLoss,
    "ForTokenClassification": ForTokenClassification,
}
