"""`transformers.utils.versions`: version requirements, which the stand-in does not enforce."""

from __future__ import annotations

import re

from shardload.transformers_shim.utils.import_utils import installed


def require_version(requirement: str, hint: str | None = None) -> None:
    """Raise ImportError when the required package is absent; its version is not checked."""
    name = re.split(r"[=<>!~\[]", requirement, maxsplit=1)[0].strip()
    if name not in {"python", "transformers"} and not installed(name.replace("-", "_")):
        raise ImportError(f"{requirement} is required. {hint or ''}".strip(), name=name)
