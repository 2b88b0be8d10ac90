"""Measures one way to quantise a Llama while it is loaded: `python -m benchmarks.probes.quantise FOLDER KIND WAY`.

KIND is int8 or nf4; WAY is "ours" or "transformers". A fresh process a run, the file in the page cache.
The clock runs from the end of the imports. Anonymous memory is the highest of the load, less what was there before;
the bound is the quantised result, the largest quantised weight in float32 and 64 MB. Afterwards "ours" loads once more
by transformers and compares every byte of the state and the logits; one bit of difference fails the row.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.measure import warm

if TYPE_CHECKING:
    import torch
    from torch import nn

ROOM = 64_000_000


def main() -> None:
    folder, kind, way = sys.argv[1:]
    import torch
    from transformers import LlamaForCausalLM, logging
    from transformers.models.llama import modeling_llama  # noqa: F401 - its import is not the load's

    import shardload
    import shardload.loading.fill
    from shardload._system.process_memory import PeakSampler, measure
    from shardload.placement.quantisers import bitsandbytes

    bitsandbytes()  # first, as its own import may ask the network
    config = configs()[kind]
    logging.disable_progress_bar()
    loaders = {
        "ours": lambda: shardload.from_pretrained(
            folder, model_class=LlamaForCausalLM, quantization_config=config, progress=False
        ),
        "transformers": lambda: LlamaForCausalLM.from_pretrained(folder, quantization_config=config),
    }
    warm(folder)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the threads of torch are there
    before = measure().anon
    with PeakSampler(0.002) as sampler:
        started, processor = time.monotonic(), time.process_time()
        model = loaders[way]()
        figures = {"load_s": time.monotonic() - started, "cpu_s": time.process_time() - processor}
    figures["anon"] = sampler.peak.anon - before
    result = sum(tensor.nbytes for tensor in model.state_dict().values() if tensor.dtype in _packed())
    largest = max(each.in_features * each.out_features for each in linears(model, torch))
    figures |= {"result": result, "bound": result + 4 * largest + ROOM}
    if way == "ours":
        figures["stated"] = shardload.report_of(model).stated.peak
        figures |= compared(model, loaders["transformers"](), kind)
    print(json.dumps(figures), flush=True)
    os._exit(0)


def configs() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    return {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    }


def _packed() -> set[torch.dtype]:
    import torch

    return {torch.int8, torch.uint8, torch.float32}


def linears(model: nn.Module, torch: Any) -> list[nn.Linear]:
    return [
        each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not model.lm_head
    ]


def compared(ours: nn.Module, theirs: nn.Module, kind: str) -> dict[str, int]:
    """Return how many tensors of the two states are equal to the byte; of int8 the logits too."""
    import torch

    mine, other = ours.state_dict(), theirs.state_dict()
    equal = sum(
        name in mine and torch.equal(octets(mine[name]), octets(value)) for name, value in other.items()
    )
    figures = {"equal": equal, "tensors": len(other)}
    if kind == "int8":  # of 4 bits transformers' modules run by another function on some processors
        with torch.inference_mode():
            tokens = torch.arange(16)[None]
            figures["logits"] = int(torch.equal(ours(tokens).logits, theirs(tokens).logits))
    if mine.keys() != other.keys() or equal != len(other) or not figures.get("logits", 1):
        raise SystemExit(f"not what transformers loads: {figures}")
    return figures


def octets(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


if __name__ == "__main__":
    main()
