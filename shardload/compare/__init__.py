"""Comparisons: two checkpoints tensor by tensor, and a checkpoint's files with their known hashes."""
