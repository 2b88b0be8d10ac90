"""Diagnosis: why a checkpoint and a model disagree, and what cures it. One file a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.quantised import QuantisedRule
from shardload.diagnosis.vocabulary import VocabularyRule
from shardload.diagnosis.wrapper import WrapperRule

if TYPE_CHECKING:
    from shardload.diagnosis.finding import Case, Finding, Rule

RULES: tuple[Rule, ...] = (QuantisedRule(), WrapperRule(), VocabularyRule())


def diagnose(case: Case) -> tuple[Finding, ...]:
    """Return the findings of every rule, those that explain the most keys first."""
    findings = [finding for rule in RULES for finding in rule.examine(case)]
    return tuple(sorted(findings, key=lambda finding: (not finding.declines, -finding.explained)))
