"""`transformers.file_utils`: the home of `utils` before 4.12, which old code still imports."""

from shardload.transformers_shim.utils import *  # noqa: F403 - all of it
