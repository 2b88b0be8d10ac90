"""`transformers.models.auto`: names that code registers its classes with; loading by them arrives later."""

from __future__ import annotations

from typing import Any

from shardload.remote_code.shim._missing import later_class


def _auto(name: str) -> Any:
    kind = later_class(name, __name__)
    # A repo that registers its classes at import does so for transformers' own loader: nothing to do here.
    kind.register = classmethod(lambda _cls, *_args, **_kwargs: None)
    kind.from_config = kind.from_pretrained
    return kind


AutoConfig = _auto("AutoConfig")
AutoModel = _auto("AutoModel")
AutoModelForCausalLM = _auto("AutoModelForCausalLM")
AutoModelForSeq2SeqLM = _auto("AutoModelForSeq2SeqLM")
AutoModelForSequenceClassification = _auto("AutoModelForSequenceClassification")
AutoTokenizer = _auto("AutoTokenizer")
