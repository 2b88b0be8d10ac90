"""Small repos whose code wraps transformers' own classes, as published ones do; written for these tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8, "num_channels": 3,
}  # fmt: skip
SOUND: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "conv_dim": [16, 16], "conv_kernel": [4, 3], "conv_stride": [2, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0, "vocab_size": 32,
}  # fmt: skip

CHAT = """
import torch
from torch import nn
from transformers import (
    GenerationConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

class ChatConfig(PretrainedConfig):
    model_type = "chat"
    is_composition = True

    def __init__(self, llm_config=None, width=12, **kwargs):
        super().__init__(**kwargs)
        self.llm_config = Qwen2Config(**(llm_config or {}))
        self.width = width

    def to_dict(self):
        output = dict(vars(self))
        output["llm_config"] = self.llm_config.to_dict()
        return output

class Chat(PreTrainedModel):
    config_class = ChatConfig
    main_input_name = "pixel_values"
    _supports_flash_attn_2 = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer"]

    def __init__(self, config):
        super().__init__(config)
        if config.llm_config.architectures and config.llm_config.architectures[0] == "LlamaForCausalLM":
            self.language_model = LlamaForCausalLM(config.llm_config)
        else:
            self.language_model = Qwen2ForCausalLM(config.llm_config)
        self.vision = nn.Linear(config.width, config.llm_config.hidden_size)

    def embeds(self, pixel_values, input_ids):
        words = self.language_model.get_input_embeddings()(input_ids)
        seen = self.vision(pixel_values)
        return torch.cat([seen, words[:, seen.shape[1]:]], dim=1)

    def forward(self, pixel_values, input_ids, attention_mask=None, output_hidden_states=None, return_dict=None):
        outputs = self.language_model(
            inputs_embeds=self.embeds(pixel_values, input_ids), attention_mask=attention_mask, use_cache=False,
            output_hidden_states=output_hidden_states, return_dict=True,
        )
        return CausalLMOutputWithPast(logits=outputs.logits, hidden_states=outputs.hidden_states)

    @torch.no_grad()
    def generate(self, pixel_values, input_ids, attention_mask=None, **kwargs):
        return self.language_model.generate(
            inputs_embeds=self.embeds(pixel_values, input_ids), attention_mask=attention_mask, use_cache=True, **kwargs,
        )
"""

EYES = """
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model, Qwen2PreTrainedModel, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

class EyesConfig(Qwen2Config):
    model_type = "eyes"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, vision_config=None, use_cache=True, **kwargs):
        self.use_cache = use_cache
        self.vision_config = SiglipVisionConfig(**(vision_config or {}))
        super().__init__(**kwargs)

class Eyes(Qwen2PreTrainedModel):
    config_class = EyesConfig

    def __init__(self, config):
        super().__init__(config)
        self.llm = Qwen2Model(config)
        self.vpm = SiglipVisionModel(config.vision_config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, pixel_values, input_ids):
        seen = self.vpm(pixel_values).last_hidden_state
        words = self.llm.embed_tokens(input_ids)
        states = self.llm(inputs_embeds=torch.cat([seen, words], dim=1)).last_hidden_state
        return self.head(states)
"""

MUSIC = """
from typing import Optional
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.hubert.configuration_hubert import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertEncoder, HubertFeatureEncoder, HubertModel

class MusicConfig(HubertConfig):
    model_type = "music"

    def __init__(self, scale=2.0, attention_relax=-1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.attention_relax = attention_relax

class MusicEncoder(HubertEncoder):
    def forward(self, hidden_states, attention_mask=None, output_attentions=False, output_hidden_states=False,
                return_dict=True):
        all_hidden_states = () if output_hidden_states else None
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        hidden_states = self.layer_norm(hidden_states)
        for layer in self.layers:
            if output_hidden_states:
                all_hidden_states = all_hidden_states + (hidden_states,)
            layer_outputs = layer(hidden_states, attention_mask=attention_mask, output_attentions=output_attentions)
            hidden_states = layer_outputs[0]
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=all_hidden_states)

class Music(HubertModel):
    config_class = MusicConfig
    base_model_prefix = "music"

    def __init__(self, config):
        super().__init__(config)
        self.encoder = MusicEncoder(config)
        self.feature_extractor = HubertFeatureEncoder(config)
        self.post_init()

    def forward(self, input_values, output_hidden_states=None, return_dict=None):
        features = self.feature_extractor(input_values).transpose(1, 2)
        states = self.feature_projection(features) * self.config.scale / 2.0
        return self.encoder(states, output_hidden_states=output_hidden_states)
