"""PeftSettings: the settings of adapter_config.json that change what a LoRA computes, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import Scaling
from shardload.adapters.adapter_report import shown
from shardload.adapters.patterns import Patterns
from shardload.adapters.variants import decline_variants, initial_of
from shardload.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_LARGEST_RANK = 1_000_000
_LARGEST_TOKEN = 2**31
_MOST_PARTS = 64
_MOST_LAYERS = 4096
_BIASES = ("none", "all", "lora_only")
_INERT = frozenset({
    "_from_model_config", "auto_mapping", "base_model_class", "base_model_name_or_path", "corda_config",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dtype", "lora_ga_config", "lorap_emb_lr", "lorap_lr_ratio", "megatron_core",
    "merge_weights", "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type", "unsloth_fixed",
})  # fmt: skip
"""Settings of training, of a fresh attach, or of a variant that another setting switches on."""

_READ = frozenset({
    "alpha_pattern", "bias", "enable_lora", "init_lora_weights", "layer_replication", "lora_alpha", "lora_bias",
    "lora_dropout", "modules_to_save", "peft_type", "r", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip
_PLAIN = _INERT | _READ
_PROMPTS = frozenset({
    "ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING",
})  # fmt: skip
"""Methods of PEFT that train inputs, not weights."""
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one adapter. `r` is None when the config has no rank: the shapes give it.

    `whole_modules` is `modules_to_save`; `heads` are names that PEFT adds to it for the task. `tokens` are
    trainable_token_indices by module name, "" for any. `initial` is an initialisation that changed the base too.
    `believes`: there is no config, so the file's keys decide.
    """

    alpha: float
    r: int | None = None
    use_rslora: bool = False
    dropout: float = 0.0
    rank_pattern: Patterns | None = None
    alpha_pattern: Patterns | None = None
    bias: str = "none"
    lora_bias: bool = False
    use_dora: bool = False
    whole_modules: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    base: str | None = None
    target_parameters: tuple[str, ...] = ()
    tokens: tuple[tuple[str, tuple[int, ...]], ...] = ()
    replication: tuple[tuple[int, int], ...] = ()
    enable_lora: tuple[bool, ...] | None = None
    initial: str | None = None
    peft_version: tuple[int, int] | None = None
    believes: bool = False
    warnings: tuple[str, ...] = ()

    def rank(self, path: str) -> int | None:
        """Return the rank that the config gives the layer at `path`, None when it gives none."""
        found = None if self.rank_pattern is None else self.rank_pattern.value_for(path)
        return self.r if found is None else int(found)

    def scaling(self, path: str) -> Scaling:
        """Return the factor of B @ A of the layer at `path`, which its rank decides."""
        found = None if self.alpha_pattern is None else self.alpha_pattern.value_for(path)
        return Scaling(self.alpha if found is None else found, self.use_rslora)

    def parameters(self, path: str) -> tuple[str, ...]:
        """Return the names of the parameters of the module at `path` that `target_parameters` targets."""
        found = []
        for target in self.target_parameters:
            owner, _, name = target.rpartition(".")
            if not owner or path == owner or path.endswith(f".{owner}"):
                found.append(name)
        return tuple(found)

    def of_parameter(self, path: str, name: str) -> tuple[Scaling, int | None]:
        """Return the scaling and the rank of a targeted parameter: by its own name as in PEFT, else by its module's."""
        full = ".".join(filter(None, (path, name)))
        by_name = [
            p is not None and p.value_for(full) is not None for p in (self.alpha_pattern, self.rank_pattern)
        ]
        return self.scaling(full if by_name[0] else path), self.rank(full if by_name[1] else path)

    def token_indices(self, path: str) -> tuple[int, ...] | None:
        """Return the tokens whose rows the module at `path` has trained, None when the config names none."""
        return next((rows for name, rows in self.tokens if not name or path.endswith(name)), None)

    def saves(self, path: str) -> bool:
        """Return whether the module at `path` is one of `modules_to_save`, or inside one."""
        names = self.whole_modules + self.heads
        segments = path.split(".")
        heads = (".".join(segments[: end + 1]) for end in range(len(segments)))
        return any(head.endswith(name) for head in heads for name in names)

    def idle_patterns(self, paths: Iterable[str]) -> list[str]:
        """Return the rank and alpha patterns that no path matches."""
        patterns = [each for each in (self.rank_pattern, self.alpha_pattern) if each is not None]
        known = list(paths) if patterns else []
        return list(dict.fromkeys(key for each in patterns for key in each.idle(known)))


