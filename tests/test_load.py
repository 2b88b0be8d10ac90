"""from_pretrained end to end on local checkpoints; load_config, resolve_class and report_of."""

from __future__ import annotations

import gc
import json
import os
import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import shardload
from shardload import (
    CorruptError,
    KeyMap,
    MismatchError,
    NotFoundError,
    OnDevice,
    RemoteCodeError,
    UntrustedCodeError,
    UsageError,
    build_shell,
    fill,
    from_pretrained,
    load_config,
    open_checkpoint,
    report_of,
    resolve_class,
)
from tests.adapters import tiny as adapters
from tests.remote_code import repos
from tests.tiny import (
    Net,
    assert_same_state,
    meta_names,
    random_state,
    run_python,
    torch_filled,
    write_checkpoint,
)

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
SIZES = {"width": 8, "layers": 3, "vocab": 12}


class Configured(Net):
    """Net as a class that takes a config, as classes of the Hub do."""

    def __init__(self, config) -> None:
        super().__init__(config.width, config.layers, config.vocab)
        self.config = config
        self.seen_dtype = getattr(config, "torch_dtype", None)


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config=SIZES)


@pytest.fixture
def oracle():
    return torch_filled(Net, random_state(Net()))


# --- the whole road -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_a_folder_with_config_and_class(tmp_path, oracle, kind):
    write_checkpoint(tmp_path, random_state(Net()), kind=kind, config=SIZES)
    model = from_pretrained(tmp_path, model_class=Configured)
    assert_same_state(model, oracle)
    assert torch.equal(model(IDS), oracle(IDS))
    assert meta_names(model) == []
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_is_the_composition_of_the_public_steps(folder):
    checkpoint = open_checkpoint(folder)
    config = load_config(folder)
    shell = build_shell(lambda: Configured(config))
    fill(shell, checkpoint, target=OnDevice(dtype=torch.float16))
    assert_same_state(from_pretrained(folder, model_class=Configured, dtype="float16"), shell.model)


def every_way_to_say(folder):
    index = folder / "model.safetensors.index.json"
    return [
        folder,
        str(folder),
        f"{folder}/",
        index,
        os.path.relpath(folder),
        f"{folder.parent}/./{folder.name}",
        f"{folder.parent}/{folder.name}/../{folder.name}",
    ]


@pytest.mark.parametrize("way", range(7))
def test_every_way_to_name_a_folder(folder, oracle, way):
    assert_same_state(from_pretrained(every_way_to_say(folder)[way], model_class=Configured), oracle)


def test_a_single_file_takes_the_config_beside_it(tmp_path, oracle):
    write_checkpoint(tmp_path, random_state(Net()), shards=1, config=SIZES)
    model = from_pretrained(tmp_path / "model.safetensors", model_class=Configured)
    assert_same_state(model, oracle)
    assert model.config.width == 8


