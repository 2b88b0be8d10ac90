"""Loads a repo with the installed transformers and generates: reads a question as JSON, and prints the answer.

This file runs in another environment, without shardload.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()
import pretend_cuda
import torch
import transformers
from transformers import dynamic_module_utils

# transformers' own check demands every package that the code imports anywhere, even in branches that never run.
dynamic_module_utils.check_imports = dynamic_module_utils.get_relative_imports

RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def answer(model: Any, question: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Return the new tokens, or the text of the error if generation failed."""
    if "arguments" in question:
        given, start = {name: tensor(one) for name, one in question["arguments"].items()}, 0
    else:
        ids = torch.tensor(settings.pop("_ids", question["ids"]))
        given, start = {}, ids.shape[1]
    if "_mask" in settings:
        settings["attention_mask"] = torch.tensor(settings.pop("_mask"))
    if settings.get("num_beams", 1) > 1 and settings["do_sample"] and RELEASE >= (4, 50):
        return "since 4.50 drawn beams are kept in another order"
    base = "max_new_tokens" not in type(model).generate.__code__.co_varnames
    pad = {"pad_token_id": 0} if base else {}
    torch.manual_seed(5)
    try:
        settings |= {"max_new_tokens": question["new"], "eos_token_id": None, **pad}
        every = model.generate(**{**given, **settings}) if given else model.generate(ids, **settings)
    except Exception as error:  # noqa: BLE001 - the caller reports the error of this release
        return f"{type(error).__name__}: {str(error)[:60]}"
    return every[:, start:].tolist()


def tensor(value: Any) -> Any:
    """Return the tensor that a dtype and numbers describe, also inside lists; return any other value unchanged."""
    if isinstance(value, list):
        return [tensor(one) for one in value]
    if isinstance(value, dict):
        return torch.tensor(value["numbers"], dtype=getattr(torch, value["dtype"]))
    return value


def main() -> None:
    """Read one question from stdin and print the answer."""
    transformers.logging.set_verbosity_error()
    question = json.load(sys.stdin)
    if question.get("cuda"):
        pretend_cuda.begin()
    folder = Path(question["folder"])
    sys.path.append(str(folder))  # some code imports its own files by absolute names
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto = "AutoModelForCausalLM" if "AutoModelForCausalLM" in config["auto_map"] else "AutoModel"
    kind, models, answers = getattr(transformers, auto), {}, []
    for settings in question["cases"]:
        dtype = settings.pop("_dtype", config.get("torch_dtype", "float32"))
        # The model computes its tables in this dtype: a cast after the load would give other tables.
        if dtype not in models:
            loaded = kind.from_pretrained(folder, trust_remote_code=True, torch_dtype=getattr(torch, dtype))
            models[dtype] = loaded.eval()
        answers.append(answer(models[dtype], question, settings))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
