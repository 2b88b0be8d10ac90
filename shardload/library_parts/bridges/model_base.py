"""The base class of models in the spelling of transformers 5: the stand-in's, with what files since 5.0 rely on."""

from __future__ import annotations

import functools
import inspect
import typing
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from shardload.library_parts.completed_config import complete
from shardload.library_parts.importer import part_module
from shardload.library_parts.own_masks import use_own_mask
from shardload.library_parts.release import installed
from shardload.transformers_shim.modeling_utils import PreTrainedModel as StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

_ENCODERS = {
    None: ("text_encoder", "encoder"),
    "audio": ("audio_tower", "audio_encoder", "speech_encoder"),
    "image": ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"),
}
_DECODERS = ("language_model", "text_model", "decoder", "text_decoder")


class PreTrainedModel(StandIn):
    """The base of the library's models: it finds embeddings, encoder and decoder under their usual names."""

    _input_embed_layer: str = "embed_tokens"
    _can_record_outputs: Any = None
    loss_type: str | None = None
    kernel_config: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        family = inspect.get_annotations(cls).get("config")
        if isinstance(family, str):
            try:
                family = typing.get_type_hints(cls).get("config")
            except NameError:
                family = None
        if "config_class" not in vars(cls) and isinstance(family, type):
            cls.config_class = family
        use_own_mask(cls)

    def __init__(self, config: Any, *inputs: Any, **kwargs: Any) -> None:
        complete(config, self.config_class)
        super().__init__(config, *inputs, **kwargs)
        if getattr(config, "_experts_implementation", None) is None:
            config._experts_implementation = _experts()
        registry = _registry()
        if registry is not None:
            registry[self] = self._can_record_outputs

    def tie_weights(self) -> None:
        """Tie what the class maps in `_tied_weights_keys` where its config ties; a list of names is of older code."""
        if not ties_by_map() or isinstance(self._tied_weights_keys, (list, tuple)):
            super().tie_weights()
        elif self._tied_weights_keys and getattr(self.config, "tie_word_embeddings", False):
            self._tie_named(self._tied_weights_keys)

    @property
    def can_record_outputs(self) -> dict[str, Any]:
        """The modules whose outputs the model records, by field of its output."""
        return self._can_record_outputs or {}

    def get_input_embeddings(self) -> Any:
        """Return the module named `_input_embed_layer`: here, in `embeddings`, in `model`, or in the base model."""
        name = self._input_embed_layer
        for owner in (self, getattr(self, "embeddings", None), getattr(self, "model", None)):
            if getattr(owner, name, None) is not None:
                return getattr(owner, name)
        for owner in (getattr(self, "language_model", None), self.base_model):
            if owner is not None and owner is not self and hasattr(owner, "get_input_embeddings"):
                return owner.get_input_embeddings()
        raise NotImplementedError(f"{type(self).__name__} has no input embeddings named {name}")

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_input_embeddings` returns."""
        name = self._input_embed_layer
        for owner in (self, getattr(self, "embeddings", None), getattr(self, "model", None)):
            if owner is not None and hasattr(owner, name):
                setattr(owner, name, value)
                return
        for owner in (getattr(self, "language_model", None), self.base_model):
            if owner is not None and owner is not self and hasattr(owner, "set_input_embeddings"):
                owner.set_input_embeddings(value)
                return
        raise NotImplementedError(f"{type(self).__name__} has no input embeddings named {name}")

    def get_output_embeddings(self) -> Any:
        """Return `lm_head` of a model that has input embeddings, or None."""
        if not hasattr(self, "lm_head"):
            return None
        try:
            self.get_input_embeddings()
        except NotImplementedError:
            return None
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace `lm_head`."""
        self.lm_head = new_embeddings

    def get_encoder(self, modality: str | None = None) -> Any:
        """Return the encoder, of one modality where that is asked for; the model itself where it has none."""
        names = _ENCODERS["image" if modality == "video" else modality]
        found = next((getattr(self, name) for name in names if hasattr(self, name)), None)
        if found is None and self.base_model is not self and hasattr(self.base_model, "get_encoder"):
            below = (
                self.base_model.get_encoder(modality=modality) if modality else self.base_model.get_encoder()
            )
            found = None if below is self.base_model else below
        return self if found is None else found

    def get_decoder(self) -> Any:
        """Return the decoder; the model itself where it is one."""
        found = next((getattr(self, name) for name in _DECODERS if hasattr(self, name)), None)
        if found is None and self.base_model is not self and hasattr(self.base_model, "get_decoder"):
            return self.base_model.get_decoder()
        return self if found is None else found

    def set_decoder(self, decoder: nn.Module) -> None:
        """Replace the decoder."""
        for name in _DECODERS:
            if hasattr(self, name):
                setattr(self, name, decoder)
                return
        self.base_model.set_decoder(decoder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module as most of the library's models do."""
        name = type(module).__name__
        if isinstance(
            module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
        ):
            _fill(module, weight=lambda value: nn.init.normal_(value, mean=0.0, std=self._std()))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=self._std())
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.reset_parameters()
        elif isinstance(module, nn.MultiheadAttention):
            module._reset_parameters()
        elif isinstance(module, nn.GroupNorm) or "LayerNorm" in name or "RMSNorm" in name:
            _fill(module, weight=nn.init.ones_)

    def _std(self) -> float:
        named = ("initializer_range", "init_std", "initializer_factor")
        found = (getattr(self.config, name, None) for name in named)
        return next((float(value) for value in found if value), 0.02)


class PreTrainedAudioTokenizerBase(PreTrainedModel):
    """The base of models that turn sound into codes and back."""


def _fill(module: nn.Module, weight: Callable[[torch.Tensor], Any]) -> None:
    """Fill a module's weight by the function, and its bias with zeros, as far as it has them."""
    for name, function in (("weight", weight), ("bias", nn.init.zeros_)):
        value = getattr(module, name, None)
        if isinstance(value, torch.Tensor):
            function(value)


def _registry() -> Any:
    """Return the table by which the library's own `capture_outputs` finds what a class records; None before 5.x."""
    release = installed()
    if release is None or release.file("utils.output_capturing") is None:
        return None
    return getattr(part_module("utils.output_capturing"), "_CAN_RECORD_REGISTRY", None)


def ties_by_map() -> bool:
    """Return whether classes of the installed release map the names that they tie, and tie no others (since 5.0)."""
    release = installed()
    return release is not None and release.file("initialization") is not None


@functools.cache
def _experts() -> str:
    """Return how the installed release computes experts where nothing says it."""
    release = installed()
    return "grouped_mm" if release is not None and release.file("integrations.moe") else "eager"
