"""`shardload convert --dtype` asks the class that config.json names what stays in float32."""

from __future__ import annotations

import json

import pytest

from tests.transformers_classes.test_kept_on_disk import float32_of, t5, wanted_of

pytest.importorskip("transformers")


@pytest.fixture
def base(tmp_path):
    t5().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_command_asks_the_class_of_config_json(base, tmp_path, call_cli):
    done = call_cli("convert", base, "-o", tmp_path / "half", "--dtype", "float16")
    assert (done.returncode, "no class" in done.stderr) == (0, False)
    assert float32_of(tmp_path / "half") == wanted_of(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"architectures": ["Nobodys"], "model_type": "nobodys"})
    )
    done = call_cli("convert", base, "-o", tmp_path / "all", "--dtype", "float16")
    assert "no class of transformers is known" in done.stderr
    assert float32_of(tmp_path / "all") == set()
