"""A small `transformers` with the semantics of its 4.2x-4.40 releases, for the code of published repos.

`transformers.a.b` of that code is `shardload.remote_code.shim.a.b`. It is bound to the modules of the repo
alone and never stands in `sys.modules` under the name `transformers`.
"""

from __future__ import annotations

import importlib
from typing import Any

from shardload.remote_code.shim._missing import MissingAttributeError, lacking

# Code compares minor numbers of it to choose between old and new behaviour; ours is the old one.
__version__ = "4.40.2"

_HOMES: dict[str, tuple[str, ...]] = {
    "configuration_utils": ("PretrainedConfig",),
    "modeling_utils": ("PreTrainedModel",),
    "tokenization_utils": ("PreTrainedTokenizer", "AddedToken"),
    "tokenization_utils_fast": ("PreTrainedTokenizerFast",),
    "tokenization_utils_base": ("BatchEncoding", "PreTrainedTokenizerBase", "SpecialTokensMixin"),
    "cache_utils": ("Cache", "DynamicCache"),
    "generation": (
        "GenerationConfig",
        "GenerationMixin",
        "LogitsProcessor",
        "LogitsProcessorList",
        "LogitsWarper",
        "StoppingCriteria",
        "StoppingCriteriaList",
        "TextIteratorStreamer",
        "TextStreamer",
    ),
    "models.auto": (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSeq2SeqLM",
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
    ),
    "utils": ("add_start_docstrings", "is_torch_available"),
    "utils.generic": ("TensorType",),
}
_SUBMODULES = frozenset(
    {
        "activations",
        "cache_utils",
        "configuration_utils",
        "deepspeed",
        "generation",
        "integrations",
        "modeling_outputs",
        "modeling_utils",
        "models",
        "pytorch_utils",
        "tokenization_utils",
        "tokenization_utils_base",
        "tokenization_utils_fast",
        "utils",
    }
)
_NAMES = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    # Python itself probes modules for dunder names (`__path__`, `__wrapped__`): those are no requests.
    if name.startswith("__"):
        raise AttributeError(name)
    raise lacking(MissingAttributeError, f"transformers.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_NAMES})
