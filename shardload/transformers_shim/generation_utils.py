"""`transformers.generation_utils`: the home of `generation.utils` before 4.25."""

from shardload.transformers_shim.generation.utils import *  # noqa: F403 - all of it
