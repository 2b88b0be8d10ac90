"""Small repos with code of their own, written by the tests that load them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.sources import find_source
from shardload.remote_code import load_config, resolve_class
from shardload.where import CodeTrust

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CONFIG = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny"

    def __init__(self, hidden_size=4, **kwargs):
        self.hidden_size = hidden_size
        super().__init__(**kwargs)
"""

MODEL = """
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_tiny import TinyConfig

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x):
        return CausalLMOutputWithPast(logits=self.linear(x))
"""

AUTO_MAP = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}


@dataclass
class FolderFile:
    name: str
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read_at(self, offset: int, length: int) -> bytes:
        return self.path.read_bytes()[offset : offset + length]

    def local_path(self) -> Path:
        return self.path


@dataclass
class HubLike:
    """A folder that says that it is a repo on the Hub at a commit."""

    folder: Path
    repo: str = "org/name"
    revision: str | None = COMMIT
    is_local: bool = False

    @property
    def label(self) -> str:
        return f"{self.repo}@{self.revision}"

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def open(self, name: str) -> FolderFile:
        return FolderFile(name, self.folder / name)


def write(
    folder: Path, files: dict[str, str], config: dict[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Write a repo; returns (its source, its config.json)."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    config = {"auto_map": AUTO_MAP} if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return local(folder), config


def local(folder: Path) -> Any:
    return find_source(folder)[0]


def tiny(folder: Path, model: str = MODEL, config: str = CONFIG, **more: str) -> tuple[Any, dict[str, Any]]:
    """Write the usual two files (and more: `name_py=text`)."""
    files = {"configuration_tiny.py": config, "modeling_tiny.py": model}
    files |= {name.replace("_py", ".py"): text for name, text in more.items()}
    return write(folder, files)


def build(
    source: Any,
    config_json: dict[str, Any],
    *,
    dtype: Any = None,
    auto_class: str | None = None,
    **keywords: Any,
) -> Any:
    """Load config and class with trust, and make the model; further keywords are fields of CodeTrust."""
    trust = CodeTrust(True, **keywords)
    loaded = load_config(source, config_json, trust, dtype=dtype)
    resolved = resolve_class(source, config_json, trust, auto_class=auto_class)
    return resolved.make(loaded.config)


def module_of(obj: Any) -> Any:
    """Return the module in which an object's class is defined."""
    return sys.modules[type(obj).__module__]


def run(folder, main, **files):
    """Run `main.py` of a repo (it must define a class M) and return its module."""
    files = {
        name if "." in name else name.replace("__", "/").replace("_py", ".py"): files[name] for name in files
    }
    source, config = write(
        folder,
        {"main.py": main + "\nclass M:\n    def __init__(self, config): pass\n", **files},
        {"auto_map": {"AutoModel": "main.M"}},
    )
    return module_of(build(source, config))
