"""Every keyword that is known, as data: which entry points take it, and what to do instead in the others."""

from __future__ import annotations

_REPO = ("load_config", "resolve_class", "load_tokenizer")
_ADAPTER = ("load_adapter", "swap_adapter", "inspect_adapter")
_CHECKPOINT = (
    "open_checkpoint",
    "plan_load",
    "convert",
    "diff",
    "verify",
    "merge_to_disk",
    "from_pretrained",
    "examine",
)
_RUNS_CODE = ("from_pretrained", "examine", *_REPO)
_FILLS = ("from_pretrained", "fill")

_OPENED = "name it where the checkpoint is opened: open_checkpoint(where, …)"
_NO_CODE = "leave it out: {function} runs none of a repo's code"
_NO_CLASS = "leave it out: {function} builds no model"
_AT_THE_LOAD = "pass it to from_pretrained or fill, which read the weights"
_NO_JUDGEMENT = "leave it out: {function} compares no checkpoint with a model"
_OF_ADAPTERS = "pass it to load_adapter"
_FRESH = "pass it to attach_lora, which makes a new adapter"

KEYWORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "revision": ((*_CHECKPOINT, *_REPO, *_ADAPTER), _OPENED),
    "token": ((*_CHECKPOINT, *_REPO, *_ADAPTER), _OPENED),
    "cache_dir": ((*_CHECKPOINT, *_REPO, *_ADAPTER), _OPENED),
    "local_files_only": ((*_CHECKPOINT, *_REPO, *_ADAPTER), _OPENED),
    "subfolder": ((*_CHECKPOINT, *_REPO, *_ADAPTER), _OPENED),
    "allow_links": ((*_CHECKPOINT, *_REPO, *_ADAPTER), _OPENED),
    "variant": (_CHECKPOINT, _OPENED),
    "trust_remote_code": (_RUNS_CODE, _NO_CODE),
    "code_revision": (_RUNS_CODE, _NO_CODE),
    "remote_base": (_RUNS_CODE, _NO_CODE),
    "model_class": (("from_pretrained", "examine"), _NO_CLASS),
    "auto_class": (("from_pretrained", "examine", "resolve_class"), "leave it out: {function} chooses no class"),
    "config": (("from_pretrained",), "leave it out: {function} takes no config of the caller"),
    "at_most": (("build_shell",), "leave it out: it limits what build_shell makes"),
    "target": (("fill",), "leave it out: fill takes a target of the caller"),
    "dtype": (
        ("from_pretrained", "load_config", "plan_load", "convert", "merge_to_disk", "load_adapter", "swap_adapter",
         "attach_lora"),
        "leave it out: {function} keeps every dtype as it is",
    ),
    "device": (("from_pretrained", "plan_load"), "leave it out: {function} places nothing on a device"),
    "adapter": (
        ("from_pretrained", "plan_load", "examine"),
        "call load_adapter(model, where), or merge_to_disk, for an adapter",
    ),
    "merge": (("from_pretrained",), "call merge(model) after the load, or merge_to_disk"),
    "strict": ((*_FILLS, "load_adapter", "swap_adapter", "merge_to_disk"), _NO_JUDGEMENT),
    "allow_missing": (_FILLS, _NO_JUDGEMENT),
    "allow_unexpected": (_FILLS, _NO_JUDGEMENT),
    "key_map": (
        (*_FILLS, "check", "plan_load", "convert", "diff", "save", *_ADAPTER),
        "apply it on disk first: convert(where, folder, key_map=…)",
    ),
    "copy": ((*_FILLS, "plan_load"), _AT_THE_LOAD),
    "spill": (_FILLS, _AT_THE_LOAD),
    "max_memory": (_FILLS, _AT_THE_LOAD),
    "verify": ((*_FILLS, "convert", "merge_to_disk"), "call verify(where), which hashes every file"),
    "progress": (
        (*_FILLS, "convert", "diff", "verify", "merge_to_disk"), "leave it out: {function} shows no progress"
    ),
    "values": (("diff", "verify"), "diff and verify read values with values=True"),
    "sums": (("verify",), "verify(where, sums=…) compares files with a list of hashes"),
    "like": (("examine",), "examine(where, like=…) compares keys and shapes"),
    "base": (("inspect_adapter", "merge_to_disk"), "inspect_adapter(where, base) compares an adapter with a base"),
    "max_shard_size": (("save", "convert", "merge_to_disk"), "leave it out: {function} writes no shards"),
    "rounding": (("merge_to_disk",), "merge_to_disk chooses how merged values are rounded"),
    "link": (("merge_to_disk",), "merge_to_disk links shards that stay as they are"),
    "seed": (("merge_to_disk", "attach_lora"), "leave it out: nothing in {function} is drawn at random"),
    "name": (
        ("load_adapter", "swap_adapter", "save_adapter", "attach_lora"), "leave it out: {function} names no adapter"
    ),
    "format": (_ADAPTER, "leave it out: {function} tells the format from the files"),
    "alpha": ((*_ADAPTER, "merge_to_disk", "attach_lora"), _OF_ADAPTERS),
    "enable_lora": ((*_ADAPTER, "merge_to_disk"), _OF_ADAPTERS),
    "trainable": (("load_adapter",), _OF_ADAPTERS),
    "merge_on_eval": (("load_adapter", "attach_lora"), _OF_ADAPTERS),
    **dict.fromkeys(
        ("r", "targets", "dropout", "bias", "use_rslora", "use_dora", "lora_bias", "modules_to_save", "rank_pattern",
         "alpha_pattern", "exclude", "layers", "layers_pattern", "init"),
        (("attach_lora",), _FRESH),
    ),
}  # fmt: skip
"""Keyword -> (the entry points that take it, what to do instead in one that does not)."""

