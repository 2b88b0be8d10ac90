import json

import torch

from shardload import KeyMap, open_checkpoint
from tests.tiny import write_checkpoint


def test_convert_says_what_it_wrote(tmp_path, call_cli):
    source = write_checkpoint(tmp_path / "a", {"m.x": torch.ones(4, 2), "m.y": torch.ones(3)}, kind="bin")
    (tmp_path / "map.json").write_text(KeyMap().rename("m.{...}", "{...}").to_json())
    done = call_cli(
        "convert", source, "-o", tmp_path / "b", "--map", tmp_path / "map.json", "--dtype", "fp16"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.safetensors" in done.stdout
    assert " B written in " in done.stdout
    assert "read back and compared" in done.stdout
    assert list(open_checkpoint(tmp_path / "b").tensors) == ["x", "y"]
    done = call_cli(
        "convert", source, "-o", tmp_path / "c", "--max-shard-size", "32B", "--no-verify", "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == "shardload.convert/1"
    assert len(document["files"]) == 3
    assert document["verified"] is False


def test_a_folder_that_holds_weights_is_refused(tmp_path, call_cli):
    source = write_checkpoint(tmp_path / "a", {"x": torch.ones(4)})
    assert call_cli("convert", source, "-o", tmp_path / "b").returncode == 0
    done = call_cli("convert", source, "-o", tmp_path / "b", "--dtype", "fp16")
    assert (done.returncode, done.stdout) == (2, "")
    assert "new or an empty folder" in done.stderr


def test_convert_to_a_distributed_checkpoint_and_back(tmp_path, call_cli):
    torch.save({"a": torch.ones(4), "b": torch.zeros(2, 2)}, tmp_path / "a.bin")
    assert call_cli("convert", tmp_path / "a.bin", "-o", tmp_path / "b", "--format", "dcp").returncode == 0
    assert (tmp_path / "b" / ".metadata").is_file()
    assert call_cli("convert", tmp_path / "b", "-o", tmp_path / "c").returncode == 0
    assert call_cli("diff", tmp_path / "a.bin", tmp_path / "c", "--values").returncode == 0
