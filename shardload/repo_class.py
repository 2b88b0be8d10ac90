"""load_config, resolve_class: the config of a repo, and what makes its model of one; no weight file is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload import remote_code
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources import find_source
from shardload.dtypes import parse_dtype
from shardload.keywords import entry_point, place_of, trust_of
from shardload.remote_code.overruled import overruled

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from shardload.keywords import ConfigKeywords, RepoKeywords
    from shardload.where import WhereLike


@entry_point
def load_config(
    where: WhereLike, *, dtype: str | torch.dtype = "auto", **keywords: Unpack[ConfigKeywords]
) -> Any:
    """Return the config of a repo: an object of its own configuration class where `auto_map` names one.

        >>> from pathlib import Path
        >>> import shardload
        >>> size = Path("config.json").write_text('{"hidden_size": 64}')
        >>> shardload.load_config(".").hidden_size
        64

    No weight file is read. A setting that the config has may be passed (`load_config(where, num_layers=6)`). The other
    keywords are as in `from_pretrained`. Raises NotFoundError, UntrustedCodeError,
    RemoteCodeError, UsageError.
    """
    place = place_of(where, keywords)
    source, _ = find_source(place)
    trust = trust_of(place, keywords)
    loaded = remote_code.load_config(source, read_config(source), trust, dtype=parse_dtype(dtype))
    return (overruled(loaded, keywords["_settings"]) if "_settings" in keywords else loaded).config


@entry_point
def resolve_class(
    where: WhereLike, *, auto_class: str | None = None, **keywords: Unpack[RepoKeywords]
) -> Callable[[Any], nn.Module]:
    """Return the class or function that makes a repo's model from a config, for `build_shell(lambda: make(config))`.

        >>> from pathlib import Path
        >>> import shardload
        >>> code = '''
        ... from torch import nn
        ... class Net(nn.Linear):
        ...     def __init__(self, config):
        ...         super().__init__(config.width, 2)
        ... '''
        >>> size = Path("net.py").write_text(code)
        >>> size = Path("config.json").write_text('{"width": 4, "auto_map": {"AutoModel": "net.Net"}}')
        >>> make = shardload.resolve_class(".", trust_remote_code=True)
        >>> make(shardload.load_config(".", trust_remote_code=True))
        Net(in_features=4, out_features=2, bias=True)

    The first `auto_map` entry wins over `architectures`; `auto_class` picks another one. Keywords are as in
    `from_pretrained`. Raises NotFoundError, UntrustedCodeError, RemoteCodeError, UsageError.
    """
    place = place_of(where, keywords)
    source, _ = find_source(place)
    trust = trust_of(place, keywords)
    return remote_code.resolve_class(source, read_config(source), trust, auto_class=auto_class).make
