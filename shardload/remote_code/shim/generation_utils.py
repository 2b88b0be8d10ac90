"""`transformers.generation_utils`: the place of `generation.utils` before 4.25."""

from shardload.remote_code.shim.generation.utils import *  # noqa: F403 - all of it
