"""transformers' from_pretrained with its defaults: a model on meta, whose weights are set one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LABEL = "transformers `from_pretrained`"


def prepare(job: dict[str, Any]) -> Callable[[], nn.Module]:
    import transformers

    transformers.logging.disable_progress_bar()
    make = _many_linears() if job["kind"] == "many" else transformers.LlamaForCausalLM
    return lambda: make.from_pretrained(job["folder"], dtype=job["dtype"])


def _many_linears() -> Any:
    """Return ManyLinears as a PreTrainedModel of transformers."""
    from transformers import PreTrainedConfig, PreTrainedModel

    from benchmarks.models import build

    class ManyConfig(PreTrainedConfig):
        model_type = "many-linears"

    class ManyLinears(PreTrainedModel):
        config_class = ManyConfig

        def __init__(self, config: ManyConfig) -> None:
            super().__init__(config)
            self.layers = build(config)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """Do nothing: the checkpoint holds every weight."""

    return ManyLinears
