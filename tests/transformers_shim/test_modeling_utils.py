"""PreTrainedModel as old code expects it."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from shardload.errors import UnsupportedError
from shardload.model.shell import build_shell
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_outputs import CausalLMOutputWithPast
from shardload.transformers_shim.modeling_utils import PreTrainedModel


class Base(PreTrainedModel):
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(6, 4)
        self.block = nn.Linear(4, 4)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.weight.data.fill_(0.5)

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, value):
        self.embedding = value

    def forward(self, ids):
        hidden = self.embedding(ids)
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self.block, hidden)
        return self.block(hidden)


class Head(PreTrainedModel):
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.transformer = Base(config)
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, ids):
        return {"ids": ids}


class OldCheckpointing(Head):
    def _set_gradient_checkpointing(self, module, value=False):
        if isinstance(module, Base):
            module.gradient_checkpointing = value
            module._gradient_checkpointing_func = lambda f, x: torch.utils.checkpoint.checkpoint(
                f, x, use_reentrant=False
            )


def test_weights_are_initialised_once_and_tied():
    model = Head(PretrainedConfig())
    assert torch.equal(model.transformer.block.weight, torch.full((4, 4), 0.5))
    assert model.lm_head.weight is model.transformer.embedding.weight


def test_ties_follow_the_config():
    model = Head(PretrainedConfig(tie_word_embeddings=False))
    assert model.lm_head.weight is not model.transformer.embedding.weight
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.transformer.embedding.weight


def test_in_a_shell_nothing_is_initialised_and_ties_are_made():
    calls = []

    class Counting(Head):
        def _init_weights(self, module):
            calls.append(module)

    shell = build_shell(lambda: Counting(PretrainedConfig()))
    assert calls == []
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    assert shell.model.lm_head.weight is shell.model.transformer.embedding.weight
    Counting(PretrainedConfig())
    assert calls


def test_embeddings_through_the_base_model():
    model = Head(PretrainedConfig())
    assert model.base_model is model.transformer
    assert model.transformer.base_model is model.transformer
    assert model.get_input_embeddings() is model.transformer.embedding
    new = nn.Embedding(6, 4)
    model.set_input_embeddings(new)
    assert model.transformer.embedding is new


def test_dtype_device_and_counts():
    model = Head(PretrainedConfig(tie_word_embeddings=False)).half()
    assert (model.dtype, model.device) == (torch.float16, torch.device("cpu"))
    assert model.num_parameters() == 24 + 20 + 24
    assert model.num_parameters(exclude_embeddings=True) == 20 + 24
    model.lm_head.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 24 + 20


def test_attributes_that_code_reads():
    config = PretrainedConfig(name_or_path="org/name", top_p=0.5, eos_token_id=3)
    model = Head(config)
    assert (model.name_or_path, model.warnings_issued, model.framework) == ("org/name", {}, "pt")
    assert (model.generation_config.top_p, model.generation_config.eos_token_id) == (0.5, 3)
    assert model.can_generate()
    assert model.transformer.generation_config is None


@pytest.mark.parametrize("kind", [Head, OldCheckpointing])
def test_gradient_checkpointing_old_and_new(kind):
    ids = torch.tensor([[1, 2, 3]])
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = kind(PretrainedConfig(tie_word_embeddings=False)).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
            model.enable_input_require_grads()
        model.transformer(ids).square().sum().backward()
        gradients.append(model.transformer.embedding.weight.grad)
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    assert torch.equal(*gradients)


def test_gradient_checkpointing_of_a_class_that_lacks_it():
    class Without(Head):
        supports_gradient_checkpointing = False

    with pytest.raises(ValueError, match="does not support"):
        Without(PretrainedConfig()).gradient_checkpointing_enable()


def test_input_gradients_can_be_asked_for_and_taken_back():
    model = Base(PretrainedConfig()).requires_grad_(False)
    model.enable_input_require_grads()
    assert model(torch.tensor([1])).requires_grad
    model.disable_input_require_grads()
    assert not model(torch.tensor([1])).requires_grad


def test_attention_choice_of_the_old_base_constructor():
    config = PretrainedConfig()
    Head(config)
    assert config._attn_implementation == "sdpa"
    assert Base(PretrainedConfig()).config._attn_implementation == "eager"
    assert Head(PretrainedConfig(attn_implementation="eager")).config._attn_implementation == "eager"
    with pytest.raises(ImportError, match="flash_attention_2"):
        Head(PretrainedConfig(attn_implementation="flash_attention_2"))
    given = PretrainedConfig()
    assert Head._from_config(given, attn_implementation="eager").config._attn_implementation == "eager"
    assert given._attn_implementation_internal is None


def test_head_masks():
    model = Head(PretrainedConfig())
    assert model.get_head_mask(None, 3) == [None, None, None]
    assert model.get_head_mask(torch.ones(5), 3).shape == (3, 1, 5, 1, 1)
    assert model.get_head_mask(torch.ones(3, 5), 3).shape == (3, 1, 5, 1, 1)


def test_extended_attention_masks():
    model = Head(PretrainedConfig(is_decoder=True))
    mask = model.get_extended_attention_mask(torch.tensor([[1, 1, 0]]), (1, 3))
    lowest = torch.finfo(torch.float32).min
    assert (mask == lowest).tolist() == [[[[False, True, True], [False, False, True], [False, False, True]]]]
    assert model.invert_attention_mask(torch.tensor([[1, 0]])).tolist() == [[[[0.0, lowest]]]]


def test_the_cache_of_an_output_in_both_old_forms():
    model = Head(PretrainedConfig())
    output = CausalLMOutputWithPast(past_key_values="cache")
    assert model._extract_past_from_model_output(output) == ("past_key_values", "cache")
    assert model._extract_past_from_model_output(output, standardize_cache_format=False) == "cache"
    assert (
        model._extract_past_from_model_output(CausalLMOutputWithPast(), standardize_cache_format=True) is None
    )


def test_keyword_arguments_for_the_next_token():
    output = CausalLMOutputWithPast(past_key_values="cache")
    kwargs = Head(PretrainedConfig())._update_model_kwargs_for_generation(
        output, {"attention_mask": torch.ones(1, 3), "token_type_ids": torch.tensor([[0, 1]])}
    )
    assert kwargs["past_key_values"] == "cache"
    assert kwargs["attention_mask"].shape == (1, 4)
    assert kwargs["token_type_ids"].tolist() == [[0, 1, 1]]


def test_saving_writes_weights_config_and_generation_settings(tmp_path):
    model = Head(PretrainedConfig(top_k=7))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert PretrainedConfig.from_pretrained(tmp_path).top_k == 7


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [3, 9])
def test_embeddings_of_another_size_keep_what_fits(tied, count):
    class Untied(Head):
        def set_output_embeddings(self, value):
            self.lm_head = value

    model = Untied(PretrainedConfig(tie_word_embeddings=tied))
    before, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
    kept = min(count, 6)
    assert model.resize_token_embeddings(count) is model.transformer.embedding
    assert torch.equal(model.transformer.embedding.weight[:kept], before[:kept])
    assert torch.equal(model.lm_head.weight[:kept], head[:kept])
    assert (model.lm_head.out_features, model.config.vocab_size, model.vocab_size) == (count, count, count)
    assert (model.lm_head.weight is model.transformer.embedding.weight) is tied
    assert model.resize_token_embeddings() is model.transformer.embedding
    assert model.resize_token_embeddings(pad_to_multiple_of=8).num_embeddings in (8, 16)


def test_padding_without_a_mask_is_warned_of_once(caplog):
    model = Head(PretrainedConfig(pad_token_id=0))
    ids = torch.tensor([[0, 1, 2]])
    for mask in (torch.ones(1, 3), None, None):
        model.warn_if_padding_and_no_attention_mask(ids, mask)
    model.warn_if_padding_and_no_attention_mask(torch.tensor([[1, 0, 2]]), None)
    assert len([r for r in caplog.records if "padded" in r.message]) == 1


def test_the_loss_is_told_by_the_name_of_the_class():
    class TinyForSequenceClassification(Base):
        pass

    config = PretrainedConfig(num_labels=3)
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    loss = TinyForSequenceClassification(config).loss_function(
        labels=labels, pooled_logits=logits, config=config
    )
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))
    logits, labels = torch.randn(2, 5, 6), torch.randint(0, 6, (2, 5))
    labels[0, 2] = -100
    loss = Head(config).loss_function(logits=logits, labels=labels, vocab_size=6)
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    total = Head(config).loss_function(logits=logits, labels=labels, vocab_size=6, num_items_in_batch=2)
    torch.testing.assert_close(total, expected * 7 / 2)


def test_pruned_heads_are_noted_and_pruned_by_the_base_model():
    class Prunable(Base):
        def _prune_heads(self, heads):
            self.pruned = heads

    model = Prunable(PretrainedConfig(pruned_heads={"0": [2]}))
    model.prune_heads({0: [1]})
    assert model.pruned == {0: [1]}
    assert sorted(model.config.pruned_heads[0]) == [1, 2]


def test_loading_by_the_class_points_to_shardloads_loader():
    with pytest.raises(UnsupportedError) as caught:
        Head.from_pretrained("org/name")
    assert "shardload.from_pretrained" in caught.value.cure


def test_a_dictionary_is_no_config():
    with pytest.raises(ValueError, match="takes a config object"):
        Head({})
