"""`transformers.generation_logits_process`: the home of `generation.logits_process` before 4.25."""

from shardload.transformers_shim.generation.logits_process import *  # noqa: F403 - all of it
