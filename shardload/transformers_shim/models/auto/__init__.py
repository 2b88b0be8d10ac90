"""`transformers.models.auto`: classes that the repo registered for its config classes; loading raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.transformers_shim._missing import later_class
from shardload.transformers_shim.host import host

if TYPE_CHECKING:
    from collections.abc import Callable


def _auto(name: str, home: str, otherwise: Callable[[Any], Any] | None = None) -> Any:
    """Return an auto class: it knows what is registered, else what `otherwise` returns for a config."""
    kind = later_class(name, home)
    refuse = kind.from_pretrained
    registered: dict[Any, Any] = {}

    def register(_cls: type[Any], /, config_class: Any, model_class: Any = None, **_options: Any) -> None:
        """Record the class for a config class. Every version of a repo has classes of its own, so none collide."""
        registered[config_class] = model_class

    def from_config(_cls: type[Any], /, config: Any, **options: Any) -> Any:
        """Return a model of the class registered for the config's class; raise for other configs."""
        found = registered.get(type(config))
        if found is None and otherwise is not None:
            found = otherwise(config)
        options.pop("trust_remote_code", None)
        return refuse(config) if found is None else found._from_config(config, **options)

    def from_pretrained(_cls: type[Any], /, place: Any = None, *args: Any, **options: Any) -> Any:
        """Return what the asking repo's own code stands for under this class; raise for other places."""
        own = host().own_object(name, place, options)
        return refuse(place, *args, **options) if own is None else own

    kind.register = classmethod(register)
    kind.from_pretrained = classmethod(from_pretrained)
    kind.from_config = classmethod(from_config)
    return kind


AutoConfig = _auto("AutoConfig", __name__)
AutoModel = _auto("AutoModel", __name__)
AutoModelForCausalLM = _auto("AutoModelForCausalLM", __name__)
AutoModelForSeq2SeqLM = _auto("AutoModelForSeq2SeqLM", __name__)
AutoModelForSequenceClassification = _auto("AutoModelForSequenceClassification", __name__)
AutoTokenizer = _auto("AutoTokenizer", __name__)
