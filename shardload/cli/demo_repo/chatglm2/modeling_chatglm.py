"""The ChatGLM2 architecture, with the module names under which its checkpoints store their weights.

Inside the encoder hidden states run as [sequence, batch, hidden], heads as [sequence, batch, heads, width].
Token ids and logits are batch first. `past_key_values` is a tuple with one (keys, values) pair a layer.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.utils import (
    GenerationConfig,
    LogitsProcessorList,
    ModelOutput,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_chatglm import ChatGLMConfig

logger = logging.get_logger(__name__)

KeyValue = tuple[torch.Tensor, torch.Tensor]
Past = tuple[KeyValue, ...]


def construct(cls: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Make a module the ordinary way, with its weights initialised."""
    return cls(*args, **kwargs)


class FiniteScores(LogitsProcessor):
    """Replaces scores that hold a NaN or an infinity by a certain choice of token 5."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return `scores`, [batch, vocabulary], or the replacement in its place."""
        if scores.isfinite().all():
            return scores
        certain = torch.zeros_like(scores)
        certain[..., 5] = 5e4
        return certain


def rotary_frequencies(width: int, dtype: torch.dtype | None, device: Any) -> torch.Tensor:
    """Return the turn per position of each of `width / 2` channel pairs, computed in `dtype`."""
    exponents = torch.arange(0, width, 2, device=device).to(dtype=dtype) / width
    return 1.0 / (10000**exponents)


