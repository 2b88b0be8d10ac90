"""Repos' own chat, stream and generate functions, which call the parts."""

from __future__ import annotations

import torch

from shardload.transformers_shim.generation import GenerationConfig
from tests.transformers_shim.generation.small_repos import PREPARE, likeliest, model, prompt

# As chat repos write it: settings, processors, warpers and criteria from the base, a loop of their own.
STREAM = """
    @torch.inference_mode()
    def stream_generate(self, input_ids, generation_config=None, logits_processor=None, stopping_criteria=None,
                        **kwargs):
        import copy
        from transformers.generation.utils import LogitsProcessorList, StoppingCriteriaList
        generation_config = copy.deepcopy(generation_config or self.generation_config)
        model_kwargs = generation_config.update(**kwargs)
        ends = generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends
        if generation_config.max_new_tokens is not None:
            generation_config.max_length = generation_config.max_new_tokens + input_ids.shape[-1]
        processor = self._get_logits_processor(
            generation_config=generation_config,
            input_ids_seq_length=input_ids.shape[-1],
            encoder_input_ids=input_ids,
            prefix_allowed_tokens_fn=None,
            logits_processor=logits_processor or LogitsProcessorList(),
        )
        criteria = self._get_stopping_criteria(
            generation_config=generation_config, stopping_criteria=stopping_criteria or StoppingCriteriaList()
        )
        warper = self._get_logits_warper(generation_config)
        unfinished = input_ids.new(input_ids.shape[0]).fill_(1)
        while True:
            inputs = self.prepare_inputs_for_generation(input_ids, **model_kwargs)
            outputs = self(**inputs, return_dict=True)
            scores = warper(input_ids, processor(input_ids, outputs.logits[:, -1, :]))
            probabilities = nn.functional.softmax(scores, dim=-1)
            if generation_config.do_sample:
                tokens = torch.multinomial(probabilities, num_samples=1).squeeze(1)
            else:
                tokens = torch.argmax(probabilities, dim=-1)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            model_kwargs = self._update_model_kwargs_for_generation(
                outputs, model_kwargs, is_encoder_decoder=self.config.is_encoder_decoder
            )
            unfinished = unfinished.mul((sum(tokens != i for i in ends)).long())
            yield input_ids
            if unfinished.max() == 0 or criteria(input_ids, None):
                break
"""


def test_a_stream_of_the_repos_own_is_generate(tmp_path):
    made = model(tmp_path, PREPARE + STREAM, eos_token_id=22)
    settings = {
        "max_new_tokens": 9,
        "do_sample": True,
        "top_p": 0.8,
        "temperature": 0.9,
        "repetition_penalty": 1.1,
    }
    for seed in range(3):
        torch.manual_seed(seed)
        whole = made.generate(prompt(), use_cache=True, **settings)[0].tolist()
        torch.manual_seed(seed)
        parts = [ids[0].tolist() for ids in made.stream_generate(prompt(), use_cache=True, **settings)]
        assert parts == [whole[: 5 + n] for n in range(1, len(parts) + 1)]
        assert parts[-1] == whole


def test_criteria_end_a_batch_when_all_rows_are_at_their_end(tmp_path):
    made = model(tmp_path, PREPARE + STREAM)
    batch = torch.tensor([[3, 1, 4], [2, 2, 2]])
    lengths = [ids.shape[1] for ids in made.stream_generate(batch, eos_token_id=[22], max_new_tokens=4)]
    assert lengths == [4, 5, 6, 7]


OWN_GENERATE = """
    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        self.asked = dict(kwargs)
        kwargs.pop("stop_words_ids", None)
        return super().generate(
            inputs, generation_config=generation_config, logits_processor=logits_processor,
            stopping_criteria=None, prefix_allowed_tokens_fn=None, synced_gpus=None, assistant_model=None,
            streamer=None, **kwargs,
        )
"""


