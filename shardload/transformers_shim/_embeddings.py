"""The methods of every model class for its embeddings: getting, tying and resizing them."""

from __future__ import annotations

import re
from itertools import cycle
from typing import Any

import torch
from torch import nn

from shardload.transformers_shim._missing import refuse_unknown


class EmbeddingsMixin:
    """Input and output embeddings of a model; a model with a head asks its base model for the input embeddings."""

    config: Any
    base_model: Any
    _tied_weights_keys: Any

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
        """Return the module that makes logits, or None; classes with a head that may be tied define this method."""
        return None

    def tie_weights(self) -> None:
        """Tie what the class declares as tied, where the config asks for it, and let modules tie what they do."""
        if self._ties():
            output = self.get_output_embeddings()
            if output is not None:
                self._tie_or_clone_weights(output, self.get_input_embeddings())
            if isinstance(self._tied_weights_keys, dict):  # code for 5.x: names and patterns of followers
                self._tie_named(self._tied_weights_keys)
        module: Any
        for module in self.modules():  # type: ignore[attr-defined]
            if hasattr(module, "_tie_weights"):
                module._tie_weights()

    def _ties(self) -> bool:
        """Whether the config ties the embeddings; one of several models and its text model have to agree on it."""
        text_config = getattr(self.config, "get_text_config", lambda: self.config)()
        return all(getattr(config, "tie_word_embeddings", True) for config in (self.config, text_config))

    def _tie_named(self, followers: dict[str, str]) -> None:
        """Tie each parameter that a pattern finds to the one that its counterpart finds, as the names are ordered."""
        names = sorted(name for name, _ in self.named_parameters(remove_duplicate=False))  # type: ignore[attr-defined]
        for target, source in followers.items():
            targets, sources = ([name for name in names if re.match(each, name)] for each in (target, source))
            for name, tied_to in zip(targets, cycle(sources), strict=False):
                path, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(path), leaf, self.get_parameter(tied_to))  # type: ignore[attr-defined]

    def _tie_or_clone_weights(self, output_embeddings: Any, input_embeddings: Any) -> None:
        output_embeddings.weight = input_embeddings.weight
        bias = getattr(output_embeddings, "bias", None)
        if bias is not None and bias.shape[0] < output_embeddings.weight.shape[0]:
            longer = (0, output_embeddings.weight.shape[0] - bias.shape[0])
            bias.data = nn.functional.pad(bias.data, longer)
        if hasattr(output_embeddings, "out_features") and hasattr(input_embeddings, "num_embeddings"):
            output_embeddings.out_features = input_embeddings.num_embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = False,
    ) -> Any:
        """Resize the embeddings (and a head that is not tied to them) to this many tokens, and return the embeddings.

        The first tokens keep their weights; new ones are initialised as the class initialises its modules.
        """
        refuse_unknown("resize_token_embeddings", {"mean_resizing": mean_resizing})
        old = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return old
        count = old.weight.shape[0] if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            count = -(-count // pad_to_multiple_of) * pad_to_multiple_of
        self.set_input_embeddings(self._resized(old, count))
        head = self.get_output_embeddings()
        if head is not None and not self._ties():
            self.set_output_embeddings(self._resized(head, count))  # type: ignore[attr-defined]
        self.config.vocab_size = self.vocab_size = count
        self.tie_weights()
        return self.get_input_embeddings()

    def _resized(self, old: Any, count: int) -> Any:
        """Return an embedding or a linear layer like `old` with `count` tokens."""
        rows, size = old.weight.shape
        if count == rows:
            return old
        placed = {"device": old.weight.device, "dtype": old.weight.dtype}
        if isinstance(old, nn.Embedding):
            new: Any = nn.Embedding(count, size, **placed)
        else:
            new = nn.Linear(size, count, bias=getattr(old, "bias", None) is not None, **placed)
        self._init_weights(new)  # type: ignore[attr-defined]
        kept = min(rows, count)
        with torch.no_grad():
            for name, value in new.named_parameters():
                value[:kept] = getattr(old, name)[:kept]
        new.requires_grad_(old.weight.requires_grad)
        return new.train(old.training)
