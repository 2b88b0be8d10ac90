"""`transformers.image_processing_utils`, in part: the bases of image processors, without functions of images."""

from __future__ import annotations

from typing import Any

from shardload.transformers_shim.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

__all__ = ["BaseImageProcessor", "BatchFeature", "ImageProcessingMixin"]


class ImageProcessingMixin(FeatureExtractionMixin):
    """The base of image processors: every keyword argument becomes an attribute."""

    def _type_name(self) -> str:
        return "image_processor_type"


class BaseImageProcessor(ImageProcessingMixin):
    """An image processor that is called with images; subclasses define `preprocess`."""

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what `preprocess` makes of the images."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, **kwargs: Any) -> Any:
        """Refuse: classes define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define preprocess")
