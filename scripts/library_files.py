"""The model files of the installed transformers, run as parts, and families of them compared with the real classes.

    python scripts/library_files.py [--files] [--families] [--only NAME ...]

Every modeling file is run as a part. Then, for each family, a tiny model of the real class is made with random weights
in float32; the part gets the same config and the same weights. Compared bit for bit: the names of the tensors, every
output of a forward pass, of a batch padded on the left, and 12 greedy tokens where the class generates (by the real
class's own `generate`, and by the stand-in's for the part).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch

import shardload  # noqa: F401 - hands the loader to the stand-in
from shardload.library_parts.front import failures
from shardload.library_parts.importer import part_module
from shardload.library_parts.model_files import home_of, model_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_shared_experts": 1, "topk_method": "greedy",
}  # fmt: skip
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
IMAGES = {"image_size": 16, "patch_size": 8, "num_channels": 3}
SOUND: dict[str, Any] = {
    "conv_dim": (16, 16), "conv_kernel": (4, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
}  # fmt: skip
WHISPER = {
    **SEQ2SEQ,
    "num_mel_bins": 8,
    "max_source_positions": 12,
    "max_target_positions": 40,
    "begin_suppress_tokens": None,
}
WHISPER |= {"suppress_tokens": None}
HEAD_DIM = {**GROUPED, "head_dim": 8}

DECODERS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": GROUPED, "MistralForCausalLM": {**GROUPED, "sliding_window": 6}, "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": HEAD_DIM, "GemmaForCausalLM": HEAD_DIM, "Gemma2ForCausalLM": {**HEAD_DIM, "sliding_window": 6},
    "Gemma3ForCausalLM": {**HEAD_DIM, "sliding_window": 6}, "PhiForCausalLM": {}, "Phi3ForCausalLM": GROUPED,
    "GPT2LMHeadModel": {}, "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "GPTNeoXForCausalLM": {}, "GPTJForCausalLM": {"rotary_dim": 4}, "BloomForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 40, "word_embed_proj_dim": 32}, "FalconForCausalLM": {},
    "MptForCausalLM": {"n_heads": 4, "n_layers": 2},
    "CodeGenForCausalLM": {"rotary_dim": 4}, "StableLmForCausalLM": {"num_key_value_heads": 4},
    "Starcoder2ForCausalLM": GROUPED, "OlmoForCausalLM": GROUPED, "Olmo2ForCausalLM": GROUPED,
    "CohereForCausalLM": GROUPED,
    "GraniteForCausalLM": GROUPED, "MixtralForCausalLM": {**GROUPED, "num_local_experts": 4},
    "Qwen2MoeForCausalLM": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3MoeForCausalLM": {**HEAD_DIM, **EXPERTS}, "DeepseekV3ForCausalLM": LATENT, "GPTBigCodeForCausalLM": {},
    "PersimmonForCausalLM": {},
    "XGLMForCausalLM": {"attention_heads": 4, "ffn_dim": 40, "num_layers": 2, "d_model": 32},
    "BioGptForCausalLM": {}, "NemotronForCausalLM": GROUPED, "GlmForCausalLM": HEAD_DIM,
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "BertModel": {}, "BertForSequenceClassification": {}, "RobertaModel": {}, "XLMRobertaModel": {},
    "AlbertModel": {"embedding_size": 16},
    "ElectraModel": {"embedding_size": 16},
    "DistilBertModel": {"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 40},
    "DebertaV2Model": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, "MPNetModel": {},
    "CamembertModel": {},
    "EsmModel": {"position_embedding_type": "rotary", "mask_token_id": 3},
    "ModernBertModel": {"global_attn_every_n_layers": 1},
    "CLIPTextModel": {}, "CLIPVisionModel": IMAGES, "SiglipVisionModel": IMAGES, "ViTModel": IMAGES,
    "Dinov2Model": IMAGES, "HubertModel": SOUND, "Wav2Vec2Model": SOUND,
}  # fmt: skip
BOTH: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": T5, "BartForConditionalGeneration": SEQ2SEQ, "MT5ForConditionalGeneration": T5,
    "WhisperForConditionalGeneration": WHISPER,
}  # fmt: skip
FAMILIES = {**DECODERS, **ENCODERS, **BOTH}
TOKENS = 12


def part_class(name: str) -> Any:
    """Return the class of the library of that name, as a part."""
    home = home_of(name)
    assert home is not None, f"the installed release has no {name}"
    return getattr(part_module(home), name)


def pair(name: str) -> tuple[Any, Any]:
    """Return the real model of a family, tiny and random, and the part with the same config and weights."""
    real_class = getattr(importlib.import_module("transformers"), name)
    settings = {**TINY, **FAMILIES[name]}
    torch.manual_seed(0)
    real = real_class(real_class.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in real.parameters():
            parameter.normal_(0, 0.2)
    part_kind = part_class(name)
    part = part_kind(part_kind.config_class(**settings)).eval()
    own, wanted = part.state_dict(), real.state_dict()
    if own.keys() != wanted.keys():
        raise AssertionError(f"other names: {sorted(own.keys() ^ wanted.keys())[:3]}")
    part.load_state_dict(wanted)
    return real, part


def inputs_of(name: str, model: Any) -> dict[str, torch.Tensor]:
    """Return a batch for a forward pass of the family; the second row of ids is padded on the left."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 200, generator=generator)}
    ids = torch.randint(4, 99, (2, 9), generator=generator)
    if model.main_input_name == "input_features":
        features = torch.randn(2, 8, 24, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :5]} if name in BOTH else {})}


