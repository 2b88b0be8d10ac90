"""Changes: which tensors of a checkpoint adapters change, and how; planned from headers, values checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import listing
from shardload.adapters.match import judge, match_adapter
from shardload.adapters.merging.change import Addition, BiasTerm, Change
from shardload.adapters.merging.skeleton import skeleton_of
from shardload.adapters.merging.tied import refuse_absent_head
from shardload.adapters.source import open_adapter, read_content
from shardload.adapters.values import read_values
from shardload.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from shardload.adapters.adapter import AdapterContent, AdapterFile, ReadOptions
    from shardload.adapters.adapter_match import AdapterMatch, LayerMatch
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.layers import Factors, LoraTerm
    from shardload.adapters.merging.class_on_disk import ClassOnDisk
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.where import Where

Changes = dict[str, Change]
"""By the name of the base tensor."""


def changes_on_disk(
    checkpoint: Checkpoint, adapters: Sequence[Any], options: ReadOptions, base: Where
) -> tuple[Changes, list[AdapterReport], list[AdapterFile]]:
    """Return what adapters change in a checkpoint, from the headers of both; each is judged as by load_adapter."""
    changes: Changes = {}
    reports, files = [], []
    for number, (where, weight) in enumerate(_weighted(adapters)):
        file = open_adapter(base.elsewhere(where))
        content = read_content(file, options=options)
        if content.replication:
            raise UnsupportedError(
                "layer_replication repeats layers of the base, which no headers tell apart",
                where=file.label,
                cure="merge in memory: from_pretrained, load_adapter, merge, save",
            )
        refuse_absent_head(checkpoint, content)
        model, of_class = base_on_disk(checkpoint, content, file.config or {})
        report, match = judge(model, file, content, str(number), strict=options.strict)
        if of_class is None:
            add_changes(changes, file, match, report, weight)
        else:
            own: Changes = {}
            add_changes(own, file, match, report, weight)
            _add_all(changes, of_class.stored(own))
        reports.append(report)
        files.append(file)
    return changes, reports, files


def base_on_disk(
    checkpoint: Checkpoint, content: AdapterContent, config: Mapping[str, object]
) -> tuple[nn.Module, ClassOnDisk | None]:
    """Return the model to match an adapter with: made of headers, or its class's where the adapter is for that alone.

    `config` is the adapter's. The class is None where the headers do, and where it is not known.
    """
    skeleton = skeleton_of(checkpoint, content, config)
    if not match_adapter(skeleton, content, strict=True).faults:
        return skeleton, None
    from shardload.adapters.merging.class_on_disk import ClassOnDisk  # it may import transformers

    of_class = ClassOnDisk.of(checkpoint)
    if of_class is None or match_adapter(of_class.shell.model, content, strict=True).faults:
        return skeleton, None
    return of_class.shell.model, of_class


def _add_all(changes: Changes, others: Changes) -> None:
    """Add the changes of one adapter to those of others."""
    for name, change in others.items():
        known = changes.setdefault(name, Change(name))
        known.additions += change.additions
        if change.replacement is not None:
            known.replacement = _only_replacement(known, change.replacement)
        known.adapters += change.adapters
        known.apart |= change.apart


def _only_replacement(change: Change, tensor: torch.Tensor) -> torch.Tensor:
    if change.replacement is not None:
        raise UsageError(
            "two adapters replace the same tensor of the base", where=change.name, cure="merge one of them"
        )
    return tensor


def _weighted(adapters: Sequence[Any]) -> list[tuple[Any, float]]:
    pairs = [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in adapters]
    if not pairs:
        raise UsageError("there is no adapter to merge", where="adapters", cure="pass at least one")
    return [(where, float(weight)) for where, weight in pairs]


def add_changes(
    changes: Changes, file: AdapterFile, match: AdapterMatch, report: AdapterReport, weight: float = 1.0
) -> None:
    """Read a matched adapter's values and add its changes, under the names of the base's tensors.

    Raises UnsupportedError, with the reasons, for layers that can't be merged.
    """
    reasons = [f"{found.path} {reason}" for found in match.layers if (reason := _why_not(found)) is not None]
    if reasons:
        shown = list(dict.fromkeys(reasons))
        more = f"; and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise UnsupportedError(
            f"{len(reasons)} layers can't be merged",
            where=f"{report.where}: " + "; ".join(shown[:8]) + more,
            cure="attach the adapter instead (load_adapter): it runs unmerged",
        )
    if match.replaced and weight != 1:
        raise UsageError(
            "an adapter that replaces tensors of the base (a bias, or modules_to_save) has no weight but 1",
            where=f"{report.where}: {listing([found.name for found in match.replaced])}, with the weight {weight}",
            cure="give it the weight 1",
        )
    values = read_values(file, match, report, as_stored=True)
    for value in values.layers:
        _add(changes, value.match.path, value.match.reading.term, value.factors, weight)
    for found, tensor in values.replaced:
        change = changes.setdefault(found.name, Change(found.name))
        change.replacement = _only_replacement(change, tensor)
        change.apart |= not found.entry.tied
        change.adapters += 1


def _why_not(found: LayerMatch) -> str | None:
    """Return why a matched layer can't be merged, or None."""
    reason = found.kind.unmergeable(found.layer, found.reading.term)
    biased = found.reading.term.adds_bias and getattr(found.entry, "bias", None) is not None
    if reason is None and biased and found.layer._parameters.get("bias") is None:
        reason = "has no bias, which lora_bias could be added to"
    return reason


def _add(changes: Changes, path: str, term: LoraTerm, factors: Factors, weight: float) -> None:
    """Add the change of one layer's weight, and of its bias where B has one."""
    prefix = f"{path}." if path else ""
    terms = [term] if factors.bias is None or not term.adds_bias else [term, BiasTerm.of(term)]
    for each in terms:
        name = prefix + each.attribute
        change = changes.setdefault(name, Change(name))
        change.additions.append(Addition(each, factors, weight))
        change.apart |= bool(each.rank)  # single rows have none
        change.adapters += 1
