"""A LoRA that was saved with its base: the printed lines load both, as PEFT computes them."""

from __future__ import annotations

import re

import pytest
import torch

from shardload import MismatchError, from_pretrained, load_adapter
from tests.cures import models
from tests.cures.typed import typed
from tests.tiny import random_state, write_checkpoint


def refusal(folder):
    with pytest.raises(MismatchError) as caught:
        from_pretrained(folder, model_class=models.Decoder, progress=False)
    return caught.value


@pytest.mark.parametrize("said", [False, True])
def test_the_printed_lines_load_base_and_adapter(tmp_path, said):
    """The scale is that of an adapter_config.json beside the weights; without one alpha is a value to choose."""
    peft = pytest.importorskip("peft")
    base = models.Decoder(models.DECODER)
    trained = peft.get_peft_model(
        base, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    )
    trained.load_state_dict(random_state(trained))
    folder = write_checkpoint(tmp_path / "whole", trained.state_dict(), shards=1, config=models.DECODER)
    if said:
        trained.peft_config["default"].save_pretrained(folder)
    error = refusal(folder)
    assert ("alpha=…" in error.cure) is not said
    assert "the base alone, without the trained lora_A, lora_B" in error.cure
    steps = typed(str(error.cure)).keywords | {"key_map": error.report.key_map}
    model = from_pretrained(folder, model_class=models.Decoder, progress=False, **steps)
    (call,) = re.findall(r"load_adapter\([^)]*\)", error.cure)
    eval(call.replace("…", "6"), {"load_adapter": load_adapter, "model": model})
    for name, width in (("layers.0.q_proj", 32), ("layers.1.down_proj", 48), ("layers.1.k_proj", 32)):
        x = torch.randn(3, width)
        torch.testing.assert_close(model.get_submodule(name)(x), base.get_submodule(name)(x))


def test_no_way_is_named_to_keep_an_adapter_of_several_files(tmp_path):
    state = random_state(models.Decoder(models.DECODER))
    q = "layers.0.q_proj"
    lora = {f"{q}.lora_A.weight": torch.ones(2, 32), f"{q}.lora_B.weight": torch.ones(32, 2)}
    folder = write_checkpoint(tmp_path / "whole", {**state, **lora}, shards=2, config=models.DECODER)
    assert "no cure is known that keeps them" in refusal(folder).cure
