"""`transformers.generation.configuration_utils`: the settings of generation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload.transformers_shim.configuration_utils import GENERATION_DEFAULTS
from shardload.transformers_shim.utils.generic import ExplicitEnum

if TYPE_CHECKING:
    import os

_DEFAULTS: dict[str, Any] = {
    **GENERATION_DEFAULTS,
    "max_new_tokens": None,
    "min_new_tokens": None,
    "max_time": None,
    "use_cache": True,
    "stop_strings": None,
    "penalty_alpha": None,
    "min_p": None,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "force_words_ids": None,
    "renormalize_logits": False,
    "constraints": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "low_memory": None,
    "watermarking_config": None,
    "forced_decoder_ids": None,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    "output_logits": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "decoder_start_token_id": None,
    "generation_kwargs": {},
}


_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "resume_download",
    "proxies",
    "token",
    "use_auth_token",
    "revision",
    "local_files_only",
    "trust_remote_code",
    "_from_auto",
    "_from_pipeline",
)
# Names that a config of several models may have for its decoder's config.
_DECODERS = ("decoder", "generator", "text_config")


class GenerationMode(ExplicitEnum):
    """The ways to choose tokens: greedy search, sampling and beam search are done here."""

    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    CONTRASTIVE_SEARCH = "contrastive_search"
    ASSISTED_GENERATION = "assisted_generation"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"
    GROUP_BEAM_SEARCH = "group_beam_search"


class GenerationConfig:
    """How text is generated: every keyword argument becomes an attribute."""

    def __init__(self, **kwargs: Any) -> None:
        self._from_model_config = kwargs.pop("_from_model_config", False)
        for name, default in _DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, copy.copy(default)))
        for name, value in kwargs.items():
            setattr(self, name, value)
        # The settings when made: as long as they are unchanged, a model's settings follow the model's config.
        self._at_first = self.to_dict()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a config with these settings; `kwargs` override the dictionary.

        With `return_unused_kwargs=True`, returns (config, the keyword arguments that are not settings).
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        unused = {name: value for name, value in kwargs.items() if name not in {**_DEFAULTS, **config_dict}}
        used = kwargs if not return_unused else {n: v for n, v in kwargs.items() if n not in unused}
        config = cls(**{**config_dict, **used})
        return (config, unused) if return_unused else config

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """Return the generation settings that an old model config has among its own.

        Settings left at their defaults are taken from the decoder's config, where there is one.
        """
        names = [name for name in _DEFAULTS if name != "generation_kwargs"]
        found = {
            name: copy.copy(getattr(model_config, name)) for name in names if hasattr(model_config, name)
        }
        for part in _DECODERS:
            nested = getattr(model_config, part, None)
            inner = (
                nested
                if isinstance(nested, dict)
                else dict(vars(nested))
                if hasattr(nested, "to_dict")
                else {}
            )
            for name in names:
                if name in inner and found.get(name, _DEFAULTS[name]) == _DEFAULTS[name]:
                    found[name] = copy.copy(inner[name])
        return cls(**found, _from_model_config=True)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], config_file_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Return the settings in a local folder's generation_config.json; FileNotFoundError where it has none."""
        kwargs = {name: value for name, value in kwargs.items() if name not in _HUB_OPTIONS}
        path = (
            Path(folder)
            / (kwargs.pop("subfolder", "") or "")
            / (config_file_name or "generation_config.json")
        )
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")), **kwargs)

    @property
    def is_unchanged(self) -> bool:
        """Whether all settings are as they were when the config was made."""
        return self.to_dict() == getattr(self, "_at_first", None)

    def get_generation_mode(self, assistant_model: Any = None) -> GenerationMode:
        """Return the generation mode that the settings ask for."""
        if assistant_model is not None or self._setting("prompt_lookup_num_tokens"):
            return GenerationMode.ASSISTED_GENERATION
        if self._setting("constraints") is not None or self._setting("force_words_ids") is not None:
            return GenerationMode.CONSTRAINED_BEAM_SEARCH
        if (self._setting("num_beam_groups") or 1) > 1:
            return GenerationMode.GROUP_BEAM_SEARCH
        if (self._setting("num_beams") or 1) > 1:
            return GenerationMode.BEAM_SAMPLE if self._setting("do_sample") else GenerationMode.BEAM_SEARCH
        if self._setting("do_sample"):
            return GenerationMode.SAMPLE
        # Contrastive search needs both of its settings; otherwise top_k is for sampling only.
        contrastive = (self._setting("penalty_alpha") or 0) > 0 and (self._setting("top_k") or 0) > 1
        return GenerationMode.CONTRASTIVE_SEARCH if contrastive else GenerationMode.GREEDY_SEARCH

    def _setting(self, name: str) -> Any:
        return getattr(self, name, _DEFAULTS.get(name))

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the attributes that exist, and return the other keyword arguments."""
        unused = {}
        for name, value in kwargs.items():
            if hasattr(self, name):
                setattr(self, name, value)
            else:
                unused[name] = value
        return unused

    def validate(self, is_init: bool = False) -> None:
        """Do nothing: settings that have no effect together are no error."""

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain data."""
        return {name: copy.deepcopy(value) for name, value in vars(self).items() if not name.startswith("_")}

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
