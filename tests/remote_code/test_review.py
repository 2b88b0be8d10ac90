"""All code that loading from a repo would run is shown for review: model, tokenizer, processor, its own generate."""

from __future__ import annotations

import json

from shardload.checkpoint.sources import find_source
from shardload.remote_code.review import review_code
from shardload.where import Where
from tests.remote_code.repos import tiny


def test_every_class_and_file_is_shown_and_nothing_runs(tmp_path):
    _, config = tiny(tmp_path)
    stop = "raise SystemExit('this ran')"
    for name in ("words", "images", "both", "unused"):
        (tmp_path / f"{name}.py").write_text(f"{stop}\n")
    (tmp_path / "both.py").write_text(f"from . import helper\n{stop}\n")
    (tmp_path / "helper.py").write_text(stop)
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(stop)
    settings = {
        "tokenizer_config.json": {"AutoTokenizer": ["words.Words", None]},
        "preprocessor_config.json": {"AutoImageProcessor": "images.Images", "AutoProcessor": "both.Both"},
    }
    for name, auto_map in settings.items():
        (tmp_path / name).write_text(json.dumps({"auto_map": auto_map}))
    (review,) = review_code(find_source(Where(tmp_path))[0], config)
    assert {file.name for file, _ in review.contents} == {
        "configuration_tiny.py",
        "modeling_tiny.py",
        "words.py",
        "images.py",
        "both.py",
        "helper.py",
        "custom_generate/generate.py",
    }
    assert {"images.Images", "both.Both", "custom_generate.generate.generate"} <= set(review.classes)