def test_a_tilde_is_the_home_folder(folder, oracle, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same_state(from_pretrained("~/repo", model_class=Configured), oracle)


def test_subfolder_and_variant(tmp_path):
    state = random_state(Net(), torch.float16)
    write_checkpoint(tmp_path / "repo" / "unet", random_state(Net()), shards=1, config=SIZES)
    folder = write_checkpoint(tmp_path / "fp16", state, shards=1)
    (folder / "model.safetensors").rename(tmp_path / "repo" / "unet" / "model.fp16.safetensors")
    model = from_pretrained(tmp_path / "repo", subfolder="unet", variant="fp16", model_class=Configured)
    assert_same_state(model, torch_filled(Net, state))
    plain = from_pretrained(tmp_path / "repo", subfolder="unet", model_class=Configured)
    assert plain.head.weight.dtype == torch.float32


def test_the_keywords_of_fill_reach_it(folder):
    class More(Configured):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.more = nn.Linear(2, 2)

    seen = []
    key_map = KeyMap().rename("head.{...}", "top.{...}")

    class Renamed(More):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.top = self.head
            del self.head, self.stats
            self.stats = nn.Identity()

    model = from_pretrained(
        folder,
        model_class=Renamed,
        key_map=key_map,
        allow_missing=["more.*"],
        allow_unexpected=["stats.*"],
        progress=seen.append,
        copy=True,
    )
    assert torch.equal(model.top.weight, random_state(Net())["head.weight"])
    assert seen[-1].done_bytes == seen[-1].total_bytes == report_of(model).nbytes
    with pytest.raises(MismatchError):
        from_pretrained(folder, model_class=More)
    assert "strict=False" in report_of(from_pretrained(folder, model_class=More, strict=False)).allowed


def test_progress_true_is_a_bar_on_stderr_and_false_is_silence(folder, capfd):
    from_pretrained(folder, model_class=Configured, progress=False)
    from_pretrained(folder, model_class=Configured)
    assert capfd.readouterr() == ("", ""), "without a terminal nothing is said"
    from_pretrained(folder, model_class=Configured, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "loading" in err


def test_the_bar_shows_bytes_rate_and_shard(folder):
    code = """
import sys
sys.path.insert(0, ".")
from shardload import from_pretrained
from tests.tiny import Net
from_pretrained(sys.argv[1], model_class=lambda _: Net(), progress=True)
"""
    done = run_python(
        code, str(folder), env={"TQDM_MININTERVAL": "0", "TQDM_MINITERS": "1"}
    )  # every tensor is drawn
    total = sum(value.nbytes for value in Net().state_dict().values())
    assert done.stdout == ""
    drawn = done.stderr.split("\r")
    assert any(f"/{total / 1e3:.2f}k [" in line for line in drawn), drawn
    assert any(re.search(r"[\d.]+[kMG]B/s", line) for line in drawn), drawn
    for path in folder.glob("*.safetensors"):
        assert any(line.rstrip().endswith(f"{path.name[-17:]}]") for line in drawn), drawn


def test_a_constructor_that_fails_says_so_in_its_own_words(folder):
    def make(_config):
        raise KeyError("hidden_size")

    with pytest.raises(KeyError, match="hidden_size"):
        from_pretrained(folder, model_class=make)


@pytest.mark.parametrize("made", [lambda _config: None, lambda config: config, lambda _config: Net])
def test_a_model_class_that_makes_no_module(folder, made):
    with pytest.raises(UsageError, match="should make the model"):
        from_pretrained(folder, model_class=made)


# --- config ---------------------------------------------------------------------------------------------------


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


# --- dtype ----------------------------------------------------------------------------------------------------

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
    assert model.layers[0].scale.dtype == torch.float32
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


# --- the class of the repo ------------------------------------------------------------------------------------

TWO_MODELS = (
    repos.MODEL
    + """

class TinyForCausalLM(TinyModel):
    pass

class TinyBare(TinyModel):
    pass
"""
)
AUTO_MAP = {
    "AutoConfig": "configuration_tiny.TinyConfig",
    "AutoModel": "modeling_tiny.TinyBare",
    "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
}
WEIGHTS = {"linear.weight": torch.randn(4, 4), "linear.bias": torch.randn(4)}


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "remote"
    repos.write(
        folder,
        {"configuration_tiny.py": repos.CONFIG, "modeling_tiny.py": TWO_MODELS},
        {"auto_map": AUTO_MAP, "architectures": ["WrongName"], "hidden_size": 4, "torch_dtype": "float32"},
    )
    return write_checkpoint(folder, WEIGHTS)


def test_the_repos_own_class(repo):
    model = from_pretrained(repo, trust_remote_code=True)
    assert type(model).__name__ == "TinyForCausalLM"
    assert type(model.config).__name__ == "TinyConfig"
    assert torch.equal(model.linear.weight, WEIGHTS["linear.weight"])
    x = torch.randn(2, 4)
    expected = nn.functional.linear(x, WEIGHTS["linear.weight"], WEIGHTS["linear.bias"])
    assert torch.equal(model(x).logits, expected)
    report = report_of(model)
    assert report.remote_base == "shim"
    assert report.class_name == "TinyForCausalLM"
    assert "modeling_tiny.TinyForCausalLM (code of the repo, sha256" in report.class_from
    assert "configuration_tiny.TinyConfig" in report.config_from
    assert "stand-in for transformers" in str(report)


def test_auto_class_picks_an_entry(repo):
    model = from_pretrained(repo, trust_remote_code=True, auto_class="AutoModel")
    assert type(model).__name__ == "TinyBare"
    with pytest.raises(UsageError, match="no entry AutoModelForFun") as caught:
        from_pretrained(repo, trust_remote_code=True, auto_class="AutoModelForFun")
    assert "AutoModelForCausalLM, AutoModel" in caught.value.cure


def test_the_dtype_reaches_the_repos_config(repo):
    model = from_pretrained(repo, trust_remote_code=True, dtype="bfloat16")
    assert model.config.torch_dtype == torch.bfloat16
    assert model.linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("trust", [False, None, 1, "true"])
def test_nothing_of_a_repo_runs_without_trust(repo, trust):
    for name in ("configuration_tiny.py", "modeling_tiny.py"):
        (repo / name).write_text("raise SystemExit('this ran')")
    with pytest.raises(UntrustedCodeError) as caught:
        from_pretrained(repo, trust_remote_code=trust)
    assert "trust_remote_code=True" in caught.value.cure
    assert "configuration_tiny.py (sha256" in caught.value.where


def test_the_callers_class_needs_no_trust_and_runs_nothing_of_the_repo(repo):
    for name in ("configuration_tiny.py", "modeling_tiny.py"):
        (repo / name).write_text("raise SystemExit('this ran')")

    class Own(nn.Module):
        def __init__(self, config) -> None:
            super().__init__()
            self.linear = nn.Linear(config.hidden_size, config.hidden_size)

    model = from_pretrained(repo, model_class=Own)
    assert torch.equal(model.linear.bias, WEIGHTS["linear.bias"])
    assert "was not trusted and not run" in report_of(model).config_from
    assert report_of(model).remote_base is None


def test_a_constructor_of_the_repo_that_fails_is_typed(repo):
    path = repo / "modeling_tiny.py"
    path.write_text(path.read_text().replace("config.hidden_size, config.hidden_size", "config.nope, 1"))
    with pytest.raises(RemoteCodeError, match="nope"):
        from_pretrained(repo, trust_remote_code=True)


def test_a_constructor_of_the_repo_that_looks_at_values_is_typed(repo):
    path = repo / "modeling_tiny.py"
    old = "self.linear = nn.Linear(config.hidden_size, config.hidden_size)\n"
    path.write_text(path.read_text().replace(old, f"{old}        float(self.linear.weight.detach().sum())\n"))
    with pytest.raises(shardload.ShardloadError, match="meta"):
        from_pretrained(repo, trust_remote_code=True)


def test_the_generation_config_reaches_a_model_that_has_a_place_for_it(repo):
    path = repo / "modeling_tiny.py"
    line = "self.linear = nn.Linear("
    path.write_text(path.read_text().replace(line, f"self.generation_config = None\n        {line}"))
    (repo / "generation_config.json").write_text('{"max_new_tokens": 17, "top_p": 0.5}')
    model = from_pretrained(repo, trust_remote_code=True)
    assert model.generation_config.max_new_tokens == 17
    assert "generation_config.json is on model.generation_config" in report_of(model).notes


def test_the_generation_config_that_has_no_place_is_a_note(folder):
    (folder / "generation_config.json").write_text("{}")
    model = from_pretrained(folder, model_class=Configured)
    assert any("generation_config.json is not used" in note for note in report_of(model).notes)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "there is no config.json"),
        ({}, "config.json names no class"),
        ({"auto_map": {}, "architectures": []}, "config.json names no class"),
        ({"architectures": ["NoSuchClassAnywhere"]}, "asks for NoSuchClassAnywhere"),
    ],
)
def test_a_config_without_a_class_says_what_to_pass(tmp_path, config, says):
    write_checkpoint(tmp_path, random_state(Net()), config=config)
    with pytest.raises(UsageError, match=says) as caught:
        from_pretrained(tmp_path)
    assert "model_class=" in caught.value.cure
    with pytest.raises(UsageError, match=says):
        resolve_class(tmp_path)


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_contradicts_its_index_builds_no_model(folder):
    def make(_config):
        raise AssertionError("the constructor ran")

    next(folder.glob("*00002*")).unlink()
    with pytest.raises(NotFoundError, match="1 of 3 shards are missing"):
        from_pretrained(folder, model_class=make)


