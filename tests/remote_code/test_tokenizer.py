"""load_tokenizer: which class, on whose word, and what its errors say."""

from __future__ import annotations

import importlib.util
import io
import json

import pytest

import shardload
from shardload.remote_code.tokenizer import make_tokenizer
from shardload.where import CodeTrust
from tests.hub_server import HubServer, forget_connections
from tests.remote_code.repos import COMMIT, HubLike
from tests.tiny import run_python
from tests.transformers_shim.vocabularies import NEW, OLD, ids, new, write


def test_nothing_runs_without_trust(tmp_path):
    folder = write(tmp_path, "raise SystemExit('ran')\n" + NEW)
    with pytest.raises(shardload.UntrustedCodeError, match=r"tokenization_tiny.py \(sha256"):
        shardload.load_tokenizer(folder)


def test_code_from_the_hub_needs_a_full_commit(tmp_path):
    source = HubLike(write(tmp_path, NEW))
    for trust in (CodeTrust(), CodeTrust(True), CodeTrust(True, "main")):
        with pytest.raises(shardload.UntrustedCodeError):
            make_tokenizer(source, None, trust)
    tokenizer = make_tokenizer(source, None, CodeTrust(True, COMMIT))
    assert tokenizer.encode("a") == ids("^a$")


def test_code_of_another_repo_is_not_opened_without_its_own_word(tmp_path):
    settings = {"auto_map": {"AutoTokenizer": ["org/other--tokenization_tiny.NewTokenizer", None]}}
    with pytest.raises(shardload.UntrustedCodeError, match="another repo"):
        shardload.load_tokenizer(write(tmp_path, NEW, settings))


def test_the_slow_class_is_taken_and_config_json_may_name_it(tmp_path):
    both = {"auto_map": {"AutoTokenizer": ["tokenization_tiny.NewTokenizer", "tokenization_tiny.Fast"]}}
    tokenizer = shardload.load_tokenizer(write(tmp_path / "a", NEW, both), trust_remote_code=True)
    assert type(tokenizer).__name__ == "NewTokenizer"
    folder = write(tmp_path / "b", NEW, {"auto_map": {}}, config_json=both)
    assert type(shardload.load_tokenizer(folder, trust_remote_code=True)).__name__ == "NewTokenizer"


@pytest.mark.parametrize("package", ["sentencepiece", "tiktoken"])
def test_a_missing_package_names_the_extra(tmp_path, package):
    try:
        __import__(package)
    except ImportError:
        pass
    else:
        pytest.skip(f"{package} is installed")
    for code in (
        f"import {package}\n{OLD}",
        OLD.replace("        super().__init__(", f"        import {package}\n        super().__init__("),
    ):
        with pytest.raises(shardload.RemoteCodeError) as caught:
            shardload.load_tokenizer(write(tmp_path, code), trust_remote_code=True)
        assert caught.value.cure == f"pip install {package}"
        assert "tokenization_tiny.py:" in caught.value.where


