"""One repo: its code, random weights for it in both formats, its inputs, and the oracle."""

from __future__ import annotations

import copy
import ctypes
import inspect
import json
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

import shardload
from shardload.checkpoint.sources import find_source
from shardload.loading.report import Report
from shardload.model.meta_init import constructing
from shardload.remote_code import finish_by_its_class, load_config, resolve_class
from shardload.tensor_ref import TORCH_NAMES
from shardload.where import CodeTrust

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from shardload.where import RemoteBase

SHARDS = 7


class Family:
    """One repo: its code, random weights for it, and the oracle."""

    def __init__(self, folder: Path, work: Path, remote_base: RemoteBase = "auto") -> None:
        self.folder = folder
        self.remote_base: RemoteBase = remote_base
        self.work = work
        self.config_json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        described = folder / "inputs.json"
        self.described = json.loads(described.read_text(encoding="utf-8")) if described.is_file() else {}
        self.method = self.described.pop("_method", "forward")
        self.attributes = self.described.pop("_attributes", {})  # what the class's own chat() sets first
        self.own_generation = self.described.pop("_generation", None)  # {name of a method: its arguments}
        self.prompt = self.described.pop(
            "_prompt", None
        )  # what `generate` is given, where that is not token ids
        self.may_generate = self.described.pop("_generates", True)  # false: in a way of its own
        self.served_by: str | None = None
        self.transformers: str | None = None  # an interpreter with another release, to compare with
        self.pretends_cuda = False

    def import_class(self) -> str:
        """Import the repo's config and model classes; name the packages that it cannot do without."""
        source, _ = find_source(self.folder)
        trust = CodeTrust(True, remote_base=self.remote_base)
        self.config = load_config(source, self.config_json, trust).config
        self.resolved = resolve_class(source, self.config_json, trust)
        return "ok"

    def build(self) -> str:
        """Build the class on the CPU, give it random weights, and write them in both formats."""
        torch.manual_seed(0)
        beside = ""
        try:
            model = self.make()
        except Exception as error:  # noqa: BLE001 - a class whose initialisation fails is never built without weights
            model = self.make_uninitialised()
            beside = f"; its _init_weights fails: {str(error.__cause__ or error)[:60]}"
        if {n: p.shape for n, p in model.named_parameters()} != self.declared():
            model = self.make_uninitialised()
            beside = "; its _init_weights changes shapes, which loading never does"
        dtype = getattr(torch, self.config_json.get("torch_dtype", "float32"))
        self.tied: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if first.setdefault(id(parameter), name) != name:
                self.tied[name] = first[id(parameter)]
        self.state = {name: _random(value, dtype) for name, value in model.state_dict().items()}
        for module in {
            name.rpartition(".")[0] for name, value in model.state_dict().items() if _is_packed(value)
        }:
            for name in self.state:  # the scales beside packed integers, which are up to 255 of them
                if name.rpartition(".")[0] == module and self.state[name].is_floating_point():
                    self.state[name] = self.state[name] / 30
        self.state |= {name: self.state[other] for name, other in self.tied.items()}
        self.oracle = self.make_oracle()
        for kind, suffix in (("pytorch_model", "bin"), ("model", "safetensors")):
            self._write(self.work / suffix, kind, suffix)
        return f"ok, {len(self.state)} tensors{beside}"

    def declared(self) -> dict[str, torch.Size]:
        """Return the shapes of the parameters as the constructors make them: nothing is initialised in a shell."""
        return {n: p.shape for n, p in shardload.build_shell(self.make).model.named_parameters()}

    def make_uninitialised(self) -> nn.Module:
        """Return a model of the class without its own initialisation, from now on."""
        kind = type(shardload.build_shell(self.make).model)
        for owner in kind.__mro__:  # the inner model, of another class, inherits it too
            if "_init_weights" in vars(owner) and ".repos." in owner.__module__:
                owner._init_weights = lambda _self, _module: None  # type: ignore[attr-defined]
        return self.make()

    def make(self) -> nn.Module:
        """Return a new model of the class; where it writes `.cuda()` and there is no such device, on the CPU."""
        config, cuda = copy.deepcopy(self.config), torch.Tensor.cuda
        if constructing() or torch.cuda.is_available():
            return self.resolved.make(config)
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        try:
            return self.resolved.make(config)
        finally:
            torch.Tensor.cuda = cuda  # type: ignore[method-assign]

    def shell(self) -> str:
        """Build the class as a shell: every parameter takes no memory."""
        shell = shardload.build_shell(self.make)
        parameters = list(shell.model.parameters())
        real = [name for name, value in shell.model.named_parameters() if not value.is_meta]
        if real:
            raise ValueError(f"real parameters: {', '.join(real)}")
        return f"ok, {len(parameters)} on meta"

    def make_oracle(self, like: nn.Module | None = None) -> nn.Module:
        """Return the class built on the CPU and filled by torch; tensors at the addresses of `like`'s, modulo 64."""
        model, state = self.make(), {name: value.clone() for name, value in self.state.items()}
        if like is not None:
            there = like.state_dict()
            state = {name: _at_address_of(there[name], value) for name, value in state.items()}
        model.load_state_dict(state, assign=True)
        for name, other in self.tied.items():  # assigning made two parameters of one
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, model.get_parameter(other))
        return self.finished(model.eval())

    def finished(self, model: nn.Module) -> nn.Module:
        """Return the model after what its class's own `from_pretrained` does around the loading."""
        source, _ = find_source(self.folder)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            finish_by_its_class(model, source, Report(str(self.folder)))
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
        model = self.from_pretrained(self.work / suffix)
        self.served_by = shardload.report_of(model).remote_base
        return model

    def from_pretrained(self, folder: Path, dtype: Any = "auto") -> nn.Module:
        """Load a folder with shardload, its code served as the caller says."""
        return shardload.from_pretrained(
            folder, trust_remote_code=True, dtype=dtype, remote_base=self.remote_base
        )

    def ids(self, length: int = 12) -> torch.Tensor:
        """Return token ids, (1, length), with the special tokens that ChatGLM-6B looks for."""
        ids = torch.arange(3, 3 + length)[None]
        if "gmask_token_id" in self.config_json:
            ids[0, 5:7] = torch.tensor([self.config_json["gmask_token_id"], self.config_json["bos_token_id"]])
        return ids

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Return what a forward pass is given: token ids, or what the repo's inputs.json describes.

        There a list of numbers is a tensor of ids, {"numbers": …} one that stays apart in a list, {"shape": …} random
        numbers of the dtype, {"_tokenizer": …} what `generate` asks a tokenizer, and anything else itself.
        """
        if not self.described:
            return {"input_ids": self.ids()}
        return self.made(self.described, dtype)

    def made(self, described: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Return arguments from their description."""
        generator = torch.Generator().manual_seed(3)
        dtype = dtype or next(self.oracle.parameters()).dtype

        def made(value: Any) -> Any:
            if isinstance(value, dict) and "shape" in value:
                return torch.randn(value["shape"], generator=generator).to(dtype)
            if isinstance(value, dict) and "numbers" in value:
                return torch.tensor(value["numbers"])
            if isinstance(value, dict) and "_tokenizer" in value:
                return _Tokenizer(**value["_tokenizer"])
            if isinstance(value, dict):
                return {name: made(one) for name, one in value.items()}
            if isinstance(value, list):
                return [made(one) for one in value] if "{" in json.dumps(value) else torch.tensor(value)
            return value

        return {name: made(value) for name, value in described.items()}

    def call(self, model: nn.Module, inputs: dict[str, Any], **options: Any) -> Any:
        """Run the model's forward pass with those of the options that it takes, and return its output."""
        method = getattr(self.prepared(model), self.method)
        taken = inspect.signature(method).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        return method(**inputs, **{name: value for name, value in options.items() if every or name in taken})

    def prepared(self, model: nn.Module) -> nn.Module:
        """Return the model with the attributes set that the class's own entry point sets first."""
        for name, value in self.attributes.items():
            setattr(model, name, value)
        return model

    def takes(self, model: nn.Module, *names: str) -> bool:
        """Whether the model's forward pass names these arguments."""
        return set(names) <= set(inspect.signature(getattr(model, self.method)).parameters)

    def loss(self, model: nn.Module) -> torch.Tensor:
        """Return the model's own loss; where it has none, that of predicting each next token, or the squares' sum."""
        inputs = self.inputs(torch.float32)
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        labels = {"labels": ids} if self.takes(model, "labels") else {}
        output = self.call(model, {**inputs, **labels}, return_dict=True)
        if getattr(output, "loss", None) is not None:
            return output.loss
        logits = getattr(output, "logits", None)
        a_token = isinstance(logits, torch.Tensor) and logits.ndim == 3
        if a_token and ids is not None and not ids.is_floating_point():
            logits = logits[:, :-1].float()
            return functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:])
        return sum(value.float().square().sum() for value in tensors(output).values() if value.requires_grad)