class RotaryEmbedding(nn.Module):
    """Cosine and sine of every position's rotation. Checkpoints store `inv_freq`; only its dtype is read."""

    def __init__(self, width: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("inv_freq", rotary_frequencies(width, dtype, device))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Return [sequence, batch, width / 2, 2] for `positions`, [batch, sequence]."""
        dtype, device = self.inv_freq.dtype, self.inv_freq.device
        turns = rotary_frequencies(self.width, dtype, device)
        angles = (positions.t().to(device=device, dtype=dtype).unsqueeze(-1) * turns).float()
        table = torch.stack((angles.cos(), angles.sin()), dim=-1)
        return table.to(dtype) if dtype in {torch.float16, torch.bfloat16} else table


@torch.jit.script
def rotate(heads: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs (0 with 1, 2 with 3, …) as `table` says; channels beyond it pass unchanged."""
    width = 2 * table.size(2)
    turning, passing = heads[..., :width], heads[..., width:]
    cos, sin = table[..., 0].unsqueeze(2), table[..., 1].unsqueeze(2)
    even, odd = turning[..., 0::2], turning[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((turned.flatten(3), passing), dim=-1)


class RMSNorm(nn.Module):
    """Scales by the root mean square over the last dimension, in float32."""

    def __init__(
        self, size: int, eps: float = 1e-5, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the normed states in the dtype of `hidden`."""
        mean_square = hidden.float().square().mean(dim=-1, keepdim=True)
        return (self.weight * (hidden * torch.rsqrt(mean_square + self.eps))).to(hidden.dtype)


def make_norm(config: ChatGLMConfig, device: Any) -> nn.Module:
    """Return the norm that the config asks for."""
    kind = RMSNorm if config.rmsnorm else nn.LayerNorm
    return kind(config.hidden_size, eps=config.layernorm_epsilon, device=device, dtype=config.torch_dtype)


class CoreAttention(nn.Module):
    """Scaled dot product attention over heads that are already rotated."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden_from: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [sequence, batch, heads * channels]. Without a mask, a square attention is causal."""
        query, key, value = (heads.permute(1, 2, 0, 3) for heads in (query, key, value))
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if hidden_from is None else ~hidden_from,
            is_causal=hidden_from is None and query.size(2) == key.size(2),
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class SelfAttention(nn.Module):
    """Attention whose query, key and value come out of one fused projection."""

    def __init__(self, config: ChatGLMConfig, device: Any = None) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.channels = config.kv_channels
        self.shares_keys = config.multi_query_attention
        self.key_heads = config.multi_query_group_num if self.shares_keys else self.heads
        width = self.heads * self.channels
        factory = {"device": device, "dtype": config.torch_dtype}
        self.query_key_value = nn.Linear(
            config.hidden_size,
            width + 2 * self.key_heads * self.channels,
            bias=config.add_bias_linear or config.add_qkv_bias,
            **factory,
        )
        self.core_attention = CoreAttention()
        self.dense = nn.Linear(width, config.hidden_size, bias=config.add_bias_linear, **factory)

    def split_heads(self, fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return query, key and value heads; without shared keys, each head's three lie side by side."""
        if not self.shares_keys:
            return fused.unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        counts = (self.heads, self.key_heads, self.key_heads)
        return fused.unflatten(-1, (-1, self.channels)).split(counts, dim=2)

    def forward(
        self,
        hidden: torch.Tensor,
        hidden_from: torch.Tensor | None,
        table: torch.Tensor,
        past: KeyValue | None,
        use_cache: bool,
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """Return the attended states and, with `use_cache`, the keys and values up to here."""
        query, key, value = self.split_heads(self.query_key_value(hidden))
        query, key = rotate(query, table), rotate(key, table)
        if past is not None:
            key, value = torch.cat((past[0], key)), torch.cat((past[1], value))
        present = (key, value) if use_cache else None
        share = self.heads // self.key_heads
        if share > 1:
            key, value = key.repeat_interleave(share, dim=2), value.repeat_interleave(share, dim=2)
        return self.dense(self.core_attention(query, key, value, hidden_from)), present


class MLP(nn.Module):
    """Feed-forward with SwiGLU: the first projection holds the gate's rows above the values'."""

    def __init__(self, config: ChatGLMConfig, device: Any = None) -> None:
        super().__init__()
        factory = {"bias": config.add_bias_linear, "device": device, "dtype": config.torch_dtype}
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, **factory)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, **factory)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return states of the shape of `hidden`."""
        gate, value = self.dense_h_to_4h(hidden).chunk(2, dim=-1)
        return self.dense_4h_to_h(functional.silu(gate) * value)


class GLMBlock(nn.Module):
    """One layer: norm, attention, norm, feed-forward, with two residual connections."""

    def __init__(self, config: ChatGLMConfig, device: Any = None) -> None:
        super().__init__()
        self.residual_after_norm = config.apply_residual_connection_post_layernorm
        self.input_layernorm = make_norm(config, device)
        self.self_attention = SelfAttention(config, device)
        self.post_attention_layernorm = make_norm(config, device)
        self.mlp = MLP(config, device)
        self.hidden_dropout = config.hidden_dropout

    def join(self, before: torch.Tensor, normed: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the residual connection of a sub-layer's output."""
        residual = normed if self.residual_after_norm else before
        return residual + functional.dropout(output, p=self.hidden_dropout, training=self.training)

    def forward(
        self,
        hidden: torch.Tensor,
        hidden_from: torch.Tensor | None,
        table: torch.Tensor,
        past: KeyValue | None,
        use_cache: bool,
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """Return the layer's states and its keys and values."""
        normed = self.input_layernorm(hidden)
        attended, present = self.self_attention(normed, hidden_from, table, past, use_cache)
        hidden = self.join(hidden, normed, attended)
        normed = self.post_attention_layernorm(hidden)
        return self.join(hidden, normed, self.mlp(normed)), present


class GLMTransformer(nn.Module):
    """The stack of layers and the norm after it."""

    def __init__(self, config: ChatGLMConfig, device: Any = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, device) for _ in range(config.num_layers))
        self.final_layernorm = make_norm(config, device) if config.post_layer_norm else nn.Identity()
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden: torch.Tensor,
        hidden_from: torch.Tensor | None,
        table: torch.Tensor,
        past: Past | None,
        use_cache: bool,
    ) -> tuple[torch.Tensor, Past | None, tuple[torch.Tensor, ...]]:
        """Return the normed states, the cache (None without `use_cache`), and all states before the norm."""
        recompute = self.gradient_checkpointing and self.training
        if recompute and use_cache:
            logger.warning_once("Gradient checkpointing recomputes the layers, so use_cache is off.")
            use_cache = False
        presents, states = [], [hidden]
        for layer, layer_past in zip(self.layers, past or [None] * len(self.layers), strict=True):
            inputs = (hidden, hidden_from, table, layer_past, use_cache)
            hidden, present = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
            presents.append(present)
            states.append(hidden)
        return self.final_layernorm(hidden), tuple(presents) if use_cache else None, tuple(states)


class Embedding(nn.Module):
    """Token embeddings, handed on sequence first."""

    def __init__(self, config: ChatGLMConfig, device: Any = None) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.padded_vocab_size, config.hidden_size, dtype=config.torch_dtype, device=device
        )
        self.in_float32 = config.fp32_residual_connection

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return [sequence, batch, hidden] for ids of [batch, sequence]."""
        hidden = self.word_embeddings(input_ids).transpose(0, 1).contiguous()
        return hidden.float() if self.in_float32 else hidden


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What the models below share: masks, positions, and the switch of gradient checkpointing."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    is_parallelizable = False
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["GLMBlock"]

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as the constructors made them."""

    def _set_gradient_checkpointing(self, module: nn.Module, value: bool = False) -> None:
        if isinstance(module, GLMTransformer):
            module.gradient_checkpointing = value

    def get_masks(
        self, input_ids: torch.Tensor, past_key_values: Past | None, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return [batch, 1, sequence, past + sequence], True where a position must not be seen.

        A row of padding sees everything: a softmax over nothing would be NaN.
        """
        batch, length = input_ids.shape
        past = past_key_values[0][0].size(0) if past_key_values else 0
        seen = torch.ones(length, past + length, dtype=torch.bool, device=input_ids.device).tril(past)
        seen = seen.expand(batch, -1, -1)
        if padding_mask is not None:
            real = padding_mask.bool()
            seen = seen & real.unsqueeze(1)
            if not past:
                seen = seen | ~real.unsqueeze(-1)
        return ~seen.unsqueeze(1)

    def get_position_ids(self, input_ids: torch.Tensor, device: Any) -> torch.Tensor:
        """Return 0, 1, 2, … for each row of `input_ids`."""
        return torch.arange(input_ids.size(1), device=device).expand(input_ids.size(0), -1)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, encoder and output layer; `forward` stops before the output layer.

    `empty_init` leaves the weights' memory uninitialised, for a checkpoint to fill.
    """

    def __init__(self, config: ChatGLMConfig, device: Any = None, empty_init: bool = True) -> None:
        super().__init__(config)
        for feature in ("quantization_bit", "pre_seq_len"):
            if getattr(config, feature, None):
                message = f"this model code has no {feature}; remove it from config.json"
                raise NotImplementedError(message)
        make = skip_init if empty_init else construct
        place = {} if device is None else {"device": device}
        dtype = config.torch_dtype
        self.embedding = make(Embedding, config, **place)
        self.rotary_pos_emb = RotaryEmbedding(config.kv_channels // 2, device=device, dtype=dtype)
        self.encoder = make(GLMTransformer, config, **place)
        self.output_layer = make(
            nn.Linear, config.hidden_size, config.padded_vocab_size, bias=False, dtype=dtype, **place
        )

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.embedding.word_embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        full_attention_mask: torch.Tensor | None = None,
        past_key_values: Past | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Return the encoder's output, sequence first.

        `attention_mask` is 0 at padding; `full_attention_mask` is what `get_masks` returns. Attention weights are
        not kept: asking for them by `output_attentions` is refused.
        `inputs_embeds` is [sequence, batch, hidden]; `input_ids` is needed for its shape even then.
        """
        if output_attentions:
            raise NotImplementedError("this model does not keep its attention weights")
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids)
        if full_attention_mask is None:
            padded = attention_mask is not None and not attention_mask.all()
            if padded or (past_key_values and input_ids.size(1) != 1):
                full_attention_mask = self.get_masks(input_ids, past_key_values, padding_mask=attention_mask)
        if position_ids is None:
            position_ids = self.get_position_ids(input_ids[:1], input_ids.device)
        table = self.rotary_pos_emb(position_ids)
        hidden, presents, states = self.encoder(
            inputs_embeds, full_attention_mask, table, past_key_values, use_cache
        )
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=presents,
            hidden_states=states if output_hidden_states else None,
        )
        wants_dict = config.use_return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel):
    """ChatGLM2 as a language model: logits, loss and step by step generation."""

    def __init__(self, config: ChatGLMConfig, empty_init: bool = True, device: Any = None) -> None:
        super().__init__(config)
        self.max_sequence_length = config.max_length
        self.transformer = ChatGLMModel(config, empty_init=empty_init, device=device)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        return_last_logit: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return logits of [batch, sequence, vocabulary], of the last position only with `return_last_logit`.

        With `labels` the loss of predicting each next token too, -100 being ignored. Other keywords go to
        `ChatGLMModel.forward`.
        """
        encoded = self.transformer(input_ids, return_dict=True, **kwargs)
        hidden = encoded.last_hidden_state
        if return_last_logit:
            hidden = hidden[-1:]
        logits = self.transformer.output_layer(hidden).transpose(0, 1).contiguous()
        loss = None
        if labels is not None:
            guesses = logits[:, :-1].float().flatten(0, 1)
            loss = functional.cross_entropy(guesses, labels[:, 1:].flatten(), ignore_index=-100)
            loss = loss.to(hidden.dtype)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=encoded.past_key_values,
            hidden_states=encoded.hidden_states,
        )
        wants_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Past | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        is_first_forward: bool = True,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the keywords of the next forward pass; after the first, only the newest token goes in."""
        if position_ids is None:
            position_ids = self.get_position_ids(input_ids, input_ids.device)
        newest = slice(None) if is_first_forward else slice(-1, None)
        return {
            "input_ids": input_ids[:, newest],
            "position_ids": position_ids[:, newest],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "return_last_logit": True,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        """Carry the cache, and one more column of mask and positions, into the next step."""
        updated = {**model_kwargs, "past_key_values": outputs.past_key_values, "is_first_forward": False}
        mask, positions = updated.get("attention_mask"), updated.get("position_ids")
        if mask is not None:
            updated["attention_mask"] = functional.pad(mask, (0, 1), value=1)
        if positions is not None:
            updated["position_ids"] = torch.cat((positions, positions[:, -1:] + 1), dim=1)
        return updated

    @staticmethod
    def _reorder_cache(past: Past, beam_idx: torch.Tensor) -> Past:
        """Return the cache with its batch rows in the order of the surviving beams."""
        return tuple(
            (key.index_select(1, beam_idx.to(key.device)), value.index_select(1, beam_idx.to(value.device)))
            for key, value in past
        )

    @torch.inference_mode()
    def stream_generate(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        max_new_tokens: int = 32,
        **model_kwargs: Any,
    ) -> Iterator[torch.Tensor]:
        """Yield the ids so far, [batch, sequence], after each likeliest next token, until all rows ended."""
        settings = generation_config or self.config
        ends = settings.eos_token_id
        ends = torch.tensor([] if ends is None else ends, device=input_ids.device).flatten()
        running = torch.ones(input_ids.size(0), dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            outputs = self(**self.prepare_inputs_for_generation(input_ids, **model_kwargs), use_cache=True)
            scores = FiniteScores()(input_ids, outputs.logits[:, -1])
            if logits_processor:
                scores = logits_processor(input_ids, scores)
            input_ids = torch.cat((input_ids, scores.argmax(dim=-1, keepdim=True)), dim=1)
            model_kwargs = self._update_model_kwargs_for_generation(outputs, model_kwargs)
            yield input_ids
            running &= ~torch.isin(input_ids[:, -1], ends)
            if not running.any() or (stopping_criteria and stopping_criteria(input_ids, scores)):
                return


class ChatGLMForSequenceClassification(ChatGLMPreTrainedModel):
    """ChatGLM2 with a linear classifier on the last position."""

    def __init__(self, config: ChatGLMConfig, empty_init: bool = True, device: Any = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ChatGLMModel(config, empty_init=empty_init, device=device)
        self.classifier_head = nn.Linear(
            config.hidden_size, config.num_labels, dtype=config.torch_dtype, device=device
        )
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Return logits of [batch, labels]; the loss is cross entropy, or squared error for one label."""
        encoded = self.transformer(input_ids, return_dict=True, **kwargs)
        logits = self.classifier_head(self.dropout(encoded.last_hidden_state[-1]))
        loss = None
        if labels is not None:
            if self.num_labels == 1:
                loss = functional.mse_loss(logits.float().squeeze(-1), labels.float())
            else:
                loss = functional.cross_entropy(logits.float(), labels)
        output = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=encoded.past_key_values,
            hidden_states=encoded.hidden_states,
        )
        wants_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()
