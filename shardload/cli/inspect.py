"""`shardload inspect`: what a checkpoint holds, from its headers alone. Never imports torch."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.adapter_view import is_adapter
from shardload.cli.adapter_view import show as show_adapter
from shardload.cli.options import json_option, source_keywords, source_options
from shardload.cli.tree import TensorGroup, build_tree, group_tensors, walk
from shardload.keymap import Derived, leaves
from shardload.tensor_ref import TORCH_NAMES, TensorRef
from shardload.where import Where

if TYPE_CHECKING:
    from shardload.checkpoint.checkpoint import Checkpoint

_FIELDS = {
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "key heads": ("num_key_value_heads", "multi_query_group_num"),
    "vocabulary": ("padded_vocab_size", "vocab_size"),
    "positions": ("max_position_embeddings", "seq_length", "max_sequence_length", "n_positions"),
    "dtype": ("dtype", "torch_dtype"),
}

EXAMPLES = """\b
Examples:
  shardload inspect ./chatglm2-6b
  shardload inspect ./model.safetensors --tensors
  shardload inspect ./chatglm2-6b --code
  shardload inspect THUDM/chatglm2-6b@main --json
  shardload inspect ./my-lora --base ./chatglm2-6b
"""


@click.command("inspect", epilog=EXAMPLES, short_help="Show what a checkpoint holds, from its headers.")
@click.argument("where")
@click.option("--tensors", "list_all", is_flag=True, help="List every tensor instead of the module tree.")
@click.option(
    "--code", "of_code", is_flag=True, help="Show what the repo's code imports from transformers instead."
)
@click.option("--base", metavar="BASE", help="WHERE is an adapter: show how it fits this base checkpoint.")
@click.option("--alpha", type=float, help="lora_alpha of an adapter whose file does not hold it.")
@source_options
@json_option
def command(where: str, list_all: bool, of_code: bool, as_json: bool, **options: Any) -> None:
    """Show what a checkpoint holds: modules, shapes, dtypes, sizes, shards, config.

    WHERE is a folder, a checkpoint file, or org/name[@revision] on the Hub, of which only headers are fetched. Of an
    adapter it shows format, rank, scale, variants, and what would keep it from loading (then it exits with 1).
    """
    base, alpha = options.pop("base"), options.pop("alpha")
    if base is not None or alpha is not None or is_adapter(where, options["subfolder"]):
        show_adapter(Where(where, **source_keywords(options)), base, alpha, as_json=as_json)
        return
    if of_code:
        from shardload.cli.code_view import show

        show(Where(where, **source_keywords(options)), as_json=as_json)
        return
    from shardload.checkpoint.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(where, **source_keywords(options))
    if as_json:
        output.say_json(_document(checkpoint, list_all=list_all))
        return
    lines = _summary(checkpoint)
    lines += ["", *(_tensor_lines(checkpoint) if list_all else _tree_lines(checkpoint))]
    if len(checkpoint.shards) > 1:
        lines += ["", *_shard_lines(checkpoint)]
    output.say("\n".join(lines))
    for warning in checkpoint.warnings:
        output.tell(f"warning: {warning}")


def config_summary(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return what `config.json` says about the model: its class and where it comes from, type and sizes."""
    if not config:
        return {}
    summary: dict[str, Any] = {}
    auto_map, architectures = config.get("auto_map"), config.get("architectures")
    if isinstance(auto_map, dict):
        summary["auto_map"] = {str(key): value for key, value in auto_map.items()}
    if isinstance(architectures, list):
        summary["architectures"] = architectures
    if "model_type" in config:
        summary["model type"] = config["model_type"]
    for label, names in _FIELDS.items():
        for name in names:
            if config.get(name) is not None:
                summary[label] = config[name]
                break
    quantisation = config.get("quantization_config")
    if isinstance(quantisation, dict):
        summary["quantisation"] = quantisation.get("quant_method", "yes")
    return summary


