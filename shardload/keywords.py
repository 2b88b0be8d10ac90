"""Keywords of other loaders' from_pretrained: declined by name, with what shardload has instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import ShardloadError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

_ONE_DEVICE = "a model goes to one device: pass device=, such as device='cuda:1'"
_NO_OFFLOAD = f"{_ONE_DEVICE}; on the CPU weights stay mapped files, which the system reads and drops by need"
_NO_QUANTISING = "weights are loaded as they are stored, or cast by dtype="
_ALWAYS = "leave it out: weights are never in memory twice"
_ON_THE_CONFIG = "set it in config.json, or on the config that you pass as config="

_UNSUPPORTED = {
    "device_map": _ONE_DEVICE,
    "offload_folder": _NO_OFFLOAD,
    "offload_state_dict": _NO_OFFLOAD,
    "offload_buffers": _NO_OFFLOAD,
    "tp_plan": _ONE_DEVICE,
    "tp_size": _ONE_DEVICE,
    "device_mesh": _ONE_DEVICE,
    "load_in_8bit": _NO_QUANTISING,
    "load_in_4bit": _NO_QUANTISING,
    "quantization_config": _NO_QUANTISING,
    "gguf_file": "use a checkpoint in safetensors or torch's own format",
    "from_tf": "use a checkpoint in safetensors or torch's own format",
    "from_flax": "use a checkpoint in safetensors or torch's own format",
    "ignore_mismatched_sizes": "correct the config: a tensor of another shape is never skipped",
    "proxies": "set HTTPS_PROXY in the environment",
    "force_download": "remove the repo from the cache",
}
_OTHERWISE = {
    "torch_dtype": "pass dtype=",
    "low_cpu_mem_usage": _ALWAYS,
    "_fast_init": _ALWAYS,
    "use_safetensors": "leave it out: safetensors files are taken where there are some; name a file to choose another",
    "weights_only": "leave it out: nothing that a pickle names is ever run",
    "use_auth_token": "pass token=",
    "resume_download": "leave it out: downloads are resumed",
    "attn_implementation": _ON_THE_CONFIG,
    "use_flash_attention_2": _ON_THE_CONFIG,
    "key_mapping": "pass key_map=",
    "output_loading_info": "call report_of(model)",
    "state_dict": "build_shell and fill, or load_state_dict of the model itself",
    "adapter_kwargs": "load_adapter(model, where, …)",
}


def refuse(keywords: Collection[str], function: str) -> None:
    """Raise for keywords that `function` does not have; nothing when there are none.

    UsageError for those of other loaders that have another name here or are not needed, UnsupportedError for what
    is not built; the cure says what to pass. TypeError, as Python's own, for a name that nobody knows.
    """
    for name in keywords:
        if name in _OTHERWISE:
            raise _error(UsageError, f"{function} has no {name}=", name, _OTHERWISE[name])
        if name in _UNSUPPORTED:
            raise _error(UnsupportedError, f"{name}= is not done by this version", name, _UNSUPPORTED[name])
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def _error(kind: type[ShardloadError], what: str, name: str, cure: str) -> ShardloadError:
    return kind(what, where=f"{name}=", cure=cure)
