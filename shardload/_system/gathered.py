"""gathered: what every rank of a process group says, on all of them. Imported only where there are several ranks."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import distributed


def gathered(value: Any, group: Any = None) -> list[Any]:
    """Return the values of all ranks of a group, each as JSON has it, in the order of the ranks.

    Collective. torch's `all_gather_object` needs NumPy.
    """
    device = torch.device("cpu")
    if distributed.get_backend(group) == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    ranks = range(distributed.get_world_size(group))
    said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in ranks]
    distributed.all_gather(lengths, torch.tensor([len(said)], device=device), group=group)
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(said)] = said
    texts = [torch.empty_like(padded) for _ in ranks]
    distributed.all_gather(texts, padded, group=group)
    pairs = zip(texts, lengths, strict=True)
    return [json.loads(bytes(text[: int(length)].tolist())) for text, length in pairs]
