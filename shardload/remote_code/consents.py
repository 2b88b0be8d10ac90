"""The consents of this process: for which repo, and by which arguments, the caller allowed code to run."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.remote_code.repo_folder import folder_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.code import Code
    from shardload.where import CodeTrust

_lock = threading.Lock()
_consents: dict[str, dict[str, Consent]] = {}


@dataclass(frozen=True, slots=True)
class Consent:
    """A repo whose code the caller allowed: its source, its config.json, and the arguments that allowed it."""

    source: Source
    config_json: Mapping[str, Any] | None
    trust: CodeTrust

    def is_of(self, place: str | os.PathLike[str]) -> bool:
        """Return whether a place, as code names it to transformers, is this repo."""
        label, asked = self.source.label, os.fspath(place)
        if self.source.is_local:
            return os.path.isdir(asked) and os.path.realpath(asked) == os.path.realpath(label)  # noqa: PTH112
        return asked in (label, label.split("@")[0]) or asked == folder_of(self.source)


def note(code: Code, consent: Consent) -> None:
    """Record a consent that passed the gate; of one repo the last one counts."""
    with _lock:
        _consents.setdefault(code.sha256("shim"), {})[consent.source.label] = consent


def consent_for(code: Code, place: str | os.PathLike[str]) -> Consent | None:
    """Return the consent to this code for the repo at a place, or None."""
    with _lock:
        found = tuple(_consents.get(code.sha256("shim"), {}).values())
    return next((each for each in found if each.is_of(place)), None)
