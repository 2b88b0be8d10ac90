"""`generate` with an encoder: against a loop without a cache, and against transformers running the same code."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shardload.transformers_shim.cache_utils import DynamicCache, EncoderDecoderCache
from shardload.transformers_shim.generation._encoder_decoder import has_encoder
from shardload.transformers_shim.modeling_outputs import BaseModelOutput
from tests.transformers_shim.generation.encoder_decoder_repo import PREPARE, likeliest, model, prompt


def test_greedy_tokens_are_the_likeliest_and_the_encoder_runs_once(tmp_path):
    made = model(tmp_path)
    ids = made.generate(prompt(), max_new_tokens=24)
    assert (made.encoder.seen, made.decoder.seen) == ([8], [1] * 24)
    assert ids[0].tolist() == likeliest(made, prompt(), 24)
    assert len(set(ids[0].tolist())) > 6


def test_without_a_cache_each_step_reads_all_that_is_written(tmp_path):
    made = model(tmp_path)
    ids = made.generate(prompt(), max_new_tokens=4, use_cache=False)
    assert (made.encoder.seen, made.decoder.seen) == ([8], [1, 2, 3, 4])
    assert ids[0].tolist() == likeliest(made, prompt(), 4)


CASES: tuple[dict[str, Any], ...] = (
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"do_sample": False, "encoder_repetition_penalty": 1.4},
    {"do_sample": False, "encoder_no_repeat_ngram_size": 1},
    {"do_sample": False, "forced_bos_token_id": 7, "forced_eos_token_id": 8},
    {"do_sample": False, "begin_suppress_tokens": [4, 17], "suppress_tokens": [3]},
    {"do_sample": False, "eos_token_id": [4, 5], "min_new_tokens": 6},
    {"do_sample": False, "decoder_input_ids": torch.tensor([[9, 8]])},
    {"do_sample": False, "decoder_input_ids": torch.tensor([[2, 9, 8]])},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_k": 5},
    {"do_sample": True, "top_k": 0, "top_p": 0.8, "num_return_sequences": 3},
    {"do_sample": True, "num_return_sequences": 4, "eos_token_id": 4, "encoder_no_repeat_ngram_size": 2},
)


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: "-".join(settings))
def test_the_tokens_are_those_of_transformers(tmp_path, settings):
    pytest.importorskip("transformers")
    answers = []
    for base, options in (
        ("shim", {}),
        ("shim", {"use_cache": False}),
        ("transformers", {"use_cache": False}),
    ):
        made = model(tmp_path, remote_base=base)
        given = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in settings.items()}
        torch.manual_seed(3)
        answers.append(made.generate(prompt(), max_new_tokens=16, **given, **options).tolist())
    assert answers[0] == answers[1] == answers[2]


def test_a_padded_batch_is_read_without_its_padding(tmp_path):
    made = model(tmp_path)
    padded = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    ids = made.generate(padded, max_new_tokens=9)
    alone = [made.generate(row, max_new_tokens=9)[0] for row in (padded[:1], padded[1:, :3])]
    assert ids.tolist() == [row.tolist() for row in alone]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    ids = made.generate(padded, attention_mask=mask, max_new_tokens=9)
    assert ids[1].tolist() == made.generate(padded[1:, :2], max_new_tokens=9)[0].tolist()


def test_outputs_of_the_encoder_may_be_brought(tmp_path):
    made = model(tmp_path)
    with torch.no_grad():
        encoded = made.encoder(prompt(), return_dict=True)
    made.encoder.seen.clear()
    expected = likeliest(made, prompt(), 9)
    made.encoder.seen.clear()
    for given in (encoded, BaseModelOutput(encoded[0]), (encoded[0],)):
        assert made.generate(encoder_outputs=given, max_new_tokens=9)[0].tolist() == expected
    many = made.generate(encoder_outputs=encoded, max_new_tokens=9, do_sample=True, num_return_sequences=5)
    assert (many.shape, encoded[0].shape) == ((5, 10), (1, 8, 16))
    assert made.encoder.seen == []


def test_embeddings_for_the_encoder(tmp_path, caplog):
    made = model(tmp_path)
    embeds = made.encoder.embed(prompt()).detach()
    expected = likeliest(made, prompt(), 9)
    assert made.generate(inputs_embeds=embeds, max_length=10)[0].tolist() == expected
    caplog.set_level(logging.WARNING)
    made.generate(inputs_embeds=embeds, max_new_tokens=2, encoder_no_repeat_ngram_size=1)
    assert "encoder_no_repeat_ngram_size: without effect" in caplog.text
    with pytest.raises(ValueError, match="given twice"):
        made.generate(prompt(), inputs_embeds=embeds)


def test_an_encoder_that_reads_something_else_than_ids(tmp_path):
    pixels = (
        ('main_input_name = "input_ids"', 'main_input_name = "pixel_values"'),
        ("def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, output_a", PIXELS),
        ("x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds", "x = pixel_values"),
        ("encoder_outputs = self.encoder(input_ids, ", "encoder_outputs = self.encoder(pixel_values, "),
        ("inputs_embeds=None, use_cache=None", "pixel_values=None, inputs_embeds=None, use_cache=None"),
    )
    made = model(tmp_path, replace=pixels)
    image = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    expected = likeliest(made, None, 6, pixel_values=image)
    assert made.generate(pixel_values=image, max_new_tokens=6)[0].tolist() == expected
    assert made.generate(image, max_new_tokens=6)[0].tolist() == expected
    # ids beside them begin the decoder's
    ids = made.generate(pixel_values=image, input_ids=torch.tensor([[9]]), max_new_tokens=6)
    assert ids[0].tolist() == likeliest(made, None, 6, start=(2, 9), pixel_values=image)


PIXELS = "def forward(self, pixel_values=None, attention_mask=None, inputs_embeds=None, output_a"


def test_where_the_decoder_starts(tmp_path):
    made = model(tmp_path, decoder_start_token_id=None)
    assert made.generate(prompt(), max_new_tokens=1)[0, 0] == 1  # the beginning of a sequence
    two = prompt().repeat(2, 1)
    assert made.generate(two, max_new_tokens=1, decoder_start_token_id=[5, 6])[:, 0].tolist() == [5, 6]
    with pytest.raises(ValueError, match="3 tokens for a batch of 2"):
        made.generate(two, decoder_start_token_id=[5, 6, 7])
    without = model(tmp_path / "without", decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(ValueError, match="needs decoder_start_token_id or bos_token_id"):
        without.generate(prompt())


def test_a_mask_of_the_decoders_first_ids_grows_with_them(tmp_path):
    made = model(tmp_path)
    given = {"decoder_input_ids": torch.tensor([[0, 9]]), "decoder_attention_mask": torch.tensor([[0, 1]])}
    ids = made.generate(prompt(), max_new_tokens=5, **given)
    assert ids[0, :3].tolist() == [2, 0, 9]
    rest = []
    for end in range(3, 8):
        mask = torch.tensor([[1, 0] + [1] * (end - 2)])
        logits = made(prompt(), decoder_input_ids=ids[:, :end], decoder_attention_mask=mask).logits
        rest.append(int(logits[0, -1].argmax()))
    assert ids[0, 3:].tolist() == rest


def test_a_streamer_gets_the_decoders_ids(tmp_path):
    class Streamer:
        def __init__(self):
            self.parts, self.ended = [], False

        def put(self, ids):
            self.parts.append(ids.tolist())

        def end(self):
            self.ended = True

    streamer = Streamer()
    ids = model(tmp_path).generate(prompt(), max_new_tokens=3, streamer=streamer)[0].tolist()
    assert (streamer.parts, streamer.ended) == ([[[2]], *([token] for token in ids[1:])], True)


def test_records_of_both_parts(tmp_path):
    output = model(tmp_path).generate(
        prompt(),
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_scores=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert type(output).__name__ == "GenerateEncoderDecoderOutput"
    assert [one.shape for one in output.encoder_attentions] == [(1, 2, 8, 8)] * 2
    assert [one.shape for one in output.encoder_hidden_states] == [(1, 8, 16)] * 3
    assert [step[1].shape for step in output.decoder_attentions] == [(1, 2, 1, n) for n in (1, 2, 3)]
    assert [step[1].shape for step in output.cross_attentions] == [(1, 2, 1, 8)] * 3
    assert [step[2].shape for step in output.decoder_hidden_states] == [(1, 1, 16)] * 3
    assert [part.shape[2] for part in output.past_key_values[0]] == [3, 3, 8, 8]
    assert output.sequences[0, 1] == output.scores[0].argmax()


def test_names_that_nothing_takes(tmp_path):
    made = model(tmp_path)
    with pytest.raises(ValueError, match="generate was given imput_ids"):
        made.generate(prompt(), imput_ids=1)


def test_a_hook_from_before_4_29_returns_the_ids_alone(tmp_path):
    old = """
    def _prepare_decoder_input_ids_for_generation(
        self, batch_size, decoder_start_token_id=None, bos_token_id=None, model_kwargs=None, device=None
    ):
        return torch.full((batch_size, 2), decoder_start_token_id)
