"""Loading a tokenizer from a folder, and saving it into one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardload.errors import UsageError
from shardload.transformers_shim._special_tokens import AddedToken
from shardload.transformers_shim.host import host


class FilesMixin:
    """A tokenizer's methods for files."""

    init_kwargs: dict[str, Any]
    vocab_files_names: dict[str, str]
    special_tokens_map_extended: dict[str, Any]
    chat_template: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *init_inputs: Any,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return a tokenizer of this class from the files of a folder or a repo on the Hub.

        Keywords override tokenizer_config.json. Only the code of this class runs.
        """
        for name in (
            "trust_remote_code",
            "code_revision",
            "use_fast",
            "use_auth_token",
            "force_download",
            "proxies",
        ):
            kwargs.pop(name, None)
        names = ("revision", "token", "cache_dir", "local_files_only")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        arguments = host().tokenizer_arguments(
            pretrained_model_name_or_path, cls, subfolder=subfolder or None, **hub
        )
        return cls(*init_inputs, **{**arguments, **kwargs})

    def save_pretrained(
        self, save_directory: Any, filename_prefix: str | None = None, **_kwargs: Any
    ) -> tuple[str, ...]:
        """Write the settings, the special and added tokens, the vocabulary and the code; return their names.

        Raises UsageError, before anything is written, where the folder has a code file of that name and other content.
        """
        folder = Path(save_directory)
        code = _code_of(type(self), folder)
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        specials = {name: _as_json(value) for name, value in self.special_tokens_map_extended.items()}
        settings = {
            name: _as_json(value)
            for name, value in self.init_kwargs.items()
            if name not in self.vocab_files_names and name not in ("added_tokens_decoder", "name_or_path")
        }
        settings = {**settings, **specials, "tokenizer_class": type(self).__name__, **_entry(self)}
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        added = getattr(self, "added_tokens_decoder", {})
        settings["added_tokens_decoder"] = {
            str(index): _as_json(token, typed=False) for index, token in added.items()
        }
        documents = {"tokenizer_config.json": settings, "special_tokens_map.json": specials}
        for name, document in documents.items():
            text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True, default=str)
            (folder / f"{prefix}{name}").write_text(text + "\n", encoding="utf-8")
        for path, content in code.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        written = self.save_vocabulary(str(folder), filename_prefix=filename_prefix) or ()
        return (*(str(folder / f"{prefix}{name}") for name in documents), *map(str, written), *map(str, code))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary's files; tokenizers with such files define this method."""
        raise NotImplementedError(f"{type(self).__name__} does not define save_vocabulary")


def _code_of(cls: type[Any], folder: Path) -> dict[Path, bytes]:
    """Return the repo's code files of a class, by the paths to write them to: the bytes that ran."""
    code = host().code_of(cls)
    files = {folder / name: content for name, content in code.files.items()} if code else {}
    for path, content in files.items():
        if path.is_file() and path.read_bytes() != content:
            raise UsageError(
                "the folder has a code file of the same name and other content",
                where=str(path),
                cure="save the tokenizer into a folder of its own",
            )
    return files


def _entry(tokenizer: Any) -> dict[str, Any]:
    """Return the entry of `auto_map` that leads to a tokenizer's class; {} for a class that is not a repo's."""
    code = host().code_of(type(tokenizer))
    if code is None:
        return {}
    name = f"{code.module}.{type(tokenizer).__name__}"
    return {"auto_map": {"AutoTokenizer": [None, name] if tokenizer.is_fast else [name, None]}}


def _as_json(value: Any, *, typed: bool = True) -> Any:
    if isinstance(value, AddedToken):
        return {**({"__type": "AddedToken"} if typed else {}), **asdict(value)}
    if isinstance(value, (list, tuple)):
        return [_as_json(item, typed=typed) for item in value]
    return value