def _dtypes(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    counts: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for ref in checkpoint.tensors.values():
        counts[ref.dtype] += 1
        nbytes[ref.dtype] += ref.nbytes
    return {
        _dtype_name(code): {"tensors": counts[code], "nbytes": size} for code, size in nbytes.most_common()
    }


def _dtype_name(code: str) -> str:
    return TORCH_NAMES.get(code, code)


def _summary(checkpoint: Checkpoint) -> list[str]:
    shards = f"{len(checkpoint.shards)} shard" + "s" * (len(checkpoint.shards) != 1)
    index = f", {checkpoint.index}" if checkpoint.index else ""
    elements = sum(ref.numel for ref in checkpoint.tensors.values())
    nbytes = sum(ref.nbytes for ref in checkpoint.tensors.values())
    size = output.size_of(nbytes)
    rows = [
        ("format", f"{checkpoint.format}, {shards}{index}"),
        ("weights", f"{size} in {len(checkpoint.tensors):,} tensors, {elements:,} elements"),
    ]
    dtypes = _dtypes(checkpoint)
    if len(dtypes) > 1:
        parts = [f"{name} {output.size_of(entry['nbytes'])}" for name, entry in dtypes.items()]
        rows.append(("dtypes", ", ".join(parts)))
    elif dtypes:
        rows.append(("dtype", next(iter(dtypes))))
    rows += _config_rows(config_summary(checkpoint.config))
    told = {key: value for key, value in checkpoint.metadata.items() if key != "gguf"}
    if told:
        rows.append(("metadata", ", ".join(f"{key}={value}" for key, value in told.items())))
    if "gguf" in checkpoint.metadata:
        types = Counter(json.loads(checkpoint.metadata["gguf"])["types"].values())
        rows.append(
            ("packed", ", ".join(f"{count:,} {kind}" for kind, count in types.most_common()) or "nothing")
        )
    if checkpoint.objects:
        rows.append(("objects", ", ".join(checkpoint.objects) + " (not tensors)"))
    title = output.paint(output.escape(checkpoint.label), bold=True)
    return [title, *(f"  {label:<9} {output.escape(value)}" for label, value in rows)]


def _config_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    auto_map = summary.pop("auto_map", None)
    architectures = summary.pop("architectures", None)
    if auto_map:
        by_class: dict[str, list[str]] = {}
        for name, reference in auto_map.items():
            by_class.setdefault(str(reference), []).append(name)
        for reference, names in by_class.items():
            rows.append(("auto_map" if not rows else "", f"{reference}  ({', '.join(names)})"))
    elif architectures:
        rows.append(("class", ", ".join(map(str, architectures))))
    if summary:
        rows.append(("config", ", ".join(f"{label} {value}" for label, value in summary.items())))
    return rows


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _tree_lines(checkpoint: Checkpoint) -> list[str]:
    groups = group_tensors(checkpoint.tensors)
    codes = {group.dtype for group in groups}
    rows = [("module", "tensors", "size", "shape", "dtype")]
    modules = set()
    for depth, name, node in walk(build_tree(groups)):
        if node.group is None or node.children:
            modules.add(len(rows))
        shape = _shape(node.group.shape) if node.group else ""
        dtype = _dtype_name(node.group.dtype) if node.group and len(codes) > 1 else ""
        label = "  " * depth + output.escape(name)
        rows.append((label, f"{node.count:,}", output.size_of(node.nbytes), shape, dtype))
    if len(codes) == 1:
        rows = [row[:4] for row in rows]  # type: ignore[misc]
    lines = output.columns(rows, right=(1, 2), indent="  ")
    return [
        output.paint(line, dim=True)
        if place == 0
        else output.paint(line, bold=True)
        if place in modules
        else line
        for place, line in enumerate(lines)
    ]


def _tensor_lines(checkpoint: Checkpoint) -> list[str]:
    rows = [("tensor", "dtype", "shape", "size", "shard")]
    rows += [
        (
            output.escape(name),
            _dtype_name(ref.dtype),
            _shape(ref.shape),
            output.size_of(ref.nbytes),
            output.escape(ref.shard),
        )
        for name, ref in checkpoint.tensors.items()
    ]
    lines = output.columns(rows, right=(3,), indent="  ")
    return [output.paint(lines[0], dim=True), *lines[1:]]


def _shard_lines(checkpoint: Checkpoint) -> list[str]:
    rows = [("shard", "tensors", "size")]
    rows += [
        (output.escape(shard.name), f"{shard.tensors:,}", output.size_of(shard.nbytes))
        for shard in checkpoint.shards
    ]
    lines = output.columns(rows, right=(1, 2), indent="  ")
    return [output.paint(lines[0], dim=True), *lines[1:]]


def _document(checkpoint: Checkpoint, *, list_all: bool) -> dict[str, Any]:
    refs = checkpoint.tensors.values()
    document: dict[str, Any] = {
        "where": checkpoint.label,
        "revision": checkpoint.source.revision,
        "format": checkpoint.format,
        "index": checkpoint.index,
        "totals": {
            "tensors": len(refs),
            "elements": sum(ref.numel for ref in refs),
            "nbytes": sum(ref.nbytes for ref in refs),
        },
        "dtypes": _dtypes(checkpoint),
        "shards": [
            {"name": shard.name, "size": shard.size, "tensors": shard.tensors, "nbytes": shard.nbytes}
            for shard in checkpoint.shards
        ],
        "config": config_summary(checkpoint.config),
        "metadata": checkpoint.metadata,
        "objects": list(checkpoint.objects),
        "groups": [_group_document(group) for group in group_tensors(checkpoint.tensors)],
        "warnings": list(checkpoint.warnings),
    }
    if list_all:
        document["tensors"] = [
            {
                "name": name,
                "dtype": _dtype_name(ref.dtype),
                "shape": list(ref.shape),
                "nbytes": ref.nbytes,
                **_place(ref),
            }
            for name, ref in checkpoint.tensors.items()
        ]
    return document


def _place(tensor: Derived) -> dict[str, Any]:
    if isinstance(tensor, TensorRef):
        return {"shard": tensor.shard, "span": list(tensor.span)}
    return {"pieces": [{"shard": ref.shard, "span": list(ref.span)} for ref in leaves(tensor)]}


def _group_document(group: TensorGroup) -> dict[str, Any]:
    return {
        "pattern": group.pattern,
        "dtype": _dtype_name(group.dtype),
        "shape": list(group.shape),
        "count": group.count,
        "nbytes": group.nbytes,
    }
