"""save: what it writes, the safetensors library and torch read back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

from shardload import (
    CorruptError,
    NoSpaceError,
    UnsupportedError,
    UsageError,
    attach_lora,
    build_shell,
    fill,
    from_pretrained,
    merge,
    open_checkpoint,
    save,
)
from shardload.adapters import load_adapter
from shardload.writing import output_writer
from tests.adapters import tiny as adapters
from tests.remote_code import repos
from tests.tiny import (
    Net,
    assert_same_state,
    random_state,
    run_python,
    save_safetensors,
    torch_filled,
    write_checkpoint,
)


def test_a_model_comes_back(tmp_path):
    oracle = torch_filled(Net, random_state(Net()))
    files = save(oracle, tmp_path)
    assert [path.name for path in files] == ["model.safetensors"]
    shell = build_shell(Net)
    fill(shell, open_checkpoint(tmp_path))
    assert_same_state(shell.model, oracle)


def test_the_safetensors_library_reads_what_was_written(tmp_path):
    oracle = torch_filled(Net, random_state(Net()))
    save(oracle, tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(oracle.state_dict())
        for key, value in oracle.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)


def test_the_bytes_are_those_that_the_safetensors_library_writes(tmp_path):
    oracle = torch_filled(Net, random_state(Net()))
    save(oracle, tmp_path)
    save_safetensors(oracle.state_dict(), tmp_path / "library.safetensors", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_shards_and_index(tmp_path):
    oracle = torch_filled(Net, random_state(Net()))
    files = save(oracle, tmp_path, max_shard_size=600)
    names = [path.name for path in files]
    assert names[-1] == "model.safetensors.index.json"
    assert names[0] == f"model-00001-of-{len(names) - 1:05d}.safetensors"
    index = json.loads((tmp_path / names[-1]).read_text())
    assert set(index["weight_map"]) == set(oracle.state_dict())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in oracle.state_dict().values())
    shell = build_shell(Net)
    fill(shell, open_checkpoint(tmp_path))
    assert_same_state(shell.model, oracle)


def test_a_tie_is_written_once_and_comes_back_tied(tmp_path):
    def make() -> Net:
        model = Net()
        model.head.weight = model.embed.weight
        return model

    save(make(), tmp_path)
    assert "head.weight" not in open_checkpoint(tmp_path).tensors
    shell = build_shell(make)
    fill(shell, open_checkpoint(tmp_path))
    assert shell.model.head.weight is shell.model.embed.weight


@pytest.mark.parametrize("ties", [True, False])
def test_a_class_of_the_stand_in_ties_what_it_declares_and_no_other_name(tmp_path, ties):
    from shardload.transformers_shim.configuration_utils import PretrainedConfig
    from shardload.transformers_shim.modeling_utils import PreTrainedModel

    class Declared(PreTrainedModel):
        _tied_weights_keys = ["head.weight"]  # noqa: RUF012

        def __init__(self, config):
            super().__init__(config)
            self.embed = nn.Embedding(6, 4)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.head = nn.Linear(4, 6, bias=False)
            self.post_init()

        def get_input_embeddings(self):
            return self.embed

        def get_output_embeddings(self):
            return self.head

    model = Declared(PretrainedConfig(tie_word_embeddings=ties))
    model.head.weight = model.embed.weight
    model.layers[1] = model.layers[0]
    save(model, tmp_path)
    left_out = {"head.weight"} if ties else set()
    assert open_checkpoint(tmp_path).tensors.keys() == model.state_dict().keys() - left_out
    shell = build_shell(lambda: Declared(PretrainedConfig(tie_word_embeddings=ties)))
    fill(shell, open_checkpoint(tmp_path))
    assert_same_state(shell.model, model)


def test_a_tensor_that_is_not_contiguous_is_written_right(tmp_path):
    model = nn.Linear(3, 5)
    model.weight = nn.Parameter(torch.randn(3, 5).t())
    save(model, tmp_path)
    assert torch.equal(open_checkpoint(tmp_path).read("weight"), model.weight)


def test_a_model_loaded_through_a_key_map_is_saved_under_the_old_names(tmp_path):
    state = random_state(Net())
    old = {key.replace("layers.", "h."): value for key, value in state.items()}
    key_map = {"h.{}.{...}": "layers.{}.{...}"}
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path / "a", old)), key_map=key_map)
    save(shell.model, tmp_path / "b", key_map=key_map)
    saved = open_checkpoint(tmp_path / "b")
    assert set(saved.tensors) == set(old)
    assert all(torch.equal(saved.read(key), value) for key, value in old.items())


def test_a_map_that_does_not_lead_back_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not lead back"):
        save(Net(), tmp_path, key_map={"head.{...}": "top.{...}"})


def test_a_model_on_meta_is_refused(tmp_path):
    with pytest.raises(UsageError, match="on meta"):
        save(build_shell(Net).model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["5 potatoes", "0", "-1GB", "", "1.2.3GB", ".", "1e3", None, -1])
def test_sizes_that_are_none(tmp_path, size):
    with pytest.raises(UsageError, match="max_shard_size"):
        save(Net(), tmp_path, max_shard_size=size)


def test_a_folder_that_holds_other_weights_is_refused(tmp_path):
    save(Net(), tmp_path, max_shard_size=600)
    with pytest.raises(UsageError, match="holds weights"):
        save(Net(), tmp_path)


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr("shardload.writing.shard_file.write_all", fail)
    for name in ("there", "new"):
        with pytest.raises(NoSpaceError, match="No space"):
            save(Net(), tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_what_is_no_model_and_what_is_no_folder(tmp_path):
    with pytest.raises(UsageError, match="takes a model"):
        save(Net().state_dict(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        save(Net(), tmp_path / "file")


def test_a_sparse_tensor_is_declined_by_name(tmp_path):
    model = Net()
    model.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(UnsupportedError, match="mask: torch.float32, torch.sparse_coo"):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_views_are_written_as_what_they_show(tmp_path):
    model = nn.Module()
    model.register_buffer("expanded", torch.ones(1).expand(5))
    model.register_buffer("conjugate", torch.tensor([1 + 2j, 3]).conj())
    model.register_buffer("negative", torch._neg_view(torch.ones(2)))
    save(model, tmp_path)
    for name, value in model.named_buffers():
        assert torch.equal(open_checkpoint(tmp_path).read(name), value)


@pytest.mark.parametrize("config", [{"a": 1, 3: 2, "s": (1, 2), "d": torch.float16}, {"b": {"z": 1, "a": 2}}])
def test_a_config_is_written_as_json(tmp_path, config):
    model = Net()
    model.config = config
    save(model, tmp_path)
    assert set(open_checkpoint(tmp_path).config) == {str(key) for key in config}


@pytest.mark.parametrize("key", ["itself", (1, 2)])
def test_a_config_that_is_no_json_is_refused_before_anything_is_written(tmp_path, key):
    model = Net()
    model.config = {"a": 1}
    model.config[key] = model.config
    with pytest.raises(UsageError, match="can't be written as JSON"):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def numbered(value: float) -> Net:
    model = Net()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    model.config = {"value": value}
    return model


@pytest.mark.parametrize("step", range(12))
def test_a_save_over_another_that_fails_between_two_files_leaves_the_old_one(tmp_path, monkeypatch, step):
    names = [path.name for path in save(numbered(1), tmp_path, max_shard_size=1500)]
    assert len(names) == 6
    calls = []
    real = Path.replace

    def replace(self, target):
        calls.append(target)
        if len(calls) == step + 1:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="Input/output"):
        save(numbered(2), tmp_path, max_shard_size=1500)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"value": 1}
    assert all(bool((checkpoint.read(name) == 1).all()) for name in checkpoint.tensors)


def test_a_save_over_another_that_is_killed_never_leaves_a_mixture(tmp_path):
    """Each child dies at another point; what it leaves is the old checkpoint, the new one, or plainly broken."""
    code = """
