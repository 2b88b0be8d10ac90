"""Family: one repo with its code, random weights in both formats, inputs, and the oracle."""

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
        self.attributes = self.described.pop("_attributes", {})  # the class's own chat() sets them first
        self.own_generation = self.described.pop("_generation", None)  # {name of a method: its arguments}
        # The arguments of `generate`, if it does not take token ids.
        self.prompt = self.described.pop("_prompt", None)
        self.may_generate = self.described.pop("_generates", True)  # false if only other methods generate
        self.served_by: str | None = None
        self.transformers: str | None = None  # an interpreter with another release, to compare with
        self.pretends_cuda = False

    def import_class(self) -> str:
        """Import the repo's config and model classes."""
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
        except Exception as error:  # noqa: BLE001 - initialisation fails in classes that are only ever built to load weights
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
            for name in self.state:  # the scales of packed integers, whose values go up to 255
                if name.rpartition(".")[0] == module and self.state[name].is_floating_point():
                    self.state[name] = self.state[name] / 30
        self.state |= {name: self.state[other] for name, other in self.tied.items()}
        self.oracle = self.make_oracle()
        for kind, suffix in (("pytorch_model", "bin"), ("model", "safetensors")):
            self._write(self.work / suffix, kind, suffix)
        return f"ok, {len(self.state)} tensors{beside}"

    def declared(self) -> dict[str, torch.Size]:
        """Return the shapes of the parameters as the constructors make them: a shell runs no initialisation."""
        return {n: p.shape for n, p in shardload.build_shell(self.make).model.named_parameters()}

    def make_uninitialised(self) -> nn.Module:
        """Switch off the class's own initialisation for good, and return a model."""
        kind = type(shardload.build_shell(self.make).model)
        for owner in kind.__mro__:  # the inner model, of another class, inherits the method too
            if "_init_weights" in vars(owner) and ".repos." in owner.__module__:
                owner._init_weights = lambda _self, _module: None  # type: ignore[attr-defined]
        return self.make()

    def make(self) -> nn.Module:
        """Return a new model of the class; on a machine without CUDA, `.cuda()` leaves tensors on the CPU."""
        config, cuda = copy.deepcopy(self.config), torch.Tensor.cuda
        if constructing() or torch.cuda.is_available():
            return self.resolved.make(config)
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        try:
            return self.resolved.make(config)
        finally:
            torch.Tensor.cuda = cuda  # type: ignore[method-assign]

    def shell(self) -> str:
        """Build the class as a shell, and check that no parameter takes memory."""
        shell = shardload.build_shell(self.make)
        parameters = list(shell.model.parameters())
        real = [name for name, value in shell.model.named_parameters() if not value.is_meta]
        if real:
            raise ValueError(f"real parameters: {', '.join(real)}")
        return f"ok, {len(parameters)} on meta"

    def make_oracle(self, like: nn.Module | None = None) -> nn.Module:
        """Return the model built on the CPU and filled by torch, with tensors at the addresses in `like`, modulo 64."""
        model, state = self.in_its_dtype(), {name: value.clone() for name, value in self.state.items()}
        if like is not None:
            there = like.state_dict()
            state = {name: _at_address_of(there[name], value) for name, value in state.items()}
        model.load_state_dict(state, assign=True)
        for name, other in self.tied.items():  # the assignment split one parameter into two
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, model.get_parameter(other))
        return self.finished(model.eval())

    def in_its_dtype(self) -> nn.Module:
        """Return a new model whose tables are in the checkpoint's dtype, as transformers' loader makes them."""
        torch.set_default_dtype(getattr(torch, self.config_json.get("torch_dtype", "float32")))
        try:
            return self.make()
        finally:
            torch.set_default_dtype(torch.float32)

    def finished(self, model: nn.Module) -> nn.Module:
        """Return the model after the steps that its class's own `from_pretrained` adds to the load."""
        source, _ = find_source(self.folder)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            finish_by_its_class(model, source, ())
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
        """Load a folder with shardload, with the chosen base for its code."""
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
        """Return the arguments of a forward pass: token ids, or the arguments that the repo's inputs.json describes.

        In inputs.json a list of numbers is a tensor of ids, {"numbers": …} is such a tensor inside a list, {"shape": …}
        is a tensor of random numbers in the dtype, {"_tokenizer": …} is a tokenizer for `generate`, and any other value
        is the argument itself.
        """
        if not self.described:
            return {"input_ids": self.ids()}
        return self.made(self.described, dtype)

    def made(self, described: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Return arguments made from their description."""
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
        """Run the model's forward pass with the options that it accepts, and return its output."""
        method = getattr(self.prepared(model), self.method)
        taken = inspect.signature(method).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        return method(**inputs, **{name: value for name, value in options.items() if every or name in taken})

    def prepared(self, model: nn.Module) -> nn.Module:
        """Set the attributes that the class's own entry point sets first, and return the model."""
        for name, value in self.attributes.items():
            setattr(model, name, value)
        return model

    def takes(self, model: nn.Module, *names: str) -> bool:
        """Whether the model's forward pass has arguments of these names."""
        return set(names) <= set(inspect.signature(getattr(model, self.method)).parameters)

    def loss(self, model: nn.Module) -> torch.Tensor:
        """Return the model's own loss, else the loss of predicting each next token, else the sum of squares."""
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
    """A tokenizer for a class's own `generate`, which asks it for the end tokens."""

    eos_token_id: int

    def convert_tokens_to_ids(self, _text: str) -> int:
        return self.eos_token_id


def _random(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return random values for a tensor, also for packed integers, which are zeros before a load."""
    if value.is_floating_point():
        return (torch.randn(value.shape) * 0.2).to(dtype)
    if not _is_packed(value):
        return value.clone()
    least, most = torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max
    return torch.randint(max(least, -(2**31)), min(most, 2**31 - 1), value.shape).to(value.dtype)


def _is_packed(value: torch.Tensor) -> bool:
    """Whether a tensor holds packed integers: only those are matrices of integer zeros before a load."""
    return value.dim() > 1 and not value.is_floating_point() and value.dtype != torch.bool and not value.any()


def _at_address_of(other: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a copy of `value` at an address that equals the address of `other`, modulo 64."""
    room = torch.empty(value.nbytes + 64, dtype=torch.uint8)
    start = (other.data_ptr() - room.data_ptr()) % 64
    copy = room[start : start + value.nbytes].view(value.dtype).view(value.shape)
    return copy.copy_(value)


def tensors(output: Any, name: str = "output") -> dict[str, torch.Tensor]:
    """Return all tensors in an output by their place in it, also those in tuples, dictionaries and other outputs."""
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
    """Write contiguous tensors as a safetensors file; the function of the library needs NumPy for that."""
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
