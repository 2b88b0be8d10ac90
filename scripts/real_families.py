"""Load real published model code with shardload and compare it, bit by bit, with torch's own `load_state_dict`.

    python scripts/real_families.py FOLDER [--output TABLE.md]

FOLDER holds one folder a repo, each with `config.json` (scaled down) and the repo's own .py files. Weights are
random, in 7 shards, once as .bin and once as .safetensors, stored in the config's `torch_dtype`. The oracle is
the same class, built on the CPU and filled by `load_state_dict(assign=True)`.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import shardload
from shardload.remote_code import load_config, resolve_class
from shardload.sources import find_source
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

SHARDS = 7
COLUMNS = (
    "import",
    "build",
    ".bin logits",
    ".safetensors logits",
    "hidden states, tuples",
    "with cache",
    "training",
    "on meta",
)


class Family:
    """One repo: its code, random weights for it, and the oracle."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self.work = work
        self.config_json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.served_by: str | None = None

    def import_class(self) -> str:
        """Import the repo's config and model classes."""
        source, _ = find_source(self.folder)
        self.config = load_config(source, self.config_json, trust_remote_code=True).config
        self.resolved = resolve_class(source, self.config_json, self.config, trust_remote_code=True)
        return "ok"

    def build(self) -> str:
        """Build the class on the CPU, give it random weights, and write them in both formats."""
        torch.manual_seed(0)
        model = self.resolved.make(copy.deepcopy(self.config))
        dtype = getattr(torch, self.config_json.get("torch_dtype", "float32"))
        self.state = {
            name: (torch.randn(value.shape) * 0.2).to(dtype) if value.is_floating_point() else value.clone()
            for name, value in model.state_dict().items()
        }
        self.oracle = self.make_oracle()
        for kind, suffix in (("pytorch_model", "bin"), ("model", "safetensors")):
            self._write(self.work / suffix, kind, suffix)
        return f"ok, {len(self.state)} tensors"

    def make_oracle(self) -> nn.Module:
        """Return the class built on the CPU and filled by torch."""
        model = self.resolved.make(copy.deepcopy(self.config))
        model.load_state_dict({name: value.clone() for name, value in self.state.items()}, assign=True)
        return model.eval()

    def _write(self, folder: Path, kind: str, suffix: str) -> None:
        shutil.copytree(
            self.folder, folder, ignore=shutil.ignore_patterns("*.model", "*.bin", "*.safetensors")
        )
        keys = list(self.state)
        weight_map = {}
        for number in range(SHARDS):
            name = f"{kind}-{number + 1:05d}-of-{SHARDS:05d}.{suffix}"
            shard = {key: self.state[key].contiguous() for key in keys[number::SHARDS]}
            weight_map |= dict.fromkeys(shard, name)
            if suffix == "bin":
                torch.save(shard, folder / name)
            else:
                write_safetensors(shard, folder / name)
        total = sum(value.numel() * value.element_size() for value in self.state.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{kind}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")

    def load(self, suffix: str) -> nn.Module:
        """Load one format with shardload."""
        model = shardload.from_pretrained(self.work / suffix, trust_remote_code=True)
        self.served_by = shardload.report_of(model).remote_base
        return model

    def ids(self, length: int = 12) -> torch.Tensor:
        """Return token ids, (1, length), with the special tokens that ChatGLM-6B looks for."""
        ids = torch.arange(3, 3 + length)[None]
        if "gmask_token_id" in self.config_json:
            ids[0, 5:7] = torch.tensor([self.config_json["gmask_token_id"], self.config_json["bos_token_id"]])
        return ids

    def logits(self, suffix: str) -> str:
        """Compare the logits of a plain forward pass."""
        model = self.load(suffix)
        with torch.no_grad():
            expected, got = (m(self.ids(), return_dict=True).logits for m in (self.oracle, model))
        return same({"logits": expected}, {"logits": got}) + f", {str(got.dtype).removeprefix('torch.')}"

    def outputs(self) -> str:
        """Compare hidden states and the tuple that `return_dict=False` gives."""
        results = []
        for model in (self.oracle, self.load("bin")):
            with torch.no_grad():
                full = model(self.ids(), output_hidden_states=True, return_dict=True)
                plain = model(self.ids(), return_dict=False)
            assert type(plain) is tuple
            results.append(
                {"logits": plain[0], **{f"hidden {n}": h for n, h in enumerate(full.hidden_states)}}
            )
        return same(*results)

    def cache(self) -> str:
        """Decode three tokens with the cache; also compare their logits with a pass without it."""
        results, ids = [], self.ids()
        for model in (self.oracle, self.load("bin")):
            with torch.no_grad():
                results.append(decode(model, ids, 3))
        verdict = same(*results)
        with torch.no_grad():
            uncached = self.oracle(results[0]["ids"][:, :-1], return_dict=True).logits[:, -1]
        difference = (uncached.float() - results[0]["logits 2"].float()).abs().max().item()
        return f"{verdict}; {difference:.1g} from no cache"

    def training(self) -> str:
        """Compare loss and gradients with gradient checkpointing, in float32."""
        results = []
        # A new oracle: ChatGLM-6B keeps rotary tables of the dtype in which it ran first.
        for model in (self.make_oracle(), self.load("safetensors")):
            model.float().train()
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
            torch.manual_seed(1)
            loss = model(self.ids(), labels=self.ids(), return_dict=True).loss
            loss.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            results.append({"loss": loss.detach(), **gradients})
        return f"{same(*results)}, {len(results[0]) - 1} gradients"

    def on_meta(self) -> str:
        """List parameters, buffers and plain tensor attributes that are still on meta."""
        left = []
        for suffix in ("bin", "safetensors"):
            for path, module in self.load(suffix).named_modules():
                held = {**module._parameters, **module._buffers, **vars(module)}
                left += [f"{path}.{n}" for n, v in held.items() if isinstance(v, torch.Tensor) and v.is_meta]
        return ", ".join(left) or "nothing"


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write contiguous tensors by the format's description: safetensors' own function for torch needs NumPy."""
    codes = {name: code for code, name in TORCH_NAMES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": codes[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + nbytes],
        }
        data += ctypes.string_at(tensor.data_ptr(), nbytes)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def decode(model: nn.Module, ids: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Choose the likeliest token `steps` times with the class's own hooks for generation."""
    kwargs: dict[str, Any] = {"use_cache": True}
    results = {}
    for step in range(steps):
        inputs = model.prepare_inputs_for_generation(ids, **kwargs)
        inputs.setdefault("use_cache", True)
        output = model(**inputs, return_dict=True)
        for name in ("position_ids", "attention_mask"):
            if step == 0 and inputs.get(name) is not None:
                kwargs[name] = inputs[name]
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        results[f"logits {step}"] = output.logits[:, -1]
        ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return {**results, "ids": ids}


def same(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> str:
    """Return "equal" when every tensor is finite and agrees to the bit; raises ValueError naming one that is not."""
    if expected.keys() != got.keys():
        raise ValueError(f"different tensors: {sorted(expected.keys() ^ got.keys())[:4]}")
    for name, value in expected.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} of the oracle is not finite")
        if value.dtype != got[name].dtype or not torch.equal(value, got[name]):
            raise ValueError(
                f"{name} differs by {(value.float() - got[name].float()).abs().max().item():.2g}"
            )
    return "equal"


def check(folder: Path) -> tuple[list[str], bool, str]:
    """Return a table row, whether all went well, and details of the failures."""
    with tempfile.TemporaryDirectory() as work:
        family = Family(folder, Path(work))
        steps: tuple[Callable[[], str], ...] = (
            family.import_class,
            family.build,
            lambda: family.logits("bin"),
            lambda: family.logits("safetensors"),
            family.outputs,
            family.cache,
            family.training,
            family.on_meta,
        )
        cells, details, good = [], "", True
        for column, step in zip(COLUMNS, steps, strict=True):
            try:
                cells.append(step())
                good = good and (column != "on meta" or cells[-1] == "nothing")
            except Exception as error:  # noqa: BLE001 - a table of what works shows every failure
                good = False
                cells.append(f"**{type(error).__name__}**")
                details += f"\n{folder.name}, {column}:\n{traceback.format_exc()}"
        return [folder.name, family.served_by or "-", *cells], good, details


def main() -> int:
    """Check every repo of a folder, print the table, and return 1 when anything went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers"):
        beside = f"installed and imported, {importlib.metadata.version('transformers')}"
        importlib.import_module("transformers")
    else:
        beside = "not installed"

    checked = [check(repo) for repo in sorted(arguments.folder.iterdir()) if (repo / "config.json").is_file()]
    header = ("repo", "its transformers is", *COLUMNS)
    lines = [
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, transformers: {beside}",
        "",
        *(
            f"| {' | '.join(cells)} |"
            for cells in (header, ["---"] * len(header), *(row for row, _, _ in checked))
        ),
        "",
    ]
    print("\n".join(lines))
    print("".join(details for _, _, details in checked), file=sys.stderr)
    if arguments.output:
        arguments.output.write_text("\n".join(lines), encoding="utf-8")
    return 0 if checked and all(good for _, good, _ in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
