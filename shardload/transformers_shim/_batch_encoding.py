"""What a tokenizer returns: lists or tensors, by the names of the model's inputs."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import torch

from shardload.transformers_shim.utils.generic import TensorType


class BatchEncoding(UserDict[str, Any]):
    """A dictionary whose entries are attributes too. `encodings` are those of the tokenizers library, if any.

    A string as index returns an entry; an integer returns the encoding of that row.
    """

    def __init__(
        self,
        data: Any = None,
        encoding: Any = None,
        tensor_type: str | TensorType | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data)
        self._encodings = [encoding] if encoding is not None and not isinstance(encoding, list) else encoding
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def encodings(self) -> list[Any] | None:
        """The encodings of the tokenizers library, one for each row; None from a tokenizer written in Python."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizers library made this batch."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """The number of texts in a row: 1, or 2 for pairs."""
        return self._n_sequences

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, slice):
            return {name: value[item] for name, value in self.data.items()}
        if self._encodings is not None:
            return self._encodings[item]
        raise KeyError("rows can be indexed only where the tokenizers library made them")

    def __getattr__(self, item: str) -> Any:
        # `data` itself is absent while an object is copied or unpickled.
        try:
            return vars(self)["data"][item]
        except KeyError:
            raise AttributeError(item) from None

    def convert_to_tensors(
        self, tensor_type: str | TensorType | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Make every entry a tensor ("pt", or "np" with NumPy), with a batch axis put in front where asked."""
        if tensor_type is None:
            return self
        kind = TensorType(tensor_type)
        if kind not in (TensorType.PYTORCH, TensorType.NUMPY):
            raise ValueError(f"return_tensors={kind.value!r}: this stand-in makes 'pt' and 'np'")
        for name, value in self.items():
            rows = [value] if prepend_batch_axis else value
            if name == "overflowing_tokens" and prepend_batch_axis:
                continue
            try:
                self.data[name] = _torch(rows) if kind is TensorType.PYTORCH else _numpy(rows)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"the rows of {name!r} have different lengths and make no tensor: pass padding=True "
                    f"(and truncation=True with max_length=…)"
                ) from error
        return self

    def to(self, device: Any) -> BatchEncoding:
        """Move every tensor to a device, in place, and return self."""
        self.data = {
            name: value.to(device=device) if isinstance(value, torch.Tensor) else value
            for name, value in self.data.items()
        }
        return self


def _torch(rows: Any) -> torch.Tensor:
    if isinstance(rows, torch.Tensor):
        return rows
    first = rows[0] if isinstance(rows, (list, tuple)) and rows else None
    if isinstance(first, torch.Tensor):
        return torch.stack(list(rows))
    if hasattr(
        first, "__array__"
    ):  # old code builds its masks with NumPy, and torch converts a list of arrays slowly
        import numpy as np

        return torch.from_numpy(np.stack(rows))
    return torch.tensor(rows)


def _numpy(rows: Any) -> Any:
    import numpy as np

    return np.asarray(rows)
