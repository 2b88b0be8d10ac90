"""load_tokenizer: the tokenizer of a checkpoint's repo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.checkpoint.checkpoint import read_config
from shardload.checkpoint.sources import find_source
from shardload.remote_code import Word, make_tokenizer

if TYPE_CHECKING:
    import os

    from shardload.remote_code import Trust


def load_tokenizer(
    where: str | os.PathLike[str],
    *,
    trust_remote_code: Trust = False,
    revision: str | None = None,
    code_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    allow_links: bool = False,
) -> Any:
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
    one, tokenizer.json is read with the tokenizers library. Raises NotFoundError, UntrustedCodeError,
    RemoteCodeError (which names the package to install where one lacks) and CorruptError.
    """
    hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    source, _file = find_source(where, revision=revision, subfolder=subfolder, allow_links=allow_links, **hub)
    given = revision or (where.rpartition("@")[2] if isinstance(where, str) and "@" in where else None)
    word = Word(trust_remote_code, given, code_revision, **hub)
    return make_tokenizer(source, read_config(source), word)