def refuse_other_type(config: Mapping[str, Any], label: str) -> None:
    """Raise UnsupportedError for the config of another method of PEFT than LoRA, by its name."""
    kind = str(config.get("peft_type", "LORA"))
    if kind != "LORA":
        raise UnsupportedError(
            f"the adapter is of type {shown(kind)!r}; this version loads LoRA",
            where=label,
            cure="run it with PEFT: it adds to the input, and there is no weight to merge it into"
            if kind in _PROMPTS
            else "merge it into its base with PEFT and load the result",
        )


def read_settings(config: Mapping[str, Any], label: str, *, strict: bool) -> PeftSettings:
    """Check an adapter_config.json and return its settings.

    Raises CorruptError that names all impossible values, UnsupportedError for other adapter types, for known variants
    that this version does not load, and for unknown settings that are on (a warning with `strict=False`).
    """
    refuse_other_type(config, label)
    check = Checks(config)
    settings = PeftSettings(
        alpha=check.number("lora_alpha", None, low=-1e12, high=1e12),
        r=check.integer("r"),
        use_rslora=check.flag("use_rslora"),
        dropout=check.number("lora_dropout", 0.0, low=0.0, high=1.0),
        rank_pattern=check.pattern("rank_pattern", check.is_rank),
        alpha_pattern=check.pattern("alpha_pattern", check.is_number),
        bias=check.choice("bias", _BIASES),
        lora_bias=check.flag("lora_bias"),
        use_dora=check.flag("use_dora"),
        whole_modules=check.names("modules_to_save"),
        heads=_HEADS.get(str(config.get("task_type")), ()),
        targets=_plain_targets(config),
        base=check.text("base_model_name_or_path"),
        target_parameters=check.names("target_parameters"),
        tokens=check.tokens("trainable_token_indices"),
        replication=check.runs("layer_replication"),
        enable_lora=check.flags("enable_lora"),
        initial=initial_of(config) if isinstance(config.get("init_lora_weights"), str) else None,
        peft_version=_version(config.get("peft_version")),
    )
    if check.faults:
        raise CorruptError(
            f"{len(check.faults)} settings of the adapter's config are not valid",
            where=f"{label}: " + "; ".join(check.faults),
            cure="fetch the file again, or correct it",
        )
    special = {key: value for key, value in config.items() if key not in _PLAIN and _is_on(value)}
    patterns = settings.rank_pattern or settings.alpha_pattern
    warnings: tuple[str, ...] = ()
    if special or patterns or isinstance(config.get("init_lora_weights"), str):
        warnings = decline_variants(config, special, label, strict=strict)
    if not settings.alpha:
        warnings += ("lora_alpha is 0: the layers without an alpha_pattern of their own change nothing",)
    return replace(settings, warnings=warnings)


def _is_on(value: Any) -> bool:
    # An empty object is a variant with its defaults.
    return value is not None and value is not False and value != []


