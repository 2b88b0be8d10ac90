"""What `generate` returns with `return_dict_in_generate`, under its names of all releases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardload.transformers_shim.utils.generic import ModelOutput


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Sequences, (batch, length) with the prompt; per step: scores and logits, (batch, vocabulary), and more.

    `attentions` and `hidden_states` hold a tuple of layers for each step. Values that were not asked for are None.
    """

    sequences: Any = None
    scores: Any = None
    logits: Any = None
    attentions: Any = None
    hidden_states: Any = None
    past_key_values: Any = None


@dataclass
class GenerateEncoderDecoderOutput(ModelOutput):
    """The same for a model with an encoder: the decoder's sequences, and the encoder's outputs."""

    sequences: Any = None
    scores: Any = None
    logits: Any = None
    encoder_attentions: Any = None
    encoder_hidden_states: Any = None
    decoder_attentions: Any = None
    cross_attentions: Any = None
    decoder_hidden_states: Any = None
    past_key_values: Any = None


@dataclass
class GenerateBeamDecoderOnlyOutput(GenerateDecoderOnlyOutput):
    """The same from beam search, with each sequence's score, (sequences,), and its beams, (sequences, length)."""

    sequences_scores: Any = None
    beam_indices: Any = None


@dataclass
class GenerateBeamEncoderDecoderOutput(GenerateEncoderDecoderOutput):
    """The same from beam search for a model with an encoder."""

    sequences_scores: Any = None
    beam_indices: Any = None


GreedySearchDecoderOnlyOutput = SampleDecoderOnlyOutput = GenerateDecoderOnlyOutput
ContrastiveSearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
GreedySearchEncoderDecoderOutput = SampleEncoderDecoderOutput = GenerateEncoderDecoderOutput
ContrastiveSearchEncoderDecoderOutput = GenerateEncoderDecoderOutput
BeamSearchDecoderOnlyOutput = BeamSampleDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
BeamSearchEncoderDecoderOutput = BeamSampleEncoderDecoderOutput = GenerateBeamEncoderDecoderOutput
# For annotations and isinstance.
GreedySearchOutput = SampleOutput = GenerateNonBeamOutput = GenerateOutput = ModelOutput
GenerateBeamOutput = BeamSearchOutput = BeamSampleOutput = ContrastiveSearchOutput = ModelOutput
