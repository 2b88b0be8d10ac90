"""`transformers.configuration_utils`: `PretrainedConfig` with the defaults of the 4.2x-4.40 releases."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shardload.transformers_shim._missing import not_served

if TYPE_CHECKING:
    import os

# Attributes of every old config, which code reads without checking. The entries of config.json override them.
DEFAULTS: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "torch_dtype": None,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "architectures": None,
    "finetuning_task": None,
    "tokenizer_class": None,
    "prefix": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "task_specific_params": None,
    "problem_type": None,
}
GENERATION_DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_PRIVATE = (
    "_auto_class", "_commit_hash", "_attn_implementation_internal", "_completed_for", "_experts_implementation",
    "_name_or_path", "_is_made", "_unsaid", "ignore_keys_at_rope_validation",
)  # fmt: skip


class PretrainedConfig:
    """The settings of a model: every keyword argument becomes an attribute.

    `torch_dtype` may be a name or a torch dtype and is kept as a torch dtype. A subclass's `attribute_map` gives
    attributes second names.
    """

    model_type: str = ""
    is_composition: bool = False
    attribute_map: ClassVar[dict[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = []
    use_cache: Any = True
    torch_dtype: Any
    pruned_heads: dict[int, Any]
    _auto_class: str | None = None
    _attn_implementation_internal: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        # Code for 5.x says it in the class, or before this is called.
        kwargs.setdefault("tie_word_embeddings", getattr(self, "tie_word_embeddings", True))
        for name, default in {**DEFAULTS, **GENERATION_DEFAULTS}.items():
            setattr(self, name, kwargs.pop(name, default))
        self.torch_dtype = as_dtype(self.torch_dtype)
        self.pruned_heads = {int(layer): heads for layer, heads in self.pruned_heads.items()}
        self._set_labels(
            kwargs.pop("id2label", None), kwargs.pop("label2id", None), kwargs.pop("num_labels", 2)
        )
        self._name_or_path = str(kwargs.pop("name_or_path", kwargs.pop("_name_or_path", "")))
        self._commit_hash = kwargs.pop("_commit_hash", None)
        self._attn_implementation_internal = kwargs.pop("attn_implementation", None)
        self.transformers_version = kwargs.pop("transformers_version", None)
        for name, value in kwargs.items():
            setattr(self, name, value)

    def _set_labels(
        self, id2label: dict[Any, str] | None, label2id: dict[str, int] | None, count: int
    ) -> None:
        if id2label is None:
            self.num_labels = count
        else:
            self.id2label = {int(number): label for number, label in id2label.items()}
        if id2label is not None or label2id is not None:
            self.label2id = label2id

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, type(self).attribute_map.get(name, name), value)

    def __getattribute__(self, name: str) -> Any:
        if name != "attribute_map" and not name.startswith("__"):
            name = type(self).attribute_map.get(name, name)
        return object.__getattribute__(self, name)

    @property
    def name_or_path(self) -> str:
        """Where the config came from: a folder or `org/name`."""
        return str(getattr(self, "_name_or_path", ""))

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self._name_or_path = str(value)

    @property
    def use_return_dict(self) -> bool:
        """Whether models return ModelOutputs rather than tuples."""
        return bool(self.return_dict and not self.torchscript)

    @property
    def num_labels(self) -> int:
        """The number of a classifier's labels; setting it makes new label names."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if getattr(self, "id2label", None) is None or len(self.id2label) != count:
            self.id2label = {number: f"LABEL_{number}" for number in range(count)}
            self.label2id = {label: number for number, label in self.id2label.items()}

    @property
    def _attn_implementation(self) -> str:
        return self._attn_implementation_internal or "eager"

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | None) -> None:
        self._attn_implementation_internal = value

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a config of this class; `kwargs` override the dictionary where the config has the name.

        With `return_unused_kwargs=True`, returns (config, the rest of kwargs). The dictionary's `attn_implementation`
        is not read: releases of 4 take it from `kwargs` alone.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config = cls(**{**config_dict, "attn_implementation": kwargs.pop("attn_implementation", None)})
        for name in [name for name in kwargs if hasattr(config, name)]:
            value = kwargs.pop(name)
            setattr(config, name, as_dtype(value) if name == "torch_dtype" else value)
        return (config, kwargs) if return_unused else config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Return a config of this class with the settings of a JSON file."""
        return cls(**json.loads(Path(json_file).read_text(encoding="utf-8")))

    @classmethod
    def get_config_dict(
        cls, where: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (the settings in a folder's config.json or in a JSON file, kwargs); local only."""
        path = Path(where)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise not_served(f"{cls.__name__}.from_pretrained({str(where)!r}), for another repo's config,")
        return json.loads(path.read_text(encoding="utf-8")), kwargs

    @classmethod
    def from_pretrained(cls, where: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Return a config of this class with the settings in a local folder's config.json."""
        settings, kwargs = cls.get_config_dict(where, **kwargs)
        for hub_option in (
            "cache_dir",
            "force_download",
            "local_files_only",
            "token",
            "revision",
            "subfolder",
        ):
            kwargs.pop(hub_option, None)
        return cls.from_dict({**settings, "_name_or_path": str(where)}, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Record the auto class that this configuration belongs to."""
        cls._auto_class = auto_class

    def get_text_config(self, decoder: bool = False) -> Any:  # noqa: ARG002 - the name is the interface
        """Return the nested text config where there is one, else this config."""
        return getattr(self, "text_config", None) or self

    def standardize_rope_params(self) -> None:
        """Do nothing: functions of 5.x call it, and a config of 4.x that reaches them has its `rope_parameters`."""

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set attributes from a dictionary."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-ready data, with dtypes as names."""
        output = {name: copy.deepcopy(value) for name, value in vars(self).items() if name not in _PRIVATE}
        output["model_type"] = type(self).model_type or output.get("model_type", "")
        if self.name_or_path:
            output["_name_or_path"] = self.name_or_path
        for name, value in output.items():
            if isinstance(value, PretrainedConfig):
                output[name] = value.to_dict()
        self.dict_torch_dtype_to_str(output)
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the settings that differ from the base class's defaults."""
        defaults = {**DEFAULTS, **GENERATION_DEFAULTS, "id2label": {0: "LABEL_0", 1: "LABEL_1"}}
        defaults["label2id"] = {"LABEL_0": 0, "LABEL_1": 1}
        absent = object()
        return {name: value for name, value in self.to_dict().items() if value != defaults.get(name, absent)}

    def dict_torch_dtype_to_str(self, settings: dict[str, Any]) -> None:
        """Turn torch dtypes under `torch_dtype` into names, in nested dictionaries too."""
        dtype = settings.get("torch_dtype")
        if dtype is not None and not isinstance(dtype, str):
            settings["torch_dtype"] = str(dtype).removeprefix("torch.")
        for value in settings.values():
            if isinstance(value, dict):
                self.dict_torch_dtype_to_str(value)

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the settings as JSON; only those that differ from the defaults unless `use_diff` is False."""
        settings = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n"

    def to_json_file(self, json_file: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the settings as a JSON file."""
        Path(json_file).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, folder: str | os.PathLike[str], **_kwargs: Any) -> None:
        """Write config.json into a folder, which is made where it is absent."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(folder) / "config.json")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # settings change: the old class had no hash either

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def as_dtype(dtype: Any) -> Any:
    """Return the torch dtype of a name ("float16", "torch.float16"); anything else is returned as it is."""
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    import torch

    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch_dtype names {dtype!r}, which is not a dtype of torch")  # noqa: TRY004 - a wrong value
    return found
