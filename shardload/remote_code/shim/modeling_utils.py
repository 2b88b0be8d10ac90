"""`transformers.modeling_utils`: `PreTrainedModel` as the 4.2x-4.40 releases had it, without its loader."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shardload.remote_code.shim._missing import later
from shardload.remote_code.shim._module_surface import ModuleUtilsMixin
from shardload.remote_code.shim.configuration_utils import PretrainedConfig
from shardload.remote_code.shim.generation.configuration_utils import GenerationConfig
from shardload.remote_code.shim.generation.utils import GenerationMixin
from shardload.remote_code.shim.pytorch_utils import Conv1D, apply_chunking_to_forward

__all__ = [
    "Conv1D",
    "GenerationMixin",
    "ModuleUtilsMixin",
    "PreTrainedModel",
    "PretrainedConfig",
    "apply_chunking_to_forward",
]


class PreTrainedModel(ModuleUtilsMixin, GenerationMixin):
    """The base of a repo's model classes: a module with a config, embeddings to tie, and gradient checkpointing.

    While shardload builds a shell, `init_weights` and `post_init` initialise nothing and still tie.
    """

    config_class: type[Any] | None = None
    base_model_prefix: str = ""
    main_input_name: str = "input_ids"
    model_tags: Any = None
    is_parallelizable: bool = False
    supports_gradient_checkpointing: bool = False
    _auto_class: str | None = None
    _no_split_modules: Any = None
    _skip_keys_device_placement: Any = None
    _keep_in_fp32_modules: Any = None
    _keys_to_ignore_on_load_missing: Any = None
    _keys_to_ignore_on_load_unexpected: Any = None
    _keys_to_ignore_on_save: Any = None
    _tied_weights_keys: Any = None
    _supports_flash_attn_2: bool = False
    _supports_sdpa: bool = False
    _supports_cache_class: bool = False
    _is_hf_initialized: ClassVar[bool] = False

    def __init__(self, config: Any, *_inputs: Any, **_kwargs: Any) -> None:
        super().__init__()
        if isinstance(config, (str, dict)) or not hasattr(config, "__dict__"):
            raise ValueError(f"{type(self).__name__} takes a config object, not {type(config).__name__}")
        _choose_attention(type(self), config)
        self.config = config
        self.name_or_path = getattr(config, "name_or_path", "")
        self.warnings_issued: dict[str, bool] = {}
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None

    @property
    def base_model(self) -> Any:
        """The model without its head: the attribute named `base_model_prefix`, or the model itself."""
        return getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """A small batch of token ids, (3, 5)."""
        return {"input_ids": torch.tensor([[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]])}

    @property
    def framework(self) -> str:
        """Which kind of tensors the model computes with."""
        return "pt"

    def post_init(self) -> None:
        """Initialise and tie at the end of a constructor."""
        self.init_weights()
        # The very old way of asking for gradient checkpointing: a setting in the config.
        if self.supports_gradient_checkpointing and getattr(self.config, "gradient_checkpointing", False):
            self.gradient_checkpointing_enable()
            delattr(self.config, "gradient_checkpointing")

    def init_weights(self) -> None:
        """Initialise every module that is not yet (nothing while a shell is built), then tie."""
        if not _building_a_shell():
            self.apply(self._initialize_weights)
        self.tie_weights()

    def _initialize_weights(self, module: nn.Module) -> None:
        if not getattr(module, "_is_hf_initialized", False):
            self._init_weights(module)
            module._is_hf_initialized = True  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module; classes define it."""

    def tie_weights(self) -> None:
        """Make the output embeddings' weight the input embeddings', where the config asks for it."""
        output = self.get_output_embeddings()
        if getattr(self.config, "tie_word_embeddings", True) and output is not None:
            self._tie_or_clone_weights(output, self.get_input_embeddings())
        module: Any
        for module in self.modules():
            if hasattr(module, "_tie_weights"):
                module._tie_weights()

    def _tie_or_clone_weights(self, output_embeddings: Any, input_embeddings: Any) -> None:
        output_embeddings.weight = input_embeddings.weight
        bias = getattr(output_embeddings, "bias", None)
        if bias is not None and bias.shape[0] < output_embeddings.weight.shape[0]:
            longer = (0, output_embeddings.weight.shape[0] - bias.shape[0])
            bias.data = nn.functional.pad(bias.data, longer)
        if hasattr(output_embeddings, "out_features") and hasattr(input_embeddings, "num_embeddings"):
            output_embeddings.out_features = input_embeddings.num_embeddings

    def get_input_embeddings(self) -> Any:
        """Return the module that embeds tokens; a model with a head asks its base model."""
        base = self.base_model
        if base is self:
            raise NotImplementedError(f"{type(self).__name__} does not define get_input_embeddings")
        return base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that embeds tokens; a model with a head asks its base model."""
        base = self.base_model
        if base is self:
            raise NotImplementedError(f"{type(self).__name__} does not define set_input_embeddings")
        base.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """Return the module that makes logits, or None: a class with a head that may be tied defines it."""
        return None

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients: what checkpointing with frozen embeddings needs."""

        def require(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            output.requires_grad_(True)

        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(require)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        self._require_grads_hook.remove()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any module recomputes its activations in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations in the backward pass, in the way that the class was written for.

        Raises ValueError where the class does not support it.
        """
        if not self.supports_gradient_checkpointing:
            raise ValueError(f"{type(self).__name__} does not support gradient checkpointing")
        if self._has_old_checkpointing():
            self.apply(functools.partial(self._set_gradient_checkpointing, value=True))
        else:
            options = gradient_checkpointing_kwargs or {"use_reentrant": True}
            self._set_gradient_checkpointing(
                enable=True, gradient_checkpointing_func=functools.partial(checkpoint, **options)
            )

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        if self._has_old_checkpointing():
            self.apply(functools.partial(self._set_gradient_checkpointing, value=False))
        else:
            self._set_gradient_checkpointing(enable=False)

    def _has_old_checkpointing(self) -> bool:
        """Whether the class defines the old hook, called with each module and a value."""
        return "value" in inspect.signature(self._set_gradient_checkpointing).parameters

    def _set_gradient_checkpointing(
        self, enable: Any = True, gradient_checkpointing_func: Any = checkpoint, **_kwargs: Any
    ) -> None:
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = gradient_checkpointing_func
                module.gradient_checkpointing = enable

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Note the auto class that this model class belongs to."""
        cls._auto_class = auto_class

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        dtype = kwargs.pop("torch_dtype", None)
        before = torch.get_default_dtype()
        try:
            if dtype is not None:
                torch.set_default_dtype(dtype)
            return cls(config, **kwargs)
        finally:
            torch.set_default_dtype(before)

    @classmethod
    def from_pretrained(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: shardload's own loader fills models."""
        later(f"{cls.__name__}.from_pretrained", "shardload.from_pretrained(where, model_class=…)")

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: shardload's own writer saves models."""
        later(f"{type(self).__name__}.save_pretrained", "shardload.save(model, folder)")

    def resize_token_embeddings(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse, by name."""
        later(f"{type(self).__name__}.resize_token_embeddings")


def _choose_attention(cls: type[Any], config: Any) -> None:
    """Set `config._attn_implementation` as the old base constructor did: what is asked for, else the best."""
    wanted = getattr(config, "_attn_implementation_internal", None)
    if wanted is None:
        if cls._supports_sdpa:
            config._attn_implementation = "sdpa"
    elif wanted == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ImportError(f"{cls.__name__} is asked for flash_attention_2", name="flash_attn")


def _building_a_shell() -> bool:
    from shardload.construction import constructing

    return constructing()
