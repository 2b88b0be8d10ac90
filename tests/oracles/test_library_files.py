"""A slice of `scripts/library_files.py`: files of the library run as parts, and families equal to the real classes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")


def script():
    """Return the script as a module."""
    path = Path(__file__).parents[2] / "scripts" / "library_files.py"
    spec = importlib.util.spec_from_file_location("library_files", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["library_files"] = module
    spec.loader.exec_module(module)
    return module


FILES = script()
FAMILIES = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "FalconForCausalLM",
    "BertModel", "CLIPVisionModel", "SiglipVisionModel", "HubertModel", "WhisperForConditionalGeneration",
    "T5ForConditionalGeneration",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_bit_equal_to_the_real_class(name):
    assert list(FILES.compared(name)) == []


def test_files_of_many_kinds_run_as_parts():
    ran, failed = FILES.run_files(["_gpt", "_deepseek", "_qwen", "_vit", "_mamba", "_detr", "_wav2vec2"])
    assert failed == {}
    assert ran > 30
