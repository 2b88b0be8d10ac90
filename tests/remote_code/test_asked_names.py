"""What a repo's code asks for, told without running it."""

from __future__ import annotations

import json

import pytest

from shardload.cli import run
from shardload.remote_code.asked_names import asked_names
from tests.tiny import run_python

from .repos import MODEL, tiny, write

ASKING = """
import transformers
import transformers.utils.import_utils as probes
from transformers.models.x.modeling_x import XModel, X_INPUTS_DOCSTRING
from transformers.utils import is_new_thing_available, no_such_function
from transformers.cache_utils import DynamicCache as Growing
import no_such_package, json, torch.nn
from configuration_tiny import TinyConfig as Again
try:
    from transformers.new_module import something
    import guarded_package
except ImportError:
    something = None
if transformers.is_torch_greater_or_equal_than_2_1():
    import chosen_package
def later():
    import late_package
    return transformers.Trainer, transformers.nothing_at_all, probes.is_torch_available, transformers.__version__
raise SystemExit("this must not run")
"""


def asked(tmp_path, model=ASKING):
    names, packages = asked_names(*tiny(tmp_path, model=model))
    return {name.name: name for name in names}, {package.name: package for package in packages}


def test_each_name_has_its_answer_and_its_line(tmp_path):
    names, _ = asked(tmp_path)
    assert {name: found.answer for name, found in names.items() if found.file == "modeling_tiny.py"} == {
        "transformers.utils.import_utils": "has it",
        "transformers.models.x.modeling_x.XModel": "placeholder",
        "transformers.models.x.modeling_x.X_INPUTS_DOCSTRING": "placeholder",
        "transformers.utils.is_new_thing_available": "not available",
        "transformers.utils.no_such_function": "lacks it",
        "transformers.cache_utils.DynamicCache": "has it",
        "transformers.new_module.something": "not there",
        "transformers.is_torch_greater_or_equal_than_2_1": "has it",
        "transformers.Trainer": "placeholder",
        "transformers.nothing_at_all": "lacks it",
        "transformers.utils.import_utils.is_torch_available": "has it",
    }
    assert names["transformers.PretrainedConfig"].file == "configuration_tiny.py"
    assert names["transformers.utils.no_such_function"].line == 5


def test_other_packages_are_told_with_what_guards_them(tmp_path):
    _, packages = asked(tmp_path)
    assert {name: (found.installed, found.guarded) for name, found in packages.items()} == {
        "no_such_package": (False, False),
        "guarded_package": (False, True),
        "late_package": (False, True),
        "chosen_package": (False, True),
    }


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("from transformers.utils import no_such_function", "lacks it"),
        ("from transformers.no_such_module import XModel", "lacks it"),
        ("from transformers import XModel", "placeholder"),
        ("from transformers import XConfig", "base"),
        ("from transformers import BitsAndBytesConfig", "placeholder"),
        ("from transformers.models.x.modeling_x import XPreTrainedModel", "base"),
        ("from transformers.models.x.modeling_x import a_function", "placeholder"),
        ("from transformers import is_new_thing_available", "not available"),
        ("from transformers.modeling_utils import DynamicCache", "has it"),
        ("import transformers.models.x.modeling_x", "placeholder"),
        ("import transformers.no_such_module", "lacks it"),
    ],
)
def test_the_answers_are_those_that_importing_gives(tmp_path, line, answer):
    """The listing and the importer must not disagree."""
    from shardload.errors import RemoteCodeError
    from shardload.remote_code import resolve_class
    from shardload.where import CodeTrust

    source, config = tiny(tmp_path, model=f"{line}\n{MODEL}")
    (found,) = [name for name in asked_names(source, config)[0] if name.line == 1 and "modeling" in name.file]
    assert found.answer == answer
    if answer == "lacks it":
        with pytest.raises(RemoteCodeError):
            resolve_class(source, config, CodeTrust(True, remote_base="shim"))
    else:
        assert resolve_class(source, config, CodeTrust(True, remote_base="shim")).remote_base == "shim"


def test_a_repo_without_code_asks_for_nothing(tmp_path):
    assert asked_names(*write(tmp_path, {}, {"model_type": "x"})) == ((), ())


def test_the_command_shows_it_and_runs_nothing(tmp_path, capsys):
    tiny(tmp_path, model=ASKING)
    assert run(["inspect", str(tmp_path), "--code"]) == 0
    shown = capsys.readouterr().out
    assert "transformers.utils.no_such_function" in shown
    assert "lacks it: importing the code fails" in shown
    assert "modeling_tiny.py:5" in shown
    assert "no_such_package" in shown
    assert run(["inspect", str(tmp_path), "--code", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {file["name"] for file in document["files"]} == {"configuration_tiny.py", "modeling_tiny.py"}
    assert {
        key: value
        for key, value in document["packages"][0].items()
        if key in ("name", "installed", "guarded")
    } == {"name": "no_such_package", "installed": False, "guarded": False}
    assert len(document["names"]) == 12


def test_the_command_says_when_there_is_no_code(tmp_path, capsys):
    write(tmp_path, {}, {"model_type": "x"})
    assert run(["inspect", str(tmp_path), "--code"]) == 0
    assert "no code of the repo's own" in capsys.readouterr().out


def test_the_command_needs_no_torch(tmp_path):
    tiny(tmp_path, model=ASKING)
    code = (
        "import sys\nfrom shardload.cli import run\n"
        f"assert run(['inspect', {str(tmp_path)!r}, '--code']) == 0\nassert 'torch' not in sys.modules\n"
    )
    run_python(code)
