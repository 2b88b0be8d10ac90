"""The class that `architectures` names is taken where the checkpoint's keys fit it better than auto_map's first."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload import MismatchError, UsageError
from shardload.loading.fitting_class import with_unnamed
from tests.cures.typed import typed
from tests.remote_code import repos
from tests.tiny import write_checkpoint

MODEL = (
    repos.MODEL
    + """

class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = TinyModel(config)
        self.head = nn.Linear(config.hidden_size, 3)

class TinyForPairs(TinyForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(2))

class TinyBroken(TinyForCausalLM):
    def __init__(self, config):
        raise ValueError("not now")
"""
)
AUTO_MAP = {
    "AutoConfig": "configuration_tiny.TinyConfig",
    "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
    "AutoModel": "modeling_tiny.TinyModel",
    "AutoModelForSequenceClassification": "modeling_tiny.TinyForPairs",
    "AutoModelForMaskedLM": "modeling_tiny.TinyBroken",
}
BARE = {"linear.weight": torch.randn(4, 4), "linear.bias": torch.randn(4)}
HEAD = {"head.weight": torch.randn(3, 4), "head.bias": torch.randn(3)}
CAUSAL = {f"model.{name}": value for name, value in BARE.items()} | HEAD
PAIRS = {**CAUSAL, "scale": torch.randn(2)}


def repo(folder, state, named):
    files = {"configuration_tiny.py": repos.CONFIG, "modeling_tiny.py": MODEL}
    repos.write(folder, files, {"auto_map": AUTO_MAP, "architectures": [named], "hidden_size": 4})
    return write_checkpoint(folder, state)


@pytest.mark.parametrize(
    ("state", "named", "taken"),
    [
        (BARE, "TinyModel", "TinyModel"),
        (PAIRS, "TinyForPairs", "TinyForPairs"),
        (CAUSAL, "TinyModel", "TinyForCausalLM"),
        (CAUSAL, "TinyForPairs", "TinyForCausalLM"),
        (CAUSAL, "TinyBroken", "TinyForCausalLM"),
        (CAUSAL, "NoClassOfIt", "TinyForCausalLM"),
        (CAUSAL, "TinyForCausalLM", "TinyForCausalLM"),
    ],
)
def test_the_class_that_the_keys_fit(tmp_path, state, named, taken):
    folder = repo(tmp_path / "repo", state, named)
    model = shardload.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == taken
    report = shardload.report_of(model)
    assert (report.class_name, report.loaded) == (taken, len(state))
    assert f".{taken} (code of the repo" in report.class_from
    notes = [note for note in report.notes if "architectures names" in note]
    assert len(notes) == (named not in ("NoClassOfIt", "TinyForCausalLM"))
    assert shardload.examine(folder, trust_remote_code=True).against == taken


def test_the_callers_word_is_not_overruled(tmp_path):
    folder = repo(tmp_path / "repo", BARE, "TinyModel")
    model = shardload.from_pretrained(folder, trust_remote_code=True, allow_missing="head")
    assert type(model).__name__ == "TinyForCausalLM"
    with pytest.raises(MismatchError, match="does not fit TinyForCausalLM"):
        shardload.from_pretrained(folder, trust_remote_code=True, auto_class="AutoModelForCausalLM")
    mapped = {"linear.{...}": "model.linear.{...}"}
    model = shardload.from_pretrained(
        folder, trust_remote_code=True, key_map=mapped, allow_missing=["head.*"]
    )
    assert type(model).__name__ == "TinyForCausalLM"


def test_where_neither_fits_the_first_is_judged(tmp_path):
    folder = repo(tmp_path / "repo", {"other.weight": torch.ones(1)}, "TinyForPairs")
    with pytest.raises(MismatchError, match="does not fit TinyForCausalLM"):
        shardload.from_pretrained(folder, trust_remote_code=True)
    folder = repo(tmp_path / "broken", {"other.weight": torch.ones(1)}, "TinyBroken")
    with pytest.raises(MismatchError, match="does not fit TinyForCausalLM"):
        shardload.from_pretrained(folder, trust_remote_code=True)


def test_a_bare_class_of_a_checkpoint_with_a_head(tmp_path):
    folder = repo(tmp_path / "repo", CAUSAL, "TinyForCausalLM")
    with pytest.raises(MismatchError) as caught:
        shardload.from_pretrained(folder, trust_remote_code=True, auto_class="AutoModel")
    assert "TinyModel" in caught.value.what
    with pytest.raises(UsageError, match="no entry"):
        shardload.from_pretrained(folder, trust_remote_code=True, auto_class="AutoModelForFun")


def test_the_tries_of_a_class_that_is_not_taken_move_no_base(tmp_path):
    pytest.importorskip("transformers")
    code = MODEL + "\nfrom transformers import LlamaModel\nclass TinyLlama(TinyModel):\n"
    code += "    def __init__(self, config):\n        super().__init__(config)\n        LlamaModel(config)\n"
    files = {"configuration_tiny.py": repos.CONFIG, "modeling_tiny.py": code}
    auto_map = {**AUTO_MAP, "AutoModelForMaskedLM": "modeling_tiny.TinyLlama"}
    repos.write(tmp_path, files, {"auto_map": auto_map, "architectures": ["TinyLlama"], "hidden_size": 4})
    folder = write_checkpoint(tmp_path, BARE)
    with pytest.raises(MismatchError):  # the other is tried, and fits no better
        shardload.from_pretrained(folder, trust_remote_code=True)
    write_checkpoint(tmp_path, CAUSAL)
    model = shardload.from_pretrained(folder, trust_remote_code=True)
    assert shardload.report_of(model).remote_base == "shim"


UNLISTED = """