def test_tokenizer_json_needs_its_library_and_no_trust(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        with pytest.raises(shardload.RemoteCodeError) as caught:
            shardload.load_tokenizer(tmp_path)
        assert caught.value.cure == "pip install tokenizers"
    else:
        with pytest.raises(shardload.CorruptError, match="tokenizer.json"):
            shardload.load_tokenizer(tmp_path)


def test_a_repo_without_a_tokenizer_says_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(shardload.NotFoundError, match="no tokenizer of its own"):
        shardload.load_tokenizer(tmp_path)


def test_an_error_of_the_code_names_its_line(tmp_path):
    code = NEW.replace("        self.vocab_file = vocab_file\n", "        raise KeyError('no')\n")
    with pytest.raises(shardload.RemoteCodeError, match="making the tokenizer") as caught:
        shardload.load_tokenizer(write(tmp_path, code), trust_remote_code=True)
    assert "tokenization_tiny.py:13" in caught.value.where


def test_no_transformers_is_needed(tmp_path):
    write(tmp_path, OLD)
    code = f"""
import sys
sys.modules["transformers"] = None
import shardload
print(shardload.load_tokenizer({str(tmp_path)!r}, trust_remote_code=True).encode("ab"))
"""
    assert run_python(code).stdout.strip() == str(ids("^ab"))


def test_from_the_hub_only_what_is_needed_is_fetched(tmp_path, monkeypatch):
    folder = write(tmp_path / "repo", NEW, added_tokens_json={"<t>": 77})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        commit = server.commit(
            "org/name", {**files, "pytorch_model.bin": b"weights", "modeling_tiny.py": b"x"}
        )
        tokenizer = shardload.load_tokenizer(f"org/name@{commit}", trust_remote_code=True)
        assert tokenizer.encode("a<t>", add_special_tokens=False) == [*ids("a"), 77]
        assert tokenizer.name_or_path == "org/name"
        fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
        assert not fetched & {"pytorch_model.bin", "modeling_tiny.py"}
        offline = shardload.load_tokenizer(
            "org/name", revision=commit, trust_remote_code=True, local_files_only=True
        )
        assert offline.encode("ab") == tokenizer.encode("ab")
        forget_connections()


def test_what_code_imports_from_the_library_is_there(tmp_path):
    names = """
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast, TensorType
from transformers.tokenization_utils import PreTrainedTokenizer, Trie, PaddingStrategy, TruncationStrategy
from transformers.tokenization_utils_base import (
    AddedToken, BatchEncoding, EncodedInput, ENCODE_KWARGS_DOCSTRING, PreTokenizedInput, PreTokenizedInputPair,
    SpecialTokensMixin, TextInput, TextInputPair, TruncationStrategy, VERY_LARGE_INTEGER
)
from transformers.utils import PaddingStrategy, TensorType, logging
"""
    assert shardload.load_tokenizer(write(tmp_path, names + NEW), trust_remote_code=True).encode("a") == ids(
        "^a$"
    )


def test_saved_with_its_code_it_is_loaded_from_there(tmp_path):
    tokenizer = new(tmp_path / "a", {"model_max_length": 9})
    written = tokenizer.save_pretrained(tmp_path / "b")
    assert str(tmp_path / "b" / "tokenization_tiny.py") in written
    with pytest.raises(shardload.UntrustedCodeError):
        shardload.load_tokenizer(tmp_path / "b")
    again = shardload.load_tokenizer(tmp_path / "b", trust_remote_code=True)
    assert type(again) is type(tokenizer)  # the same bytes
    assert (again.encode("ab?"), again.model_max_length) == (tokenizer.encode("ab?"), 9)
    tokenizer.save_pretrained(tmp_path / "b")  # over itself


def test_it_is_not_saved_over_other_code(tmp_path):
    tokenizer = new(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tokenization_tiny.py").write_text("# mine\n")
    with pytest.raises(shardload.UsageError, match="other content"):
        tokenizer.save_pretrained(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["tokenization_tiny.py"]
    assert (tmp_path / "b" / "tokenization_tiny.py").read_text() == "# mine\n"


def test_cures_are_those_of_a_tokenizer(tmp_path):
    folder = write(tmp_path / "a", NEW)
    with pytest.raises(shardload.UntrustedCodeError) as caught:
        shardload.load_tokenizer(folder)
    assert caught.value.cure.startswith(
        "read those files, then pass trust_remote_code=True; or approve these bytes with `shardload trust"
    )

    (folder / "letters.json").write_text("[1, 2")
    with pytest.raises(
        shardload.RemoteCodeError, match="making the tokenizer tokenization_tiny.NewTokenizer"
    ) as caught:
        shardload.load_tokenizer(folder, trust_remote_code=True)
    assert caught.value.cure == (
        "check that the vocabulary is complete and belongs to this code (./letters.json); "
        "or correct that line of the repo's code"
    )

    (folder / "tokenization_tiny.py").unlink()
    with pytest.raises(shardload.NotFoundError, match="tokenization_tiny") as caught:
        shardload.load_tokenizer(folder, trust_remote_code=True)
    assert caught.value.cure == "download the repo's .py files as well"


LACKING = "from transformers.dynamic_module_utils import get_class_in_module\n"
installed = importlib.util.find_spec("transformers") is not None


def test_the_caller_says_who_serves_the_imports_of_a_tokenizer(tmp_path):
    folder = write(tmp_path / "a", NEW)
    tokenizer = shardload.load_tokenizer(folder, trust_remote_code=True, remote_base="shim")
    assert type(tokenizer).__mro__[1].__module__.startswith("shardload.transformers_shim.")
    if installed:
        tokenizer = shardload.load_tokenizer(folder, trust_remote_code=True, remote_base="transformers")
        assert type(tokenizer).__mro__[1].__module__.startswith("transformers.")
    else:
        with pytest.raises(shardload.UsageError, match="not installed"):
            shardload.load_tokenizer(folder, trust_remote_code=True, remote_base="transformers")
    with pytest.raises(shardload.UsageError, match="can't serve"):
        shardload.load_tokenizer(folder, trust_remote_code=True, remote_base="real")


def test_the_choice_of_the_stand_in_is_kept_where_it_lacks_a_name_for_a_tokenizer(tmp_path):
    folder = write(tmp_path, LACKING + NEW)
    with pytest.raises(shardload.RemoteCodeError, match="dynamic_module_utils"):
        shardload.load_tokenizer(folder, trust_remote_code=True, remote_base="shim")
    if installed:
        tokenizer = shardload.load_tokenizer(folder, trust_remote_code=True)
        assert type(tokenizer).__mro__[1].__module__.startswith("transformers.")


OTHERS = [
    "AutoModel",
    "AutoTokenizer",
    "AutoProcessor",
    "GPT2Model",
    "Trainer",
    "GenerationConfig",
    "pipeline",
    "nothing",
]


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_names_a_tokenizer_class_and_nothing_else(tmp_path, name, monkeypatch):
    """An Auto class reads `auto_map` and asks the terminal whether to run its code; a model class fills a model."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    config = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoProcessor": "own.P"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert not isinstance(getattr(transformers, name, None), transformers.PreTrainedTokenizerBase)
    with pytest.raises(shardload.NotFoundError, match="has no tokenizer of its own") as caught:
        shardload.load_tokenizer(tmp_path)
    assert "install transformers" not in caught.value.cure
    assert not (tmp_path / "ran").exists()


def test_what_transformers_says_about_broken_files_is_one_typed_error(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    (tmp_path / "spiece.model").write_bytes(b"\1\2\3")
    with pytest.raises(shardload.CorruptError, match="T5Tokenizer can't be made of the repo's files"):
        shardload.load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", ["AAAA", "/////w=="])
def test_a_panic_of_the_tokenizers_library_is_one_typed_error(tmp_path, value):
    """It derives from BaseException."""
    pytest.importorskip("tokenizers")
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": value}, "pre_tokenizer": None,
        "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(shardload.CorruptError, match=r"tokenizer.json can't be read"):
        shardload.load_tokenizer(tmp_path)
