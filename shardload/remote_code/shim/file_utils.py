"""`transformers.file_utils`: the place of `utils` before 4.12, which old code still names."""

from shardload.remote_code.shim.utils import *  # noqa: F403 - all of it
