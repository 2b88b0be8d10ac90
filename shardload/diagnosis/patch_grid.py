"""image_size: the field of a config that sets, together with the size of a patch, the rows of a table of positions."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from shardload.diagnosis.config_fields import Field, fields_of
from shardload.diagnosis.pairing.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_TOKENS = 2  # beside the patches: a class token, and one of distillation


def image_fields(
    config: Mapping[str, Any], key: str, model: int, stored: int, patches: Mapping[str, int]
) -> Iterator[Field]:
    """Yield the `image_size` that gives a table of positions its stored rows: a row for each patch, and few more.

    `patches` maps the fields `patch_size` that change to their new values. A field whose value stays is yielded too.
    """
    words = {word for segment in key.split(".") for word in words_of(segment)}
    if "position" not in words:
        return
    sizes = dict(fields_of(config))
    for name, image in sizes.items():
        path, _, own = name.rpartition(".")
        patch_field = f"{path}.patch_size" if path else "patch_size"
        patch = sizes.get(patch_field, 0)
        if own != "image_size" or patch < 1 or image % patch:
            continue
        more = model - (image // patch) ** 2
        side = isqrt(max(stored - more, 0))
        if 0 <= more <= _MOST_TOKENS and side and side * side == stored - more:
            yield Field(name, image, side * patches.get(patch_field, patch))
