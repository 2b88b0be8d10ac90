"""Why a checkpoint and a model disagree, and what cures it. Each rule has a file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardload._system.gc_freeze import gc_frozen
from shardload.diagnosis.ambiguous import AmbiguousRule
from shardload.diagnosis.derived import DerivedRule
from shardload.diagnosis.dropped import DroppedRule
from shardload.diagnosis.headless import HeadlessRule
from shardload.diagnosis.incomplete import IncompleteRule
from shardload.diagnosis.layers import LayersRule
from shardload.diagnosis.other_model import OtherModelRule
from shardload.diagnosis.packed import PackedRule
from shardload.diagnosis.placeholders import PlaceholderRule
from shardload.diagnosis.prefix_encoder import PrefixRule
from shardload.diagnosis.quantised import QuantisedRule
from shardload.diagnosis.renamed import RenamedRule
from shardload.diagnosis.restructured import RestructuredRule
from shardload.diagnosis.sizes import SizesRule
from shardload.diagnosis.tensor_parallel import TensorParallelRule
from shardload.diagnosis.vocabulary import VocabularyRule
from shardload.diagnosis.whole_cure import whole_cure as whole_cure
from shardload.diagnosis.with_adapter import WithAdapterRule
from shardload.diagnosis.wrapped import WrappedRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.finding import Case, Finding, FindingRule
    from shardload.keymap import KeyMap

SIGNATURES: tuple[FindingRule, ...] = (PlaceholderRule(), PackedRule(), QuantisedRule())
"""Rules that recognise, by headers alone, a file that is no plain checkpoint. Its keys are not paired then."""

RULES: tuple[FindingRule, ...] = (
    DroppedRule(),
    TensorParallelRule(),
    PrefixRule(),
    WithAdapterRule(),
    DerivedRule(),
    OtherModelRule(),
    VocabularyRule(),
    SizesRule(),
    IncompleteRule(),
    LayersRule(),
    WrappedRule(),
    RenamedRule(),
    RestructuredRule(),
    HeadlessRule(),
    AmbiguousRule(),
)


@gc_frozen
def diagnose(case: Case) -> tuple[Finding, ...]:
    """Return the findings of every rule: first those that no map cures, then those that one does, then notes."""
    for rules in (SIGNATURES, RULES):
        findings = [finding for rule in rules for finding in rule.examine(case)]
        declining = [finding for finding in findings if finding.declines]
        if declining:
            return tuple(declining)
        if rules is RULES:
            return tuple(sorted(findings, key=_rank))
    return ()


def proposed(own: KeyMap | None, cure: KeyMap, findings: Sequence[Finding]) -> KeyMap:
    """Return the rules of `own`, the caller's map, and those of the cure, with what the findings could not prove."""
    curing = [finding for finding in findings if finding.key_map]
    return replace(
        cure,
        rules=(*(own.rules if own else ()), *cure.rules),
        unproven=tuple(dict.fromkeys(line for finding in curing for line in finding.unproven)),
        confidence=min((finding.confidence for finding in curing), default=1.0),
    )


def _rank(finding: Finding) -> tuple[bool, bool, bool, int]:
    no_fault = finding.code.startswith("W-")
    return not finding.unsafe, no_fault, finding.key_map is not None, -finding.explained