@dataclass
class _Tokenizer:
    """The ends that a class's own `generate` asks a tokenizer for."""

    eos_token_id: int

    def convert_tokens_to_ids(self, _text: str) -> int:
        return self.eos_token_id


def _random(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return random values for a tensor; packed integers, which are zeros until they are loaded, get some too."""
    if value.is_floating_point():
        return (torch.randn(value.shape) * 0.2).to(dtype)
    if not _is_packed(value):
        return value.clone()
    least, most = torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max
    return torch.randint(max(least, -(2**31)), min(most, 2**31 - 1), value.shape).to(value.dtype)


def _is_packed(value: torch.Tensor) -> bool:
    """Whether a tensor is integers for several numbers each: nothing else is a matrix of zeros of that kind."""
    return value.dim() > 1 and not value.is_floating_point() and value.dtype != torch.bool and not value.any()


def _at_address_of(other: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a copy of `value` in memory whose address is that of `other`, modulo 64."""
    room = torch.empty(value.nbytes + 64, dtype=torch.uint8)
    start = (other.data_ptr() - room.data_ptr()) % 64
    copy = room[start : start + value.nbytes].view(value.dtype).view(value.shape)
    return copy.copy_(value)


def tensors(output: Any, name: str = "output") -> dict[str, torch.Tensor]:
    """Return every tensor in an output by its place: tuples, dictionaries and outputs are opened."""
    if isinstance(output, torch.Tensor):
        return {name: output}
    if isinstance(output, dict):
        pairs = list(output.items())
    elif isinstance(output, (tuple, list)):
        pairs = list(enumerate(output))
    else:  # a cache, a distribution …
        pairs = [(key, value) for key, value in getattr(output, "__dict__", {}).items() if key != "config"]
    return {place: value for key, one in pairs for place, value in tensors(one, f"{name}.{key}").items()}


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
