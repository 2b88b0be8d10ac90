"""Base classes that code imports from the module of one model: its config class and its `…PreTrainedModel`.

Code written for transformers 4 uses little of such a base that is the model's own. A published config.json has every
setting that the class has beyond `PretrainedConfig`'s (`to_diff_dict` wrote defaults too), and the `…PreTrainedModel`
adds a prefix and initialisation. So the general classes serve. What they can't know, a default that config.json does
not say, is an error with the setting's name.
"""

from __future__ import annotations

from typing import Any

from shardload.transformers_shim._missing import MissingAttributeError, MissingFromShimError, lacking
from shardload.transformers_shim.configuration_utils import DEFAULTS, GENERATION_DEFAULTS, PretrainedConfig
from shardload.transformers_shim.modeling_utils import PreTrainedModel

# The standard names that every config has, through `attribute_map` where its own names differ.
_STANDARD = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "max_position_embeddings": ("n_positions",),
}


class ModelConfig(PretrainedConfig):
    """A config with the settings that it is given and no defaults of its own.

    A standard name (`hidden_size`) that is not given is looked up under the older names (`n_embd`). Any other name
    raises an AttributeError with the class whose default is lacking.
    """

    _stands_for: str
    _unsaid: frozenset[str] = frozenset()

    def __init__(self, *positional: Any, **kwargs: Any) -> None:
        if positional:  # only the model's own class knows their names
            raise lacking(MissingFromShimError, f"{self._stands_for}(…) with settings by position")
        said = {type(self).attribute_map.get(name, name) for name in (*vars(self), *kwargs)}
        super().__init__(**kwargs)
        self._unsaid = frozenset({*DEFAULTS, *GENERATION_DEFAULTS} - said)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in vars(self).get("_unsaid", ()):
            vars(self)["_unsaid"] -= {name}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that were said: the model's own class has other defaults than every config has."""
        return {name: value for name, value in super().to_dict().items() if name not in self._unsaid}

    def __getattr__(self, name: str) -> Any:
        for other in _STANDARD.get(name, ()):
            if other in vars(self):
                return vars(self)[other]
        if name.startswith("_"):
            raise AttributeError(name)
        raise lacking(MissingAttributeError, f"{self._stands_for}().{name} (config.json does not say it)")


class ModelPreTrainedModel(PreTrainedModel):
    """A model's own base class; `base_model` is looked up under the usual names of a model without its head."""

    _stands_for: str

    @property
    def base_model(self) -> Any:
        """The model without its head, or the model itself."""
        family = self._stands_for.rpartition(".")[2].removesuffix("PreTrainedModel").lower()
        names = (self.base_model_prefix, family, "model", "transformer")
        return next((self._modules[name] for name in names if name in self._modules), self)


def model_base(name: str, full: str) -> type[Any]:
    """Return the class that stands for a base class whose dotted name in transformers is `full`."""
    base = ModelConfig if name.endswith("Config") else ModelPreTrainedModel
    body = {
        "__module__": full.rpartition(".")[0],
        "__doc__": f"Stands for {full} as a base: {base.__doc__}",
        "_stands_for": full,
    }
    return type(name, (base,), body)
