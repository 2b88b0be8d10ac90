"""The stand-in reaches the loader through one object, in every process and however its modules were imported."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim import front, host
from tests.tiny import run_python

from . import vocabularies

SAVES = """
import json, sys
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_utils import PreTrainedModel
import torch

initialised = []

class Own(PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(config.width, config.width)
        self.post_init()

    def _init_weights(self, module):
        initialised.append(module)

import shardload
shell = shardload.build_shell(lambda: Own(PretrainedConfig(width=3)))
print(len(initialised), shell.model.linear.weight.device)
Own(PretrainedConfig(width=3)).save_pretrained(sys.argv[1])
print(len(initialised), json.load(open(sys.argv[1] + "/config.json"))["width"])
shardload.fill(shell, shardload.open_checkpoint(sys.argv[1]))
"""

LOADS = """
import sys
from shardload.transformers_shim.tokenization_utils import PreTrainedTokenizer

class Own(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "letters.json"}
    vocab_size = 3
    def __init__(self, vocab_file, **kwargs):
        self.vocab_file = vocab_file
        super().__init__(**kwargs)
    def get_vocab(self):
        return {"a": 0, "b": 1, "c": 2}
    def _tokenize(self, text):
        return list(text)
    def _convert_token_to_id(self, token):
        return self.get_vocab()[token]
    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()

made = Own.from_pretrained(sys.argv[1])
made.save_pretrained(sys.argv[1] + "/again")
print(made("cab")["input_ids"], made.vocab_file)
"""

UNPICKLED = """
import pickle, sys
tokenizer = pickle.load(open(sys.argv[1], "rb"))
tokenizer.save_pretrained(sys.argv[2])
print(type(tokenizer).from_pretrained(sys.argv[2])("a b")["input_ids"])
"""

WITHOUT = """
from shardload.transformers_shim import host
host.hand_in(None)
from shardload.transformers_shim.modeling_utils import PreTrainedModel
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.errors import UsageError
try:
    PreTrainedModel(PretrainedConfig()).save_pretrained("nowhere")
except UsageError as error:
    print(error)
"""

PLAIN = """
import sys, shardload
shardload.open_checkpoint
from shardload import from_pretrained
print([name for name in sys.modules if name.startswith("shardload.transformers_shim.")])
"""


def test_a_model_class_is_saved_and_built_in_a_process_that_imported_only_the_stand_in(tmp_path):
    assert run_python(SAVES, str(tmp_path)).stdout == "0 meta\n2 3\n"


def test_a_tokenizer_class_loads_and_saves_in_a_process_that_imported_only_the_stand_in(tmp_path):
    (tmp_path / "letters.json").write_text("{}")
    printed = run_python(LOADS, str(tmp_path)).stdout
    assert printed == f"[2, 0, 1] {tmp_path / 'letters.json'}\n"
    assert (tmp_path / "again" / "tokenizer_config.json").is_file()


def test_an_unpickled_tokenizer_saves_and_loads_in_a_fresh_process(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    import pickle

    import shardload

    built = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(shardload.load_tokenizer(tmp_path)))
    printed = run_python(UNPICKLED, str(tmp_path / "tokenizer.pkl"), str(tmp_path / "again")).stdout
    assert printed == "[1, 2]\n"


def test_a_repos_tokenizer_says_what_code_it_is_of(tmp_path):
    tokenizer = vocabularies.new(tmp_path)
    code = host.host().code_of(type(tokenizer))
    assert code.module == "tokenization_tiny"
    assert code.files == {"tokenization_tiny.py": vocabularies.NEW.encode()}
    assert host.is_repo_module(type(tokenizer).__module__)
    assert host.host().code_of(torch.nn.Linear) is None
    assert not host.is_repo_module("torch.nn")


def test_without_a_loader_the_error_says_so():
    printed = run_python(WITHOUT).stdout
    assert "has no loader" in printed
    assert "hand_in" in printed


def test_importing_the_loader_imports_nothing_of_the_stand_in_but_its_host():
    assert run_python(PLAIN).stdout == "['shardload.transformers_shim.host']\n"


def test_the_front_and_the_host_are_no_modules_of_transformers():
    from shardload.transformers_shim._index import names_by_module

    assert not {"front", "host"} & names_by_module().keys()
    assert "host" not in names_by_module()["modeling_utils"]
    assert not front.has_module("front")
    assert front.kind_of_answer("host", "host", guarded=False) == "lacks it"
