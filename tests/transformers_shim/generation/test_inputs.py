"""What generate says of inputs that are no batch of token ids."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shardload.transformers_shim.generation._inputs import InputsMixin
from tests.transformers_shim.generation.small_repos import model, prompt


@pytest.mark.parametrize(
    ("inputs", "kind", "says"),
    [
        ("hello", TypeError, r"input_ids as a tensor, not as a str: tokenizer\(text"),
        ([[1, 2]], TypeError, "not as a list"),
        ({"input_ids": prompt()}, TypeError, r"generate\(\*\*input_ids, …\)"),
        (prompt()[0], ValueError, r"\(batch, length\), not of \(5,\)"),
    ],
)
def test_what_is_no_batch_of_ids_is_named(tmp_path, inputs, kind, says):
    with pytest.raises(kind, match=says):
        model(tmp_path).generate(inputs, max_new_tokens=2)


class Inputs(InputsMixin):
    config = SimpleNamespace(is_encoder_decoder=False)
    main_input_name = "input_ids"

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None):
        return {}


@pytest.mark.parametrize(
    ("pad", "ends", "mask"),
    [(0, None, [[0, 1, 1]]), (0, 2, [[0, 1, 1]]), (0, [2, 0], [[1, 1, 1]]), (None, 2, [[1, 1, 1]])],
)
def test_padding_is_masked_unless_it_also_ends_the_text(pad, ends, mask):
    ids = torch.tensor([[0, 1, 2]])
    assert Inputs()._prepare_attention_mask_for_generation(ids, pad, ends).tolist() == mask


def test_inputs_are_taken_by_their_name_and_never_twice():
    ids, embeds = torch.tensor([[1, 2]]), torch.zeros(3, 4, 8)
    assert Inputs()._prepare_model_inputs(ids)[:2] == (ids, "input_ids")
    assert Inputs()._prepare_model_inputs(None, None, {"input_ids": ids})[0] is ids
    with pytest.raises(ValueError, match="given twice"):
        Inputs()._prepare_model_inputs(ids, None, {"input_ids": ids})
    first, name, more = Inputs()._prepare_model_inputs(None, None, {"inputs_embeds": embeds})
    assert (first is embeds, name, more["input_ids"].shape) == (True, "inputs_embeds", (3, 0))
    start = Inputs()._prepare_model_inputs(None, [5, 6], {"mask": torch.ones(2, 3)})[0]
    assert start.tolist() == [[5], [5]]
    with pytest.raises(ValueError, match="needs input_ids"):
        Inputs()._prepare_model_inputs()
