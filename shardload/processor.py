"""load_processor: what prepares a model's images, sound and text, from its repo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources import find_source
from shardload.keywords import entry_point, place_of, trust_of
from shardload.remote_code.processor import make_processor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from shardload.keywords import RepoKeywords
    from shardload.where import WhereLike


@entry_point
def load_processor(
    where: WhereLike, *, auto_class: str | None = None, **keywords: Unpack[RepoKeywords]
) -> Any:
    """Return the processor of a repo: an image processor, a feature extractor, or one of several parts.

        >>> from pathlib import Path
        >>> import shardload
        >>> code = '''
        ... from transformers import BatchFeature
        ... from transformers.image_processing_utils import BaseImageProcessor
        ... class Scale(BaseImageProcessor):
        ...     def preprocess(self, images, return_tensors=None):
        ...         return BatchFeature({"pixel_values": [i * self.factor for i in images]}, return_tensors)
        ... '''
        >>> size = Path("scale.py").write_text(code)
        >>> settings = '{"factor": 2, "auto_map": {"AutoImageProcessor": "scale.Scale"}}'
        >>> size = Path("preprocessor_config.json").write_text(settings)
        >>> shardload.load_processor(".", trust_remote_code=True)([1, 2])
        {'pixel_values': [2, 4]}

    `where`: a folder or `org/name[@revision]` on the Hub. The class is the repo's own, which `auto_map` names in
    processor_config.json, preprocessor_config.json, video_preprocessor_config.json, tokenizer_config.json or
    config.json, or the processor class of an installed transformers that these files name. `auto_class` picks one of
    AutoProcessor (tried first), AutoImageProcessor, AutoFeatureExtractor and AutoVideoProcessor. A repo's code runs
    only with `trust_remote_code=True`, and from the Hub at a full commit only; the same holds for the code of each of
    its parts. Other keywords are as in `load_tokenizer`. Raises NotFoundError, UntrustedCodeError, RemoteCodeError,
    CorruptError and UsageError.
    """
    place = place_of(where, keywords)
    source, _ = find_source(place)
    return make_processor(source, read_config(source), trust_of(place, keywords), auto_class=auto_class)
