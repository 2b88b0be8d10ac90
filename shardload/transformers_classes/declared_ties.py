"""The names that classes of transformers, and of the stand-in, tie again when they are made."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_classes import LIBRARY, STAND_IN, pretrained_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn


def written_apart(
    modules: Iterable[tuple[str, nn.Module]], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a state dict in which only names that a class ties again share a tensor; `modules` are those by prefix.

    Layers that were made one after the constructor are two again in the next model of the class, and each has to find
    its tensors. A tensor is written once for names outside of such classes: their constructors tie what they tie.
    """
    bases = tuple(filter(None, map(pretrained_model, (STAND_IN, LIBRARY))))
    known = [(prefix, module) for prefix, module in modules if isinstance(module, bases)]
    if not known:
        return dict(state)
    followers: set[str] = set()
    for prefix, module in known:
        below = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        followers |= {prefix + name for name in _followers(module, below)}
    # Of the names of a tied tensor the one that the others follow is written.
    first = {name: tensor for name, tensor in state.items() if name not in followers}
    result: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    for name, tensor in {**first, **state}.items():
        own = name not in followers and name.startswith(tuple(prefix for prefix, _ in known))
        # Another object with the same memory: tensors are told apart by identity.
        again = own and id(tensor) in written and isinstance(tensor, torch.Tensor)
        result[name] = tensor.detach() if again else tensor
        written.add(id(tensor))
    return result


def _followers(model: Any, names: list[str]) -> set[str]:
    """Return the names that the class of a model, made with the config as it is now, ties to others."""
    expanded = getattr(model, "get_expanded_tied_weights_keys", None)
    if callable(expanded):  # since transformers 5: by name, and none where the config does not tie
        return set(expanded(all_submodels=False))
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    if not all(getattr(each, "tie_word_embeddings", True) for each in (config, text_config)):
        return set()
    patterns = getattr(model, "_tied_weights_keys", None) or ()
    found = {name for name in names if any(re.search(pattern, name) for pattern in patterns)}
    try:
        head = getattr(model, "get_output_embeddings", lambda: None)()
    except NotImplementedError:  # a class without a vocabulary
        head = None
    paths = {id(module): path for path, module in model.named_modules()}
    return found | ({f"{paths[id(head)]}.weight"} if id(head) in paths else set())
