"""`transformers.modeling_utils`: `PreTrainedModel` as the 4.2x-4.40 releases had it, without its loader."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shardload.errors import UnsupportedError, Wording
from shardload.transformers_shim._embeddings import EmbeddingsMixin
from shardload.transformers_shim._filled import taken
from shardload.transformers_shim._module_surface import ModuleUtilsMixin
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.generation.configuration_utils import GenerationConfig
from shardload.transformers_shim.generation.utils import GenerationMixin
from shardload.transformers_shim.host import host
from shardload.transformers_shim.integrations.sdpa_attention import sdpa_attention_forward
from shardload.transformers_shim.loss.loss_utils import LOSS_MAPPING
from shardload.transformers_shim.pytorch_utils import (
    Conv1D,
    apply_chunking_to_forward,
    find_pruneable_heads_and_indices,
    prune_conv1d_layer,
    prune_layer,
    prune_linear_layer,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "AttentionInterface",
    "Conv1D",
    "GenerationMixin",
    "ModuleUtilsMixin",
    "PreTrainedModel",
    "PretrainedConfig",
    "apply_chunking_to_forward",
    "find_pruneable_heads_and_indices",
    "no_init_weights",
    "prune_conv1d_layer",
    "prune_layer",
    "prune_linear_layer",
    "unwrap_model",
]


_init_weights = True  # old code sets it before it quantizes; nothing here reads it


class AttentionInterface(dict[str, Any]):
    """Attention functions by the names of `config._attn_implementation`; "eager" is the model's own."""

    def get_interface(self, attn_implementation: str, default: Any) -> Any:
        """Return the function of that name, or the default, which is the model's own eager attention."""
        return self.get(attn_implementation, default)

    def register(self, name: str, function: Any) -> None:
        """Add a function."""
        self[name] = function


ALL_ATTENTION_FUNCTIONS = AttentionInterface(sdpa=sdpa_attention_forward)


@contextlib.contextmanager
def no_init_weights(_enable: bool = True) -> Iterator[None]:
    """Do nothing: while shardload builds a shell, nothing is initialised anyway."""
    yield


def unwrap_model(model: Any, **_options: Any) -> Any:
    """Return the module inside wrappers such as DataParallel."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model


class PreTrainedModel(EmbeddingsMixin, ModuleUtilsMixin, GenerationMixin):
    """The base of a repo's model classes: a module with a config, embeddings to tie, and gradient checkpointing.

    While shardload builds a shell, `init_weights` and `post_init` only tie and initialise nothing.
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
    _keep_in_fp32_modules_strict: Any = None
    _keys_to_ignore_on_load_missing: Any = None
    _keys_to_ignore_on_load_unexpected: Any = None
    _keys_to_ignore_on_save: Any = None
    _tied_weights_keys: Any = None
    _supports_flash_attn_2: bool = False
    _supports_sdpa: bool = False
    _supports_cache_class: bool = False
    _is_hf_initialized: ClassVar[bool] = False
    _loss_function: Any = None

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

    framework = "pt"

    def post_init(self) -> None:
        """Initialise and tie at the end of a constructor, which knows what its parts keep in float32."""
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            parts = [getattr(module, attribute, None) or () for module in (self, *self.children())]
            if any(parts):
                setattr(self, attribute, sorted({name for part in parts for name in part}))
        self.init_weights()
        # The oldest way to ask for gradient checkpointing: a setting in the config.
        if self.supports_gradient_checkpointing and getattr(self.config, "gradient_checkpointing", False):
            self.gradient_checkpointing_enable()
            delattr(self.config, "gradient_checkpointing")

    def init_weights(self) -> None:
        """Initialise every module that is not initialised yet (none while a shell is built), then tie."""
        if not host().is_constructing():
            self.apply(self._initialize_weights)
        self.tie_weights()

    def _initialize_weights(self, module: nn.Module) -> None:
        if not getattr(module, "_is_hf_initialized", False):
            self._init_weights(module)
            module._is_hf_initialized = True  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module; model classes define this."""

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, as checkpointing needs with frozen embeddings."""

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
        """Recompute activations in the backward pass, through the hook that the class was written for.

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
        """Return whether the class defines the old hook, which is called with each module and a value."""
        return "value" in inspect.signature(self._set_gradient_checkpointing).parameters

    def _set_gradient_checkpointing(
        self, enable: Any = True, gradient_checkpointing_func: Any = checkpoint, **_kwargs: Any
    ) -> None:
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = gradient_checkpointing_func
                module.gradient_checkpointing = enable

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Remove heads, by layer, through the base model's `_prune_heads`, and record them in the config."""
        for layer, heads in heads_to_prune.items():
            before = set(self.config.pruned_heads.get(layer, []))
            self.config.pruned_heads[layer] = list(before | set(heads))
        self.base_model._prune_heads(heads_to_prune)

    def get_position_embeddings(self) -> Any:
        """Refuse: classes whose positions can be resized define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_position_embeddings")

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Refuse: classes whose positions can be resized define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define resize_position_embeddings")

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Record tags for a model card."""
        new = [tags] if isinstance(tags, str) else tags
        self.model_tags = [
            *(self.model_tags or []),
            *(tag for tag in new if tag not in (self.model_tags or [])),
        ]

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of the parameters, and of the buffers unless `return_buffers=False`."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Record the auto class that this model class belongs to."""
        cls._auto_class = auto_class

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        dtype = kwargs.pop("torch_dtype", None)
        attention = kwargs.pop("attn_implementation", None)
        if attention is not None:
            config = copy.deepcopy(config)
            config._attn_implementation = attention
        before = torch.get_default_dtype()
        try:
            if dtype is not None:
                torch.set_default_dtype(dtype)
            return cls(config, **kwargs)
        finally:
            torch.set_default_dtype(before)

    @classmethod
    def from_pretrained(cls, *_args: Any, **kwargs: Any) -> Any:
        """Return the model that shardload has just filled to the class's own `from_pretrained`; otherwise raise."""
        found = taken(cls, with_info=bool(kwargs.get("output_loading_info")))
        if found is None:
            raise UnsupportedError(
                f"{cls.__name__}.from_pretrained loads nothing in shardload's stand-in for transformers",
                cure=Wording(
                    "load the repo with shardload.from_pretrained(where, {trust_remote_code})",
                    trust_remote_code=True,
                ),
            )
        return found

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write the weights as safetensors shards, config.json and generation_config.json into a folder."""
        host().save(self, folder, max_shard_size=options.get("max_shard_size", "5GB"))

    @property
    def loss_function(self) -> Any:
        """The loss by the ending of the class's name, for code since 4.46; other names get the causal loss."""
        if self._loss_function is not None:
            return self._loss_function
        endings = (ending for ending in LOSS_MAPPING if type(self).__name__.endswith(ending))
        return LOSS_MAPPING[next(endings, "ForCausalLM")]

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        self._loss_function = value


def _choose_attention(cls: type[Any], config: Any) -> None:
    """Set `config._attn_implementation` as the old base constructor did: the requested one, else the best."""
    wanted = getattr(config, "_attn_implementation_internal", None)
    if wanted is None:
        if cls._supports_sdpa:
            config._attn_implementation = "sdpa"
    elif wanted == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ImportError(f"{cls.__name__} is asked for flash_attention_2", name="flash_attn")
