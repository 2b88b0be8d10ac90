"""`transformers.modeling_outputs`: the outputs of models, as dataclasses that are also tuples."""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import Any

from shardload.transformers_shim.utils.generic import ModelOutput

# Fields hold tensors or tuples of tensors, whose shapes the returning class documents. Code leaves any of them out, so
# each is None by default. They are Any because a cache may be a tuple or an object.


def _output(name: str, doc: str, fields: str) -> Any:
    """Return an output class with these fields; integers and slices index it in this order."""
    body = {"__doc__": doc, "__module__": __name__}
    return make_dataclass(
        name, [(field, Any, None) for field in fields.split()], bases=(ModelOutput,), namespace=body
    )


_STATES = "hidden_states attentions"
_DECODER = "decoder_hidden_states decoder_attentions"
_ENCODER = "encoder_last_hidden_state encoder_hidden_states encoder_attentions"
_SEQ2SEQ = f"past_key_values {_DECODER} cross_attentions {_ENCODER}"
_SERIES = f"{_SEQ2SEQ} loc scale static_features"
_ROUTED = (
    "past_key_values decoder_hidden_states decoder_attentions decoder_router_logits cross_attentions "
    f"{_ENCODER} encoder_router_logits"
)

BaseModelOutput = _output("BaseModelOutput", "What an encoder returns.", f"last_hidden_state {_STATES}")
BaseModelOutputWithPooling = _output(
    "BaseModelOutputWithPooling",
    "What an encoder with a pooler returns.",
    f"last_hidden_state pooler_output {_STATES}",
)
BaseModelOutputWithPast = _output(
    "BaseModelOutputWithPast", "What a decoder returns.", f"last_hidden_state past_key_values {_STATES}"
)
BaseModelOutputWithCrossAttentions = _output(
    "BaseModelOutputWithCrossAttentions",
    "What a decoder with cross attention and without a cache returns.",
    f"last_hidden_state {_STATES} cross_attentions",
)
BaseModelOutputWithPastAndCrossAttentions = _output(
    "BaseModelOutputWithPastAndCrossAttentions",
    "What a decoder with cross attention returns.",
    f"last_hidden_state past_key_values {_STATES} cross_attentions",
)
BaseModelOutputWithPoolingAndCrossAttentions = _output(
    "BaseModelOutputWithPoolingAndCrossAttentions",
    "What a model with a pooler, a cache and cross attention returns.",
    "last_hidden_state pooler_output hidden_states past_key_values attentions cross_attentions",
)
CausalLMOutput = _output(
    "CausalLMOutput", "What a language model without a cache returns.", f"loss logits {_STATES}"
)
CausalLMOutputWithPast = _output(
    "CausalLMOutputWithPast",
    "What a causal language model returns.",
    f"loss logits past_key_values {_STATES}",
)
CausalLMOutputWithCrossAttentions = _output(
    "CausalLMOutputWithCrossAttentions",
    "What a causal language model with cross attention returns.",
    f"loss logits past_key_values {_STATES} cross_attentions",
)
MaskedLMOutput = _output("MaskedLMOutput", "What a masked language model returns.", f"loss logits {_STATES}")
Seq2SeqModelOutput = _output(
    "Seq2SeqModelOutput", "What an encoder-decoder returns.", f"last_hidden_state {_SEQ2SEQ}"
)
Seq2SeqLMOutput = _output(
    "Seq2SeqLMOutput", "What an encoder-decoder language model returns.", f"loss logits {_SEQ2SEQ}"
)
SequenceClassifierOutput = _output(
    "SequenceClassifierOutput", "What a sequence classifier returns.", f"loss logits {_STATES}"
)
SequenceClassifierOutputWithPast = _output(
    "SequenceClassifierOutputWithPast",
    "What a sequence classifier on a decoder returns.",
    f"loss logits past_key_values {_STATES}",
)
TokenClassifierOutput = _output(
    "TokenClassifierOutput", "What a token classifier returns.", f"loss logits {_STATES}"
)
QuestionAnsweringModelOutput = _output(
    "QuestionAnsweringModelOutput",
    "What an extractive question answering model returns.",
    f"loss start_logits end_logits {_STATES}",
)
BaseModelOutputWithNoAttention = _output(
    "BaseModelOutputWithNoAttention",
    "What a convolutional encoder returns.",
    "last_hidden_state hidden_states",
)
BaseModelOutputWithPoolingAndNoAttention = _output(
    "BaseModelOutputWithPoolingAndNoAttention",
    "What a convolutional encoder with a pooler returns.",
    "last_hidden_state pooler_output hidden_states",
)
BaseModelOutputWithPoolingAndProjection = _output(
    "BaseModelOutputWithPoolingAndProjection",
    "What an encoder with a pooler and a projection returns.",
    f"last_hidden_state pooler_output {_STATES} projection_state",
)
MoEModelOutput = _output(
    "MoEModelOutput",
    "What a mixture-of-experts encoder returns.",
    f"last_hidden_state {_STATES} router_probs",
)
MoeModelOutputWithPast = _output(
    "MoeModelOutputWithPast",
    "What a mixture-of-experts decoder returns.",
    f"last_hidden_state past_key_values {_STATES} router_logits",
)
MoEModelOutputWithPastAndCrossAttentions = _output(
    "MoEModelOutputWithPastAndCrossAttentions",
    "What a mixture-of-experts decoder with cross attention returns.",
    f"last_hidden_state past_key_values {_STATES} cross_attentions router_probs",
)
MoeCausalLMOutputWithPast = _output(
    "MoeCausalLMOutputWithPast",
    "What a mixture-of-experts causal language model returns.",
    f"loss aux_loss logits past_key_values {_STATES} router_logits",
)
MoECausalLMOutputWithPast = _output(
    "MoECausalLMOutputWithPast",
    "What an older mixture-of-experts causal language model returns.",
    f"loss logits past_key_values {_STATES} z_loss aux_loss router_logits",
)
Seq2SeqMoEModelOutput = _output(
    "Seq2SeqMoEModelOutput",
    "What a mixture-of-experts encoder-decoder returns.",
    f"last_hidden_state {_ROUTED}",
)
Seq2SeqMoEOutput = _output(
    "Seq2SeqMoEOutput",
    "What a mixture-of-experts encoder-decoder language model returns.",
    f"loss logits encoder_z_loss decoder_z_loss encoder_aux_loss decoder_aux_loss {_ROUTED}",
)
Seq2SeqSequenceClassifierOutput = _output(
    "Seq2SeqSequenceClassifierOutput",
    "What a classifier on an encoder-decoder returns.",
    f"loss logits {_SEQ2SEQ}",
)
Seq2SeqQuestionAnsweringModelOutput = _output(
    "Seq2SeqQuestionAnsweringModelOutput",
    "What an extractive question answering model with an encoder and a decoder returns.",
    f"loss start_logits end_logits {_SEQ2SEQ}",
)
Seq2SeqSpectrogramOutput = _output(
    "Seq2SeqSpectrogramOutput", "What an encoder-decoder for speech returns.", f"loss spectrogram {_SEQ2SEQ}"
)
Seq2SeqTSModelOutput = _output(
    "Seq2SeqTSModelOutput", "What an encoder-decoder for time series returns.", f"last_hidden_state {_SERIES}"
)
Seq2SeqTSPredictionOutput = _output(
    "Seq2SeqTSPredictionOutput", "What a forecasting encoder-decoder returns.", f"loss params {_SERIES}"
)
SampleTSPredictionOutput = _output("SampleTSPredictionOutput", "Sampled forecasts.", "sequences")
NextSentencePredictorOutput = _output(
    "NextSentencePredictorOutput", "What a next-sentence predictor returns.", f"loss logits {_STATES}"
)
MultipleChoiceModelOutput = _output(
    "MultipleChoiceModelOutput", "What a multiple-choice model returns.", f"loss logits {_STATES}"
)
SemanticSegmenterOutput = _output(
    "SemanticSegmenterOutput", "What an image segmenter returns.", f"loss logits {_STATES}"
)
ImageClassifierOutput = _output(
    "ImageClassifierOutput", "What an image classifier returns.", f"loss logits {_STATES}"
)
ImageClassifierOutputWithNoAttention = _output(
    "ImageClassifierOutputWithNoAttention",
    "What a convolutional image classifier returns.",
    "loss logits hidden_states",
)
DepthEstimatorOutput = _output(
    "DepthEstimatorOutput", "What a depth estimator returns.", f"loss predicted_depth {_STATES}"
)
ImageSuperResolutionOutput = _output(
    "ImageSuperResolutionOutput",
    "What an image super-resolution model returns.",
    f"loss reconstruction {_STATES}",
)
MaskedImageModelingOutput = _output(
    "MaskedImageModelingOutput",
    "What a masked image model returns.",
    f"loss reconstruction {_STATES}",
)
Wav2Vec2BaseModelOutput = _output(
    "Wav2Vec2BaseModelOutput",
    "What a speech encoder returns.",
    f"last_hidden_state extract_features {_STATES}",
)
XVectorOutput = _output(
    "XVectorOutput", "What a speaker encoder returns.", f"loss logits embeddings {_STATES}"
)
BackboneOutput = _output("BackboneOutput", "What a vision backbone returns.", f"feature_maps {_STATES}")
