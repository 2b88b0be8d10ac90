"""adapter_config.json: the settings that change what a LoRA computes, checked; the others told apart from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import Scaling
from shardload.adapters.adapter_report import shown
from shardload.adapters.patterns import Patterns
from shardload.adapters.variants import decline_variants
from shardload.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_LARGEST_RANK = 1_000_000
_BIASES = ("none", "all", "lora_only")
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one adapter. `r` is None when the config does not say: the shapes do.

    `whole_modules` is `modules_to_save`; `heads` are names that PEFT adds to it by itself for the task.
    """

    alpha: float
    r: int | None = None
    use_rslora: bool = False
    dropout: float = 0.0
    rank_pattern: Patterns = field(default_factory=Patterns)
    alpha_pattern: Patterns = field(default_factory=Patterns)
    bias: str = "none"
    lora_bias: bool = False
    whole_modules: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    base: str | None = None
    warnings: tuple[str, ...] = ()

    def rank(self, path: str) -> int | None:
        """Return the rank that the config gives the layer at `path`, None when it gives none."""
        key = self.rank_pattern.key_for(path)
        return self.r if key is None else int(self.rank_pattern.values[key])

    def scaling(self, path: str) -> Scaling:
        """Return what B @ A of the layer at `path` is multiplied with, by its rank."""
        key = self.alpha_pattern.key_for(path)
        alpha = self.alpha if key is None else self.alpha_pattern.values[key]
        return Scaling(alpha, self.use_rslora)

    def saves(self, path: str) -> bool:
        """Whether the module at `path` is one of `modules_to_save`, or inside one."""
        names = self.whole_modules + self.heads
        segments = path.split(".")
        heads = (".".join(segments[: end + 1]) for end in range(len(segments)))
        return any(head.endswith(name) for head in heads for name in names)

    def idle_patterns(self, paths: Iterable[str]) -> list[str]:
        """Return the rank and alpha patterns that no path matches."""
        known = list(paths)
        return list(dict.fromkeys([*self.rank_pattern.idle(known), *self.alpha_pattern.idle(known)]))


def read_settings(config: Mapping[str, Any], label: str, *, strict: bool) -> PeftSettings:
    """Check an adapter_config.json and return its settings.

    Raises CorruptError for values that no adapter can have (all of them named), UnsupportedError for other
    adapter types, for variants that are known and not done, and for unknown settings that are switched on
    (with `strict=False` those are a warning).
    """
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedError(
            f"the adapter is of type {shown(str(kind))!r}; this version loads LoRA",
            where=label,
            cure="merge it into its base with PEFT and load the result",
        )
    check = _Checks(config)
    settings = PeftSettings(
        alpha=check.number("lora_alpha", None, low=-1e12, high=1e12),
        r=check.integer("r"),
        use_rslora=check.flag("use_rslora"),
        dropout=check.number("lora_dropout", 0.0, low=0.0, high=1.0),
        rank_pattern=check.pattern("rank_pattern", check.is_rank),
        alpha_pattern=check.pattern("alpha_pattern", check.is_number),
        bias=check.choice("bias", _BIASES),
        lora_bias=check.flag("lora_bias"),
        whole_modules=check.names("modules_to_save"),
        heads=_HEADS.get(str(config.get("task_type")), ()),
        targets=_plain_targets(config),
        base=check.text("base_model_name_or_path"),
    )
    if check.faults:
        raise CorruptError(
            f"{len(check.faults)} settings of the adapter's config are not valid",
            where=f"{label}: " + "; ".join(check.faults),
            cure="fetch the file again, or correct it",
        )
    warnings = decline_variants(config, label, strict=strict)
    if not settings.alpha:
        warnings += ("lora_alpha is 0: the layers without an alpha_pattern of their own change nothing",)
    return replace(settings, warnings=warnings)


def _plain_targets(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the target modules when they are plain names that hold for every layer, else nothing."""
    targets = config.get("target_modules")
    limited = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    if not isinstance(targets, list) or limited:
        return ()
    return tuple(target for target in targets if isinstance(target, str))


class _Checks:
    """Reads values of a config and notes what is wrong with them, so that all of it is reported at once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.faults: list[str] = []

    def _fault(self, key: str, wanted: str, value: Any) -> None:
        self.faults.append(f"{key} must be {wanted}, not {shown(repr(value))[:80]}")

    @staticmethod
    def is_rank(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_RANK

    @staticmethod
    def is_number(value: Any, low: float = -1e12, high: float = 1e12) -> bool:
        # The comparison also refuses NaN, and integers too large for a float.
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    def integer(self, key: str) -> int | None:
        value = self.config.get(key)
        if value is None or self.is_rank(value):
            return value
        self._fault(key, f"a whole number from 1 to {_LARGEST_RANK:,}", value)
        return None

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float:
        value = self.config.get(key, default)
        if self.is_number(value, low, high):
            return float(value)
        self._fault(key, f"a number from {low:g} to {high:g}", value)
        return 0.0

    def flag(self, key: str) -> bool:
        value = self.config.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self._fault(key, "true or false", value)
        return False

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.config.get(key, choices[0])
        if isinstance(value, str) and value in choices:
            return value
        self._fault(key, f"one of {', '.join(choices)}", value)
        return choices[0]

    def text(self, key: str) -> str | None:
        value = self.config.get(key)
        if value is None or isinstance(value, str):
            return value or None
        self._fault(key, "text", value)
        return None

    def names(self, key: str) -> tuple[str, ...]:
        value = self.config.get(key)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self._fault(key, "a list of module names", value)
        return ()

    def pattern(self, key: str, valid: Callable[[Any], bool]) -> Patterns:
        value = self.config.get(key)
        if value is None or value == []:
            return Patterns()
        if not isinstance(value, dict) or not all(valid(item) for item in value.values()):
            self._fault(key, "an object of module name patterns and numbers", value)
            return Patterns()
        try:
            return Patterns(value)
        except (re.error, RecursionError, OverflowError) as error:
            self._fault(key, f"an object whose keys are regular expressions ({error})", value)
            return Patterns()
