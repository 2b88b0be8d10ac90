"""What every adapter file format can do, and what all of them say. A new format is one new file beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from shardload.adapters.adapter_report import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from shardload.adapters.adapter_report import AdapterFault
    from shardload.checkpoint import Checkpoint
    from shardload.tensor_ref import TensorRef


@dataclass(frozen=True)
class AdapterFile:
    """An opened adapter: the headers of its weight file, and its config where it has one.

    `weights` and `config_name` are names relative to the source's root.
    """

    checkpoint: Checkpoint
    weights: str
    config: dict[str, Any] | None = None
    config_name: str = "adapter_config.json"

    @property
    def label(self) -> str:
        """The weight file as people name it: folder or `org/name@commit`, then the file."""
        return f"{self.checkpoint.label}/{self.weights}"

    @property
    def config_label(self) -> str:
        """The config file as people name it."""
        return f"{self.checkpoint.label}/{self.config_name}"


@dataclass(frozen=True)
class LoraEntry:
    """One adapted layer as a file stores it: `delta = scale * B @ A`, and `scale * bias` where B has a bias.

    `path` is the layer's module path in the model that was trained, without wrapper segments. `a` has shape
    (rank, in_features), `b` (out_features, rank), `bias` (out_features,). `stated_rank` is the config's, if it
    gives one.
    """

    path: str
    a: TensorRef
    b: TensorRef
    scale: float
    dropout: float = 0.0
    bias: TensorRef | None = None
    stated_rank: int | None = None

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a.shape[0] if self.a.shape else 0

    def refs(self) -> Iterator[TensorRef]:
        """Yield the stored tensors: A, B, and the bias of B if there is one."""
        yield self.a
        yield self.b
        if self.bias is not None:
            yield self.bias


@dataclass(frozen=True)
class ReplacedEntry:
    """One tensor of the base that the adapter replaces: a trained bias, or a part of `modules_to_save`.

    `path` is the module that owns the tensor, `attribute` the tensor's name in it. `copies` are further stored
    copies of the same values, `spares` are stored values of the base that are not used. `declared` is False when
    the config does not account for the tensor. `tied`: tensors that are tied to this one in the base follow it
    (those of modules_to_save are trained apart from what they were tied to).
    """

    path: str
    attribute: str
    ref: TensorRef
    copies: tuple[TensorRef, ...] = ()
    spares: tuple[TensorRef, ...] = ()
    declared: bool = True
    tied: bool = False

    @property
    def name(self) -> str:
        """The tensor's full name in the model that was trained."""
        return f"{self.path}.{self.attribute}" if self.path else self.attribute


@dataclass(frozen=True)
class AdapterContent:
    """All that an adapter file holds, in terms that no longer depend on its format.

    `faults` were found in the file alone. `bias` ("none", "all", "lora_only") and `whole_modules` say what else
    must be in the file when the model has it: biases, and every tensor of modules whose path ends with one of
    these names. `targets` are the module names that the adapter was made for, when it lists them.
    """

    format: str
    loras: tuple[LoraEntry, ...]
    replaced: tuple[ReplacedEntry, ...] = ()
    bias: str = "none"
    whole_modules: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    base: str | None = None
    faults: tuple[AdapterFault, ...] = ()
    warnings: tuple[str, ...] = ()


class AdapterFormat(Protocol):
    """Reads the headers and the config of one adapter file format."""

    @property
    def name(self) -> str:
        """The name shown to people: "PEFT LoRA"."""

    def matches(self, file: AdapterFile) -> bool:
        """Whether a file is of this format, by its keys."""

    def read(self, file: AdapterFile, *, strict: bool) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises UnsupportedError for a variant that is known and not done, CorruptError for a config that is no
        valid one. What `strict=False` lets pass becomes a warning.
        """


def canonical(path: str) -> str:
    """Return a module path without the segments that wrappers add: PEFT, torch.compile, FSDP, DDP.

    Whole segments only: `_orig_mod`, `_fsdp_wrapped_module`, `_checkpoint_wrapped_module` anywhere,
    `base_model.model` and `module` at the front.
    """
    segments = [segment for segment in path.split(".") if segment not in _WRAPPERS]
    while segments:
        if segments[0] == "module":
            segments = segments[1:]
        elif segments[:2] == ["base_model", "model"]:
            segments = segments[2:]
        else:
            break
    return ".".join(segments)


_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def listing(names: Collection[str], limit: int = 8) -> str:
    """Return names for a message, at most `limit` of them, control characters escaped."""
    text = ", ".join(shown(name) for name in list(names)[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text
