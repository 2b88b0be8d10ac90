"""The conversion that transformers makes of a checkpoint's tensors for its own classes, stated on headers.

transformers lists the transforms of each class (`get_model_conversion_mapping`, since 5.0): renames, and converters
that stack experts, cut fused projections or permute heads. Here the library's own operations run on traced refs, so
that the result is known from headers, and no list is copied that changes with every release.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from shardload.errors import ShardloadError
from shardload.keymap.rule import RuleBase, Step
from shardload.library_parts.importer import part_module
from shardload.transformers_classes.groups import Group
from shardload.transformers_classes.part_transforms import transforms_of
from shardload.transformers_classes.renaming import NewName, Renaming

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from shardload.keymap.derived import Derived
    from shardload.keymap.rule import Table

Made = list[tuple[str, "Derived"]]


@dataclass(frozen=True, eq=False)
class ClassConversion(RuleBase):
    """The rule that turns the tensors of a checkpoint into those of a model of transformers.

    `model` is the outermost module of the library, at `prefix` of the whole model; `names` are its keys. A tensor
    whose new name the model lacks keeps its stored name, so that messages and cures speak of what is in the file; one
    that the class ignores is dropped. With `of_parts` the module is a part, and so are the transforms. `refusals` tells
    what an operation said against a tensor that stays as it is.
    """

    op: ClassVar[str] = "transformers"

    model: nn.Module
    prefix: str
    names: Collection[str]
    of_parts: bool = False
    refusals: dict[str, str] = field(default_factory=dict)

    def transform(self, table: Table) -> Step:
        """Return the table after the conversion."""
        self.__dict__.pop("transforms", None)  # they keep state from name to name
        self.refusals.clear()
        groups, renames, ignored = self._sorted_out(table)
        made: dict[str, Made] = {name: [] for name in ignored}
        made.update({old: [(self.prefix + new, table[old])] for old, new in renames.items()})
        stays = {name: name for name in table if name not in made}
        holders = stays | {self.prefix + new: old for old, new in renames.items()}
        for key, group in groups.items():
            made.update(self._converted(key, group, table, holders))
        return Step(table, made, made, tuple(made))

    def invert(self) -> WriteBack:
        """Return the rule that writes a model's tensors under the names, and in the parts, of its checkpoints."""
        return WriteBack(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what tells the rule from others; a map with it can't be written to a file."""
        return {"op": self.op, "class": type(self.model).__name__}

    def takes(self, stored: Collection[str]) -> bool:  # noqa: ARG002
        """Whether the rule is for this checkpoint: always, for it remembers what it found."""
        return True

    @cached_property
    def transforms(self) -> list[Any]:
        """The transforms of the class; each remembers whether it took a name."""
        return self._listed(legacy=True)

    def _listed(self, *, legacy: bool) -> list[Any]:
        if self.of_parts:
            return transforms_of(self.model, legacy=legacy)
        mapping = importlib.import_module("transformers.conversion_mapping")
        return list(mapping.get_model_conversion_mapping(self.model, add_legacy=legacy))

    @property
    def loading(self) -> Any:
        """The module of transformers that has its transforms."""
        if self.of_parts:
            return part_module("core_model_loading")
        return importlib.import_module("transformers.core_model_loading")

    @property
    def used(self) -> list[Any]:
        """The transforms that took a name of the checkpoint; for a model that was not loaded, those that always apply.

        The prefix that some checkpoints have and others lack is known from a checkpoint alone.
        """
        if "transforms" in self.__dict__:
            return [each for each in self.transforms if each.was_used()]
        prefixed = self.loading.PrefixChange
        return [each for each in self._listed(legacy=False) if not isinstance(each, prefixed)]

    def _sorted_out(self, table: Table) -> tuple[dict[str, Group], dict[str, str], list[str]]:
        """Return the groups of names by the first name of each result, the renames, and the names to ignore."""
        loading = self.loading
        renamings, converters, owner = divided(self.transforms, loading)
        renaming = Renaming(
            self.transforms, lambda name: loading.rename_source_key(name, renamings, converters)
        )
        groups: dict[str, Group] = {}
        sources: dict[str, str] = {}
        ignored: list[str] = []
        names = [name for name in table if name.startswith(self.prefix)]
        for name in sorted(names, key=loading.dot_natural_key):
            old = name[len(self.prefix) :]
            new = self._placed(renaming(old), old)
            if new.name in self.names:
                if new.pattern is None:
                    if old == new.name or new.name not in sources:  # a tensor keeps the name that it has
                        sources[new.name] = name
                    elif (
                        new.name in self._buffers
                    ):  # a table that every layer held once, and the model holds now
                        ignored.append(name)
                else:
                    group = groups.setdefault(new.name, Group(owner[new.pattern]))
                    group.sources.setdefault(new.pattern, []).append(name)
            elif self._ignored.search(new.name):
                ignored.append(name)
        renames = {name: new for new, name in sources.items() if self.prefix + new != name}
        return groups, renames, ignored

    def _placed(self, new: NewName, old: str) -> NewName:
        """Add or strip the base model's prefix, as the model's keys want it; an unknown name becomes the old one."""
        found = NewName(self._with_base(new.name), new.pattern)
        if found.name not in self.names and old in self.names:
            return NewName(self._with_base(old), None)
        return found

    def _with_base(self, name: str) -> str:
        base = getattr(self.model, "base_model_prefix", "")
        if not base:
            return name
        bare = name[len(base) + 1 :]
        if name.startswith(base) and bare in self.names:
            return bare
        return f"{base}.{name}" if f"{base}.{name}" in self.names else name

    def _converted(self, key: str, group: Group, table: Table, holders: Mapping[str, str]) -> dict[str, Made]:
        """Return what a converter makes of its group, in place of the group's first tensor; nothing if it refuses.

        `holders` are the stored names of tensors outside the groups, by the names that they have in the model.
        """
        try:
            group.refuse_gaps()
            results = group.converted(key, table, self.model)
            group.refuse_taken(holders, [self.prefix + name for name in results])
        except (ShardloadError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            what = (
                error.what
                if isinstance(error, ShardloadError)
                else group.lacks or str(error).partition("\n")[0]
            )
            self.refusals.update(dict.fromkeys(group.names, f"{group} refuses: {what}"))
            return {}
        first, *others = group.names
        made: dict[str, Made] = {name: [] for name in others}
        made[first] = [(self.prefix + name, tensor) for name, tensor in results.items()]
        return made

    @cached_property
    def _buffers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.model.named_buffers())

    @cached_property
    def _ignored(self) -> re.Pattern[str]:
        """Names that the class ignores where nothing wants them, as in its `_adjust_missing_and_unexpected_keys`."""
        patterns = set(getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or ())
        buffers = self._buffers
        if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
            patterns.add(r"rotary_emb\.inv_freq")
        if any(name.endswith("position_ids") for name in buffers):
            patterns.add(r"(^|\.)position_ids$")
        return re.compile("|".join(f"({pattern})" for pattern in sorted(patterns)) or r"(?!)")


@dataclass(frozen=True, eq=False)
class WriteBack(RuleBase):
    """The inverse of a conversion: the reverse of each transform that took a name, the last one first."""

    op: ClassVar[str] = "transformers, back"

    conversion: ClassConversion

    def transform(self, table: Table) -> Step:
        """Return the table as a checkpoint has it. Raises what an operation of transformers raises."""
        loading = self.conversion.loading
        used = [each.reverse_transform() for each in reversed(self.conversion.used)]
        renamings, converters, owner = divided(used, loading)
        taken_by = Renaming(converters, lambda name: loading.apply_converters(name, converters))
        renamed = Renaming(renamings, lambda name: (loading.apply_renamings(name, renamings), None))
        prefix = self.conversion.prefix
        groups: dict[str, Group] = {}
        made: dict[str, list[tuple[str, Derived]]] = {}
        names = [name for name in table if name.startswith(prefix)]
        for name in sorted(names, key=loading.dot_natural_key):
            old = name[len(prefix) :]
            new = taken_by(old)
            if new.pattern is not None:
                groups.setdefault(new.name, Group(owner[new.pattern])).sources.setdefault(
                    new.pattern, []
                ).append(name)
            elif (other := renamed(old).name) != old:
                made[name] = [(prefix + other, table[name])]
        for key, group in groups.items():
            first, *others = group.names
            made.update({name: [] for name in others})
            results = group.converted(key, table, self.conversion.model)
            made[first] = [(prefix + renamed(name).name, tensor) for name, tensor in results.items()]
        return Step(table, made, made, tuple(made))

    def invert(self) -> ClassConversion:
        """Return the conversion."""
        return self.conversion

    def to_dict(self) -> dict[str, Any]:
        """Return what tells the rule from others."""
        return {"op": self.op}


def divided(transforms: list[Any], loading: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return the renames and the converters among transforms, and the converter of each pattern.

    `loading` is the module of transformers that has them.
    """
    renamings = [each for each in transforms if isinstance(each, loading.WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, loading.WeightConverter)]
    return renamings, converters, {pattern: each for each in converters for pattern in each.source_patterns}
