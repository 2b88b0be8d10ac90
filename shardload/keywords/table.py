"""Every known keyword, as data: which entry points take it, and what to do instead in the others."""

from __future__ import annotations

_ADAPTER = "load_adapter swap_adapter inspect_adapter"
_LOADED = "load_adapter swap_adapter"
_REPO = "load_config resolve_class load_tokenizer load_processor"
_CHECKPOINT = "from_pretrained examine open_checkpoint plan_load convert diff verify merge_to_disk"
_NO_JUDGEMENT = "leave it out: {function} does not compare a checkpoint with a model"
_FRESH = "pass it to attach_lora, which makes a new adapter"

_TABLE = (
    ("revision token cache_dir local_files_only subfolder allow_links storage_options",
     f"{_CHECKPOINT} {_REPO} {_ADAPTER}",
     "pass it to open_checkpoint(where, …), which opens the checkpoint"),
    ("variant state_dict disk", _CHECKPOINT, "pass it to open_checkpoint(where, …), which opens the checkpoint"),
    ("trust_remote_code code_revision remote_base", f"from_pretrained examine {_REPO}",
     "leave it out: {function} runs no code of a repo"),
    ("model_class", "from_pretrained examine", "leave it out: {function} builds no model"),
    ("auto_class", "from_pretrained examine resolve_class load_processor", "leave it out: {function} chooses no class"),
    ("config", "from_pretrained", "leave it out: {function} needs no config object"),
    ("shell", "check plan_load", "pass it to check, fill or plan_load, which compare it with a checkpoint"),
    ("at_most", "build_shell", "pass it to build_shell, which counts parameters"),
    ("target", "check fill", "pass it to check or fill"),
    ("dtype",
     f"build_shell from_pretrained fill load_config plan_load convert merge_to_disk attach_lora {_LOADED}",
     "leave it out: {function} changes no dtype"),
    ("float32", "convert", "leave it out: {function} asks the class itself"),
    ("device", "from_pretrained plan_load", "leave it out: {function} moves nothing to a device"),
    ("adapter", "from_pretrained plan_load examine", "call load_adapter(model, where), or merge_to_disk on files"),
    ("prefix", "from_pretrained", "pass it to from_pretrained, which makes the model for it"),
    ("merge", "from_pretrained", "call merge(model) after the load, or merge_to_disk on files"),
    ("strict", "from_pretrained fill load_adapter swap_adapter merge_to_disk", _NO_JUDGEMENT),
    ("allow_missing allow_unexpected", "from_pretrained fill", _NO_JUDGEMENT),
    ("key_map", f"from_pretrained fill check examine plan_load convert diff save {_ADAPTER}",
     "convert the checkpoint first: convert(where, folder, key_map=…)"),
    ("copy", "from_pretrained fill plan_load", "pass it to from_pretrained or fill, which read the weights"),
    ("spill", "from_pretrained fill", "pass it to from_pretrained or fill, which read the weights"),
    ("max_memory", "from_pretrained fill plan_load", "pass it to from_pretrained or fill, which read the weights"),
    ("only", "open_checkpoint", "pass it to open_checkpoint, which opens a part of a checkpoint"),
    ("quantization_config load_in_8bit load_in_4bit", "from_pretrained plan_load",
     "quantise on load: from_pretrained(…, load_in_8bit=True), or fill(…, target=Quantised(load_in_8bit=True))"),
    ("device_mesh distributed_config", "from_pretrained",
     "shard the model by torch (fully_shard, parallelize_module), then call fill"),
    ("tp_plan", "from_pretrained plan_load",
     "shard the model by torch (parallelize_module), then call fill"),
    ("device_map", "from_pretrained plan_load", "pass target=OnDevices(device_map, …) to fill"),
    ("fsdp tp", "plan_load", "pass device_mesh= to from_pretrained, which shards a model over it"),
    ("read", "from_pretrained fill", "leave it out: {function} loads no model over ranks"),
    ("timeout", "from_pretrained fill save save_adapter", "leave it out: {function} waits for no other rank"),
    ("verify", "from_pretrained fill convert merge_to_disk save save_adapter",
     "call verify(where), which hashes every file"),
    ("progress", "from_pretrained fill convert diff verify merge_to_disk save save_adapter",
     "leave it out: {function} shows no progress"),
    ("values", "diff verify", "pass it to diff or verify"),
    ("sums", "verify", "pass it to verify"),
    ("like", "examine", "pass it to examine"),
    ("base", "inspect_adapter merge_to_disk", "pass it to inspect_adapter"),
    ("max_shard_size", "save convert merge_to_disk", "leave it out: {function} writes no shards"),
    ("rounding link", "merge_to_disk", "pass it to merge_to_disk"),
    ("seed", "merge_to_disk attach_lora", "leave it out: {function} draws no random numbers"),
    ("name", "load_adapter swap_adapter save_adapter attach_lora", "leave it out: {function} names no adapter"),
    ("format", f"{_ADAPTER} convert", "leave it out: {function} finds the format in the files"),
    ("alpha", f"{_ADAPTER} merge_to_disk attach_lora", "pass it to load_adapter"),
    ("enable_lora", f"{_ADAPTER} merge_to_disk", "pass it to load_adapter"),
    ("trainable", "load_adapter", "pass it to load_adapter"),
    ("merge_on_eval", "load_adapter attach_lora", "pass it to load_adapter"),
    ("r targets dropout bias use_rslora use_dora lora_bias modules_to_save exclude", "attach_lora", _FRESH),
    ("rank_pattern alpha_pattern layers layers_pattern init", "attach_lora", _FRESH),
)  # fmt: skip

