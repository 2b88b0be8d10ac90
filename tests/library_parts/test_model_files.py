"""The index of the library's model files, against the library's own imports."""

from __future__ import annotations

import ast

import pytest

from shardload.errors import CorruptError
from shardload.library_parts import model_files
from shardload.library_parts.release import Release, installed

from .test_importer import run

transformers = pytest.importorskip("transformers")

NAMES = (
    "LlamaForCausalLM",
    "LlamaConfig", "Qwen2Model", "BertModel", "XLMRobertaModel", "RobertaForMaskedLM", "HubertModel",
    "SiglipVisionModel", "CLIPVisionModel", "CLIPTextConfig", "WhisperForConditionalGeneration", "T5EncoderModel",
    "GPT2LMHeadModel", "GPTNeoXForCausalLM", "ASTModel",
)  # fmt: skip


def test_a_name_is_found_in_the_file_that_the_library_takes_it_from():
    for name in NAMES:
        assert f"transformers.{model_files.home_of(name)}" == getattr(transformers, name).__module__, name


def test_a_name_that_the_library_does_not_export_is_found_in_its_own_file_only():
    assert model_files.home_of("LlamaRMSNorm") is None
    assert model_files.home_of("LlamaRMSNorm", "models.llama") == "models.llama.modeling_llama"
    assert model_files.home_of("apply_rotary_pos_emb", "models.llama.modeling_llama")
    assert model_files.home_of("NoSuchModel") is None
    assert model_files.home_of("PreTrainedModel") is None


def test_the_release_is_known_without_importing_it():
    code = "from shardload.library_parts.release import installed; import sys; print(installed().version, '"
    assert run(code + "transformers' in sys.modules)").split() == [transformers.__version__, "False"]


def test_needed_files_are_those_that_the_files_import():
    needed = model_files.needed_files(["models.llama.modeling_llama"])
    assert {"models.llama.modeling_llama", "models.llama.configuration_llama"} <= set(needed)
    for module in needed:
        ast.parse(model_files.read(module))


def test_the_fingerprint_is_of_the_files_and_the_release():
    llama, bert = (model_files.fingerprint([f"models.{name}.modeling_{name}"]) for name in ("llama", "bert"))
    assert llama != bert != model_files.fingerprint([])
    assert llama == model_files.fingerprint(["models.llama.modeling_llama"])


def test_all_model_files_are_listed():
    modules = model_files.model_modules()
    release = installed()
    assert release is not None
    assert len(modules) > 400
    assert all(model_files.is_model_file(module) for module in modules)
    assert not any(
        ".auto." in module or "modular_" in module or "modeling_tf_" in module for module in modules
    )


def test_what_a_file_defines_is_what_its_syntax_tree_says():
    for module in (
        "models.llama.modeling_llama",
        "models.bert.configuration_bert",
        "cache_utils",
        "modeling_outputs",
    ):
        tree = ast.parse(model_files.read(module))
        kinds = (ast.ClassDef, ast.FunctionDef)
        top = {node.name for node in tree.body if isinstance(node, kinds)}
        top |= {
            target.id
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        every = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        every |= {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
        assert {name for name in every | top if model_files.defines(module, name)} == top


def test_a_definition_inside_a_text_is_none(monkeypatch):
    text = b'x = """\nclass A:\n"""\nclass B:\n    pass\n'
    monkeypatch.setattr(model_files, "read", lambda _module: text)
    model_files.defines.cache_clear()
    assert [model_files.defines("cache_utils", name) for name in "ABx"] == [False, True, True]
    model_files.defines.cache_clear()
    model_files._names.cache_clear()
    model_files._tree.cache_clear()


def test_a_file_that_changes_while_the_process_runs_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "installed", lambda: Release("0", tmp_path))
    (tmp_path / "changing.py").write_text("a = 1")
    assert model_files.read("changing") == b"a = 1"
    model_files.read.cache_clear()  # as where many other files were read
    assert model_files.read("changing") == b"a = 1"
    (tmp_path / "changing.py").write_text("a = 2")
    model_files.read.cache_clear()
    with pytest.raises(CorruptError, match="has changed since this process read it"):
        model_files.read("changing")
