"""A name that the stand-in for transformers lacks."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys

import pytest

from shardload.errors import RemoteCodeError, UnsupportedError
from shardload.remote_code import load_config, resolve_class
from shardload.transformers_shim._missing import (
    MissingAttributeError,
    MissingFromShimError,
    is_lacking,
    lacking,
    later_class,
    with_choices,
)
from shardload.transformers_shim.modeling_utils import PreTrainedModel
from shardload.where import CodeTrust
from tests.remote_code.repos import CONFIG, MODEL, build, module_of, tiny, write

without = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is not None,
    reason="transformers is installed: it serves the repo",
)
LACKING = "from transformers.dynamic_module_utils import get_class_in_module\n"


@without
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from transformers.no_such.thing import X", "transformers.no_such.thing"),
        ("from transformers.utils import no_such_function", "transformers.utils.no_such_function"),
        ("from transformers import no_such_function", "transformers.no_such_function"),
        ("from transformers.models.x.modeling_x import *", "transformers.models.x.modeling_x.*"),
        ("from transformers.trainer import *", "transformers.trainer.*"),
        ("import transformers.no_such", "transformers.no_such"),
        ("import transformers; transformers.no_such", "transformers.no_such"),
        ("import transformers; transformers.modeling_utils.lacking", "transformers.modeling_utils.lacking"),
        ("from transformers import NO_SUCH_CONSTANT", "transformers.NO_SUCH_CONSTANT"),
        ("import importlib; importlib.import_module('transformers.no_such')", "transformers.no_such"),
    ],
)
def test_an_unguarded_function_or_module_is_named_with_its_line_and_the_choices(tmp_path, line, name):
    source, config = tiny(tmp_path, model=f"import os\n{line}\n{MODEL}")
    with pytest.raises(RemoteCodeError) as caught:
        build(source, config)
    assert f"asks for {name}, which" in caught.value.what
    assert caught.value.where == f"{tmp_path / 'modeling_tiny.py'}:2"
    assert "pip install transformers" in caught.value.cure
    assert "model_class=" in caught.value.cure


@without
def test_a_name_that_a_constructor_asks_for_is_named(tmp_path):
    model = MODEL.replace("super().__init__(config)", f"super().__init__(config)\n        {LACKING}")
    source, config = tiny(tmp_path, model=model)
    with pytest.raises(RemoteCodeError, match="dynamic_module_utils") as caught:
        build(source, config)
    assert caught.value.where.startswith(str(tmp_path / "modeling_tiny.py"))


def test_the_installed_transformers_serves_the_whole_repo_config_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, config = tiny(tmp_path, model=LACKING + MODEL)
    loaded = load_config(source, {**config, "hidden_size": 6}, CodeTrust(True))
    assert not isinstance(loaded.config, transformers.PretrainedConfig)  # the model code has not been run yet
    resolved = resolve_class(source, config, CodeTrust(True))
    assert resolved.remote_base == "transformers"
    assert "transformers 5" in resolved.origin
    model = resolved.make(loaded.config)
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model.config, transformers.PretrainedConfig)
    assert type(model.config) is type(model).config_class
    assert model.config.hidden_size == model.linear.in_features == 6
    # From then on the config comes from it at once.
    again = load_config(source, config, CodeTrust(True))
    assert isinstance(again.config, transformers.PretrainedConfig)


def test_a_lacking_name_in_the_config_file_hands_over_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, config = tiny(tmp_path, config=LACKING + CONFIG)
    loaded = load_config(source, config, CodeTrust(True))
    assert isinstance(loaded.config, transformers.PretrainedConfig)
    resolved = resolve_class(source, config, CodeTrust(True))
    assert resolved.remote_base == "transformers"
    assert isinstance(resolved.make(loaded.config), transformers.PreTrainedModel)


def test_a_lacking_name_in_the_configs_constructor_hands_over_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    asking = "self.hidden_size = hidden_size"
    source, config = tiny(tmp_path, config=CONFIG.replace(asking, f"{LACKING.strip()}; {asking}"))
    loaded = load_config(source, config, CodeTrust(True))
    assert isinstance(loaded.config, transformers.PretrainedConfig)


def test_a_name_that_a_constructor_asks_for_hands_over(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = MODEL.replace("super().__init__(config)", f"super().__init__(config)\n        {LACKING}")
    source, config = tiny(tmp_path, model=model)
    loaded = load_config(source, config, CodeTrust(True))
    resolved = resolve_class(source, config, CodeTrust(True))
    assert resolved.remote_base == "shim"
    assert isinstance(resolved.make(loaded.config), transformers.PreTrainedModel)
    assert resolved.remote_base == "transformers"


def test_a_placeholder_that_a_constructor_uses_hands_over_to_a_part(tmp_path):
    pytest.importorskip("transformers")
    model = MODEL.replace("nn.Linear(", "LlamaRMSNorm(4); self.linear = nn.Linear(")
    line = "from transformers.models.llama.modeling_llama import LlamaRMSNorm\n"
    source, config = tiny(tmp_path, model=line + model)
    loaded = load_config(source, config, CodeTrust(True))
    resolved = resolve_class(source, config, CodeTrust(True))
    assert resolved.remote_base == "shim"
    assert isinstance(resolved.make(loaded.config), PreTrainedModel)
    assert resolved.remote_base == "parts"


def test_a_class_of_which_there_is_the_name_only_hands_over(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = MODEL.replace("self.linear =", "QuantizedCache(config); self.linear =")
    source, config = tiny(tmp_path, model="from transformers import QuantizedCache\n" + model)
    config |= {"num_hidden_layers": 1}
    loaded = load_config(source, config, CodeTrust(True))
    resolved = resolve_class(source, config, CodeTrust(True))
    with contextlib.suppress(RemoteCodeError):  # what the real one says about this config is its own affair
        resolved.make(loaded.config)
    assert resolved.remote_base == "transformers"
    assert transformers.QuantizedCache is not None


def test_a_name_that_neither_has_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    source, config = tiny(tmp_path, model="from transformers import no_such_thing_at_all\n" + MODEL)
    with pytest.raises(RemoteCodeError, match="no_such_thing_at_all") as caught:
        build(source, config)
    assert caught.value.where == f"{tmp_path / 'modeling_tiny.py'}:1"


def test_a_module_that_neither_has_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    source, config = tiny(tmp_path, model="import transformers.no_such\n" + MODEL)
    with pytest.raises(RemoteCodeError, match="does not fit the installed transformers.*no_such"):
        build(source, config)


def test_the_shim_serves_with_transformers_installed_and_does_not_import_it(tmp_path):
    pytest.importorskip("transformers")
    tiny(tmp_path)
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom tests.remote_code.repos import build, local\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "build(local(folder), json.loads((folder / 'config.json').read_text()))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["AutoTokenizer", "AutoModel"])
def test_names_that_arrive_later_can_be_inherited_and_say_so_when_used(tmp_path, name):
    text = f"from transformers import {name}\nclass Mine({name}): pass\nclass M:\n    def __init__(self, c): pass\n"
    module = module_of(build(*write(tmp_path, {"main.py": text}, {"auto_map": {"AutoModel": "main.M"}})))
    assert issubclass(module.Mine, getattr(module, name))
    with pytest.raises(UnsupportedError, match=f"{name}.*is not implemented"):
        module.Mine()


def test_an_error_says_itself_that_a_name_is_lacking():
    for kind, also in ((MissingFromShimError, ImportError), (MissingAttributeError, AttributeError)):
        error = lacking(kind, "transformers.x.Y")
        assert isinstance(error, (also, RemoteCodeError))
        assert (error.code, is_lacking(error)) == ("E-SHIM", True)
        assert "asks for transformers.x.Y" in error.what
    assert not is_lacking(ImportError("x"))
    assert not is_lacking(AttributeError("x", name="y", obj=3))


def test_python_s_own_error_about_our_module_is_told_with_the_choices():
    from shardload.transformers_shim import modeling_utils

    error = AttributeError("no", name="Thing", obj=modeling_utils)
    assert is_lacking(error)
    told = with_choices(error, "modeling.py:3", "transformers 4.41.0")
    assert "asks for transformers.modeling_utils.Thing" in told.what
    assert told.where == "modeling.py:3"
    assert "pip install transformers==4.41.0" in told.cure


def test_a_class_by_name_only_can_be_inherited_and_not_made():
    kind = later_class("Thing", "somewhere")
    mine = type("Mine", (kind,), {})
    mine.register_for_auto_class("AutoModel")
    assert (mine._auto_class, kind.__module__) == ("AutoModel", "somewhere")
    for use in (mine, lambda: mine.from_pretrained("x")):
        with pytest.raises(UnsupportedError, match="Thing.*used by Mine"):
            use()
