"""E-CONFIG: the sizes that the stored shapes show differ from those of config.json and the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.diagnosis.pairing.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardload.diagnosis.finding import Shape

_FIELDS = {
    "hidden size": ("hidden", "d_model", "n_embd", "dim", "width"),
    "feed-forward size": ("intermediate", "ffn", "ffw", "n_inner", "d_ff"),
    "vocabulary size": ("vocab",),
    "number of experts": ("expert",),
}


class SizesRule:
    """Infers the model's sizes from the stored shapes, where names fit and shapes do not."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding with every size that differs; none where shapes agree."""
        shapes = {key: ref.shape for key, ref in case.stored.items()}
        pairs = mismatched_shapes(case)
        if not pairs:
            return ()
        have, want = infer_sizes(shapes), infer_sizes(case.slots)
        differing = {
            name: (have[name], want[name]) for name in have if name in want and have[name] != want[name]
        }
        differing.pop("vocabulary size", None)  # E-VOCAB reports it
        if not differing:
            return ()
        lines = []
        changes = []
        for name, (stored, model) in differing.items():
            field = next(
                (found for hint in _FIELDS[name] if (found := field_of(case.config, model, hint))), None
            )
            says = f", config.json says {field} = {model}" if field else ""
            lines.append(f"{name}: {stored} in the checkpoint, {model} in the model{says}")
            changes.append(f"{field or name} to {stored}")
        return (
            Finding(
                "E-CONFIG",
                "the model has other sizes than the checkpoint: " + ", ".join(differing),
                explained=len(pairs),
                nbytes=case.nbytes(case.shape_mismatches),
                cure=change_of_config(", ".join(changes)),
                evidence=tuple(lines),
                confidence=0.9,
            ),
        )


def mismatched_shapes(case: Case) -> list[tuple[str, Shape, Shape]]:
    """Return (model key, model shape, stored shape) where names fit, perhaps after a rename, and shapes do not."""
    solution = case.solution
    there = {family.template: family.members for family in solution.wanted}
    pairs = [
        (family.key(indices), model, shape)
        for family in solution.unwrapped
        if (members := there.get(family.template)) is not None and members != family.members
        for indices, shape in family.members.items()
        if (model := members.get(indices)) is not None and model != shape
    ]
    taken = {name for name, _, _ in pairs}
    for link in solution.board.links:
        if link.shape_mismatch:
            old, new = link.stored[0], link.wanted[0]
            pairs += [
                (new.key(indices), new.members[indices], shape)
                for indices, shape in old.members.items()
                if new.members[indices] != shape and new.key(indices) not in taken
            ]
    turned = {key for link in solution.links("transpose") for key in link.wanted[0].names()}
    return [pair for pair in pairs if pair[0] not in turned and pair[0] not in solution.filled]


def infer_sizes(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the sizes that keys and shapes show; a size that is not clear is left out.

    The hidden size is the most frequent length of a norm, the vocabulary size the rows of the token embedding, the
    feed-forward size the columns of the down projection, the number of experts the rows of the router.
    """
    norms: Counter[int] = Counter()
    found: dict[str, Counter[int]] = {name: Counter() for name in _FIELDS}
    for key, shape in shapes.items():
        segments = key.split(".")
        words = {word for segment in segments[-3:] for word in words_of(segment)}
        if len(shape) == 1 and "norm" in words and segments[-1] == "weight":
            norms[shape[0]] += 1
        elif len(shape) == 2:
            if "embed" in words and not words & {"position", "type", "patch"}:
                found["vocabulary size"][shape[0]] += 1
            elif "down" in words and "experts" not in words:
                found["feed-forward size"][shape[1]] += 1
            elif "router" in words or segments[-2:] == ["gate", "weight"]:
                found["number of experts"][shape[0]] += 1
    found["hidden size"] = norms
    return {name: counts.most_common(1)[0][0] for name, counts in found.items() if counts}


def field_of(config: Mapping[str, Any], value: int, hint: str) -> str | None:
    """Return the name of a config's field that has this value and the hint in its name; a dot for nested fields."""
    return next((name for name, held in fields_of(config) if held == value and hint in name), None)


def fields_of(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the whole numbers of a config; a dot for nested fields."""
    for name, value in config.items():
        if isinstance(value, Mapping) and path.count(".") < 4:
            yield from fields_of(value, f"{path}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{path}{name}", value