def compared(name: str) -> Iterator[str]:
    """Yield what of a family's part differs from the real class; nothing where all is bit-equal."""
    real, part = pair(name)
    batch = inputs_of(name, real)
    with torch.no_grad():
        yield from (f"forward: {each}" for each in _different(real(**batch), part(**batch)))
        if "input_ids" in batch:
            mask = torch.ones_like(batch["input_ids"])
            mask[1, :3] = 0
            padded = {**batch, "attention_mask": mask}
            yield from (f"padded: {each}" for each in _different(real(**padded), part(**padded)))
        if name in DECODERS or name in BOTH:
            options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            first = {key: value for key, value in batch.items() if not key.startswith("decoder")}
            if "input_ids" in first:
                first = {**first, "attention_mask": mask}
            expected, made = real.generate(**first, **options), part.generate(**first, **options)
            if not torch.equal(expected, made):
                yield f"greedy: {expected.tolist()} and {made.tolist()}"


def _different(expected: Any, made: Any, path: str = "") -> Iterator[str]:
    """Yield the fields of an output that differ."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(made, torch.Tensor) or expected.shape != made.shape:
            yield f"{path} is another shape"
        elif not torch.equal(expected, made):
            yield f"{path} differs by {(expected - made).abs().max():.1e}"
    elif hasattr(expected, "items"):
        if list(expected) != list(made):
            yield f"{path} has {list(made)} and not {list(expected)}"
        for key in set(expected) & set(made) - {"past_key_values", "encoder_last_hidden_state"}:
            yield from _different(expected[key], made[key], f"{path}.{key}")
    elif isinstance(expected, (tuple, list)):
        for place, (one, other) in enumerate(zip(expected, made, strict=True)):
            yield from _different(one, other, f"{path}[{place}]")


def run_files(only: list[str]) -> tuple[int, dict[str, str]]:
    """Run every modeling file as a part. Return how many ran, and what the others raised."""
    ran, failed = 0, {}
    for module in model_modules():
        stem = module.rpartition(".")[2]
        if not stem.startswith("modeling_") or (only and not any(each in stem for each in only)):
            continue
        try:
            part_module(module)
            ran += 1
        except Exception as error:  # noqa: BLE001 - it is told
            failed[module] = f"{type(error).__name__}: {error}"
    return ran, failed


def main() -> int:
    """Print what ran and what is equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", action="store_true", help="only run the files")
    parser.add_argument("--families", action="store_true", help="only compare families")
    parser.add_argument("--only", nargs="*", default=[], help="parts of files' and families' names")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.process_time()
    if not options.families:
        ran, failed = run_files([each.lower() for each in options.only])
        print(
            f"{ran} of {ran + len(failed)} modeling files run as parts, {time.process_time() - started:.1f} s"
        )
        for module, error in failed.items():
            print(f"  {module}: {error.splitlines()[0]}")
    if not options.files:
        logging = importlib.import_module("transformers").logging
        logging.set_verbosity_error()
        torch.set_num_threads(1)
        names = [
            n for n in FAMILIES if not options.only or any(each.lower() in n.lower() for each in options.only)
        ]
        started, equal = time.process_time(), 0
        for name in names:
            try:
                faults = list(compared(name))
            except Exception as error:  # noqa: BLE001 - it is told
                faults = [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
                if options.only:
                    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            equal += not faults
            for fault in faults:
                print(f"  {name}: {fault[:220]}")
        print(
            f"{equal} of {len(names)} families equal the real class bit for bit, {time.process_time() - started:.1f} s"
        )
    for module, error in failures().items():
        print(f"  placeholders stand for {module}: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
