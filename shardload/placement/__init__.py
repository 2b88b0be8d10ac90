"""Targets: what becomes of stored tensors on their way into a model."""
