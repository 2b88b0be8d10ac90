"""Device maps of transformers and accelerate as the oracle: they take a model over, and choose no better."""

from __future__ import annotations

import pytest
import torch

from shardload import build_shell, fill, from_pretrained, open_checkpoint, plan_load, remove_device_hooks
from shardload.placement.on_devices import OnDevices
from tests.placement.machine_double import IDS, Plain, loaded
from tests.tiny import assert_same_state, random_state, torch_filled, write_checkpoint

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

MAPS = [{"": "cpu"}, {"": "cpu", "layers.1": "disk", "head": "disk"}, {"embed": "disk", "": "cpu"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("net"), random_state(Plain()), shards=2)


@pytest.mark.parametrize("wanted", MAPS)
def test_accelerate_takes_a_model_over_by_its_map(folder, tmp_path, wanted):
    shell = build_shell(Plain)
    fill(shell, open_checkpoint(folder), target=OnDevices(wanted))
    model = shell.model.eval()
    oracle = torch_filled(Plain, random_state(Plain()))
    theirs = accelerate.dispatch_model(model, model.hf_device_map, offload_dir=tmp_path)
    assert theirs is model
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), oracle(IDS))
    assert model.hf_device_map == ({"": "cpu"} if wanted == {"": "cpu"} else wanted)
    on_disk = any(place == "disk" for place in wanted.values())
    assert any(each.is_meta for each in model.state_dict().values()) == on_disk  # from now on it has holes


@pytest.mark.parametrize("removed", [True, False])
def test_hooks_of_accelerate_take_the_place_of_ours(folder, removed):
    """Between devices: accelerate's hooks run on the processor here, so ours have to keep out of their way."""
    model, machine, _ = loaded(folder, {"": "cpu", "head": "disk"})
    from shardload.placement.device_hooks import install
    from shardload.placement.device_map import Settled

    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    assert install(model, Settled({"": "cpu"}, dict.fromkeys(names, "cpu"), [], 0), machine) > 4
    with torch.no_grad():
        model(IDS)
    before = machine.fetches
    assert before == 6
    if removed:
        remove_device_hooks(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        out = model(IDS)
    torch.testing.assert_close(out, torch_filled(Plain, random_state(Plain()))(IDS).detach())
    assert machine.fetches == before


def llama(**sizes):
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=80,
        **sizes,
    )
    torch.manual_seed(9)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    folders = {}
    for tied in (False, True):
        folders[tied] = tmp_path_factory.mktemp(f"tied{tied}")
        llama(tie_word_embeddings=tied).save_pretrained(folders[tied])
    return folders


@pytest.mark.parametrize("tied", [False, True])
def test_a_map_has_the_names_of_transformers_and_loads_its_model(llamas, tied):
    limits = {"cpu": 60_000 if tied else 70_000}
    model = from_pretrained(llamas[tied], device_map="auto", max_memory=limits)
    theirs = transformers.LlamaForCausalLM.from_pretrained(llamas[tied], device_map={"": "cpu"}).eval()
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    own = accelerate.infer_auto_device_map(
        theirs, max_memory={"cpu": 60_000}, no_split_module_classes=["LlamaDecoderLayer"]
    )
    # accelerate shortens names where a whole level lies on one device; ours are the blocks themselves.
    for name in ("model.embed_tokens", *(f"model.layers.{n}" for n in range(4)), "model.norm"):
        assert name in model.hf_device_map
        assert any(name == given or name.startswith(f"{given}.") or given == "" for given in own)
    assert_same_state(model, theirs)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits)
    if tied:
        assert model.hf_device_map["lm_head"] == model.hf_device_map["model.embed_tokens"]


def test_a_llama_runs_and_generates_over_devices(llamas):
    """Its masks, positions and cache cross from device to device; ties lie on one of them."""
    for tied, wanted in (
        (
            False,
            {"": 0, "model.layers.1": 1, "model.layers.2": "cpu", "model.layers.3": "disk", "lm_head": 1},
        ),
        (True, {"": 0, "model.layers.0": 1, "model.layers.2": "cpu"}),
    ):
        oracle = transformers.LlamaForCausalLM.from_pretrained(llamas[tied]).eval()
        model, machine, _ = loaded(llamas[tied], wanted, lambda tied=tied: llama(tie_word_embeddings=tied))
        ids = torch.arange(1, 13).reshape(2, 6)
        with machine.strict(), torch.no_grad():
            out = model(ids, attention_mask=torch.ones_like(ids))
        torch.testing.assert_close(out.logits, oracle(ids).logits.detach())
        ours = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(ours, oracle.generate(ids, max_new_tokens=5, do_sample=False))
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_no_auto_map_leaves_on_the_disk_what_accelerate_keeps(llamas):
    """Over budgets from nothing to more than the model; of the processor: accelerate wants real accelerators."""
    model, shell = llama(), build_shell(llama)
    sizes = {name: sum(each.nbytes for each in part.parameters()) for name, part in model.named_modules()}
    kept = 0
    for budget in range(20_000, 240_000, 10_000):
        own = accelerate.infer_auto_device_map(
            model, max_memory={"cpu": budget}, no_split_module_classes=["LlamaDecoderLayer"]
        )
        theirs = sum(sizes[name] for name, place in own.items() if place == "cpu")
        plan = plan_load(llamas[False], shell=shell, device_map="auto", max_memory={"cpu": budget})
        ours = next((row.nbytes for row in plan.devices if row.device == "cpu"), 0)
        assert min(ours, sizes[""]) >= theirs, budget
        assert ours <= budget
        kept += theirs == sizes[""]
    assert kept > 3
