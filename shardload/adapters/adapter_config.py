"""adapter_config.json of an attached adapter: the settings that it was loaded with, where they still hold."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import canonical
from shardload.adapters.settings import read_settings
from shardload.adapters.targets import Targets, targets_of
from shardload.errors import ShardloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DEFAULTS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
_MERGED_LINEAR = ("enable_lora", "merge_weights")
"""Settings of PEFT 0.2: a MergedLinear is saved as the plain pair that it equals."""
_PLAIN_INITS = ("gaussian", "orthogonal", "eva", "mica")


@dataclass(frozen=True)
class LayerSetting:
    """What a config must give for one layer: its path in the model, its rank as stored, its scale, its dropout.

    `parameter` is the name of a parameter that the layer uses itself, "" for the weight of a layer that PEFT knows;
    `layout` is that of `layout_of`.
    """

    path: str
    rank: int
    scale: float
    dropout: float = 0.0
    parameter: str = ""
    layout: str = ""

    @property
    def name(self) -> str:
        """The name by which PEFT looks the layer up in patterns."""
        return f"{self.path}.{self.parameter}" if self.parameter else self.path


def adapter_config(
    given: Mapping[str, Any] | None, layers: Iterable[LayerSetting], paths: Iterable[str], **facts: Any
) -> dict[str, Any]:
    """Return a config that gives exactly these layers, ranks and scales; `paths` are all modules of the model.

    `given` is the file's config, or the caller's settings: what still holds is kept, and targets and patterns that no
    longer hold are written out layer by layer. `facts` take precedence over `given`.
    """
    layers = [replace(one, path=canonical(one.path)) for one in layers]
    kept = {key: value for key, value in (given or {}).items() if key not in _MERGED_LINEAR}
    config = {**_DEFAULTS, **kept, **facts, "inference_mode": True}
    if isinstance(config["init_lora_weights"], str) and config["init_lora_weights"] not in _PLAIN_INITS:
        # Such an adapter became a plain one when it was attached: it is relative to the unchanged base now.
        config["init_lora_weights"] = True
    if layers:
        config["lora_dropout"] = layers[0].dropout
    if not _ranks_hold(config, layers):
        config.update(_patterns(config, layers))
    known = [canonical(path) for path in paths if path]
    wanted = {one.path for one in layers if not one.parameter}
    parameters = [one for one in layers if one.parameter]
    if parameters and _parameters_hold(config, parameters):
        return config  # its own targets chose them, and the modules beside them
    if parameters or not _targets_hold(config, wanted, known):
        config.update(exclude_modules=None, layers_to_transform=None, layers_pattern=None)
        config["target_modules"] = _targets(wanted, known) if wanted or not parameters else []
    if parameters:
        # PEFT takes names of published layers among the modules for these, and doubles their rank.
        config["target_parameters"] = _parameters(parameters, known)
    layouts = {one.layout for one in parameters} - {""}
    if layouts == {"0.19.0"}:
        config["peft_version"] = "0.19.0"  # a loaded config may name an older one
    return config


def _ranks_hold(config: Mapping[str, Any], layers: list[LayerSetting]) -> bool:
    try:
        settings = read_settings({"r": 8, **config, "target_modules": None}, "", strict=False)
    except ShardloadError:
        return False
    stated = [settings.of_parameter(one.path, one.parameter) for one in layers]
    return all(
        rank == one.rank and math.isclose(scaling.of(one.rank), one.scale, rel_tol=1e-12)
        for one, (scaling, rank) in zip(layers, stated, strict=True)
    )


def _patterns(config: Mapping[str, Any], layers: list[LayerSetting]) -> dict[str, Any]:
    """Return ranks and alphas that hold for all layers, by whole paths where they differ from most."""
    alphas = {
        one.name: one.scale * (math.sqrt(one.rank) if config["use_rslora"] else one.rank) for one in layers
    }
    # 16, not 16.0.
    alphas = {
        path: round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha for path, alpha in alphas.items()
    }
    rank = Counter(one.rank for one in layers).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    found = {"r": rank, "lora_alpha": alpha}
    ranks = {one.name: one.rank for one in layers}
    few = {
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
    }
    if _ranks_hold({**config, **found, **few}, layers):
        return {**found, **few}
    # A path that is the end of another one is a pattern for that one too: the longest first, and all of them.
    order = sorted(ranks, key=len, reverse=True)
    return {
        **found,
        "rank_pattern": {path: ranks[path] for path in order},
        "alpha_pattern": {path: alphas[path] for path in order},
    }


def _parameters_hold(config: Mapping[str, Any], layers: list[LayerSetting]) -> bool:
    targets = config.get("target_parameters") or ()
    return all(any(f".{one.name}".endswith(f".{target}") for target in targets) for one in layers)


def _parameters(layers: list[LayerSetting], known: list[str]) -> list[str]:
    """Return the ends of the parameters' names, or their whole names where other modules have such an end."""
    owners = {one.path.rpartition(".")[2] for one in layers}
    alike = {path for path in known if path.rpartition(".")[2] in owners}
    if alike == {one.path for one in layers}:
        return sorted({f"{one.path.rpartition('.')[2]}.{one.parameter}" for one in layers})
    return sorted(one.name for one in layers)


def _targets_hold(config: Mapping[str, Any], wanted: set[str], known: list[str]) -> bool:
    return set(targets_of(config).among(known)) == wanted


def _targets(wanted: set[str], known: list[str]) -> str | list[str]:
    """Return the shortest of: last names, whole paths, an expression, that chooses exactly these paths."""
    last = sorted({path.rpartition(".")[2] for path in wanted})
    for names in (last, sorted(wanted)):
        if set(Targets(tuple(names)).among(known)) == wanted:
            return names
    return "|".join(map(re.escape, sorted(wanted)))