import os, sys
from pathlib import Path
sys.path.insert(0, ".")
from shardload import ShardloadError, open_checkpoint, save
from tests.test_saving import numbered
real, told = Path.replace, []
for step in range(14):
    folder = Path(sys.argv[1], str(step))
    save(numbered(1), folder, max_shard_size=1500)
    child = os.fork()
    if child == 0:
        def replace(self, target):
            told.append(target)
            if len(told) == step + 1:
                os._exit(9)
            return real(self, target)
        Path.replace = replace
        save(numbered(2), folder, max_shard_size=1500)
        os._exit(0)
    os.waitpid(child, 0)
    try:
        checkpoint = open_checkpoint(folder)
    except ShardloadError as error:
        print(type(error).__name__)
    else:
        print(*sorted({float(v) for name in checkpoint.tensors for v in checkpoint.read(name).flatten()}))
"""
    lines = run_python(code, str(tmp_path)).stdout.splitlines()
    assert len(lines) == 14
    assert set(lines) == {"1.0", "2.0", "NotFoundError"}
    assert lines[0] == "1.0"
    assert lines[-1] == "2.0"


def test_the_config_that_is_written_names_no_folder_of_this_machine(tmp_path):
    write_checkpoint(tmp_path / "home", random_state(Net()), config={"width": 8})
    model = from_pretrained(tmp_path / "home", model_class=Configured)
    save(model, tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(text)["width"] == 8
    assert str(tmp_path) not in text


class Configured(Net):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config


# --- what stands beside the weights, and what is not the model's own ------------------------------------------


def remote(folder, **more):
    """Write a repo with code of its own and weights for it."""
    model = repos.MODEL + "\n    def prepare_inputs_for_generation(self, x): return {}\n"
    repos.tiny(folder, model=model, **more)
    state = {"linear.weight": torch.randn(4, 4), "linear.bias": torch.randn(4)}
    save_safetensors(state, folder / "model.safetensors")
    return folder


def test_a_model_of_a_repo_s_code_is_saved_with_its_code_and_loads_again(tmp_path):
    repo = remote(tmp_path / "repo")
    (repo / "generation_config.json").write_text('{"max_length": 77}')
    model = from_pretrained(repo, trust_remote_code=True)
    files = save(model, tmp_path / "out")
    assert {path.name for path in files} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "configuration_tiny.py",
        "modeling_tiny.py",
    }
    for name in ("configuration_tiny.py", "modeling_tiny.py"):
        assert (tmp_path / "out" / name).read_bytes() == (repo / name).read_bytes()
    again = from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(again) is type(model)
    assert again.generation_config.max_length == 77
    assert_same_state(again, model)
    assert str(tmp_path) not in "".join(path.read_text() for path in files if path.suffix == ".json")


def test_code_in_folders_and_entries_of_another_repo_are_written_as_they_load(tmp_path):
    repo = tmp_path / "repo"
    source = repos.MODEL.replace("from .configuration_tiny", "from ..configuration_tiny")
    auto_map = {
        "AutoConfig": "configuration_tiny.TinyConfig",
        "AutoModel": "parts.modeling_tiny.TinyModel",
        "AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None],
    }
    files = {"configuration_tiny.py": repos.CONFIG, "parts/modeling_tiny.py": source}
    repos.write(repo, files, {"auto_map": auto_map})
    state = {"linear.weight": torch.randn(4, 4), "linear.bias": torch.randn(4)}
    save_safetensors(state, repo / "model.safetensors")
    model = from_pretrained(repo, trust_remote_code=True)
    model.config.auto_map["AutoConfig"] = "org/other--configuration_tiny.TinyConfig"
    save(model, tmp_path / "out")
    assert (tmp_path / "out" / "parts" / "modeling_tiny.py").exists()
    written = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert written == {name: auto_map[name] for name in ("AutoConfig", "AutoModel")}
    assert_same_state(from_pretrained(tmp_path / "out", trust_remote_code=True), model)


def test_code_that_somebody_has_edited_is_not_overwritten(tmp_path):
    model = from_pretrained(remote(tmp_path / "repo"), trust_remote_code=True)
    save(model, tmp_path / "out")
    save(model, tmp_path / "out")
    edited = tmp_path / "out" / "modeling_tiny.py"
    edited.write_text("mine")
    with pytest.raises(UsageError, match=r"modeling_tiny\.py"):
        save(model, tmp_path / "out")
    assert edited.read_text() == "mine"


def test_an_auto_map_without_its_code_is_left_out_and_that_is_said(tmp_path):
    model = Net()
    model.config = {"width": 8, "auto_map": {"AutoModel": "modeling_x.X"}}
    with pytest.warns(UserWarning, match="auto_map is left out"):
        save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 8}


def adapted(folder, **settings):
    """A base, and the same with an adapter that trained a head of its own."""
    base, model = adapters.Tiny(), adapters.Tiny()
    tensors = adapters.lora_tensors(model)
    tensors |= {
        f"{adapters.PREFIX}score.weight": torch.ones(3, 8),
        f"{adapters.PREFIX}score.bias": torch.ones(3),
    }
    where = adapters.write(folder, tensors, adapters.config(modules_to_save=["score"], **settings))
    load_adapter(model, where, name="mine")
    assert not torch.equal(model.score.weight, base.score.weight)
    return base, model


def test_adapters_are_left_out_and_named(tmp_path):
    base, model = adapted(tmp_path / "lora")
    with pytest.warns(UserWarning, match="adapters are not saved, only their base: mine"):
        save(model, tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert set(checkpoint.tensors) == set(base.state_dict())
    for key, value in base.state_dict().items():
        assert torch.equal(checkpoint.read(key), value), key
    assert torch.equal(model.score.weight, torch.ones(3, 8))
    assert fill(adapters.Tiny(), checkpoint).ok


def test_a_part_of_an_adapted_model_is_refused(tmp_path):
    _, model = adapted(tmp_path / "lora")
    with pytest.raises(UsageError, match="larger model"):
        save(model.layers, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [print, {1, 2}, Path("x"), object])
@pytest.mark.parametrize("attribute", ["config", "generation_config"])
def test_settings_that_are_no_json_are_refused(tmp_path, attribute, value):
    model = Net()
    setattr(model, attribute, {"deep": [value]})
    with pytest.raises(UsageError, match=f"model's {attribute} can't be written as JSON"):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dtypes_and_configs_in_configs_are_written_as_text_and_data(tmp_path):
    class Inner:
        def to_dict(self):
            return {"depth": 2}

    model = Net()
    model.config = {"torch_dtype": torch.float16, "vision": Inner()}
    save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "torch_dtype": "float16",
        "vision": {"depth": 2},
    }


# --- while it is written ---------------------------------------------------------------------------------------


def test_progress_and_verify(tmp_path, monkeypatch):
    seen = []
    model = Net()
    save(model, tmp_path / "a", max_shard_size=1500, progress=seen.append, verify=True)
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert seen[-1].done_bytes == seen[-1].total_bytes == total
    assert seen[-1].tensors == len(model.state_dict())
    write = output_writer.write_shard

    def flipping(path, layout, meter, **options):
        sums = write(path, layout, meter, **options)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return sums

    monkeypatch.setattr(output_writer, "write_shard", flipping)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(CorruptError, match="was read back and differs"):
        save(Net(), tmp_path / "a", max_shard_size=1500, verify=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_a_mapped_model_is_saved_over_its_own_files(tmp_path):
    """Its weights are the very files that are replaced: they stay what they are, save after save."""
    state = random_state(Net())
    write_checkpoint(tmp_path, state, shards=3, config={"value": 1})
    model = from_pretrained(tmp_path, model_class=Configured)
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match="holds weights"):
        save(model, tmp_path)
    size = 1 + max(tensor.nbytes for tensor in wanted.values())
    save(model, tmp_path / "out", max_shard_size=size)
    again = from_pretrained(tmp_path / "out", model_class=Configured)
    with torch.no_grad():
        again.head.weight.add_(1)
    for _ in range(2):
        save(again, tmp_path / "out", max_shard_size=size)
        checkpoint = open_checkpoint(tmp_path / "out")
        for name, value in wanted.items():
            expected = value + 1 if name == "head.weight" else value
            assert torch.equal(checkpoint.read(name), expected), name
            assert torch.equal(again.state_dict()[name], expected), name


def test_what_an_output_file_replaces_is_not_touched_where_it_is_the_same(tmp_path):
    """Only the weights of a single file change: one rename, and there is a whole checkpoint at every moment."""
    model = numbered(1)
    save(model, tmp_path)
    settings = (tmp_path / "config.json").stat()
    weights = (tmp_path / "model.safetensors").stat()
    with torch.no_grad():
        model.head.weight.zero_()
    save(model, tmp_path)
    assert (tmp_path / "config.json").stat().st_mtime_ns == settings.st_mtime_ns
    assert (tmp_path / "model.safetensors").stat().st_ino != weights.st_ino
    assert not open_checkpoint(tmp_path).read("head.weight").any()


@pytest.mark.parametrize("name", ["optimizer.bin", "training_args.bin", "scaler.bin", "tokenizer.json"])
def test_what_a_trainer_puts_beside_is_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"state")
    for _ in range(2):
        save(Net(), tmp_path)
    assert (tmp_path / name).read_bytes() == b"state"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "other.safetensors", "pytorch_model.bin.index.json"])
def test_other_weights_are_refused_as_by_convert(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(UsageError, match=f"holds weights that the new ones would not replace\n.*{name}"):
        save(Net(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


IMPORTS = """
import sys, torch, shardload
before = set(sys.modules)
model = torch.nn.Linear(2, 2)
model.config = {"a": 1}
shardload.save(model, sys.argv[1])
print(*sorted({name.split(".")[1] for name in set(sys.modules) - before if name.startswith("shardload.")}))
"""


def test_a_plain_model_imports_no_room_that_it_does_not_need(tmp_path):
    rooms = set(run_python(IMPORTS, str(tmp_path)).stdout.split())
    assert "writing" in rooms
    assert not rooms & {"adapters", "remote_code", "transformers_shim", "loading", "load", "compare", "cli"}


def test_a_model_sharded_over_one_rank_is_saved_as_it_is(tmp_path):
    code = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_module
import shardload
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
model = torch.nn.Linear(8, 8)
whole = model.weight.detach().clone()
distribute_module(model, init_device_mesh("cpu", (1,)))
shardload.save(model, sys.argv[1])
print(torch.equal(shardload.open_checkpoint(sys.argv[1]).read("weight"), whole))
"""
    *_, said = run_python(code, str(tmp_path / "out")).stdout.splitlines()  # some releases of gloo talk first
    assert said == "True"


