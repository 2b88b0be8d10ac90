"""Modules with load hooks that join stored tensors."""

from __future__ import annotations

import torch
from torch import nn


class Fusing(nn.Module):
    """Stores q, k and v, in different shards; holds one weight that its hook joins from them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(9, 4))
        self.runs: list[str] = []
        self._register_load_state_dict_pre_hook(self._fuse)

    def _fuse(self, state, prefix, *_args) -> None:
        parts = [state.pop(prefix + name) for name in ("q", "k", "v")]
        self.runs.append(str(parts[0].device))
        state[f"{prefix}qkv"] = torch.cat(parts)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Fusing()
        self.out = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.out.weight


def unfused() -> dict[str, torch.Tensor]:
    parts = {f"attn.{name}": torch.randn(3, 4) for name in ("q", "k", "v")}
    return {**parts, "out.weight": torch.randn(4, 4), "out.bias": torch.randn(4), "tied.bias": torch.randn(4)}


class Joining(nn.Module):
    def __init__(self, error: type[Exception] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.error = error
        self._register_load_state_dict_pre_hook(self._fuse)

    def _fuse(self, state, prefix, *_args) -> None:
        parts = [state.pop(f"{prefix}{name}") for name in "ab"]
        if self.error and float(parts[0][0]) == 1.0:
            raise self.error("on purpose")
        state[f"{prefix}weight"] = torch.cat(parts)
