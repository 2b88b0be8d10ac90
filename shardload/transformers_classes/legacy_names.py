"""The names that transformers 4 gives to a checkpoint's tensors, for its own classes and for those of the stand-in.

Its `from_pretrained` renames and nothing more: old parameter names (`LayerNorm.gamma`), the patterns that some classes
list (`_checkpoint_conversion_mapping`), and the base model's prefix, which is added or stripped.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shardload.keymap.rule import RuleBase, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch import nn

    from shardload.keymap.rule import Table

# The last parts of names that every class renames: `_fix_key` of `PreTrainedModel._load_pretrained_model` in 4.46, and
# in older releases all but the weight norm's, which torch's own hook renames.
_OLD = {
    "beta": "bias",
    "gamma": "weight",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


@dataclass(frozen=True, eq=False)
class LegacyNames(RuleBase):
    """The rule that gives the tensors of a checkpoint the names that a model has in transformers 4.

    `model` is the outermost module of the library, at `prefix` of the whole model; `names` are its keys. A tensor
    whose new name the model lacks keeps its stored name, and so does one whose new name another tensor has. `within`
    are the prefixes of parts that have a rule of their own, after this one: any name is a name there.
    """

    op: ClassVar[str] = "transformers 4"
    refusals: ClassVar[Mapping[str, str]] = {}  # a rename refuses nothing

    model: nn.Module
    prefix: str
    names: Collection[str]
    within: tuple[str, ...] = ()

    def transform(self, table: Table) -> Step:
        """Return the table after the renames."""
        renames, ignored = self.sorted_out(table)
        made = {old: [(new, table[old])] for old, new in renames.items()}
        return Step(table, (*made, *ignored), made, (*made, *ignored))

    def invert(self) -> LegacyNames.Written:
        """Return the rule that writes a model's tensors under the names that `save_pretrained` gives them."""
        return LegacyNames.Written(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what tells the rule from others; a map with it can't be written to a file."""
        return {"op": self.op, "class": type(self.model).__name__}

    def takes(self, stored: Collection[str]) -> bool:
        """Whether the rule changes any of the names that are stored."""
        return any(self.sorted_out(stored))

    def sorted_out(self, stored: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Return the names that change, with the new ones, and the names that the library ignores."""
        inside = [name[len(self.prefix) :] for name in stored if name.startswith(self.prefix)]
        buffers = {name for name, _ in self.model.named_buffers()}
        exact = {*self.names, *buffers}

        def known(name: str) -> bool:
            return name in exact or name.startswith(self.within)

        mapping = _mapping(self.model)
        listed = {old: _listed(self._fixed(old, known), mapping) for old in inside}
        base = f"{getattr(self.model, 'base_model_prefix', '')}."
        of_base = not any(name.startswith(base) for name in listed.values())
        new = {old: _based(name, base, known, of_base=of_base) for old, name in listed.items()}
        # What a class lists is for older names: a name that it has, as it stands or below the prefix, is not one.
        new.update(
            {old: _based(old, base, known, of_base=of_base) for old, name in new.items() if not known(name)}
        )
        taken = {old for old, name in new.items() if old == name}
        renames: dict[str, str] = {}
        for old, name in new.items():
            if known(name) and name not in taken:
                taken.add(name)
                renames[self.prefix + old] = self.prefix + name
        # `_adjust_missing_and_unexpected_keys`, 4.57: tables of positions that one buffer of the whole model replaced.
        moved = any(name.endswith("rotary_emb.inv_freq") for name in buffers)
        ignored = [
            self.prefix + old
            for old, name in new.items()
            if moved and not known(name) and "rotary_emb.inv_freq" in name
        ]
        return renames, ignored

    def _fixed(self, name: str, known: Callable[[str], bool]) -> str:
        """Return a tensor's name with an old parameter name replaced, as the library does where it can be asked."""
        if known(name):
            return name
        fix = getattr(self.model, "_fix_state_dict_key_on_load", None)  # since 4.48
        if fix is not None:
            return _name_of(fix(name))
        before, _, last = name.rpartition(".")
        new = f"{before}.{_OLD.get(last, last)}"
        return new if before else name

    @dataclass(frozen=True, eq=False)
    class Written(RuleBase):
        """The inverse: the names that `save_pretrained` gives; old parameter names and prefixes do not come back."""

        op: ClassVar[str] = "transformers 4, back"

        read: LegacyNames

        def transform(self, table: Table) -> Step:
            """Return the table under the names of a checkpoint."""
            model, prefix = self.read.model, self.read.prefix
            # As `save_pretrained` of 4.52 to 4.57 turns the patterns round.
            back = {new: re.sub(r"\(.*\)", "", old.lstrip("^")) for old, new in _mapping(model).items()}
            fix = getattr(model, "_fix_state_dict_key_on_save", lambda name: name)  # since 4.48
            made = {}
            for name in table:
                if name.startswith(prefix):
                    new = prefix + _name_of(fix(_listed(name[len(prefix) :], back)))
                    if new != name:
                        made[name] = [(new, table[name])]
            return Step(table, made, made, tuple(made))

        def invert(self) -> LegacyNames:
            """Return the rule that reads such names."""
            return self.read

        def to_dict(self) -> dict[str, Any]:
            """Return what tells the rule from others."""
            return {"op": self.op}


def _mapping(model: nn.Module) -> Mapping[str, str]:
    """Return the patterns of old names that a class lists, which the library heeds for the families of `VLMS`."""
    listed: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    if not listed:
        return {}
    families = getattr(importlib.import_module("transformers.modeling_utils"), "VLMS", ("",))
    kinds = [kind.__name__.lower() for kind in type(model).__mro__[:-1]]
    return listed if any(family in kind for kind in kinds for family in families) else {}


def _listed(name: str, mapping: Mapping[str, str]) -> str:
    """Return a name after the first pattern that it meets, as `_get_key_renaming_mapping` does it."""
    for pattern, replacement in mapping.items():
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    return name


def _based(name: str, base: str, known: Callable[[str], bool], *, of_base: bool) -> str:
    """Return a name with the base model's prefix added or stripped where the model wants it; `base` ends in a dot.

    A name that a head has too is the base model's in a checkpoint `of_base`, none of whose names has the prefix.
    """
    added, bare = base + name, name.removeprefix(base)
    if len(base) == 1 or (known(name) and not (of_base and known(added))):
        return name
    return added if known(added) else bare if known(bare) else name


def _name_of(fixed: Any) -> str:
    """Return the name of what the library's own functions return: since 4.49 it comes with whether it changed."""
    name: str = fixed[0] if isinstance(fixed, tuple) else fixed
    return name
