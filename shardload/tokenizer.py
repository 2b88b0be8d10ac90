"""load_tokenizer: the tokenizer of a checkpoint's repo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources import find_source
from shardload.keywords import entry_point, place_of, trust_of
from shardload.remote_code.tokenizer import make_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from shardload.keywords import TokenizerKeywords
    from shardload.where import WhereLike


@entry_point
def load_tokenizer(where: WhereLike, **keywords: Unpack[TokenizerKeywords]) -> Any:
    """Return the tokenizer of a repo: `tokenizer("text", return_tensors="pt")`, `decode`, `apply_chat_template`.

        >>> from pathlib import Path
        >>> import shardload
        >>> code = '''
        ... from transformers import PreTrainedTokenizer
        ... class Letters(PreTrainedTokenizer):
        ...     def get_vocab(self): return {chr(number): number for number in range(128)}
        ...     def _tokenize(self, text): return list(text)
        ...     def _convert_token_to_id(self, token): return ord(token)
        ... '''
        >>> size = Path("letters.py").write_text(code)
        >>> auto_map = '{"auto_map": {"AutoTokenizer": ["letters.Letters", null]}}'
        >>> size = Path("tokenizer_config.json").write_text(auto_map)
        >>> shardload.load_tokenizer(".", trust_remote_code=True)("hi")["input_ids"]
        [104, 105]

    `where`: a folder or `org/name[@revision]` on the Hub. The repo's own class (AutoTokenizer in `auto_map`) runs
    only with `trust_remote_code=True`, and from the Hub at a full commit only, as in `from_pretrained`; without
    one, tokenizer.json is read with the tokenizers library. `remote_base` says who serves that code's imports of
    transformers, as in `from_pretrained`. A setting of the tokenizer may be passed too: `padding_side="left"`.

    Raises NotFoundError, UntrustedCodeError, RemoteCodeError (which names the package to install where one lacks),
    CorruptError and UsageError.
    """
    place = place_of(where, keywords)
    source, _ = find_source(place)
    return make_tokenizer(
        source, read_config(source), trust_of(place, keywords), options=keywords.get("_settings")
    )
