"""return_dict_in_generate: what is recorded at each step, and how a config decides."""

from __future__ import annotations

import torch

from tests.transformers_shim.generation.small_repos import model, prompt


def test_records_of_each_step(tmp_path):
    made = model(tmp_path)
    output = made.generate(
        prompt(),
        max_new_tokens=4,
        repetition_penalty=1.5,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert type(output).__name__ == "GenerateDecoderOnlyOutput"
    assert output.sequences.shape == (1, 9)
    assert output["sequences"] is output[0]
    assert [s.shape for s in output.scores] == [(1, 23)] * 4
    assert [h[2].shape for h in output.hidden_states] == [(1, 5, 16), (1, 1, 16), (1, 1, 16), (1, 1, 16)]
    assert [a[0].shape for a in output.attentions] == [(1, 2, 5, 5), (1, 2, 1, 6), (1, 2, 1, 7), (1, 2, 1, 8)]
    assert output.past_key_values[0][0].shape == (1, 2, 8, 8)
    with torch.no_grad():
        logits = made(prompt()).logits[:, -1]
    assert torch.equal(output.logits[0], logits)
    seen = output.logits[0][0, 3]
    assert output.scores[0][0, 3] == (seen / 1.5 if seen > 0 else seen * 1.5)
    assert output.sequences[0, 5] == output.scores[0].argmax()


def test_what_is_not_asked_for_is_not_recorded(tmp_path):
    output = model(tmp_path).generate(prompt(), max_new_tokens=2, return_dict_in_generate=True)
    assert list(output) == ["sequences", "past_key_values"]
    assert output.scores is None
