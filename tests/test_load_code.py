"""from_pretrained, load_config and resolve_class where the class is code of the repo."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload import (
    RemoteCodeError,
    UntrustedCodeError,
    UsageError,
    build_shell,
    from_pretrained,
    load_config,
    report_of,
    resolve_class,
)
from tests.configured import SIZES
from tests.remote_code import repos
from tests.tiny import Net, random_state, run_python, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config=SIZES)


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


def test_load_config_and_resolve_class_need_trust(repo):
    with pytest.raises(UntrustedCodeError):
        load_config(repo)
    with pytest.raises(UntrustedCodeError):
        resolve_class(repo)


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
