"""`transformers.utils.logging`: the standard library's loggers, with the few methods that old code adds."""

from __future__ import annotations

import functools
import logging
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARNING
from typing import Any

__all__ = [
    "CRITICAL",
    "DEBUG",
    "ERROR",
    "FATAL",
    "INFO",
    "NOTSET",
    "WARNING",
    "disable_progress_bar",
    "enable_default_handler",
    "enable_explicit_format",
    "enable_progress_bar",
    "enable_propagation",
    "get_logger",
    "get_verbosity",
    "set_verbosity",
    "set_verbosity_debug",
    "set_verbosity_error",
    "set_verbosity_info",
    "set_verbosity_warning",
]

_ROOT = "shardload.remote_code"


def get_logger(name: str | None = None) -> Any:
    """Return the standard library's logger of that name, with `warning_once`, `info_once`, `warning_advice`."""
    logger = logging.getLogger(name or _ROOT)
    if not hasattr(logger, "warning_once"):
        # On this logger only: a change of logging.Logger would reach every other library in the process.
        logger.warning_once = functools.lru_cache(None)(logger.warning)  # type: ignore[attr-defined]
        logger.info_once = functools.lru_cache(None)(logger.info)  # type: ignore[attr-defined]
        logger.warning_advice = logger.warning  # type: ignore[attr-defined]
    return logger


def get_verbosity() -> int:
    """Return the level of the loggers of remote code."""
    return logging.getLogger(_ROOT).getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Set the level of the loggers of remote code; no other library's loggers are touched."""
    logging.getLogger(_ROOT).setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Show everything that remote code logs."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Show what remote code logs as information, and above."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings of remote code, and above."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Show errors of remote code only."""
    set_verbosity(ERROR)


def _leave(*_args: Any) -> None:
    """Change nothing: handlers and progress bars belong to the program, not to a repo."""


enable_default_handler = disable_default_handler = enable_explicit_format = reset_format = _leave
enable_propagation = disable_propagation = enable_progress_bar = disable_progress_bar = _leave
