"""Runs one merge in its own process and prints one line of JSON: `python -m benchmarks.probes.merge_child JOB`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import memory

if TYPE_CHECKING:
    from collections.abc import Callable


def ours(job: dict[str, Any]) -> Callable[[], object]:
    import shardload

    shardload.merge_to_disk  # noqa: B018 - the first access imports it
    verify = job["who"] == "ours"
    return lambda: shardload.merge_to_disk(
        job["base"], job["adapter"], job["out"], verify=verify, progress=False
    )


def theirs(job: dict[str, Any]) -> Callable[[], object]:
    """Return a merge by PEFT as its documentation does it: load the base, load the adapter, merge_and_unload, save.

    low_cpu_mem_usage=True is not used: with it, PEFT 0.21 casts an fp32 adapter to bfloat16 over a bfloat16 base.
    """
    import peft
    from safetensors.torch import load_file, save_file

    if job["kind"] == "llama":
        from transformers import AutoModelForCausalLM, LlamaForCausalLM, logging

        logging.disable_progress_bar()
        del LlamaForCausalLM  # the import above is not measured

        def merge() -> None:
            base = AutoModelForCausalLM.from_pretrained(job["base"], dtype="auto")
            model = peft.PeftModel.from_pretrained(base, job["adapter"])
            model.merge_and_unload().save_pretrained(job["out"])

        return merge
    from types import SimpleNamespace

    import torch

    from benchmarks.models import ManyLinears

    def merge_plain() -> None:
        with torch.device("meta"):
            base = ManyLinears(SimpleNamespace(**job["config"]))
        stored = {}
        for path in Path(job["base"]).glob("*.safetensors"):
            stored |= load_file(path)
        base.load_state_dict(stored, assign=True)
        model = peft.PeftModel.from_pretrained(base, job["adapter"])
        merged = model.merge_and_unload()
        Path(job["out"]).mkdir()
        save_file(merged.state_dict(), Path(job["out"]) / "model.safetensors", {"format": "pt"})

    return merge_plain


def main() -> None:
    job = json.loads(sys.argv[1])
    merge = (theirs if job["who"] == "peft" else ours)(job)
    sizes = memory()
    imported = time.monotonic()
    merge()
    done = time.monotonic()
    print(
        json.dumps(
            {
                "imported": imported,
                "done": done,
                "cpu_s": time.process_time(),
                "before": sizes[0] if sizes else 0,
            }
        )
    )


if __name__ == "__main__":
    main()
