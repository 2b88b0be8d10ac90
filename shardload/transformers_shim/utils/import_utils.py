"""`transformers.utils.import_utils`: probes for optional packages, which import none of them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@functools.lru_cache(None)
def installed(package: str) -> bool:
    """Return whether a package of that name can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _probe(package: str) -> Callable[[], bool]:
    def available(*_args: Any, **_options: Any) -> bool:
        return installed(package)

    return available


def _never(*_args: Any) -> bool:
    return False


def _always(*_args: Any) -> bool:
    return True


is_torch_available = is_torch_fx_available = is_torch_sdpa_available = is_safetensors_available = _always
is_tf_available = is_flax_available = is_jax_fx_available = is_torch_tpu_available = (
    is_torch_xla_available
) = _never
is_accelerate_available = _probe("accelerate")
is_apex_available = _probe("apex")
is_bitsandbytes_available = _probe("bitsandbytes")
is_datasets_available = _probe("datasets")
is_deepspeed_available = _probe("deepspeed")
is_einops_available = _probe("einops")
is_ninja_available = _probe("ninja")
is_optimum_available = _probe("optimum")
is_peft_available = _probe("peft")
is_protobuf_available = _probe("google.protobuf")
is_scipy_available = _probe("scipy")
is_sentencepiece_available = _probe("sentencepiece")
is_sklearn_available = _probe("sklearn")
is_tokenizers_available = _probe("tokenizers")
is_torchaudio_available = _probe("torchaudio")
is_torchvision_available = _probe("torchvision")
is_vision_available = _probe("PIL")
is_xformers_available = _probe("xformers")


def is_torch_cuda_available() -> bool:
    """Return whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def is_torch_bf16_gpu_available() -> bool:
    """Return whether the present CUDA device computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def is_torch_greater_or_equal(library_version: str, accept_dev: bool = False) -> bool:  # noqa: ARG001
    """Return whether torch is that version or newer."""
    import torch

    wanted = tuple(int(part) for part in library_version.split(".")[:2])
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= wanted


def get_torch_version() -> str:
    """Return torch's version."""
    import torch

    return str(torch.__version__)


def is_torch_npu_available(check_device: bool = False) -> bool:  # noqa: ARG001 - the name is the interface
    """Return whether torch's Ascend plug-in is installed."""
    return installed("torch_npu")


def is_torch_fx_proxy(value: Any) -> bool:
    """Return whether the value is a proxy of a torch.fx trace."""
    import torch.fx

    return isinstance(value, torch.fx.Proxy)


def is_torchdynamo_compiling() -> bool:
    """Return whether torch.compile is tracing."""
    import torch

    return torch.compiler.is_compiling()


def is_flash_attn_2_available() -> bool:
    """Return whether flash-attn 2 is installed and there is a CUDA device to run it."""
    return installed("flash_attn") and is_torch_cuda_available() and _at_least("flash_attn", (2, 1))


def is_flash_attn_greater_or_equal_2_10() -> bool:
    """Return whether flash-attn is 2.1.0 or newer."""
    return installed("flash_attn") and _at_least("flash_attn", (2, 1))


def is_flash_attn_greater_or_equal(library_version: str) -> bool:
    """Return whether flash-attn is that version or newer."""
    wanted = tuple(int(part) for part in library_version.split(".") if part.isdigit())
    return installed("flash_attn") and _at_least("flash_attn", wanted)


def _at_least(package: str, wanted: tuple[int, ...]) -> bool:
    try:
        parts = importlib.metadata.version(package).split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in parts if part.isdigit()) >= wanted


def requires_backends(obj: Any, backends: str | Sequence[str]) -> None:
    """Raise ImportError naming the packages among `backends` that are not installed."""
    names = [backends] if isinstance(backends, str) else list(backends)
    absent = [name for name in names if not installed(name)]
    if absent:
        needer = getattr(obj, "__name__", type(obj).__name__)
        raise ImportError(f"{needer} needs {', '.join(absent)}", name=absent[0])
