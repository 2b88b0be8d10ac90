"""A repo's own code: its config and model classes, run with the caller's consent, apart from everything else."""

from __future__ import annotations

from shardload.remote_code.classes import ResolvedClass, files_run, finish_by_its_class, resolve_class
from shardload.remote_code.config import attach_generation_config, load_config
from shardload.remote_code.listing import ListedFile, code_files
from shardload.remote_code.plain_config import LoadedConfig

__all__ = [
    "ListedFile",
    "LoadedConfig",
    "ResolvedClass",
    "attach_generation_config",
    "code_files",
    "files_run",
    "finish_by_its_class",
    "load_config",
    "resolve_class",
]
