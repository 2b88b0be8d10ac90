"""AutoModel and its kin: the names that scripts import from transformers, over shardload's own functions.

    from transformers import AutoModel, AutoTokenizer        # before
    from shardload.auto import AutoModel, AutoTokenizer      # after

Everything else of the script stays. Each class is a name for a call: no object of one is ever made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.load import from_pretrained
from shardload.processor import load_processor
from shardload.repo_class import load_config
from shardload.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from typing import NoReturn

    from shardload.load import LoadedModel
    from shardload.where import WhereLike


class _NameOfACall:
    """What the names of this file share: they are called by their class methods."""

    def __init__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name} has no objects: call {name}.from_pretrained(where)")


class AutoModel(_NameOfACall):
    """The model of a repo, by the entry of this name in its `auto_map`, or by its `architectures`.

        >>> from pathlib import Path
        >>> import torch, shardload
        >>> from shardload.auto import AutoModel
        >>> code = '''
        ... from torch import nn
        ... class Net(nn.Linear):
        ...     def __init__(self, config):
        ...         super().__init__(config.width, 2)
        ... '''
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> size = Path("tiny/net.py").write_text(code)
        >>> settings = '{"width": 4, "auto_map": {"AutoModel": "net.Net"}}'
        >>> size = Path("tiny/config.json").write_text(settings)
        >>> AutoModel.from_pretrained("tiny", trust_remote_code=True)
        Net(in_features=4, out_features=2, bias=True)

    The keywords are those of `shardload.from_pretrained`, which also takes transformers' names of them.
    """

    @classmethod
    def from_pretrained(cls, where: WhereLike, **keywords: Any) -> LoadedModel:
        """Load a model: `shardload.from_pretrained` with the name of this class as `auto_class`.

        Where the repo names its classes in no `auto_map`, `architectures` of its config.json says which it is.
        """
        model: LoadedModel = from_pretrained(where, auto_class=cls.__name__, **keywords)
        return model


class AutoModelForCausalLM(AutoModel):
    """The model of a repo that continues a text."""


class AutoModelForSeq2SeqLM(AutoModel):
    """The model of a repo that answers a text with another one: ChatGLM-6B names its class so."""


class AutoModelForSequenceClassification(AutoModel):
    """The model of a repo that tells to which class a text belongs."""


class AutoModelForTokenClassification(AutoModel):
    """The model of a repo that tells to which class each token belongs."""


class AutoModelForMaskedLM(AutoModel):
    """The model of a repo that fills gaps in a text."""


class AutoModelForImageTextToText(AutoModel):
    """The model of a repo that reads images and text."""


class AutoConfig(_NameOfACall):
    """The config of a repo."""

    @classmethod
    def from_pretrained(cls, where: WhereLike, **keywords: Any) -> Any:
        """Return the config: `shardload.load_config`."""
        return load_config(where, **keywords)


class AutoTokenizer(_NameOfACall):
    """The tokenizer of a repo."""

    @classmethod
    def from_pretrained(cls, where: WhereLike, **keywords: Any) -> Any:
        """Return the tokenizer: `shardload.load_tokenizer`."""
        return load_tokenizer(where, **keywords)


class AutoProcessor(_NameOfACall):
    """What prepares images and sound for a model."""

    @classmethod
    def from_pretrained(cls, where: WhereLike, **keywords: Any) -> Any:
        """Return the processor: `shardload.load_processor`."""
        return load_processor(where, **keywords)
