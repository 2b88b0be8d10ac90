"""AdapterReport: for people and as JSON."""

from __future__ import annotations

import json

from shardload.adapters import load_adapter
from shardload.adapters.adapter_report import AdapterFault, AdapterReport, AdapterRow
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


def test_a_report_is_json_and_escapes_what_a_file_says():
    rows = [AdapterRow(f"k{n}", f"layers.{n}.q", (2, 3), "F32", 3.0) for n in range(2)]
    faults = tuple(
        AdapterFault("shape" if n else "rank", f"k{n}\x1b", "bad", "m", (1,), (2,)) for n in range(15)
    )
    report = AdapterReport(
        "mine\x07", "here", "PEFT", rows=tuple(rows), modules=2, ranks={2: 1, 4: 1}, scales={3.0: 2},
        faults=faults, nbytes=2_500_000, trainable=True, warnings=("mind\u202e",),
    )  # fmt: skip
    document = json.loads(json.dumps(report.to_dict()))
    assert document["ranks"] == [{"rank": 2, "modules": 1}, {"rank": 4, "modules": 1}]
    assert document["rows"][0]["shape"] == [2, 3]
    assert document["faults"][0]["model_shape"] == [2]
    text = str(report)
    assert text.replace("\n", "").isprintable()
    assert (
        "rank 2 (1 layers), 4 (1 layers), scale 3, 2.5 MB in 0.00 s; attached, not active, trainable" in text
    )
    assert "layers.{0-1}.q  (2, 3) F32" in text
    assert "(stored (1,), the model's is (2,)); nearest module: m" in text
    assert text.endswith("and 3 more (shape)")
