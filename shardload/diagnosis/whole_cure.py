"""The whole cure of a case: every step that a load needs at once, so that following it leaves nothing to refuse."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import TYPE_CHECKING

from shardload.diagnosis.config_fields import is_table
from shardload.diagnosis.pairing.solution import Left
from shardload.diagnosis.pairing.words import words_of
from shardload.diagnosis.rule_text import as_names
from shardload.errors import Cures, OfReport, Wording, joined, keyword, keywords_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from shardload.diagnosis.finding import Case, Finding
    from shardload.diagnosis.pairing.key_family import Shape
    from shardload.keymap import KeyMap, Rule

_MOST_PATTERNS = 12
_LONGEST_CHOICE = 800  # characters of a mapping that stands in no map: it is long, or can't be typed at all
NO_CURE = "no cure is known: use the class and config that belong to this checkpoint"


def whole_cure(
    case: Case, findings: Sequence[Finding], ignored: Callable[[str, str], bool] | None = None
) -> str:
    """Return what to do so that the checkpoint loads, in one text; it says so where no cure is known.

    `ignored(kind, key)` says whether a class lets a key be missing or unexpected by itself.
    """
    others = [finding for finding in findings if finding.key_map is None and finding.code.startswith("E-")]
    if any(finding.declines or not finding.settles for finding in others):
        # Its cure is another file, another class or a choice: steps beside it would be of no use.
        cures = [*dict.fromkeys(f.cure for f in others if f.declines or not f.settles)]
        return cures[0] if len(cures) == 1 else joined("; ", cures)
    left = _left(case, {key for finding in others for key in finding.settles}, ignored)
    rest = None if case.refused or _is_most(case, left) else _allowances(case, left)
    if rest is None or not (others or case.solution.key_map.rules or rest):
        rules = len(case.solution.key_map.rules)
        known = f"a part of the keys has {rules} rule{'s' * (rules != 1)} of a map; " if rules else ""
        which = Wording("say which key is which: {key_map}", key_map=...)
        return Cures(Wording("{0}{1}", known, NO_CURE), which)
    choosing = next((finding for finding in others if finding.choices), None)
    if choosing is not None:
        beside = [finding for finding in others if finding is not choosing]
        return Cures(
            *(Wording("{0}: {1}", what, _steps(case, beside, rest, way)) for what, way in choosing.choices)
        )
    if len(others) == 1 and not case.solution.key_map.rules and not rest:
        return others[0].cure
    return _steps(case, others, rest)


def _steps(case: Case, findings: Sequence[Finding], rest: Sequence[str], way: str | KeyMap = "") -> str:
    """Return all steps at once; `way` is one of the choices of another finding, a step or rules."""
    more = () if isinstance(way, str) else way.rules
    steps = [finding.step or _first(finding.cure) for finding in findings]
    if case.solution.key_map.rules or more:
        steps.append(_map_step(case, more))
    steps = [joined(" and ", _merged([*steps, *([way] if isinstance(way, str) and way else []), *rest]))]
    return joined("; ", [*steps, *(finding.after for finding in findings if finding.after)])


def _merged(steps: Sequence[str]) -> list[str]:
    """Return steps of which no two name one keyword: lists of patterns are joined."""
    lists: dict[str, list[str]] = {}
    others = []
    for step in steps:
        name, value = next(iter(keywords_of(step).items()), ("", None))
        if isinstance(value, list) and step == keyword(name, value):
            lists[name] = [*lists.get(name, ()), *value]
        else:
            others.append(step)
    return [*others, *(keyword(name, patterns) for name, patterns in lists.items())]


def _is_most(case: Case, left: Left) -> bool:
    """Whether most of one side would be left out while the other side lacks something: that loads next to nothing."""
    found = case.solution.left
    return bool(
        (found.missing and 2 * len(left.unexpected) > len(case.stored))
        or (found.unexpected and 2 * len(left.missing) > len(case.slots))
    )


def _first(cure: str) -> str:
    return cure.parts[0] if isinstance(cure, Cures) else cure


def _map_step(case: Case, more: Sequence[Rule] = ()) -> str:
    """Return the step that gives the map, with more rules where a choice has some: no report has those."""
    rules = (*case.own_rules, *case.solution.key_map.rules, *more)
    names = as_names(rules, **({"longest": _LONGEST_CHOICE} if more else {}))
    if names is not None or more:
        return keyword("key_map", ... if names is None else names)
    count = len(rules)
    return Wording(
        "{0}: look at {1}, and load with {key_map}",
        f"{count} rule{'s' * (count != 1)}",
        "it" if count == 1 else "them",
        key_map=OfReport("map.json"),
    )


def _left(case: Case, settled: set[str], ignored: Callable[[str, str], bool] | None) -> Left:
    left = case.solution.left
    ignored = ignored or (lambda *_: False)
    # A model may do without some of its own tensors, as a batch norm does without its counter: they have a place.
    strange = {key: shape for key, shape in left.unexpected.items() if key not in case.slots}
    return Left(
        {key: s for key, s in left.missing.items() if key not in settled and not ignored("missing", key)},
        {key: s for key, s in strange.items() if key not in settled and not ignored("unexpected", key)},
        tuple(key for key in left.misshapen if key not in settled),
    )


def _allowances(case: Case, left: Left) -> list[str] | None:
    """Return the keywords that allow what is left; None where that would hide weights that belong together."""
    found = allowed(case, left)
    return None if found is None else [keyword(name, patterns) for name, patterns in found.items()]


def allowed(case: Case, left: Left) -> dict[str, list[str]] | None:
    """Return the patterns of what is left, by keyword; None where allowing it would hide weights of one model."""
    if left.misshapen or _akin(case, left) or _has_twin(case, left):
        return None
    steps: dict[str, list[str]] = {}
    strange = {**left.unexpected, **_entries(case)}
    for name, keys, others in (
        ("allow_missing", left.missing, case.slots),
        ("allow_unexpected", strange, [*case.stored, *case.solution.table]),
    ):
        patterns = _patterns(keys, others)
        if len(patterns) > _MOST_PATTERNS:
            return None
        if patterns:
            steps[name] = patterns
    return steps


def _entries(case: Case) -> dict[str, Sequence[int]]:
    """Return the entries that are no tensors, and have no place, by the names that the map gives them."""
    entries = [key for key in case.unexpected if key not in case.stored]
    if not entries:
        return {}
    named = case.solution.key_map.map_objects(entries, {})
    # Below a name of the model's, a module may take its own state.
    return {
        new: ()
        for old, new in named.items()
        if new is not None and (new == old or not new.endswith("_extra_state"))
    }


def _akin(case: Case, left: Left) -> bool:
    """Whether a tensor that is left may be what a missing one wants.

    It has as many elements, or lies in the same part of the model, or may be joined to it in the same layer or
    module; or so much is left on both sides that names and sizes say nothing.
    """
    if not left.missing or not left.unexpected:
        return False
    if 2 * len(left.missing) > len(case.slots) or 2 * len(left.unexpected) > len(case.stored):
        return True
    sizes = {prod(shape) for shape in left.missing.values()}
    if any(prod(shape) in sizes for shape in left.unexpected.values()):
        return True
    places = _by_place(left.missing), _by_place(left.unexpected)
    if any(
        _may_be_joined(shape, part)
        for place in places[0].keys() & places[1].keys()
        for shape in places[0][place]
        for part in places[1][place]
    ):
        return True
    homes = [{key.rpartition(".")[0] for key in side} - {""} for side in (left.missing, left.unexpected)]
    return any(_is_below(key, homes[0]) for key in left.unexpected) or any(
        _is_below(key, homes[1]) for key in left.missing
    )


def _by_place(shapes: Mapping[str, Shape]) -> dict[tuple[str, str], set[Shape]]:
    """Return the shapes of keys by the numbered part that they lie in, and by the module that holds them."""
    found: dict[tuple[str, str], set[Shape]] = defaultdict(set)
    for key, shape in shapes.items():
        for kind, path in (("block", _block(key)), ("module", _parent(key))):
            if path:
                found[kind, path].add(shape)
    return found


def _block(key: str) -> str:
    """Return the path of the first numbered part that a key lies in: "model.layers.0"; "" for none."""
    parts = key.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: number + 1])


def _parent(key: str) -> str:
    """Return the path of the module that has a tensor's own module as a child; "" at the top."""
    return ".".join(key.split(".")[:-2])


