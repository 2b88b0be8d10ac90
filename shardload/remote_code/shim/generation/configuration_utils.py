"""`transformers.generation.configuration_utils`: the settings of generation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload.remote_code.shim.configuration_utils import GENERATION_DEFAULTS

if TYPE_CHECKING:
    import os

_DEFAULTS: dict[str, Any] = {
    **GENERATION_DEFAULTS,
    "max_new_tokens": None,
    "min_new_tokens": None,
    "max_time": None,
    "use_cache": True,
    "penalty_alpha": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "force_words_ids": None,
    "renormalize_logits": False,
    "constraints": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "decoder_start_token_id": None,
    "generation_kwargs": {},
}


class GenerationConfig:
    """How text is generated: every keyword argument becomes an attribute."""

    def __init__(self, **kwargs: Any) -> None:
        self._from_model_config = kwargs.pop("_from_model_config", False)
        for name, default in _DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, copy.copy(default)))
        for name, value in kwargs.items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> GenerationConfig:
        """Return a config with these settings; `kwargs` overrule the dictionary."""
        return cls(**{**config_dict, **kwargs})

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """Return the settings of generation that an old model config carries among its own."""
        names = [name for name in _DEFAULTS if name != "generation_kwargs"]
        found = {
            name: copy.copy(getattr(model_config, name)) for name in names if hasattr(model_config, name)
        }
        return cls(**found, _from_model_config=True)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> GenerationConfig:
        """Return the settings in a local folder's generation_config.json."""
        text = (Path(folder) / "generation_config.json").read_text(encoding="utf-8")
        return cls.from_dict(json.loads(text), **kwargs)

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the attributes that exist, and return the other keyword arguments."""
        unused = {}
        for name, value in kwargs.items():
            if hasattr(self, name):
                setattr(self, name, value)
            else:
                unused[name] = value
        return unused

    def validate(self) -> None:
        """Accept: the stand-in does not judge combinations of settings."""

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain data."""
        return {
            name: copy.deepcopy(value) for name, value in vars(self).items() if name != "_from_model_config"
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults."""
        absent = object()
        return {name: value for name, value in self.to_dict().items() if value != _DEFAULTS.get(name, absent)}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the settings as JSON; only those that differ from the defaults unless `use_diff` is False."""
        settings = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n"

    def save_pretrained(self, folder: str | os.PathLike[str], **_kwargs: Any) -> None:
        """Write generation_config.json into a folder, which is made where it is absent."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "generation_config.json").write_text(self.to_json_string(), encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # settings change

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string()}"
