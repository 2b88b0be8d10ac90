"""Merging: adapters folded into the weights of their base, on disk, in memory, or during a load."""

from __future__ import annotations

from shardload.adapters.merging.in_memory import merge, unmerge
from shardload.adapters.merging.merge_report import MergeReport
from shardload.adapters.merging.survival import MergedTensor
from shardload.adapters.merging.to_disk import merge_to_disk

__all__ = ["MergeReport", "MergedTensor", "merge", "merge_to_disk", "unmerge"]
