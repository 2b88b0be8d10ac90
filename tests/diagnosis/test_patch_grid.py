"""The size of an image is read off a table of positions, and changes together with the size of a patch."""

from __future__ import annotations

import pytest

from shardload.diagnosis.config_fields import Field
from shardload.diagnosis.patch_grid import image_fields

CONFIG = {"image_size": 16, "patch_size": 4}


@pytest.mark.parametrize(
    ("key", "model", "stored", "patches", "new"),
    [
        ("pos_embed", 17, 37, {}, 24),
        ("pos_embed", 16, 36, {}, 24),
        ("pos_embed", 18, 38, {}, 24),
        ("embeddings.position_embeddings", 17, 5, {"patch_size": 8}, 16),
        ("pos_embed", 17, 17, {"patch_size": 8}, 32),
    ],
)
def test_a_row_for_each_patch(key, model, stored, patches, new):
    assert list(image_fields(CONFIG, key, model, stored, patches)) == [Field("image_size", 16, new)]


@pytest.mark.parametrize(
    ("key", "model", "stored"), [("cls_token", 17, 37), ("pos_embed", 17, 38), ("pos_embed", 25, 37)]
)
def test_no_square_is_no_grid(key, model, stored):
    assert not list(image_fields(CONFIG, key, model, stored, {}))
    assert not list(image_fields({"image_size": 16}, key, model, stored, {}))
