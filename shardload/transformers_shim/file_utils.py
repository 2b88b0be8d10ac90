"""`transformers.file_utils`: the place of `utils` before 4.12, which old code still names."""

from shardload.transformers_shim.utils import *  # noqa: F403 - all of it
