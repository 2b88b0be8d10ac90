"""Checkpoints by their headers: sources, formats, the index, and a shard's bytes."""
