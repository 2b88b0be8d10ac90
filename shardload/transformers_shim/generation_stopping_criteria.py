"""`transformers.generation_stopping_criteria`: the home of `generation.stopping_criteria` before 4.25."""

from shardload.transformers_shim.generation.stopping_criteria import *  # noqa: F403 - all of it
