"""class_shell: the shell of the class that a checkpoint's config.json names, for commands that ask the class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.dtypes import parse_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.model.shell import Shell


def class_shell(where: str, dtype: str, keywords: Mapping[str, Any]) -> tuple[Shell | None, str]:
    """Return the shell of a class of an installed transformers, and a note where there is none.

    It is asked what stays in float32: only for a half precision. No code of the repo runs.
    """
    if dtype == "auto" or str(parse_dtype(dtype)) not in {"torch.float16", "torch.bfloat16"}:
        return None, ""
    from shardload.adapters.merging.class_on_disk import NO_CLASS, ClassOnDisk, names_a_class
    from shardload.checkpoint.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(where, **keywords)
    of_class = ClassOnDisk.of(checkpoint)
    if of_class is None:
        return None, NO_CLASS if names_a_class(checkpoint.config) else ""
    return of_class.shell, ""