"""

EMBED = """
import torch
from torch import nn
from transformers import (
    AutoConfig, AutoModel, MistralConfig, MistralModel, PretrainedConfig, PreTrainedModel,
)
from transformers.modeling_attn_mask_utils import _prepare_4d_attention_mask_for_sdpa
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto import CONFIG_MAPPING

class BothWaysConfig(MistralConfig):
    model_type = "both_ways"
    keys_to_ignore_at_inference = ["past_key_values"]

class BothWaysModel(MistralModel):
    config_class = BothWaysConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.self_attn.is_causal = False

    def forward(self, input_ids, attention_mask=None):
        states = self.embed_tokens(input_ids)
        positions = torch.arange(states.shape[1])[None]
        mask = _prepare_4d_attention_mask_for_sdpa(attention_mask, states.dtype)
        for layer in self.layers:
            layer_outputs = layer(states, attention_mask=mask, position_ids=positions, past_key_value=None,
                                  output_attentions=False, use_cache=False)
            states = layer_outputs[0]
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states))

class EmbedConfig(PretrainedConfig):
    model_type = "embed"

    def __init__(self, text_config=None, **kwargs):
        if isinstance(text_config, dict):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        self.text_config = text_config
        super().__init__(**kwargs)

class Embed(PreTrainedModel):
    config_class = EmbedConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        return self.embedding_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

AutoConfig.register("both_ways", BothWaysConfig)
AutoConfig.register("embed", EmbedConfig)
AutoModel.register(BothWaysConfig, BothWaysModel)
AutoModel.register(EmbedConfig, Embed)
"""

READER = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_attn_mask_utils import _prepare_4d_causal_attention_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaFlashAttention2

class ReaderConfig(PretrainedConfig):
    model_type = "reader"

    def __init__(self, vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 max_position_embeddings=64, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
                 attention_dropout=0.0, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
        self.attention_bias, self.attention_dropout = attention_bias, attention_dropout
        super().__init__(**kwargs)

ATTENTION_CLASSES = {"eager": LlamaAttention, "flash_attention_2": LlamaFlashAttention2}

class ReaderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = ATTENTION_CLASSES["eager"](config=config, layer_idx=layer_idx)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden_states, attention_mask, position_ids, past_key_value, use_cache, output_attentions):
        states, weights, present = self.self_attn(
            hidden_states=self.norm(hidden_states), attention_mask=attention_mask, position_ids=position_ids,
            past_key_value=past_key_value, output_attentions=output_attentions, use_cache=use_cache,
        )
        outputs = (hidden_states + states,)
        if output_attentions:
            outputs += (weights,)
        if use_cache:
            outputs += (present,)
        return outputs

class Reader(PreTrainedModel):
    config_class = ReaderConfig
    _skip_keys_device_placement = "past_key_values"
    _supports_cache_class = True

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ReaderLayer(config, n) for n in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None,
                output_attentions=False, output_hidden_states=False, return_dict=True):
        past = past_key_values.get_usable_length(input_ids.shape[1]) if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + input_ids.shape[1])[None]
        states = self.embed_tokens(input_ids)
        mask = _prepare_4d_causal_attention_mask(attention_mask, tuple(input_ids.shape), states, past)
        weights = ()
        for layer in self.layers:
            outputs = layer(states, mask, position_ids, past_key_values, use_cache, output_attentions)
            states = outputs[0]
            if output_attentions:
                weights += (outputs[1],)
            if use_cache:
                past_key_values = outputs[2 if output_attentions else 1]
        return CausalLMOutputWithPast(
            logits=self.lm_head(states), past_key_values=past_key_values, attentions=weights or None,
        )

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            input_ids = input_ids[:, -1:]
        return {"input_ids": input_ids, "past_key_values": past_key_values, "attention_mask": attention_mask,
                "use_cache": kwargs.get("use_cache")}
"""


def write_repo(
    folder: Path, code: str, names: tuple[str, str], settings: dict[str, Any], auto: str = "AutoModel"
) -> Path:
    """Write a repo of one file; `names` are its config class and its model class."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modeling_own.py").write_text(code)
    entries = {"AutoConfig": f"modeling_own.{names[0]}", auto: f"modeling_own.{names[1]}"}
    (folder / "config.json").write_text(json.dumps({"auto_map": entries, **settings}))
    return folder


def filled(model: Any, seed: int = 0) -> Any:
    """Return a model of torch's or the library's with values of some size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def stored(folder: Path, **parts: Any) -> None:
    """Write the checkpoint of a repo: the state dicts of modules, by the prefix that each has in the model."""
    state = {
        f"{name}.{key}".lstrip("_."): value
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    write_checkpoint(folder, {key: value.clone() for key, value in state.items()})
