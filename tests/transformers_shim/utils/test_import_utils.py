"""Probes for optional packages look for them and import none."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.fx

from shardload.transformers_shim.utils import (
    import_utils,
    is_flash_attn_2_available,
    is_torch_available,
    is_torch_npu_available,
)
from shardload.transformers_shim.utils.import_utils import (
    get_torch_version,
    is_torch_fx_proxy,
    is_torch_greater_or_equal,
    is_torchdynamo_compiling,
    requires_backends,
)
from shardload.transformers_shim.utils.versions import require_version
from tests.tiny import run_python


def test_probes_look_and_do_not_import():
    assert is_torch_available() is True
    assert is_torch_npu_available() is False
    assert is_flash_attn_2_available() in (True, False)
    require_version("torch>=1.8")
    with pytest.raises(ImportError, match="no_such_thing"):
        require_version("no_such_thing>=1")


PROBES = [name for name in vars(import_utils) if name.startswith("is_") and name.endswith("_available")]
PACKAGES = {"vision": "PIL", "protobuf": "google.protobuf"}
OF_TORCH = {"torch_cuda", "torch_bf16_gpu", "torch_npu", "flash_attn_2"}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_tells_whether_the_package_is_installed(name):
    package = name.removeprefix("is_").removesuffix("_available")
    found = getattr(import_utils, name)()
    assert type(found) is bool
    if package in OF_TORCH:
        return
    try:
        wanted = importlib.util.find_spec(PACKAGES.get(package, package)) is not None
    except ModuleNotFoundError:
        wanted = False
    if package.startswith(
        ("torch_", "jax_")
    ):  # parts of torch that are there, and frameworks that are not served
        wanted = package in {"torch_fx", "torch_sdpa"}
    assert found is wanted


def test_probing_imports_nothing():
    code = (
        "import sys\nfrom shardload.transformers_shim.utils import import_utils as u\nbefore = set(sys.modules)\n"
        "for name in [n for n in vars(u) if n.startswith('is_') and n.endswith('_available')]:\n"
        "    'torch' in name or 'flash' in name or getattr(u, name)()\n"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} & {'peft', 'accelerate', 'tokenizers',\n"
        "      'PIL', 'sentencepiece', 'datasets', 'sklearn'}))\n"
    )
    assert run_python(code).stdout == "[]\n"


def test_versions_are_compared_as_numbers(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert [is_torch_greater_or_equal(version) for version in ("2.9", "2.10", "2.10.5", "2.11", "3.0")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert get_torch_version() == "2.10.1+cpu"


def test_what_lacks_is_named_all_at_once():
    class Needs:
        pass

    requires_backends(Needs, "torch")
    with pytest.raises(ImportError, match="Needs needs no_such_a, no_such_b") as caught:
        requires_backends(Needs, ["no_such_a", "torch", "no_such_b"])
    assert caught.value.name == "no_such_a"
    with pytest.raises(ImportError, match="Needs needs"):
        requires_backends(Needs(), ["no_such_a"])


def test_a_proxy_of_a_trace_is_told():
    seen = []

    def f(x):
        seen.append(is_torch_fx_proxy(x))
        return x

    torch.fx.symbolic_trace(f)
    assert seen == [True]
    assert is_torch_fx_proxy(torch.ones(1)) is False
    assert is_torchdynamo_compiling() is False