def _plain_targets(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the target modules when they are plain names for every layer, else ()."""
    targets = config.get("target_modules")
    limited = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    if not isinstance(targets, list) or limited:
        return ()
    return tuple(target for target in targets if isinstance(target, str))


def _version(value: Any) -> tuple[int, int] | None:
    found = re.match(r"(\d{1,6})\.(\d{1,6})", value) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _are_tokens(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and all(
            isinstance(row, int) and not isinstance(row, bool) and 0 <= row < _LARGEST_TOKEN for row in rows
        )
        and len(set(rows)) == len(rows) > 0
    )


class Checks:
    """Reads values of a config and notes the wrong ones in `faults`, so that all are reported at once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.faults: list[str] = []

    def _fault(self, key: str, wanted: str, value: Any) -> None:
        self.faults.append(f"{key} must be {wanted}, not {shown(repr(value))[:80]}")

    @staticmethod
    def is_rank(value: Any) -> bool:
        """Return whether a value is a rank."""
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_RANK

    @staticmethod
    def is_number(value: Any, low: float = -1e12, high: float = 1e12) -> bool:
        """Return whether a value is a number between two others; NaN is not."""
        # The comparison also refuses NaN, and integers too large for a float.
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    def integer(self, key: str) -> int | None:
        """Return a rank, or None when the config has none."""
        value = self.config.get(key)
        if value is None or self.is_rank(value):
            return value
        self._fault(key, f"a whole number from 1 to {_LARGEST_RANK:,}", value)
        return None

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float:
        """Return a number between two others; 0.0, with a fault, for anything else."""
        value = self.config.get(key, default)
        if self.is_number(value, low, high):
            return float(value)
        self._fault(key, f"a number from {low:g} to {high:g}", value)
        return 0.0

    def flag(self, key: str) -> bool:
        """Return true or false; false when the config has none."""
        value = self.config.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self._fault(key, "true or false", value)
        return False

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """Return one of some words; the first when the config has none."""
        value = self.config.get(key, choices[0])
        if isinstance(value, str) and value in choices:
            return value
        self._fault(key, f"one of {', '.join(choices)}", value)
        return choices[0]

    def text(self, key: str) -> str | None:
        """Return a text, or None."""
        value = self.config.get(key)
        if value is None or isinstance(value, str):
            return value or None
        self._fault(key, "text", value)
        return None

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of module names; () when the config has none."""
        value = self.config.get(key)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self._fault(key, "a list of module names", value)
        return ()

    def flags(self, key: str) -> tuple[bool, ...] | None:
        """Return a list of true and false, or None."""
        value = self.config.get(key)
        if value is None:
            return None
        if (
            isinstance(value, list)
            and 0 < len(value) <= _MOST_PARTS
            and all(isinstance(item, bool) for item in value)
        ):
            return tuple(value)
        self._fault(key, "a list of true and false", value)
        return None

    def tokens(self, key: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return token ids by module name, "" for any module."""
        value = self.config.get(key)
        if value is None:
            return ()
        named = value if isinstance(value, dict) else {"": value}
        if all(_are_tokens(rows) for rows in named.values()):
            return tuple((name, tuple(rows)) for name, rows in named.items())
        self._fault(key, "a list of token ids without repetition, or an object of them by module", value)
        return ()

    def runs(self, key: str) -> tuple[tuple[int, int], ...]:
        """Return pairs of layer numbers."""
        value = self.config.get(key)
        if value is None:
            return ()
        good = isinstance(value, list) and all(
            isinstance(run, list)
            and len(run) == 2
            and all(isinstance(end, int) and not isinstance(end, bool) for end in run)
            and 0 <= run[0] < run[1] <= _MOST_LAYERS
            for run in value
        )
        if good and sum(end - first for first, end in value) <= _MOST_LAYERS:
            return tuple((first, end) for first, end in value)
        self._fault(key, "a list of [first, end] pairs of layer numbers", value)
        return ()

    def pattern(self, key: str, valid: Callable[[Any], bool]) -> Patterns | None:
        """Return numbers by module name pattern; None when the config has no pattern."""
        value = self.config.get(key)
        if value in (None, [], {}):
            return None
        if not isinstance(value, dict) or not all(valid(item) for item in value.values()):
            self._fault(key, "an object of module name patterns and numbers", value)
            return None
        try:
            return Patterns(value)
        except (re.error, RecursionError, OverflowError) as error:
            self._fault(key, f"an object whose keys are regular expressions ({error})", value)
            return None