"""
    made = model(tmp_path, PREPARE + old)
    ids = made.generate(prompt(), max_new_tokens=4)
    assert ids[0].tolist() == likeliest(made, prompt(), 4, start=(2, 2))


OBJECT = (
    (
        "        start, length = (0 if past is None else past[0][0].shape[2]), input_ids.shape[1]",
        """        keep = past
        past = list(past) or None
        start, length = keep.get_seq_length(), input_ids.shape[1]""",
    ),
    (
        "            x, weights = layer(x, k, v, visible)",
        """            keep.self_attention_cache.update(k[:, :, start:], v[:, :, start:], number)
            if past is None:
                keep.cross_attention_cache.update(*other, number)
                keep.is_updated[number] = True
            x, weights = layer(x, k, v, visible)""",
    ),
    ("past_key_values=cache if use_cache else None", "past_key_values=past_key_values"),
    ("config_class = TinyConfig", "config_class = TinyConfig\n    _supports_cache_class = True"),
)


def test_a_class_that_leaves_its_inputs_and_cache_to_the_base(tmp_path):
    reference = model(tmp_path / "old")
    made = model(tmp_path / "new", "", replace=OBJECT)
    output = made.generate(prompt(), max_new_tokens=9, return_dict_in_generate=True)
    assert (made.encoder.seen, made.decoder.seen[:3]) == ([8], [1, 1, 1])
    assert output.sequences[0].tolist() == likeliest(reference, prompt(), 9)
    assert isinstance(output.past_key_values, EncoderDecoderCache)
    assert [part.shape[2] for part in output.past_key_values[1]] == [9, 9, 8, 8]


def test_a_cache_of_two_parts_is_the_old_tuple_too():
    old = tuple(tuple(torch.randn(2, 3, length, 4) for length in (5, 5, 7, 7)) for _ in range(2))
    cache = EncoderDecoderCache.from_legacy_cache(old)
    assert (len(cache), cache.get_seq_length(), cache.is_updated) == (2, 5, {0: True, 1: True})
    same = zip(cache.to_legacy_cache(), old, strict=True)
    assert all(torch.equal(one, other) for pair in same for one, other in zip(*pair, strict=True))
    cache.batch_repeat_interleave(2)
    cache.crop(3)
    assert [part.shape for part in cache[1]] == [(4, 3, 3, 4)] * 2 + [(4, 3, 7, 4)] * 2
    cache.reorder_cache(torch.tensor([3, 0]))
    assert torch.equal(cache[0][3], old[0][3].flip(0))
    cache.batch_select_indices(torch.tensor([1]))
    assert cache[0][0].shape[0] == 1
    empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert (len(empty), empty.get_seq_length(), list(empty)) == (0, 0, [])


@pytest.mark.parametrize(
    ("config", "encodes"),
    [
        (SimpleNamespace(is_encoder_decoder=True), True),
        (SimpleNamespace(is_encoder_decoder=False), False),
        (object(), False),
    ],
)
def test_a_config_says_whether_there_is_an_encoder(config, encodes):
    assert has_encoder(config) is encodes
