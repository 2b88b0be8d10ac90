"""`transformers.models`: the stand-in has no model families, only the auto classes by name."""
