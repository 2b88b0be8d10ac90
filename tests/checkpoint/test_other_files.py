"""Folders without a checkpoint that shardload reads are named by what they hold, with a cure that works."""

from __future__ import annotations

import shutil

import pytest
import torch

from shardload import NotFoundError, UnsupportedError, from_pretrained, open_checkpoint
from shardload.checkpoint.other_files import cure_by_names
from tests.tiny import save_safetensors, write_checkpoint

STATE = {"a": torch.ones(2), "b": torch.zeros(3)}


def refused(folder):
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(folder)
    return caught.value


@pytest.mark.parametrize(
    "name", ["pytorch_model_fsdp_rank{}.bin", "model_world_size_2_rank_{}.pt", "consolidated.0{}.pth"]
)
def test_what_each_rank_had_is_named(tmp_path, name):
    for rank in range(2):
        torch.save(STATE, tmp_path / name.format(rank))
    with pytest.raises(UnsupportedError, match="holds what each rank had"):
        open_checkpoint(tmp_path)


def test_the_whole_state_dict_that_fsdp_gathered_is_read(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model_fsdp.bin")
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b"}


def test_files_of_llama_cpp_are_named(tmp_path):
    (tmp_path / "model-q4.ggml").write_bytes(b"tjgg")
    assert "model-q4.ggml is a file of llama.cpp" in refused(tmp_path).cure
    assert cure_by_names(["notes.txt"]) is None


@pytest.mark.parametrize(
    "half", ["model-00002-of-00002.safetensors.aria2", "b.incomplete", "model.safetensors.part"]
)
def test_a_download_that_stopped_is_run_again(tmp_path, half):
    write_checkpoint(tmp_path, STATE, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / half).write_bytes(b"")
    assert refused(tmp_path).cure.startswith(f"the download is not finished ({half}): run it again")


def test_links_of_a_snapshot_that_lead_to_nothing_are_a_download_that_stopped(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "absent")
    assert "the download is not finished (model.safetensors)" in refused(tmp_path).cure


def test_the_index_that_accelerate_names_in_its_own_way(tmp_path):
    for name, tensor in STATE.items():
        save_safetensors({name: tensor}, tmp_path / f"{name}.safetensors")
    text = '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    (tmp_path / "weight_map.index.json").write_text(text)
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b"}


@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_a_single_file_of_a_trainer_is_found(tmp_path, suffix):
    torch.save({"state_dict": STATE}, tmp_path / f"last.{suffix}")
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b"}


def deepspeed(folder, stage):
    """The files of one rank, as DeepSpeed writes them."""
    folder.mkdir()
    before = "zero_pp_rank_0_" if stage == 3 else ""
    shapes = {key: value.shape for key, value in STATE.items()}
    module = {key: torch.empty(0) for key in STATE} if stage == 3 else STATE
    torch.save(
        {"module": module, "param_shapes": [shapes], "ds_version": "0.15"},
        folder / f"{before}mp_rank_00_model_states.pt",
    )
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def test_the_model_of_deepspeed_is_read_beside_the_files_of_its_optimizer(tmp_path):
    deepspeed(tmp_path / "global_step10", 2)
    checkpoint = open_checkpoint(tmp_path / "global_step10")
    assert {key: checkpoint.read(key).tolist() for key in checkpoint.tensors} == {
        key: value.tolist() for key, value in STATE.items()
    }


def test_parts_of_zero_3_are_gathered_by_deepspeed(tmp_path):
    deepspeed(tmp_path / "global_step10", 3)
    one = tmp_path / "global_step10" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    (one.parent / one.name.replace("rank_0_", "rank_1_")).write_bytes(one.read_bytes())
    with pytest.raises(UnsupportedError, match="holds what each rank had") as caught:
        open_checkpoint(one.parent)
    assert "zero_to_fp32.py" in caught.value.cure


@pytest.mark.parametrize("inside", [False, True], ids=["beside the folder", "in the folder"])
def test_the_config_that_lies_beside_an_inner_folder_is_copied_into_it(tmp_path, inside):
    class Pair(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(3))

    deepspeed(tmp_path / "global_step10", 2)
    (tmp_path / "config.json").write_text("{}")
    if inside:
        shutil.copy(tmp_path / "config.json", tmp_path / "global_step10")
    cure = refused(tmp_path).cure
    assert cure.endswith(f": {tmp_path / 'global_step10'}")
    assert (f"copy the one of {tmp_path} into the folder" in cure) == (not inside)
    if not inside:
        shutil.copy(tmp_path / "config.json", tmp_path / "global_step10")
    model = from_pretrained(tmp_path / "global_step10", model_class=Pair, progress=False)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in STATE.items())


def test_the_folders_of_megatrons_ranks_are_parts_of_one_model(tmp_path):
    def write(*folders):
        for name in folders:
            (tmp_path / name).mkdir(parents=True)
            torch.save({"model": STATE}, tmp_path / name / "model_optim_rng.pt")

    write("iter_01/mp_rank_00", "iter_01/mp_rank_01")
    cure = refused(tmp_path).cure
    assert cure.startswith("iter_01/mp_rank_00, iter_01/mp_rank_01 are the 2 ranks of one model: ")
    assert "no cure is known for the parts alone" in cure
    assert "pass the path of one" not in cure
    write("iter_02/mp_rank_00_000", "iter_02/mp_rank_00_001")
    assert refused(tmp_path).cure.count("are the 2 ranks of one model") == 2
    write("mp_rank_00")  # one rank alone is a model
    assert refused(tmp_path).cure.endswith(f"pass the path of one: {tmp_path / 'mp_rank_00'}")
