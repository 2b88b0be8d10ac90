"""ClassOnDisk: the class of transformers that a checkpoint is for, and the stored tensors that its parameters are.

A merge on disk needs no class as long as the adapter's layers are stored under their own names. Where a class has them
elsewhere or in other parts, its own conversion says which: the change of a stored tensor is cut from the change of the
class's in the way in which `save` would cut the tensor itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardload.adapters.adapter import listing
from shardload.adapters.layers.experts import ExpertsTerm
from shardload.adapters.layers.rows import RowsTerm
from shardload.adapters.merging.change import Addition, Change, of_expert
from shardload.adapters.merging.moved_term import MovedTerm
from shardload.adapters.module_index import ModuleIndex
from shardload.adapters.published import Names
from shardload.errors import ShardloadError, UnsupportedError, Wording
from shardload.keymap import leaves
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import Derived, Filled, Joined, pieces
from shardload.model.shell import Shell, build_shell
from shardload.remote_code.auto_map import choose_model
from shardload.remote_code.classes import resolve_class
from shardload.remote_code.config import load_config
from shardload.remote_code.library import model_class_for
from shardload.tensor_ref import Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shardload.checkpoint.checkpoint import Checkpoint

NO_CLASS = "no class of transformers is known for the checkpoint: nothing says what stays in float32, and all is cast"


def names_a_class(config: Mapping[str, object] | None) -> bool:
    """Return whether a config.json says which class the checkpoint is for."""
    return bool(config) and not {"architectures", "auto_map"}.isdisjoint(config or ())


@dataclass(frozen=True)
class ClassOnDisk:
    """A checkpoint, and the shell of the class of an installed transformers that its config.json names."""

    checkpoint: Checkpoint
    shell: Shell

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ClassOnDisk | None:
        """Return it, or None where config.json names no such class, or one that can't be made. Imports transformers."""
        config = checkpoint.config
        if not config or choose_model(config) is not None or model_class_for(config) is None:
            return None
        try:
            loaded = load_config(checkpoint.source, config)
            resolved = resolve_class(checkpoint.source, config)
            return cls(checkpoint, build_shell(lambda: resolved.make(loaded.config)))
        except ShardloadError:
            return None  # what is wrong with the adapter's paths is what the caller is told

    def stored(self, changes: Mapping[str, Change]) -> dict[str, Change]:
        """Return changes of the class's parameters as changes of stored tensors.

        Raises UnsupportedError for changes that can't be taken apart: DoRA, single rows, replaced tensors.
        """
        model = self.shell.model
        names = Names.of(model, ModuleIndex(model))
        rules = names.rules()
        stored = self.checkpoint.tensors
        mapped = stored if rules is None else rules.map_headers(stored).tensors
        moved: dict[str, Change] = {}
        parts: dict[str, Change] = {}
        for name, change in changes.items():
            ref = mapped.get(name)
            key = name if ref is None or isinstance(ref, Joined) else _stored_name(ref)
            if ref is not None and stored.get(key) == ref:
                moved[key] = replace(change, name=key)
            else:
                parts[name] = change
        if parts:
            back = names.written(rules)
            self._require_inverse(parts, names, back, mapped)
            moved.update(_of_parts(parts, names, back))
        return moved

    def _require_inverse(
        self,
        parts: Collection[str],
        names: Names,
        back: Mapping[str, Derived],
        mapped: Mapping[str, Derived],
    ) -> None:
        """Raise UnsupportedError unless the stored tensors are those that the class would write."""
        rules = names.rules()
        again = {} if rules is None or not back else rules.map_headers(back).tensors
        stored = self.checkpoint.tensors
        other = []
        for name in parts:
            made_of = {_stored_name(piece) for piece in pieces(mapped[name])} if name in mapped else set()
            fits = all(key in back and back[key].shape == stored[key].shape for key in made_of)
            if not made_of or not fits or again.get(name) != names.tensors[name]:
                other.append(name)
        if other:
            raise _apart(
                f"the adapter changes {len(other)} parameters that the base stores in another way", other
            )


def _stored_name(piece: TensorRef | Dequantised) -> str:
    return piece.weight.name if isinstance(piece, Dequantised) else piece.name


def _of_parts(parts: Mapping[str, Change], names: Names, back: Mapping[str, Derived]) -> dict[str, Change]:
    """Return the change of each stored tensor that holds elements of a changed parameter."""
    odd = [name for name, change in parts.items() if not all(map(_is_plain, change.additions))]
    odd += [name for name, change in parts.items() if change.replacement is not None]
    if odd:
        raise _apart(
            "the adapter changes more than a product of A and B in parameters that are stored in parts", odd
        )
    made: dict[str, Change] = {}
    for key, tensor in back.items():
        for name in dict.fromkeys(leaf.name for leaf in leaves(tensor) if leaf.name in parts):
            change = made.setdefault(key, Change(key))
            own = _only(tensor, name)
            change.additions += [_cut(each, own, names.tensors[name].shape) for each in parts[name].additions]
            change.adapters = max(change.adapters, parts[name].adapters)
            change.apart |= parts[name].apart
    return made


def _is_plain(addition: Addition) -> bool:
    return addition.factors.magnitude is None and not isinstance(addition.term, RowsTerm)


def _apart(what: str, names: Collection[str]) -> UnsupportedError:
    return UnsupportedError(
        what,
        where=listing(list(names)),
        cure=Wording(
            "merge in memory: from_pretrained with {adapter} and {merge}, then save", adapter=..., merge=True
        ),
    )


def _only(tensor: Derived | Filled, name: str) -> Derived | Filled:
    """Return a tensor with zeros in place of what is not of one parameter."""
    if isinstance(tensor, Joined):
        return replace(tensor, parts=tuple(_only(part, name) for part in tensor.parts))
    own = isinstance(tensor, TensorRef) and tensor.name == name
    return tensor if own else Filled(tensor.dtype, tensor.shape)


def _cut(addition: Addition, place: Derived | Filled, shape: tuple[int, ...]) -> Addition:
    """Return the part of an addition to a parameter of this shape that a stored tensor gets."""
    if isinstance(addition.term, ExpertsTerm):
        size = 4 * shape[1] * shape[2]
        first = {ref.span.start // size for ref in leaves(place)}
        last = {(ref.span.stop - 1) // size for ref in leaves(place)}
        if first == last and len(first) == 1:  # all of one expert: its own matrix and factors
            expert = first.pop()
            addition, shape = of_expert(addition, expert, shape[0]), shape[1:]
            place = _moved_back(place, expert * size)
    term = MovedTerm.of(addition.term, place, shape)
    return replace(addition, term=term)


def _moved_back(tensor: Derived | Filled, by: int) -> Derived | Filled:
    if isinstance(tensor, Joined):
        return replace(tensor, parts=tuple(_moved_back(part, by) for part in tensor.parts))
    if not isinstance(tensor, TensorRef):
        return tensor
    return replace(tensor, span=Span(tensor.span.start - by, tensor.span.stop - by))