def _may_be_joined(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one tensor may be a stack or a row of tensors like the other: matrices whose sizes divide one another."""
    large, small = sorted((prod(one), prod(other)), reverse=True)
    return min(len(one), len(other)) > 1 and small > 0 and large % small == 0


def _has_twin(case: Case, left: Left) -> bool:
    """Whether a missing embedding of tokens may be another name of a stored one: new values would not be its own."""
    tables = {ref.shape for key, ref in case.stored.items() if is_table(key)}
    return any(
        shape in tables and is_table(key) and "embed" in words_of(key.split(".")[-2])
        for key, shape in left.missing.items()
        if "." in key
    )


def _is_below(key: str, paths: Collection[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in paths for length in range(1, len(parts)))


def _patterns(keys: Mapping[str, object], others: Iterable[str]) -> list[str]:
    """Return patterns that match all `keys` and none of the `others`: the shortest prefixes, else names."""
    if not keys:
        return []
    rest = {key for key in others if key not in keys}
    taken = {
        ".".join(parts[:length])
        for key in rest
        for parts in [key.split(".")]
        for length in range(1, len(parts))
    }
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        parts = key.split(".")
        heads = (".".join(parts[:length]) for length in range(1, len(parts)))
        found[next((f"{head}." for head in heads if head not in taken), key)].append(key)
    return [_literal(group[0]) if len(group) == 1 else f"{_literal(head)}*" for head, group in found.items()]


def _literal(text: str) -> str:
    """Return a text as a pattern that matches itself only."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)