def test_a_sharded_model_is_saved_with_the_files_of_the_same_model_in_one_piece(tmp_path):
    code = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import shardload
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
mesh = init_device_mesh("cpu", (1,))
repo, out = sys.argv[1:]

def nameless():
    model = torch.nn.Linear(4, 2)
    model.config = {"architectures": None}
    return model

for name, make in {"repo": lambda: shardload.from_pretrained(repo, trust_remote_code=True), "given": nameless}.items():
    torch.manual_seed(0)
    model = make()
    shardload.save(model, f"{out}/{name}/whole")
    fully_shard(model, mesh=mesh)
    shardload.save(model, f"{out}/{name}/sharded")
"""
    run_python(code, str(remote(tmp_path / "repo")), str(tmp_path / "out"))
    for name, beside in (("repo", "modeling_tiny.py"), ("given", "config.json")):
        whole, sharded = (
            {path.name: path.read_bytes() for path in (tmp_path / "out" / name / kind).iterdir()}
            for kind in ("whole", "sharded")
        )
        assert beside in whole
        assert sharded == whole
    from_pretrained(tmp_path / "out" / "repo" / "sharded", trust_remote_code=True)


MEMORY = """
import json, sys, threading, time, torch
from torch import nn
import shardload

def anon():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

kind = sys.argv[2]
big = nn.Module()
for n in range(2):
    weight = torch.ones(4096, 8192)
    big.register_parameter(f"w{n}", nn.Parameter(weight.t() if kind == "turned" else weight, requires_grad=False))
