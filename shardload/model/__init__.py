"""A model without weights: its shell, and how its modules load themselves."""