KEYWORDS = {
    keyword: (tuple(takers.split()), instead) for keywords, takers, instead in _TABLE for keyword in keywords.split()
}  # fmt: skip
"""Keyword -> (the entry points that take it, what to do instead in one that does not)."""

_WEIGHTS_ONLY = "leave it out: it chooses weight files, and {function} reads none"
_NO_WEIGHTS = {
    **dict.fromkeys(("variant", "state_dict"), _WEIGHTS_ONLY),
    "disk": "leave it out: {function} reads no weights, and small files are copied to this disk",
}
_ONE_FILE = "pass the weight file itself as where"
_ONE_STATE = "leave it out: the file of an adapter holds one"
_OF_ITS_LAYERS = "leave it out: an adapter goes to the device of its layers"

EXCEPTIONS = {
    "load_tokenizer": _NO_WEIGHTS,
    "load_processor": _NO_WEIGHTS,
    "load_config": {
        **_NO_WEIGHTS,
        "auto_class": "leave it out: a repo has one configuration class"},
    "resolve_class": {
        **_NO_WEIGHTS,
        "model_class": "leave it out: your own class needs no resolving"},
    "load_adapter": {"variant": _ONE_FILE, "state_dict": _ONE_STATE, "device": _OF_ITS_LAYERS},
    "swap_adapter": {"variant": _ONE_FILE, "state_dict": _ONE_STATE, "device": _OF_ITS_LAYERS},
    "inspect_adapter": {
        "variant": _ONE_FILE,
        "state_dict": _ONE_STATE,
        "strict": "leave it out: faults of the result lists what strict=True refuses",
    },
    "check": {"model_class": "make the model first: build_shell(lambda: YourModel(config))"},
    "fill": {
        "model_class": "make the model first: build_shell(lambda: YourModel(config))",
        "device": 'pass target=OnDevice("cuda")',
    },
    "examine": {"config": "pass model_class=lambda _: YourModel(config)"},
    "plan_load": {
        "merge": "leave it out: plan_load counts an adapter as attached",
        "spill": "leave it out: plan_load counts a load without a spill file",
        "verify": "leave it out: hashing a file takes no memory of the weights' size",
    },
    "verify": {"key_map": "leave it out: files are verified as they are stored"},
    "open_checkpoint": {"key_map": "pass it to the function that uses the checkpoint, such as fill or convert"},
    "save_adapter": {
        "key_map": "leave it out: an adapter is saved under the names of the model",
        "alpha": "leave it out: the adapter has its own",
    },
    "attach_lora": {
        "key_map": "leave it out: a new adapter has the names of the model",
        "trainable": "leave it out: a new adapter is always trainable",
    },
}  # fmt: skip
"""Entry point -> keyword -> what to do instead, where the table's general answer does not fit."""

ALIASES = {
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

UNTIL_SAID = frozenset({"torch_dtype"})
"""Synonyms whose None means in other loaders that nothing is said."""

_ANY = None
_READS = frozenset({"from_pretrained", "fill", "open_checkpoint"})
_WRITES = frozenset({"save", "convert", "save_adapter", "merge_to_disk"})
_TEXT = frozenset({"load_tokenizer", "load_processor"})
_DOWNLOADS = frozenset(f"{_CHECKPOINT} {_REPO} {_ADAPTER}".split())
_SAFETENSORS_FIRST = "safetensors files come first, and of other files nothing runs"

NO_EFFECT = {
    "low_cpu_mem_usage": (_READS, _ANY, "weights are never in memory twice", ""),
    "_fast_init": (_READS, _ANY, "weights that the checkpoint fills are not initialised", ""),
    "empty_init": (_READS, _ANY, "weights that the checkpoint fills are not initialised", ""),
    "use_safetensors": (_READS, (True, None), _SAFETENSORS_FIRST, "pass the file itself as where to choose another"),
    "weights_only": (_READS, (True,), "nothing that a pickle names is ever run", ""),
    "resume_download": (_DOWNLOADS, _ANY, "downloads are resumed", ""),
    "force_download": (_DOWNLOADS, (False, None), "files of the cache are used", "remove the repo from the cache"),
    "safe_serialization": (_WRITES, (True, None), "safetensors files are written", ""),
    "use_fast": (_TEXT, _ANY, "the class that the repo names is used, else tokenizer.json", ""),
}  # fmt: skip
"""Keywords of other loaders that change nothing here -> (the entry points, the values, why, what to do otherwise)."""

NOT_NEEDED = {
    "pretrained_model_name_or_path": "help(shardload.{function}) says how a checkpoint is passed",
    "use_flash_attention_2": "pass attn_implementation='flash_attention_2' to from_pretrained",
    "output_loading_info": "call report_of(model)",
    "adapter_kwargs": "call load_adapter(model, where, …)",
}
"""Keywords of other loaders that are done in another way here -> how."""

_NO_OFFLOAD = "leave it out: with device_map= the disk means mapped files, and spill= is the folder for casts"
_OTHER_FORMAT = "use a checkpoint in safetensors or torch's own format"

NOT_BUILT = {
    "tp_size": "pass device_mesh=init_device_mesh(…) to from_pretrained, or distributed_config=dict(tp_size=…)",
    **dict.fromkeys(("offload_folder", "offload_state_dict", "offload_buffers"), _NO_OFFLOAD),
    "gguf_file": "pass the file itself: from_pretrained('model.gguf', dtype='bfloat16')",
    **dict.fromkeys(("from_tf", "from_flax"), _OTHER_FORMAT),
    "ignore_mismatched_sizes": "correct the config: a tensor of another shape is never skipped",
    "proxies": "set HTTPS_PROXY in the environment",
    "push_to_hub": "write to a folder, and upload it with huggingface_hub",
}
"""Keywords of other loaders that this version does not do -> what to do instead."""
