"""The modules of the stand-in: where a name is found, and which line may go without it."""

from __future__ import annotations

import pytest

from shardload import transformers_shim as shim
from shardload.remote_code import resolve_class
from shardload.transformers_shim._module import (
    ShimModule,
    guarded_lines,
    kind_of_answer,
    known,
    placeholder_module,
)
from shardload.where import CodeTrust
from tests.remote_code.repos import MODEL, build, module_of, tiny


@pytest.mark.parametrize(
    "guarded",
    [
        "try:\n    from transformers.models.x import XModel\nexcept ImportError:\n    XModel = None\n",
        "try:\n    import transformers.models.x.modeling_x\nexcept Exception:\n    XModel = None\n",
        "try:\n    from transformers import XModel\nexcept (ImportError, RuntimeError):\n    XModel = None\n",
        "import transformers\ntry:\n    XModel = transformers.XModel\nexcept AttributeError:\n    XModel = None\n",
        "import transformers\nXModel = getattr(transformers, 'XModel', None)\n",
        "import transformers\nassert not hasattr(transformers, 'XModel')\nXModel = None\n",
        "import transformers.modeling_utils\nXModel = getattr(transformers.modeling_utils, 'XModel', None)\n",
        "try:\n    from transformers.models.x.modeling_x import *\nexcept ImportError:\n    XModel = None\n",
        "try:\n    from transformers.utils import new_function\nexcept:\n    XModel = None\n",
        "import contextlib as c\nXModel = None\nwith c.suppress(ImportError):\n    from transformers import XModel\n",
    ],
)
def test_a_guarded_name_that_is_lacking_falls_through(tmp_path, guarded):
    source, config = tiny(tmp_path, model=guarded + MODEL)
    resolved = resolve_class(source, config, CodeTrust(True))
    assert resolved.remote_base == "shim"
    model = build(source, config)
    assert module_of(model).XModel is None


@pytest.mark.parametrize(
    ("line", "home"),
    [
        ("from transformers.modeling_utils import PretrainedConfig as found", "configuration_utils"),
        ("from transformers.models.x.modeling_x import ModelOutput as found", "utils.generic"),
        ("import transformers; found = transformers.utils.Cache", "_cache"),
    ],
)
def test_a_name_is_found_wherever_releases_had_it(tmp_path, line, home):
    found = module_of(build(*tiny(tmp_path, model=f"{line}\n{MODEL}"))).found
    assert found.__module__ == f"shardload.transformers_shim.{home}"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("try:\n    a\n    b\nexcept ImportError:\n    c\n", ((2, 3),)),
        ("try:\n    a\nexcept:\n    c\n", ((2, 2),)),
        ("try:\n    a\nexcept (KeyError, Exception):\n    c\n", ((2, 2),)),
        ("try:\n    a\nexcept KeyError:\n    c\n", ()),
        ("try:\n    a\nfinally:\n    c\n", ()),
        ("import contextlib\nwith contextlib.suppress(ImportError):\n    a\n", ((2, 3),)),
        ("with open(ImportError):\n    a\n", ()),
        ("with suppress(KeyError):\n    a\n", ()),
    ],
)
def test_which_lines_may_go_without_a_name(source, lines):
    assert guarded_lines(source) == lines


@pytest.mark.parametrize(
    ("module", "name", "guarded", "found"),
    [
        ("", "PreTrainedModel", False, "has it"),
        ("modeling_utils", "PretrainedConfig", False, "has it"),
        ("utils", "generic", False, "has it"),
        ("modeling_utils", "*", False, "has it"),
        ("", "is_torch_less_than_1_11", False, "has it"),
        ("utils", "is_new_available", True, "not available"),
        ("", "XModel", True, "not there"),
        ("", "XConfig", False, "base"),
        ("", "XModel", False, "placeholder"),
        ("", "models", False, "has it"),
        ("trainer", "Trainer", False, "placeholder"),
        ("no_such", "XModel", False, "lacks it"),
        ("utils", "no_such_function", False, "lacks it"),
        ("models.x.modeling_x", "*", False, "lacks it"),
    ],
)
def test_what_code_will_get_is_told_without_running_it(module, name, guarded, found):
    assert kind_of_answer(module, name, guarded=guarded) == found


def test_our_own_code_gets_no_placeholder():
    """Placeholders are for the lines of a repo: a mistake of ours stays an AttributeError."""
    with pytest.raises(AttributeError, match="has no attribute 'XModel'"):
        _ = shim.XModel
    assert shim.PreTrainedModel is known(shim, "PreTrainedModel")
    assert known(shim, "XModel") is None
    assert type(shim.utils.generic) is ShimModule


def test_a_module_of_placeholders_is_made_once():
    made = placeholder_module("trainer")
    assert made is placeholder_module("trainer")
    assert (type(made), made.__path__) == (ShimModule, [])
