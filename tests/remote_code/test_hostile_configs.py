"""25 configs that try to widen what the caller allowed. The sentinel in the repo's code never fires."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest

import shardload
from shardload import ShardloadError, UnsafeError
from tests.adapters import tiny as adapters
from tests.tiny import write_checkpoint

EVIL = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
NESTED = {"auto_map": EVIL, "trust_remote_code": True, "architectures": ["Model"]}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

CONFIGS = {
    "plain auto_map": {"auto_map": EVIL},
    "it trusts itself": {"auto_map": EVIL, "trust_remote_code": True},
    "it trusts itself by text": {"auto_map": EVIL, "trust_remote_code": "true"},
    "it asks for the lock": {"auto_map": EVIL, "trust_remote_code": "locked"},
    "it names a commit": {
        "auto_map": EVIL,
        "revision": COMMIT,
        "code_revision": COMMIT,
        "_commit_hash": COMMIT,
    },
    "a nested config trusts": {"auto_map": EVIL, "text_config": NESTED},
    "a nested config alone": {"text_config": NESTED, "vision_config": NESTED},
    "nested three deep": {"a": {"b": {"c": NESTED}}},
    "nested in a list": {"sub_configs": [NESTED, NESTED]},
    "a generator of configs": {"is_composition": True, "encoder": NESTED, "decoder": NESTED},
    "auto_map in generation_config": {"generation_config": {"auto_map": EVIL, "trust_remote_code": True}},
    "auto_map in quantization_config": {"quantization_config": {"quant_method": "evil.Q", "auto_map": EVIL}},
    "auto_map under a model type": {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}},
    "the config's class alone": {"auto_map": {"AutoConfig": "evil.Config"}},
    "the tokenizer's class alone": {"auto_map": {"AutoTokenizer": ["evil.Model", None]}},
    "an unknown auto class": {"auto_map": {"AutoEvil": "evil.Model", "AutoModel": "evil.Model"}},
    "a list of classes": {"auto_map": {"AutoModel": [None, "evil.Model"]}},
    "another repo": {"auto_map": {"AutoModel": "evil/repo--evil.Model"}, "trust_remote_code": True},
    "another repo that is this one": {"auto_map": {"AutoModel": "evil--evil.Model"}},
    "a path": {"auto_map": {"AutoModel": "../outside/evil.Model"}},
    "an absolute path": {"auto_map": {"AutoModel": "/tmp/evil.Model"}},
    "a module of Python": {"auto_map": {"AutoModel": "os.system"}},
    "a dotted way up": {"auto_map": {"AutoModel": "..evil.Model"}},
    "architectures of a module": {"architectures": ["evil.Model", "os.system"]},
    "custom pipelines": {
        "custom_pipelines": {"x": {"impl": "evil.Model", "pt": ["AutoModel"]}},
        "auto_map": EVIL,
    },
    "a config class by name": {"config_class": "evil.Config", "attn_implementation": "evil/kernel:run"},
    "an attention kernel of the Hub": {"_attn_implementation": "evil/kernels", "auto_map": EVIL},
    "an adapter's own base": {
        "base_model_name_or_path": "evil/repo",
        "auto_mapping": {"parent_library": "evil"},
    },
}
assert len(CONFIGS) >= 25


@pytest.fixture
def evil(tmp_path):
    """A folder whose Python file leaves a mark wherever it is run from; and that mark."""
    mark = tmp_path / "it-ran"
    folder = write_checkpoint(tmp_path / "repo", adapters.Tiny().state_dict(), shards=1)
    code = f"open({str(mark)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    for place in (folder, tmp_path, tmp_path / "outside"):
        place.mkdir(exist_ok=True)
        (place / "evil.py").write_text(code)
    return folder, mark


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_runs_whatever_the_config_says(evil, name, monkeypatch):
    folder, mark = evil
    monkeypatch.chdir(folder)  # where `import evil` would find it
    monkeypatch.syspath_prepend(str(folder.parent / "nowhere"))
    for document in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (folder / document).write_text(json.dumps(CONFIGS[name]))
    seen = set(sys.modules)
    calls = (
        lambda: shardload.load_config(folder),
        lambda: shardload.resolve_class(folder),
        lambda: shardload.load_tokenizer(folder),
        lambda: shardload.from_pretrained(folder),
        lambda: shardload.from_pretrained(folder, model_class=lambda _config: adapters.Tiny()),
    )
    results = []
    for call in calls:
        try:
            call()
            results.append("ran nothing of the repo")
        except ShardloadError as error:
            results.append(type(error).__name__)
    assert not mark.exists()
    assert not {module for module in set(sys.modules) - seen if "evil" in module}
    assert results[-1] in {"ran nothing of the repo", "UnsafeError"}  # a class of the caller's own
    if any("evil.Model" in str(value) for value in (CONFIGS[name].get("auto_map") or {}).values()):
        assert results[1] in {"UntrustedCodeError", "UnsafeError", "UsageError"}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapters_config_runs_nothing_either(evil, name, monkeypatch):
    folder, mark = evil
    monkeypatch.chdir(folder)
    model = adapters.Tiny()
    where = adapters.write(folder / "adapter", adapters.lora_tensors(model))
    path = where / "adapter_config.json"
    (where / "evil.py").write_text((folder / "evil.py").read_text())
    path.write_text(json.dumps({**CONFIGS[name], **json.loads(path.read_text())}))
    with contextlib.suppress(ShardloadError):
        shardload.load_adapter(model, where)
    assert not mark.exists()
    assert not {module for module in sys.modules if module == "evil" or module.endswith(".evil")}


@pytest.mark.parametrize(
    "reference",
    ["../outside/evil.Model", "/tmp/evil.Model", "..evil.Model", "evil.Model\0", "evil\\..\\x.Model", "C:evil.Model",
     "evil/../x.Model", "a--b--../evil.Model", "evil .Model", "evil.Model()", ".Model", "evil.", ""],
)  # fmt: skip
def test_even_with_trust_a_class_is_a_name_in_the_repo(evil, reference):
    folder, mark = evil
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": reference}}))
    with pytest.raises(UnsafeError):
        shardload.resolve_class(folder, trust_remote_code=True)
    assert not mark.exists()