EXCEPTIONS = {
    (
        "variant",
        "load_config",
    ): "leave it out: it names weight files, and load_config reads config.json alone",
    ("variant", "resolve_class"): "leave it out: it names weight files, and resolve_class reads none",
    ("variant", "load_tokenizer"): "leave it out: it names weight files, and a tokenizer has none",
    ("variant", "load_adapter"): "pass the adapter's weight file itself as where",
    ("variant", "swap_adapter"): "pass the adapter's weight file itself as where",
    ("variant", "inspect_adapter"): "pass the adapter's weight file itself as where",
    ("model_class", "resolve_class"): "leave it out: a class of your own needs no resolving",
    ("model_class", "fill"): "build_shell(lambda: YourModel(config)) makes what fill takes",
    ("model_class", "check"): "build_shell(lambda: YourModel(config)) makes what check takes",
    ("config", "examine"): "pass model_class=lambda _: YourModel(config)",
    ("auto_class", "load_config"): "leave it out: a repo has one configuration class",
    ("dtype", "fill"): "pass target=OnDevice(dtype=torch.bfloat16)",
    (
        "dtype",
        "build_shell",
    ): "choose it where the weights come: from_pretrained(dtype=…) or fill(target=OnDevice(dtype=…))",
    ("device", "fill"): 'pass target=OnDevice("cuda")',
    ("device", "load_adapter"): "leave it out: an adapter goes to the device of its layers",
    ("device", "swap_adapter"): "leave it out: an adapter goes to the device of its layers",
    ("merge", "plan_load"): "leave it out: plan_load states an adapter that stays attached",
    ("spill", "plan_load"): "leave it out: plan_load states a load without a spill file",
    ("max_memory", "plan_load"): "leave it out: compare your limit with peak_anon of the result",
    (
        "verify",
        "plan_load",
    ): "leave it out: hashing reads each file once more and adds no memory of the weights' size",
    ("config", "plan_load"): "leave it out: plan_load builds no model",
    (
        "key_map",
        "examine",
    ): "leave it out: examine finds a map that cures; check(shell, checkpoint, key_map) tries one",
    ("key_map", "verify"): "leave it out: files are verified as they are stored",
    (
        "key_map",
        "open_checkpoint",
    ): "pass it to what uses the checkpoint: fill, check, plan_load, convert or diff",
    ("key_map", "save_adapter"): "leave it out: an adapter is saved under the names of the model",
    ("key_map", "attach_lora"): "leave it out: a new adapter has the names of the model",
    ("trainable", "attach_lora"): "leave it out: a new adapter is made to be trained",
    ("alpha", "save_adapter"): "leave it out: the adapter's own is written",
    ("strict", "inspect_adapter"): "leave it out: what strict=True would refuse is listed in faults",
}
"""(Keyword, entry point) -> what to do instead, where the table's general answer does not fit."""

ALIASES = {
    "pretrained_model_name_or_path": "where",
    "torch_dtype": "dtype",
    "use_auth_token": "token",
    "key_mapping": "key_map",
    "adapter_name": "name",
    "is_trainable": "trainable",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "exclude_modules": "exclude",
    "layers_to_transform": "layers",
    "init_lora_weights": "init",
}
"""Keywords of other loaders -> the same thing here."""

_ALWAYS = "leave it out: weights are never in memory twice"
_ON_THE_CONFIG = "set it in config.json, or on the config that from_pretrained takes as config="

NOT_NEEDED = {
    "pretrained_model_name_or_path": "name the checkpoint as help(shardload.{function}) shows",
    "low_cpu_mem_usage": _ALWAYS,
    "_fast_init": _ALWAYS,
    "use_safetensors": "leave it out: safetensors files are taken where there are some; name a file to choose another",
    "safe_serialization": "leave it out: what is written is always safetensors",
    "weights_only": "leave it out: nothing that a pickle names is ever run",
    "resume_download": "leave it out: downloads are resumed",
    "attn_implementation": _ON_THE_CONFIG,
    "use_flash_attention_2": _ON_THE_CONFIG,
    "output_loading_info": "call report_of(model)",
    "state_dict": "build_shell and fill, or load_state_dict of the model itself",
    "adapter_kwargs": "load_adapter(model, where, …)",
}
"""Keywords of other loaders that are done in another way here -> how."""

_ONE_DEVICE = "a model goes to one device: from_pretrained takes device=, such as device='cuda:1'"
_NO_OFFLOAD = f"{_ONE_DEVICE}; on the CPU weights stay mapped files, which the system reads and drops by need"
_NO_QUANTISING = "weights are loaded as they are stored, or cast by dtype="
_OTHER_FORMAT = "use a checkpoint in safetensors or torch's own format"

NOT_BUILT = {
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
    "gguf_file": _OTHER_FORMAT,
    "from_tf": _OTHER_FORMAT,
    "from_flax": _OTHER_FORMAT,
    "ignore_mismatched_sizes": "correct the config: a tensor of another shape is never skipped",
    "proxies": "set HTTPS_PROXY in the environment",
    "force_download": "remove the repo from the cache",
    "push_to_hub": "write to a folder, and upload it with huggingface_hub",
}
"""Keywords of other loaders that this version does not do -> what to do instead."""
