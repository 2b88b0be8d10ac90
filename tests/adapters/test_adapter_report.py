"""AdapterReport: for people and as JSON."""

from __future__ import annotations

import json

from shardload.adapters import load_adapter
from tests.adapters.tiny import (
    Tiny,
    config,
    lora_tensors,
    write,
)


def test_the_report(tmp_path):
    settings = config(base_model_name_or_path="org/base\x1b[31m")
    report = load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), settings))
    text = str(report)
    assert "6 layers, rank 2, scale 3" in text
    assert "layers.{0-1}.up.lora_B.default.weight  (12, 2) F32" in text
    assert "\x1b" not in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["modules"] == 6
    assert {
        "key": "base_model.model.layers.0.q.lora_A.weight",
        "target": "layers.0.q.lora_A.default.weight",
        "shape": [2, 8],
        "dtype": "F32",
        "scale": 3.0,
        "note": "",
    } in data["rows"]
    assert report.nbytes == sum(t.nbytes for t in lora_tensors(Tiny()).values())
