"""Net as a class that takes a config, as classes of the Hub do."""

from __future__ import annotations

from tests.tiny import Net

SIZES = {"width": 8, "layers": 3, "vocab": 12}


class Configured(Net):
    """Net as a class that takes a config, as classes of the Hub do."""

    def __init__(self, config) -> None:
        super().__init__(config.width, config.layers, config.vocab)
        self.config = config
        self.seen_dtype = getattr(config, "torch_dtype", None)