class TinyForSequenceClassification(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = TinyModel(config)
        self.classifier = nn.Linear(config.hidden_size, 2)

class Bare(TinyForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.scorer, self.classifier = self.classifier, None
"""
SEQUENCES = {f"model.{name}": value for name, value in BARE.items()} | {
    f"classifier.{name}": torch.randn(shape) for name, shape in (("weight", (2, 4)), ("bias", (2,)))
}
BARES = {name.replace("classifier", "scorer"): value for name, value in SEQUENCES.items()}


def unlisted(folder, state, named):
    files = {"configuration_tiny.py": repos.CONFIG, "modeling_tiny.py": MODEL + UNLISTED}
    auto_map = {name: AUTO_MAP[name] for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    repos.write(folder, files, {"auto_map": auto_map, "architectures": [named], "hidden_size": 4})
    return write_checkpoint(folder, state)


@pytest.mark.parametrize(("state", "named"), [(SEQUENCES, "TinyForSequenceClassification"), (BARES, "Bare")])
def test_the_entry_for_a_class_that_auto_map_lacks_loads_it_as_printed(tmp_path, state, named):
    folder = unlisted(tmp_path / "repo", state, named)
    with pytest.raises(MismatchError) as caught:
        shardload.from_pretrained(folder, trust_remote_code=True)
    assert "leave the stored head out" not in str(caught.value)
    steps = typed(str(caught.value.cure))
    assert steps.is_whole
    steps.edit(folder)
    model = shardload.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == named
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({**SEQUENCES, "other.weight": torch.ones(1)}, "TinyForSequenceClassification"),  # neither fits
        (SEQUENCES, "NoClassOfIt"),
        (SEQUENCES, "TinyModel"),
    ],
)
def test_a_class_that_fits_no_better_is_not_named(tmp_path, state, named):
    folder = unlisted(tmp_path / "repo", state, named)
    with pytest.raises(MismatchError) as caught:
        shardload.from_pretrained(folder, trust_remote_code=True)
    assert "auto_map" not in str(caught.value.cure)
    with pytest.raises(MismatchError, match="leave the stored head out"):
        shardload.from_pretrained(
            unlisted(tmp_path / "asked", SEQUENCES, "Bare"),
            trust_remote_code=True,
            auto_class="AutoModelForCausalLM",
        )


def test_an_error_that_is_not_about_the_keys_stays_as_it_is(tmp_path):
    source, config = repos.local(unlisted(tmp_path / "repo", SEQUENCES, "Bare")), {"auto_map": AUTO_MAP}
    resolved = repos.resolve_class(source, config, repos.CodeTrust(trust_remote_code=True))
    error = MismatchError("too large")
    assert with_unnamed(error, resolved, None, None) is error
