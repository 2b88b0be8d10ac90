"""`transformers.models.auto`: classes that the repo registered for its config classes; loading raises."""

from __future__ import annotations

from typing import Any

from shardload.transformers_shim._missing import later_class


def _auto(name: str) -> Any:
    kind = later_class(name, __name__)
    refuse = kind.from_pretrained
    registered: dict[Any, Any] = {}

    def register(_cls: type[Any], /, config_class: Any, model_class: Any = None, **_options: Any) -> None:
        """Record the class for a config class. Every version of a repo has classes of its own, so none collide."""
        registered[config_class] = model_class

    def from_config(_cls: type[Any], /, config: Any, **options: Any) -> Any:
        """Return a model of the class registered for the config's class; raise for other configs."""
        found = registered.get(type(config))
        options.pop("trust_remote_code", None)
        return refuse(config) if found is None else found._from_config(config, **options)

    kind.register = classmethod(register)
    kind.from_config = classmethod(from_config)
    return kind


AutoConfig = _auto("AutoConfig")
AutoModel = _auto("AutoModel")
AutoModelForCausalLM = _auto("AutoModelForCausalLM")
AutoModelForSeq2SeqLM = _auto("AutoModelForSeq2SeqLM")
AutoModelForSequenceClassification = _auto("AutoModelForSequenceClassification")
AutoTokenizer = _auto("AutoTokenizer")