def test_a_refusal_reads_no_weight_and_tells_everything(folder):
    for path in folder.glob("*.safetensors"):
        header = path.read_bytes()
        size = 8 + int.from_bytes(header[:8], "little")
        path.write_bytes(header[:size] + b"\xff" * (len(header) - size))  # NaN, were it read
    (folder / "config.json").write_text(json.dumps({**SIZES, "width": 16}))
    with pytest.raises(MismatchError) as caught:
        from_pretrained(folder, model_class=Configured)
    assert {fault.kind for fault in caught.value.report.faults} == {"misshapen"}
    assert "layers.{0-2}.up.weight" in str(caught.value)
    assert caught.value.report.shards == []


# --- adapters -------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    return write_checkpoint(tmp_path / "base", adapters.Tiny().state_dict())


def test_an_adapter_on_top(base, tmp_path):
    tensors = adapters.lora_tensors(adapters.Tiny())
    adapter = adapters.write(tmp_path / "lora", tensors)
    model = from_pretrained(base, model_class=lambda _config: adapters.Tiny(), adapter=adapter)
    expected = adapters.by_hand(adapters.Tiny(), tensors, 3)
    torch.testing.assert_close(model(adapters.TOKENS), expected)
    (report,) = report_of(model).adapters
    assert report.modules == 6
    assert str(adapter) in str(report_of(model))
    assert report_of(model).to_dict()["adapters"][0]["modules"] == 6


