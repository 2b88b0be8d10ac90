"""`transformers.feature_extraction_utils`: what a processor returns, and the base of those that read settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim._batch_encoding import BatchEncoding
from shardload.transformers_shim._missing import not_served

if TYPE_CHECKING:
    import os

    from shardload.transformers_shim.utils.generic import TensorType


class BatchFeature(BatchEncoding):
    """What a processor returns: a dictionary whose entries are attributes too, of lists, arrays or tensors."""

    def __init__(self, data: Any = None, tensor_type: str | TensorType | None = None, **_kwargs: Any) -> None:
        super().__init__(data, tensor_type=tensor_type)

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move every tensor, in place, and return self; a dtype casts only those of floating numbers."""
        plain = {name: value for name, value in kwargs.items() if name != "dtype"}
        moved = [argument for argument in args if not isinstance(argument, torch.dtype)]
        for name, value in self.data.items():
            if isinstance(value, torch.Tensor):
                casts = value.is_floating_point()
                self.data[name] = value.to(*(args if casts else moved), **(kwargs if casts else plain))
        return self


class FeatureExtractionMixin:
    """The base of feature extractors: every keyword argument becomes an attribute."""

    _auto_class: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        self._processor_class = kwargs.pop("processor_class", None)
        for name, value in kwargs.items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], **kwargs: Any) -> Any:
        """Return one with these settings, which `kwargs` override where the class has the attribute.

        With `return_unused_kwargs=True`, returns it and the rest of `kwargs`.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        made = cls(**settings)
        for name in [name for name in kwargs if hasattr(made, name)]:
            setattr(made, name, kwargs.pop(name))
        return (made, kwargs) if return_unused else made

    @classmethod
    def from_pretrained(cls, where: str | os.PathLike[str], **_options: Any) -> Any:
        """Return one with the settings in a local folder's preprocessor_config.json."""
        path = Path(where) / "preprocessor_config.json"
        if not path.is_file():
            raise not_served(f"{cls.__name__}.from_pretrained({str(where)!r}), for another repo's settings,")
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, and the name of the class under the name that files have for it."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**copy.deepcopy(settings), self._type_name(): type(self).__name__}

    def _type_name(self) -> str:
        return "feature_extractor_type"

    def save_pretrained(self, folder: str | os.PathLike[str], **_options: Any) -> None:
        """Write preprocessor_config.json into a folder, which is made where it is absent."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)
        (Path(folder) / "preprocessor_config.json").write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoFeatureExtractor") -> None:
        """Record the auto class that this class belongs to."""
        cls._auto_class = auto_class


PreTrainedFeatureExtractor = FeatureExtractionMixin
