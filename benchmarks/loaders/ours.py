"""shardload.from_pretrained, with a class of transformers, of the repo's own code, or of the caller."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LABEL = "shardload"


def prepare(job: dict[str, Any]) -> Callable[[], nn.Module]:
    from shardload import from_pretrained

    options: dict[str, Any] = {"dtype": job["dtype"], "progress": False, "spill": job.get("spill")}
    if job["kind"] == "many":
        from benchmarks.models import ManyLinears

        options |= {"model_class": ManyLinears, "config": SimpleNamespace(**job["config"])}
    elif job["kind"] == "chatglm":
        options |= {"trust_remote_code": True}
    else:
        from transformers import LlamaForCausalLM

        options |= {"model_class": LlamaForCausalLM}
    return lambda: from_pretrained(job["folder"], **options)