def test_an_adapter_for_another_model_is_refused(base, tmp_path):
    adapter = adapters.write(
        tmp_path / "lora", {key.replace("layers", "h"): v for key, v in lora_of_another().items()}
    )
    with pytest.raises(MismatchError):
        from_pretrained(base, model_class=lambda _config: adapters.Tiny(), adapter=adapter)


def lora_of_another():
    return adapters.lora_tensors(adapters.Block(), names=("q", "up"))


def test_an_adapter_that_is_not_there(base, tmp_path):
    with pytest.raises(NotFoundError):
        from_pretrained(
            base, model_class=lambda _config: adapters.Tiny(), adapter=tmp_path / "no", local_files_only=True
        )


# --- one file -------------------------------------------------------------------------------------------------


def test_a_file_that_is_named_is_reported_and_refused_by_its_name(tmp_path):
    path = tmp_path / "mixed.pth"
    torch.save(random_state(Net()), path)
    assert report_of(from_pretrained(path, model_class=lambda _: Net())).where == str(path)
    with pytest.raises(MismatchError) as caught:
        from_pretrained(path, model_class=lambda _: Net(layers=2))
    assert caught.value.where == str(path)
    assert caught.value.report.where == str(path)


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


# --- the report -----------------------------------------------------------------------------------------------


class AllEqual(Net):
    """Any two of them are equal, as a class with an `__eq__` of its own may say."""

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


def test_the_report_tells_the_whole_load(folder):
    report = report_of(from_pretrained(folder, model_class=Configured))
    assert report.ok
    assert report.where == str(folder)
    assert report.format == "safetensors"
    assert report.class_name == "Configured"
    assert report.config_from.startswith("config.json")
    assert "Configured" in report.class_from
    assert set(report.seconds) == {"open", "shell", "plan", "fill"}
    assert report.loaded == len(random_state(Net()))
    assert [row.name for row in report.shards] == sorted(path.name for path in folder.glob("*.safetensors"))
    document = json.loads(json.dumps(report.to_dict()))
    assert document["seconds"].keys() == report.seconds.keys()
    for text in ("Configured", "model-00001-of-00003.safetensors", "anonymous"):
        assert text in str(report)


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


# --- load_config and resolve_class ----------------------------------------------------------------------------


def test_load_config_and_resolve_class_look_at_no_weights(repo):
    for path in repo.glob("*.safetensors"):
        path.write_bytes(b"broken")
    config = load_config(repo, trust_remote_code=True, dtype="float16")
    assert type(config).__name__ == "TinyConfig"
    assert config.torch_dtype == torch.float16
    make = resolve_class(repo, trust_remote_code=True)
    model = make(config)
    assert type(model).__name__ == "TinyForCausalLM"
    assert type(model.config) is type(config)
    bare = resolve_class(repo, auto_class="AutoModel", trust_remote_code=True)
    assert type(build_shell(lambda: bare(config)).model).__name__ == "TinyBare"


def test_load_config_of_a_repo_without_code(folder):
    config = load_config(folder)
    assert (config.width, config.layers, config.vocab) == (8, 3, 12)


def test_load_config_and_resolve_class_need_trust(repo):
    with pytest.raises(UntrustedCodeError):
        load_config(repo)
    with pytest.raises(UntrustedCodeError):
        resolve_class(repo)


# --- in a process of its own ----------------------------------------------------------------------------------


def test_a_load_needs_neither_numpy_nor_transformers_nor_the_network(folder):
    code = """
import socket, sys
from types import SimpleNamespace
def refuse(*args, **kwargs): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
for name in ("numpy", "transformers", "accelerate"): sys.modules[name] = None
sys.path.insert(0, ".")
from shardload import from_pretrained, report_of
from tests.tiny import Net
model = from_pretrained(sys.argv[1], model_class=lambda c: Net(c.width, c.layers, c.vocab))
print(report_of(model).loaded, "huggingface_hub" in sys.modules)
"""
    assert run_python(code, str(folder)).stdout.split() == [str(len(random_state(Net()))), "False"]


def test_code_is_found_while_another_thread_imports_the_package_of_all_code(repo):
    """The state of that moment: the package is among the modules, and has not run yet."""
    code = """
import importlib.util, sys
from shardload import from_pretrained
import shardload.remote_code.namespaces
name = "shardload.remote_code.repos"
sys.modules[name] = importlib.util.module_from_spec(importlib.util.find_spec(name))
print(type(from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)
"""
    assert run_python(code, str(repo)).stdout.strip() == "TinyForCausalLM"