shardload.save(nn.Linear(2, 2), sys.argv[1])  # imports are not measured
before, peak, stop = anon(), [0], threading.Event()
def sample():
    while not stop.is_set():
        peak[0] = max(peak[0], anon())
        time.sleep(0.002)
thread = threading.Thread(target=sample)
thread.start()
shardload.save(big, sys.argv[1] + "/big", verify=kind == "plain")
stop.set()
thread.join()
print(json.dumps(peak[0] - before))
"""


@pytest.mark.parametrize(("kind", "most"), [("plain", 40e6), ("turned", 100e6)])
def test_no_copy_of_the_weights_is_made_beyond_a_block(tmp_path, kind, most):
    """Of tensors of 134 MB, 64 MiB at most where they have to be turned, and nothing where they lie as they are."""
    peak = json.loads(run_python(MEMORY, str(tmp_path), kind).stdout)
    assert peak < most


class Tied(nn.Module):
    """A model as transformers' are: the config says that the head is the embedding."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(10, 4)
        self.lm_head = nn.Linear(4, 10, bias=False)
        if config["tie_word_embeddings"]:
            self.lm_head.weight = self.embed.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


class Config(dict):
    """Settings by name, as an attribute too."""

    def __getattr__(self, name: str):
        if name not in self:
            raise AttributeError(name)
        return self[name]


