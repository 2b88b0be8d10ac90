"""The public names, and what importing them costs."""

from __future__ import annotations

import importlib
import inspect

import shardload
from tests.tiny import run_python

NAMES = """
AccessError AdapterReport Checkpoint CorruptError Difference Examination Forecast KeyMap MemoryLimitError MergeReport
MismatchError NoInverseError NoSpaceError NotFoundError OnDevice OnDevices Progress Quantised QuantisedByTorchao
RanksError RemoteCodeError Report ShardloadError Shell Slot TensorRef UnsafeError UnsupportedError UntrustedCodeError
UsageError Verification
active_adapters adapter_batch attach_lora build_shell check convert data_parallel delete_adapter dequantised diff
disable_adapter examine fill from_pretrained inspect_adapter load_adapter load_config load_processor load_tokenizer
lora_state_dict mark_only_lora_as_trainable merge merge_to_disk open_checkpoint plan_load
prepare_model_for_int8_training prepare_model_for_kbit_training remove_device_hooks report_of
resolve_class save save_adapter set_adapter
swap_adapter trainable_parameters unmerge verify
""".split()


def test_all_is_pinned():
    assert list(shardload.__all__) == NAMES


def test_every_name_is_there_and_documented():
    for name in NAMES:
        assert inspect.getdoc(getattr(shardload, name)), name


def test_a_name_that_is_not_there_is_an_attribute_error():
    try:
        _ = shardload.nope
    except AttributeError as error:
        assert "nope" in str(error)  # noqa: PT017
    else:
        raise AssertionError


def test_no_function_is_hidden_by_a_module_of_its_name():
    """`shardload.fill` must stay a function whatever has been imported before."""
    code = """
import importlib, pkgutil, shardload
for module in pkgutil.iter_modules(shardload.__path__):
    importlib.import_module("shardload." + module.name)
print([name for name in shardload.__all__ if type(getattr(shardload, name)).__name__ == "module"])
"""
    assert run_python(code).stdout.strip() == "[]"


def test_from_pretrained_has_the_promised_keywords():
    names = list(inspect.signature(shardload.from_pretrained).parameters)
    promised = """where model_class auto_class config trust_remote_code dtype device adapter strict allow_missing
    allow_unexpected key_map copy progress revision token cache_dir local_files_only""".split()
    assert set(promised) <= set(names)
    assert names[0] == "where"


def test_errors_form_one_tree():
    errors = importlib.import_module("shardload.errors")
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert all(issubclass(kind, shardload.ShardloadError) for kind in kinds)
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert codes["UnsafeError"] == codes["CorruptError"] == codes["UntrustedCodeError"] == 4
    assert codes["MismatchError"] == 1
    assert codes["UsageError"] == codes["NotFoundError"] == 2


def test_errors_survive_pickling():
    import pickle

    error = shardload.CorruptError("cut", where="a.bin", cure="fetch it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "cut\n  where: a.bin\n  cure:  fetch it"


def test_importing_shardload_brings_in_nothing_heavy():
    code = """
import sys, shardload
heavy = {"torch", "huggingface_hub", "transformers", "tqdm", "click", "rich", "safetensors", "numpy"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_python(code).stdout.strip() == "[]"
