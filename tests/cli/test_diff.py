import json

import torch

from tests.tiny import write_checkpoint

STATE = {f"layers.{n}.w": torch.arange(6.0).view(2, 3) + n for n in range(4)}


def test_no_difference(tmp_path, call_cli):
    a = write_checkpoint(tmp_path / "a", STATE)
    done = call_cli("diff", a, a)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 tensors have the same key, shape and dtype in both" in done.stdout


def test_differences_are_grouped_with_exact_ranges(tmp_path, call_cli):
    a = write_checkpoint(tmp_path / "a", STATE)
    other = {key: value.half() for key, value in STATE.items() if key != "layers.2.w"} | {"x": torch.ones(2)}
    b = write_checkpoint(tmp_path / "b", other)
    done = call_cli("diff", a, b, "--values")
    assert (done.returncode, done.stderr) == (1, "")
    assert "only in A: 1\n  layers.2.w  [2, 3] float32" in done.stdout
    assert "layers.{0-1,3}.w  A [2, 3] float32, B [2, 3] float16  (3 tensors)" in done.stdout
    assert "3 were compared, 3 of them are equal" in done.stdout
    assert "\x1b" not in done.stdout


def test_values_and_json(tmp_path, call_cli):
    a = write_checkpoint(tmp_path / "a", STATE)
    b = write_checkpoint(tmp_path / "b", STATE | {"layers.0.w": STATE["layers.0.w"] + 1})
    done = call_cli("diff", a, b, "--values", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found["values"]["layers.0.w"]["max_abs"] == 1.0
    done = call_cli("diff", a, b, "--values")
    assert "layers.0.w                6          1" in done.stdout


def test_what_is_not_there(tmp_path, call_cli):
    done = call_cli("diff", tmp_path / "no", tmp_path / "nor")
    assert (done.returncode, done.stdout) == (2, "")