def test_generate_over_the_bases(tmp_path):
    made = model(tmp_path, PREPARE + OWN_GENERATE)
    ids = made.generate(prompt(), stop_words_ids=[[5]], max_new_tokens=4)
    assert ids[0].tolist() == likeliest(made, prompt(), 4)
    assert made.asked["stop_words_ids"] == [[5]]


def test_settings_that_the_repo_derives(tmp_path):
    class Stream(GenerationConfig):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.do_stream = kwargs.pop("do_stream", False)

    made = model(tmp_path)
    settings = Stream(**made.generation_config.to_dict(), do_stream=True)
    assert settings.do_stream
    assert made.generate(prompt(), settings, max_new_tokens=3)[0].tolist() == likeliest(made, prompt(), 3)


# A generate of the repo's own from the parts of 4.41, with the tensors of 4.42.
OWN_PARTS = """
    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, **kwargs):
        generation_config, model_kwargs = self._prepare_generation_config(generation_config, **kwargs)
        self._validate_model_class()
        self._validate_model_kwargs(model_kwargs.copy())
        inputs_tensor, name, model_kwargs = self._prepare_model_inputs(
            inputs, generation_config.bos_token_id, model_kwargs
        )
        self._prepare_special_tokens(generation_config, False, device=inputs_tensor.device)
        model_kwargs["attention_mask"] = self._prepare_attention_mask_for_generation(
            inputs_tensor, generation_config._pad_token_tensor, generation_config._eos_token_tensor
        )
        model_kwargs["use_cache"] = generation_config.use_cache
        input_ids = inputs_tensor
        generation_config = self._prepare_generated_length(
            generation_config=generation_config, has_default_max_length=False, has_default_min_length=True,
            model_input_name=name, inputs_tensor=inputs_tensor, input_ids_length=input_ids.shape[1],
        )
        self._validate_generated_length(generation_config, input_ids.shape[1], False)
        processors = self._get_logits_processor(
            generation_config=generation_config, input_ids_seq_length=input_ids.shape[1],
            encoder_input_ids=inputs_tensor, prefix_allowed_tokens_fn=None, logits_processor=[],
            device=inputs_tensor.device, model_kwargs=model_kwargs, negative_prompt_ids=None,
            negative_prompt_attention_mask=None,
        )
        criteria = self._get_stopping_criteria(generation_config=generation_config, stopping_criteria=[])
        input_ids, model_kwargs = self._expand_inputs_for_generation(
            input_ids=input_ids, expand_size=1, is_encoder_decoder=False, **model_kwargs
        )
        model_kwargs = self._get_initial_cache_position(input_ids, model_kwargs)
        unfinished = torch.ones(input_ids.shape[0], dtype=torch.long)
        finished = False
        while self._has_unfinished_sequences(finished, False, device=input_ids.device):
            outputs = self(**self.prepare_inputs_for_generation(input_ids, **model_kwargs), return_dict=True)
            tokens = processors(input_ids, outputs.logits[:, -1, :]).argmax(-1)
            tokens = tokens * unfinished + generation_config._pad_token_tensor * (1 - unfinished)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            model_kwargs = self._update_model_kwargs_for_generation(outputs, model_kwargs)
            unfinished = unfinished & ~criteria(input_ids, None)
            finished = unfinished.max() == 0
        return input_ids
"""


def test_a_generate_from_the_parts(tmp_path):
    made = model(tmp_path, PREPARE + OWN_PARTS)
    free = likeliest(made, prompt(), 9)
    assert made.generate(prompt(), max_new_tokens=9, eos_token_id=22)[0].tolist() == free
    assert made.generate(prompt(), max_new_tokens=9, eos_token_id=[free[5], 22]).tolist() == [free[:6]]


def test_the_scores_of_what_was_written(tmp_path):
    made = model(tmp_path)
    output = made.generate(
        prompt(), max_new_tokens=3, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    scores = made.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    with torch.no_grad():
        logits = made(output.sequences).logits.log_softmax(-1)
    expected = [logits[0, 4 + n, output.sequences[0, 5 + n]] for n in range(3)]
    assert torch.allclose(scores, torch.stack(expected)[None], atol=1e-3)
