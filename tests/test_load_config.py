"""The config and the dtype that a constructor gets."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from shardload import CorruptError, UsageError, from_pretrained, load_config, report_of
from tests.configured import SIZES, Configured
from tests.tiny import Net, assert_same_state, random_state, torch_filled, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config=SIZES)


@pytest.fixture
def oracle():
    return torch_filled(Net, random_state(Net()))


def test_a_given_config_is_told_the_dtype_and_stays_as_it_was(folder):
    config = SimpleNamespace(**SIZES)
    model = from_pretrained(folder, model_class=Configured, config=config, dtype="bfloat16")
    assert model.seen_dtype == torch.bfloat16
    assert vars(config) == SIZES
    seen, settings = [], dict(SIZES)

    def make(given):
        seen.append(given)
        return Net()

    from_pretrained(folder, model_class=make, config=settings, dtype="float16")
    from_pretrained(folder, model_class=make, config=tuple(SIZES), dtype="float16")
    assert seen == [{**SIZES, "torch_dtype": torch.float16}, tuple(SIZES)]
    assert settings == SIZES


def test_a_given_config_is_the_one_that_the_constructor_gets(folder):
    config = SimpleNamespace(**SIZES)
    model = from_pretrained(folder, model_class=Configured, config=config)
    assert model.config is config
    assert report_of(model).config_from == "given by the caller"
    # Anything goes, a false value included: None alone means config.json.
    assert from_pretrained(folder, model_class=lambda config: Net() if config == {} else None, config={})


def test_a_class_names_the_class_of_its_config(folder):
    class Config:
        def __init__(self, **settings) -> None:
            vars(self).update(settings, made_here=True)

    class WithConfig(Configured):
        config_class = Config

    model = from_pretrained(folder, model_class=WithConfig)
    assert model.config.made_here
    assert "Config (of model_class=)" in report_of(model).config_from


def test_without_config_json_a_callable_gets_defaults(tmp_path, oracle):
    write_checkpoint(tmp_path, random_state(Net()))
    model = from_pretrained(tmp_path, model_class=lambda _config: Net())
    assert_same_state(model, oracle)
    assert "no config.json" in report_of(model).config_from


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1, "a": 2}', "", "null", '{"x": ' + "[" * 5000])
def test_a_broken_config_is_corrupt(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CorruptError, match=r"config\.json"):
        from_pretrained(folder, model_class=Configured)
    with pytest.raises(CorruptError, match=r"config\.json"):
        load_config(folder)


NAMES = [
    ("float16", torch.float16), ("fp16", torch.float16), ("half", torch.float16), (torch.float16, torch.float16),
    ("bfloat16", torch.bfloat16), ("bf16", torch.bfloat16), ("torch.bfloat16", torch.bfloat16),
    ("float", torch.float32), ("fp32", torch.float32), ("float32", torch.float32), ("float64", torch.float64),
    ("double", torch.float64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), NAMES, ids=str)
def test_a_dtype_by_any_of_its_names(folder, name, dtype):
    model = from_pretrained(folder, model_class=Configured, dtype=name)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.stats.running_mean.dtype == dtype
    assert model.stats.num_batches_tracked.dtype == torch.int64
    assert model.layers[0].scale.dtype == dtype
    assert model.seen_dtype == dtype
    assert torch.equal(model.head.weight, random_state(Net())["head.weight"].to(dtype))


def test_auto_keeps_what_is_stored_tensor_by_tensor(tmp_path):
    state = random_state(Net())
    for number, key in enumerate(key for key in state if state[key].is_floating_point()):
        state[key] = state[key].to((torch.float16, torch.float32, torch.bfloat16, torch.float64)[number % 4])
    write_checkpoint(tmp_path, state, config={**SIZES, "torch_dtype": "float16"})
    model = from_pretrained(tmp_path, model_class=Configured)
    assert_same_state(model, torch_filled(Net, state))
    assert model.seen_dtype in ("float16", torch.float16)
    assert report_of(model).dtypes == {
        name: sum(str(value.dtype) == f"torch.{name}" for value in state.values())
        for name in report_of(model).dtypes
    }


def test_a_given_config_tells_the_dtype_to_the_constructor_and_stays_as_it_was(folder):
    config = SimpleNamespace(**SIZES, torch_dtype="float32")
    model = from_pretrained(folder, model_class=Configured, config=config, dtype="float16")
    assert model.seen_dtype == torch.float16
    assert config.torch_dtype == "float32"
    assert (
        from_pretrained(
            folder, model_class=lambda c: Configured(SimpleNamespace(**c)), config=SIZES, dtype="half"
        ).seen_dtype
        == torch.float16
    )


@pytest.mark.parametrize(
    "dtype", ["float17", "int8", torch.int8, 3, "", "nn", "float8_e4m3fn", torch.float8_e5m2, ["float16"]]
)
def test_an_unknown_dtype_is_an_error_before_anything_is_opened(tmp_path, dtype):
    with pytest.raises(UsageError, match="not a dtype to load weights in"):
        from_pretrained(tmp_path / "not there", dtype=dtype)
    with pytest.raises(UsageError, match="not a dtype"):
        load_config(tmp_path, dtype=dtype)


def test_an_unknown_dtype_in_config_json_is_corrupt(folder):
    (folder / "config.json").write_text(json.dumps({**SIZES, "torch_dtype": "float17"}))
    with pytest.raises(CorruptError, match="float17"):
        from_pretrained(folder, model_class=Configured)


def test_the_generation_config_that_has_no_place_is_a_note(folder):
    (folder / "generation_config.json").write_text("{}")
    model = from_pretrained(folder, model_class=Configured)
    assert any("generation_config.json is not used" in note for note in report_of(model).notes)


def test_a_broken_config_that_merely_lies_beside_a_file_is_a_note(tmp_path):
    path = tmp_path / "one.pth"
    torch.save(random_state(Net()), path)
    (tmp_path / "config.json").write_text("{")
    report = report_of(from_pretrained(path, model_class=lambda _: Net()))
    assert any("config.json beside one.pth is not used" in note for note in report.notes)
    with pytest.raises(CorruptError, match=r"config\.json"):
        from_pretrained(path)
    torch.save(random_state(Net()), tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptError, match=r"config\.json"):
        from_pretrained(tmp_path, model_class=lambda _: Net())


def test_load_config_of_a_repo_without_code(folder):
    config = load_config(folder)
    assert (config.width, config.layers, config.vocab) == (8, 3, 12)
