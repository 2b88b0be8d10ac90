"""A plan for tensor parallelism by names: which layers may be cut so, by a model's modules or by headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import Cures, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CUT, JOINED = "colwise", "rowwise"


def refuse_what_stays_cut(styles: Mapping[str, object], features: Callable[[str], tuple[int, int]]) -> None:
    """Refuse a layer whose cut output nothing takes as it is: what follows would compute something else.

    The output of a "colwise" layer is this rank's part. A "rowwise" layer beside it, in the same module, takes a part
    of as many features; where the layer makes more, several projections are fused in it, and a cut goes through them.
    `styles` are by whole names of modules; `features` returns how many a module takes and makes, 0 for one not known.
    """
    siblings: dict[str, list[str]] = {}
    for name in styles:
        siblings.setdefault(name.rpartition(".")[0], []).append(name)
    for name, style in styles.items():
        beside = siblings[name.rpartition(".")[0]]
        if style == CUT:
            takes = [features(each)[0] for each in beside if styles[each] == JOINED]
            makes = features(name)[1]
            if not takes or (makes and makes > max(takes)):
                why = "stays cut: no rowwise layer stands beside it"
                if takes:
                    why = f"is fused of several: {makes} features, and the rowwise layer beside it takes {max(takes)}"
                raise UnsupportedError(
                    f"the output of {name} {why}",
                    where=f"{name!r}: {style!r}",
                    cure=Cures('make it "colwise_rep", which gathers its output', "leave it whole"),
                )
        elif style == JOINED and not any(styles[each] == CUT for each in beside):
            raise UnsupportedError(
                f"the input of {name} is whole: no colwise layer stands beside it",
                where=f"{name!r}: {style!r}",
                cure=Cures('make it "rowwise_rep", which cuts its input', "leave it whole"),
            )
