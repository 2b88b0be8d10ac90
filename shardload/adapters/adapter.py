"""What adapter files hold, in terms that every file format shares. A new format is one new file in `formats/`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from shardload.adapters.adapter_report import shown
from shardload.checkpoint.place import place_of_opened
from shardload.errors import UsageError
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from shardload.adapters.adapter_report import AdapterFault
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived


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
        """The weight file for messages: folder or `org/name@commit`, then the file."""
        return f"{self.checkpoint.label}/{self.weights}"

    @property
    def tensors(self) -> dict[str, TensorRef]:
        """The stored tensors, each in one place. Raises UnsupportedError where one lies in several pieces."""
        refs = {name: ref for name, ref in self.checkpoint.tensors.items() if isinstance(ref, TensorRef)}
        if len(refs) != len(self.checkpoint.tensors):
            from shardload.checkpoint.items import in_one_piece

            return in_one_piece(self.checkpoint.tensors, place_of_opened(self.checkpoint))
        return refs

    @property
    def config_label(self) -> str:
        """The config file for messages."""
        return f"{self.checkpoint.label}/{self.config_name}"


@dataclass(frozen=True)
class Scaling:
    """The factor of B @ A in a layer: alpha / rank, alpha / sqrt(rank) with rsLoRA, or a fixed number."""

    alpha: float = 1.0
    use_rslora: bool = False
    fixed: float | None = None

    def of(self, rank: int) -> float:
        """Return the scale of a layer of this rank."""
        if self.fixed is not None:
            return self.fixed
        return self.alpha / math.sqrt(rank) if self.use_rslora else self.alpha / rank


@dataclass(frozen=True)
class LoraEntry:
    """One adapted layer as a file stores it: `delta = scale * B @ A`, and `scale * bias` where B has a bias.

    `path` is the layer's module path in the model that was trained, without wrapper segments. The shapes of `a` and
    `b` depend on the kind of the layer: (rank, in) and (out, rank) for a Linear, swapped where `columns` is True.
    `magnitude` is DoRA's vector. `stated_rank` is the config's rank, None if the config has none.

    `parameters` are the names that the config's `target_parameters` may mean at this path. `depth` selects one of
    them: 0 is the last one in the module's order. `peft_version` is the PEFT that wrote the file, (major, minor).
    `merged`: the factors may be a MergedLinear's, of which `enable` says the active parts (None: unknown).
    `initial` is an initialisation that also changed the base ("pissa", "olora"): the delta is relative to the
    changed base. `by_parameter` has the scaling and the stated rank of each of `parameters`. `experts_last`: `b` is
    (out, rank, experts).
    """

    path: str
    a: Derived
    b: Derived
    scaling: Scaling
    dropout: float = 0.0
    bias: TensorRef | None = None
    magnitude: TensorRef | None = None
    stated_rank: int | None = None
    columns: bool = False
    parameters: tuple[str, ...] = ()
    depth: int = 0
    peft_version: tuple[int, int] | None = None
    merged: bool = False
    enable: tuple[bool, ...] | None = None
    initial: str | None = None
    by_parameter: Mapping[str, tuple[Scaling, int | None]] = field(default_factory=dict)
    experts_last: bool = False

    def stated_for(self, attribute: str) -> tuple[Scaling, int | None]:
        """Return the scaling and the rank that the config gives a tensor of the layer."""
        return self.by_parameter.get(attribute, (self.scaling, self.stated_rank))

    def parts(self) -> Iterator[tuple[str, Derived]]:
        """Yield the stored tensors by part: "a", "b", and "bias" and "magnitude" where there are any."""
        for part in ("a", "b", "bias", "magnitude"):
            ref = getattr(self, part)
            if ref is not None:
                yield part, ref

    def refs(self) -> Iterator[Derived]:
        """Yield the stored tensors."""
        for _, ref in self.parts():
            yield ref

    def rank_by_shapes(self) -> int:
        """Return the rank from the shape of A, or the config's rank where B disagrees with A. At least 1."""
        inner = self.a.shape[-1:] if self.columns else self.a.shape[:1]
        outer = self.b.shape[:1] if self.columns else self.b.shape[1:2]
        rank = inner[0] if inner else 0
        if len(self.b.shape) == 2 and (rank,) != outer and self.stated_rank is not None:
            rank = self.stated_rank
        return max(rank, 1)

    def is_merged(self) -> bool:
        """Return whether the factors belong to a MergedLinear: A has the rows of several groups."""
        if not self.merged or len(self.a.shape) != 2 or len(self.b.shape) not in {2, 3}:
            return False
        if self.enable is not None and len(self.enable) > 1:
            return True
        rows, columns = self.a.shape[0], self.b.shape[1]
        return rows > columns > 0 and rows % columns == 0