@pytest.mark.parametrize("nested", [False, True])
def test_a_head_that_was_taken_apart_is_saved_as_untied(tmp_path, nested):
    said = Config(
        tie_word_embeddings=True, **({"text_config": {"tie_word_embeddings": True}} if nested else {})
    )
    model = Tied(said)
    save(model, tmp_path / "tied")
    assert json.loads((tmp_path / "tied" / "config.json").read_text())["tie_word_embeddings"] is True
    report = attach_lora(model, r=2, targets=["lm_head"], init=False, seed=0)
    assert report.modules == 1
    merge(model, keep_copies=True)
    save(model, tmp_path / "apart")
    written = json.loads((tmp_path / "apart" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert not nested or written["text_config"]["tie_word_embeddings"] is False
    assert said == {**said, "tie_word_embeddings": True}
    again = from_pretrained(tmp_path / "apart", model_class=lambda config: Tied(Config(vars(config))))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(again.embed.weight, model.embed.weight)


def test_infinities_of_a_config_are_written_as_transformers_writes_them_and_read_again(tmp_path):
    model = Net()
    model.config = {"limits": [float("-inf"), {"time": float("inf")}], "nothing": float("nan")}
    save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "limits": [{"__float__": "-Infinity"}, {"time": {"__float__": "Infinity"}}],
        "nothing": {"__float__": "NaN"},
    }
    config = open_checkpoint(tmp_path).config
    assert config["limits"] == model.config["limits"]
    assert config["nothing"] != config["nothing"]
