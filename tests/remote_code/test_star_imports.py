"""`from torch… import *` brought names of typing along in the releases that published code was written for."""

from __future__ import annotations

import builtins
import typing

import pytest
import torch

from shardload.errors import RemoteCodeError
from tests.remote_code.repos import MODEL, build, module_of, tiny

# Of str, as `from torch import *` brings torch's int along, which Python 3.10 takes for no type.
USES = "\ndef sizes(x: List[str], y: Optional[Tuple[str, ...]] = None) -> Union[str, Dict[str, Any]]: ...\n"


@pytest.mark.parametrize("home", ["torch.nn.functional", "torch.nn.modules.activation", "torch"])
def test_names_that_torch_no_longer_exports_are_found(tmp_path, home):
    model = build(*tiny(tmp_path, model=f"from {home} import *\n{MODEL}{USES}"))
    hints = module_of(model).sizes.__annotations__
    assert hints["x"] == typing.List[str]  # noqa: UP006
    assert "List" not in vars(builtins)


def test_what_the_code_says_itself_goes_first(tmp_path):
    own = "List = dict\nfrom torch.nn.functional import *\ndef sizes(x: List[int, int]): ...\n"
    model = build(*tiny(tmp_path, model=own + MODEL))
    assert module_of(model).sizes.__annotations__["x"] == dict[int, int]


def test_a_module_without_a_star_import_gets_nothing(tmp_path):
    other = "from torch.nn.functional import *\n"
    with pytest.raises(RemoteCodeError, match="name 'List' is not defined"):
        build(*tiny(tmp_path, model=f"from .other import x\n{MODEL}{USES}", other_py=other + "x = 1\n"))
    with pytest.raises(RemoteCodeError, match="name 'List' is not defined"):
        build(*tiny(tmp_path / "math", model=f"from math import *\n{MODEL}{USES}"))


def test_all_of_transformers_is_what_the_code_reads_of_it(tmp_path):
    code = "from torch import nn\nfrom transformers import *\n" + MODEL.split("\n\n", 1)[1]
    code += "\nclass Other(BertPreTrainedModel): pass\nKIND, TASKS = BertModel, glue_processors\nTASKS.update(x=1)\n"
    code = code.replace("CausalLMOutputWithPast(logits=", "dict(logits=")
    module = module_of(build(*tiny(tmp_path, model="import torch\n" + code), remote_base="shim"))
    assert module.KIND.__name__ == "BertModel"
    assert module.nn is torch.nn
