"""Targets: they cast, move or replace stored tensors on the way into a model."""