@dataclass(frozen=True)
class ReplacedEntry:
    """One tensor of the base that the adapter replaces: a trained bias, or a part of `modules_to_save`.

    `path` is the module that owns the tensor, `attribute` the tensor's name in it. `copies` are further stored
    copies of the same values, `spares` are stored values of the base that are not used. `declared` is False when
    the config does not account for the tensor. `tied`: tensors that are tied to this one in the base are replaced
    too (tensors of modules_to_save are trained apart from their ties).
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
class RowsEntry:
    """Rows of an embedding that the adapter replaces: `ref` is (rows, width), `tokens` the token of each row."""

    path: str
    ref: TensorRef
    tokens: tuple[int, ...]
    stated_rank: int | None = None
    initial: str | None = None

    @property
    def a(self) -> TensorRef:
        """The stored rows; other entries have A here."""
        return self.ref

    def parts(self) -> Iterator[tuple[str, TensorRef]]:
        """Yield the stored rows as part "a"."""
        yield "a", self.ref

    def refs(self) -> Iterator[TensorRef]:
        """Yield the stored rows."""
        yield self.ref


@dataclass(frozen=True)
class ReadOptions:
    """What the caller says about a file.

    `alpha` replaces the config's lora_alpha; `enable_lora` are the active parts of a MergedLinear. Where file and
    config disagree, it is a fault with `strict`, else a warning.
    """

    strict: bool = True
    alpha: float | None = None
    enable_lora: tuple[bool, ...] | None = None

    @classmethod
    def of(cls, alpha: float | None, enable_lora: Sequence[bool] | None, *, strict: bool) -> ReadOptions:
        """Return a call's options. Raises UsageError for an alpha or parts that no adapter can have."""
        if alpha is not None and not (isinstance(alpha, (int, float)) and -1e12 < alpha < 1e12):
            raise UsageError(f"alpha must be a number, not {alpha!r}", where="alpha")
        if enable_lora is not None and not (
            enable_lora and all(isinstance(part, bool) for part in enable_lora)
        ):
            raise UsageError(
                f"enable_lora must be a list of True and False, not {enable_lora!r}", where="enable_lora"
            )
        return cls(
            strict=strict,
            alpha=None if alpha is None else float(alpha),
            enable_lora=None if enable_lora is None else tuple(enable_lora),
        )


@dataclass(frozen=True)
class AdapterContent:
    """The whole content of an adapter file, whatever its format.

    `faults` were found in the file alone. `bias` ("none", "all", "lora_only") and `whole_modules` say which other
    tensors of the model the file must hold: biases, and every tensor of the modules whose path ends with one of
    these names. `targets` are the module names that the adapter was made for, if the config lists them. `replication`
    are runs of layers (first, end): the base's layers are repeated in these runs before anything is matched.
    """

    format: str
    loras: tuple[LoraEntry, ...]
    replaced: tuple[ReplacedEntry, ...] = ()
    rows: tuple[RowsEntry, ...] = ()
    replication: tuple[tuple[int, int], ...] = ()
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
        """The name for messages: "PEFT LoRA"."""

    def matches(self, file: AdapterFile) -> bool:
        """Return whether a file is of this format, by its keys."""

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises UnsupportedError for a known variant that this version does not load, CorruptError for an invalid
        config, UsageError when the caller has to pass a value. With `strict=False` some faults become warnings.
        """


def canonical(path: str) -> str:
    """Return a module path without the segments that wrappers add: PEFT, torch.compile, FSDP, DDP.

    Whole segments only: `_orig_mod`, `_fsdp_wrapped_module`, `_checkpoint_wrapped_module` anywhere,
    `base_model.model` and `module` at the front.
    """
    segments = path.split(".")
    if "_" in path:
        segments = [segment for segment in segments if segment not in _WRAPPERS]
    while segments:
        if segments[0] == "module":
            segments = segments[1:]
        elif segments[:2] == ["base_model", "model"]:
            segments = segments[2:]
        else:
            break
    return ".".join(segments)


SHARDED = (
    "the tensor has no elements: the model was sharded (DeepSpeed ZeRO-3, FSDP) and not gathered when the "
    "adapter was saved"
)
"""The fault of an empty tensor in an adapter file."""

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def listing(names: Collection[str], limit: int = 8) -> str:
    """Return names for a message, at most `limit` of them, control characters escaped."""
    text = ", ".join(shown(name) for name in list(names)[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text
