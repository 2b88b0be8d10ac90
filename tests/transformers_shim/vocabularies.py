"""Small tokenizer repos, written by the tests: code of both ages, vocabularies of characters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import shardload

if TYPE_CHECKING:
    from pathlib import Path

# As code of 4.2x-4.33 is written: the base constructor runs first, special tokens are properties without setters,
# `_pad` has the parameters of that time.
OLD = """
import json
from typing import Dict, List, Optional, Union
from transformers import PreTrainedTokenizer
from transformers.tokenization_utils_base import BatchEncoding, EncodedInput
from transformers.utils import PaddingStrategy


class OldTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "letters.json"}
    model_input_names = ["input_ids", "attention_mask", "position_ids"]

    def __init__(self, vocab_file, padding_side="left", clean_up_tokenization_spaces=False, **kwargs):
        super().__init__(
            padding_side=padding_side, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **kwargs
        )
        with open(vocab_file, encoding="utf-8") as file:
            self.letters = json.load(file)
        self.names = {index: letter for letter, index in self.letters.items()}

    @property
    def pad_token(self):
        return "_"

    @property
    def pad_token_id(self):
        return self.letters["_"]

    @property
    def eos_token(self):
        return "$"

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {**self.letters, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return [letter if letter in self.letters else "?" for letter in text]

    def _convert_token_to_id(self, token):
        return self.letters.get(token, self.letters["?"])

    def _convert_id_to_token(self, index):
        return self.names[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        start = [self.letters["^"]]
        return start + token_ids_0 + (token_ids_1 or [])

    def build_chat_input(self, query, history=None):
        ids = [self.letters["^"]] + self.convert_tokens_to_ids(self.tokenize(query))
        return self.batch_encode_plus([ids], return_tensors="pt", is_split_into_words=True)

    def _pad(
        self,
        encoded_inputs: Union[Dict[str, EncodedInput], BatchEncoding],
        max_length: Optional[int] = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: Optional[int] = None,
        return_attention_mask: Optional[bool] = None,
    ) -> dict:
        assert padding_strategy != PaddingStrategy.LONGEST
        ids = encoded_inputs[self.model_input_names[0]]
        if "attention_mask" not in encoded_inputs:
            encoded_inputs["attention_mask"] = [1] * len(ids)
        if "position_ids" not in encoded_inputs:
            encoded_inputs["position_ids"] = list(range(len(ids)))
        if padding_strategy != PaddingStrategy.DO_NOT_PAD and len(ids) != max_length:
            missing = max_length - len(ids)
            for name in ("attention_mask", "position_ids"):
                encoded_inputs[name] = [0] * missing + encoded_inputs[name]
            encoded_inputs["input_ids"] = [self.pad_token_id] * missing + ids
        return encoded_inputs
"""

# As code since 4.34 is written: the vocabulary first.
NEW = """
import json
import os
import shutil
from transformers import AddedToken, PreTrainedTokenizer


class NewTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "./letters.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, unk_token="?", bos_token="^", eos_token="$", pad_token="_", **kwargs):
        self.vocab_file = vocab_file
        with open(vocab_file, encoding="utf-8") as file:
            self.letters = json.load(file)
        self.names = {index: letter for letter, index in self.letters.items()}
        super().__init__(
            unk_token=unk_token, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs
        )

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {**self.letters, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.get(token, self.letters["?"])

    def _convert_id_to_token(self, index):
        return self.names[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        end = [self.eos_token_id]
        return [self.bos_token_id] + token_ids_0 + end + ([] if token_ids_1 is None else token_ids_1 + end)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = os.path.join(save_directory, "letters.json")
        shutil.copyfile(self.vocab_file, path)
        return (path,)
"""

LETTERS = {letter: index for index, letter in enumerate("?^$_ abcdefghijklmnopqrstuvwxyzABCDE.,!'\n你好世界")}


def write(folder: Path, code: str, settings: dict[str, Any] | None = None, **files: Any) -> Path:
    """Write a repo: the code, its vocabulary, tokenizer_config.json, and more JSON files (`name_json=…`)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenization_tiny.py").write_text(code, encoding="utf-8")
    name = "OldTokenizer" if "class OldTokenizer" in code else "NewTokenizer"
    settings = {"auto_map": {"AutoTokenizer": [f"tokenization_tiny.{name}", None]}, **(settings or {})}
    files = {"letters_json": LETTERS, "tokenizer_config_json": settings, **files}
    for file, document in files.items():
        text = json.dumps(document, ensure_ascii=False)
        (folder / file.replace("_json", ".json")).write_text(text, encoding="utf-8")
    return folder


def ids(text: str) -> list[int]:
    """Return the ids of characters in the vocabulary."""
    return [LETTERS.get(letter, 0) for letter in text]


def old(folder: Path, settings: dict[str, Any] | None = None, **files: Any) -> Any:
    return shardload.load_tokenizer(write(folder, OLD, settings, **files), trust_remote_code=True)


def new(folder: Path, settings: dict[str, Any] | None = None, **files: Any) -> Any:
    return shardload.load_tokenizer(write(folder, NEW, settings, **files), trust_remote_code=True)
