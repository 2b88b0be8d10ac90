"""Tokenizers written for releases before 4.34, whose base constructor asked nothing of the subclass."""

from __future__ import annotations

import copy
import pickle

import torch

from tests.transformers_shim.vocabularies import OLD, ids, old


def test_it_loads_encodes_and_decodes(tmp_path):
    tokenizer = old(tmp_path)
    assert tokenizer.encode("ab 你好") == ids("^ab 你好")
    assert tokenizer.encode("ab", add_special_tokens=False) == ids("ab")
    assert tokenizer.decode(ids("ab 你好")) == "ab 你好"
    assert tokenizer.decode(torch.tensor(ids("ab"))) == "ab"
    assert tokenizer.decode(ids("a")[0]) == "a"


def test_special_tokens_may_be_properties_without_setters(tmp_path):
    tokenizer = old(tmp_path, {"pad_token": "x", "eos_token": "y", "unk_token": "?"})
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("_", "$", "?")
    assert tokenizer.pad_token_id == ids("_")[0]


def test_the_old_pad_gets_a_length_and_never_a_side(tmp_path):
    batch = old(tmp_path)(["ab", "a"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [ids("^ab"), ids("_^a")]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 1]]


def test_a_single_text_has_the_overrides_entries_too(tmp_path):
    one = old(tmp_path)("ab", return_tensors="pt")
    assert one.position_ids.tolist() == [[0, 1, 2]]
    one.position_ids += 5
    assert one["position_ids"].tolist() == [[5, 6, 7]]


def test_special_tokens_given_as_texts_take_the_spaces_beside_them(tmp_path):
    tokenizer = old(tmp_path, {"additional_special_tokens": ["<x>"]})
    new = tokenizer.vocab_size
    assert tokenizer.encode("a <x> b", add_special_tokens=False) == [*ids("a"), new, *ids("b")]
    assert len(tokenizer) == new + 1
    assert tokenizer.added_tokens_encoder == {"<x>": new}


def test_tokens_that_are_listed_with_ids_say_themselves_what_they_strip(tmp_path):
    token = {"content": "<x>", "lstrip": False, "rstrip": True, "special": True}
    settings = {"added_tokens_decoder": {"90": token}, "additional_special_tokens": ["<x>", "<y>"]}
    tokenizer = old(tmp_path, settings)
    assert tokenizer.encode("a <x> b", add_special_tokens=False) == [*ids("a "), 90, *ids("b")]
    assert tokenizer.encode("a <y> b", add_special_tokens=False) == [*ids("a "), 91, *ids(" b")]


def test_nothing_of_the_subclass_is_called_by_the_base_constructor(tmp_path):
    code = OLD.replace(
        "        super().__init__(\n", "        self.constructing = True\n        super().__init__(\n"
    ).replace(
        "        with open(vocab_file", "        self.constructing = False\n        with open(vocab_file"
    )
    for name in ("vocab_size(self)", "get_vocab(self)", "_tokenize(self, text, **kwargs)"):
        code = code.replace(f"def {name}:\n", f"def {name}:\n        assert not self.constructing\n")
    from tests.transformers_shim import vocabularies

    folder = vocabularies.write(tmp_path, code, {"additional_special_tokens": ["<x>"], "unk_token": "?"})
    tokenizer = vocabularies.shardload.load_tokenizer(folder, trust_remote_code=True)
    assert tokenizer.encode("a<x>", add_special_tokens=False) == [*ids("a"), tokenizer.vocab_size]


def test_copies_and_pickles_encode_alike(tmp_path):
    tokenizer = old(tmp_path, {"additional_special_tokens": ["<x>"]})
    for again in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode("a<x>你") == tokenizer.encode("a<x>你")
