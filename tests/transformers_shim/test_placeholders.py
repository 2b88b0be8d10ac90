"""Placeholders: probes answer, classes and tables name themselves when they are used."""

from __future__ import annotations

import pytest
import torch

from shardload.errors import RemoteCodeError
from shardload.transformers_shim._placeholders import (
    is_model_base,
    is_probe,
    is_torch_probe,
    placeholder,
    probe,
)
from tests.remote_code.repos import MODEL, build, module_of, tiny


@pytest.mark.parametrize(
    "line",
    [
        "from transformers.utils import is_new_thing_available as probe",
        "from transformers.utils.import_utils import is_new_greater_or_equal_3 as probe",
        "from transformers import is_new_thing_available as probe",
        "import transformers; probe = transformers.utils.is_new_thing_available",
        "import transformers; probe = getattr(transformers.utils, 'is_new_thing_available')",
        "try:\n    from transformers.utils import is_new_thing_available as probe\nexcept ImportError:\n    probe = 1",
    ],
)
def test_an_unknown_probe_answers_not_available(tmp_path, line):
    module = module_of(build(*tiny(tmp_path, model=f"{line}\n{MODEL}")))
    assert module.probe() is False
    assert module.probe("2.0") is False
    assert not module.probe


def test_a_probe_for_a_version_of_torch_tells_the_truth(tmp_path):
    line = (
        "from transformers.pytorch_utils import is_torch_greater_or_equal_than_1_13 as old, "
        "is_torch_greater_or_equal_than_99_0 as new, is_torch_less_than_1_11 as ancient\n"
        "from transformers.utils.import_utils import is_torch_greater_or_equal as at_least\n"
    )
    module = module_of(build(*tiny(tmp_path, model=line + MODEL)))
    assert (module.old, module.new, module.ancient) == (True, False, False)
    assert module.at_least("2.1") is True
    assert module.at_least("99.1") is False


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from transformers.models.x.modeling_x import XModel", "transformers.models.x.modeling_x.XModel"),
        ("from transformers.models.x import XModel", "transformers.models.x.XModel"),
        ("from transformers import XModel", "transformers.XModel"),
        ("from transformers.modeling_utils import XModel", "transformers.modeling_utils.XModel"),
        ("from transformers.trainer import XModel", "transformers.trainer.XModel"),
        ("import transformers; XModel = transformers.XModel", "transformers.XModel"),
        (
            "import transformers.models.x.modeling_x as m; XModel = m.XModel",
            "transformers.models.x.modeling_x.XModel",
        ),
        ("import transformers; XModel = transformers.models.x.XModel", "transformers.models.x.XModel"),
    ],
)
def test_an_unknown_class_is_a_placeholder_that_names_itself(tmp_path, line, name):
    module = module_of(build(*tiny(tmp_path, model=f"{line}\nclass Mine(XModel): pass\n{MODEL}")))
    assert isinstance(module.XModel, type)
    assert not isinstance(3, module.XModel)
    assert issubclass(module.Mine, module.XModel)
    assert not hasattr(module.XModel, "some_attribute")
    for use in (module.XModel, module.Mine, lambda: module.XModel.from_pretrained("x")):
        with pytest.raises(RemoteCodeError) as caught:
            use()
        assert name in caught.value.what
        assert "remote_base='transformers'" in caught.value.cure


def test_the_error_of_a_placeholder_has_the_line_that_used_it(tmp_path):
    text = "from transformers import XModel\ndef use():\n    return XModel(3)\n"
    module = module_of(build(*tiny(tmp_path, model=text + MODEL)))
    with pytest.raises(RemoteCodeError) as caught:
        module.use()
    assert caught.value.where == f"{tmp_path / 'modeling_tiny.py'}:3"


def test_placeholders_take_part_in_annotations_and_tables(tmp_path):
    text = (
        "import abc, typing\nfrom transformers import XModel, YModel\n"
        "TABLE = {XModel: 1, YModel: 2}\nKIND = typing.Optional[typing.Union[XModel, YModel]]\n"
        "def f(x: XModel | None) -> typing.List[YModel]: ...\n"
        "class Both(XModel, abc.ABC): pass\n"
    )
    module = module_of(build(*tiny(tmp_path, model=text + MODEL)))
    assert module.TABLE[module.XModel] == 1


def test_texts_for_documentation_are_empty(tmp_path):
    line = "from transformers.models.x.modeling_x import X_INPUTS_DOCSTRING, _CONFIG_FOR_DOC\n"
    module = module_of(build(*tiny(tmp_path, model=line + MODEL)))
    assert (module.X_INPUTS_DOCSTRING, module._CONFIG_FOR_DOC) == ("", "")


@pytest.mark.parametrize(
    "use",
    [
        "'x' in TABLE",
        "TABLE['x']",
        "TABLE.get('x')",
        "list(TABLE)",
        "len(TABLE)",
        "TABLE.keys()",
        "dict(TABLE.items())",
    ],
)
def test_a_table_of_the_auto_classes_can_be_imported_and_names_itself_when_it_is_used(tmp_path, use):
    line = (
        "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TABLE\n"
        f"def use():\n    return {use}\n"
    )
    module = module_of(build(*tiny(tmp_path, model=line + MODEL)))
    with pytest.raises(RemoteCodeError, match="modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES") as caught:
        module.use()
    assert caught.value.where == f"{tmp_path / 'modeling_tiny.py'}:3"


def test_a_function_of_one_models_module_raises_when_it_is_called(tmp_path):
    line = "from transformers.models.x.modeling_x import _expand_mask\n"
    module = module_of(build(*tiny(tmp_path, model=line + MODEL)))
    with pytest.raises(RemoteCodeError, match="modeling_x._expand_mask"):
        module._expand_mask(1)


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        ("", "is_new_thing_available", "probe"),
        ("", "is_torch_greater_or_equal_than_2_1", "torch"),
        ("", "LlamaConfig", "base"),
        ("", "LlamaPreTrainedModel", "base"),
        ("models.llama", "LlamaConfig", "base"),
        ("trainer", "LlamaConfig", None),
        ("", "BitsAndBytesConfig", None),
        ("", "GenerationConfigX", None),
    ],
)
def test_what_a_name_tells_by_its_form(module, name, what):
    assert is_probe(name) == (what == "probe")
    assert is_torch_probe(name) == (what == "torch")
    assert is_model_base(module, name) == (what == "base")


@pytest.mark.parametrize("version", ["2.9.1+cu128", "2.10.0"])
def test_a_probe_for_torch_compares_numbers(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    newer = version.startswith("2.10")
    assert probe("is_torch_greater_or_equal_than_2_10") is newer
    assert probe("is_torch_less_than_2_10") is not newer
    assert probe("is_torch_greater_or_equal_than_2_9") is True
    assert probe("something_else") is None


def test_the_same_name_is_the_same_placeholder():
    assert placeholder("", "XModel") is placeholder("", "XModel")
    assert placeholder("", "XModel") is not placeholder("models.x", "XModel")
    for module, name in (("", "no_such_function"), ("", "CONSTANT"), ("utils", "lower")):
        assert placeholder(module, name) is None


def test_texts_and_tables_have_the_type_that_code_expects():
    assert placeholder("models.x", "X_START_DOCSTRING") == ""
    assert placeholder("models.x", "X_PRETRAINED_MODEL_ARCHIVE_LIST") == ()
    assert placeholder("models.x", "X_PRETRAINED_CONFIG_ARCHIVE_MAP") == {}
    with pytest.raises(RemoteCodeError, match="transformers.MODEL_MAPPING"):
        placeholder("", "MODEL_MAPPING")["x"]
