"""The report of a model that was loaded."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from shardload import UsageError, fill, from_pretrained, open_checkpoint, report_of
from shardload.loading.provenance import OfModels, origin_of
from tests.configured import SIZES, Configured
from tests.tiny import Net, random_state, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config=SIZES)


class AllEqual(Net):
    """A class whose `__eq__` makes any two models equal."""

    def __eq__(self, other):
        return isinstance(other, AllEqual)

    def __hash__(self):
        return 1


def test_models_that_call_themselves_equal_have_reports_of_their_own(tmp_path):
    folders = [write_checkpoint(tmp_path / name, random_state(Net())) for name in ("one", "two")]
    models = [from_pretrained(where, model_class=lambda _: AllEqual()) for where in folders]
    assert [report_of(model).where for model in models] == [str(where) for where in folders]
    with pytest.raises(UsageError, match="was not made by"):
        report_of(AllEqual())


def test_a_report_goes_with_its_model(folder):
    model = from_pretrained(folder, model_class=Configured)
    held = weakref.ref(report_of(model))
    del model
    gc.collect()
    assert held() is None


def test_a_report_does_not_keep_its_model_alive(folder):
    import gc
    import weakref

    model = from_pretrained(folder, model_class=Configured)
    gone = weakref.ref(model)
    report = report_of(model)
    del model
    gc.collect()
    assert gone() is None
    assert report.loaded


@pytest.mark.parametrize("other", [nn.Linear(1, 1), None, 3, "text", []])
def test_report_of_anything_else(other):
    with pytest.raises(UsageError, match="not made by from_pretrained"):
        report_of(other)


def test_what_is_known_of_a_model_ends_with_the_model_and_is_no_copy_s():
    known = OfModels()
    model = nn.Linear(1, 1)
    known.remember(model, "first")
    known.remember(model, "second")
    assert known.of(model) == "second"
    assert known.of(copy.deepcopy(model)) is known.of(nn.Linear(1, 1)) is None
    del model
    gc.collect()
    assert known._known == {}


def test_an_origin_tells_whether_its_file_is_still_the_same(tmp_path):
    model = nn.Linear(2, 2, bias=False)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.ones(2, 2)}, shards=1))
    assert origin_of(model) is None
    fill(model, checkpoint)
    origin = origin_of(model)
    (ref,) = origin.refs.values()
    with origin.open(ref) as shard:
        assert torch.equal(shard.tensor(ref), model.weight)
    assert origin.is_unchanged(ref)
    assert copy.deepcopy(origin) is origin
    assert pickle.loads(pickle.dumps(origin)) is None
    (tmp_path / ref.shard).touch()
    assert not origin.is_unchanged(ref)
    (tmp_path / ref.shard).unlink()
    assert not origin.is_unchanged(ref)
