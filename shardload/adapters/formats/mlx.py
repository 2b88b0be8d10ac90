"""mlx-lm's adapters.safetensors: `lora_a` is (in, rank) and `lora_b` (rank, out), transposed to PEFT's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, Scaling
from shardload.adapters.adapter_report import AdapterFault, shown
from shardload.adapters.formats.pairs import sort_pairs
from shardload.adapters.settings import Checks
from shardload.errors import CorruptError, Cures, UnsupportedError, UsageError, Wording

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterFile, ReadOptions
    from shardload.adapters.formats.pairs import Pairs

_KEY = re.compile(r"(?:(?P<path>.+)\.)?(?P<part>lora_[ab]|m)")
_SPELLING = {"a": "lora_a", "b": "lora_b", "magnitude": "m"}


class MlxLm:
    """LoRA and DoRA of mlx-lm. The config's `scale` is the whole factor: it is not divided by the rank."""

    name = "mlx-lm"

    def matches(self, file: AdapterFile) -> bool:
        """Return whether some key ends in `lora_a` or `lora_b` and nothing more."""
        return any(key.rpartition(".")[2] in {"lora_a", "lora_b"} for key in file.checkpoint.tensors)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises UsageError when neither the config nor alpha gives a scale, UnsupportedError for full fine-tuning,
        CorruptError for a config with impossible values.
        """
        kind, rank, scaling, dropout = _settings(file, options)
        pairs = sort_pairs(file, _KEY, _SPELLING)
        loras = []
        for path, parts in pairs.whole():
            _check_dora(pairs, path, "magnitude" in parts, kind, strict=options.strict)
            loras.append(
                LoraEntry(
                    path,
                    parts["a"],
                    parts["b"],
                    scaling,
                    dropout,
                    magnitude=parts.get("magnitude"),
                    stated_rank=rank,
                    columns=True,
                )
            )
        replaced = tuple(
            ReplacedEntry(path, attribute, ref, declared=False)
            for (path, attribute), ref in pairs.others.items()
        )
        return AdapterContent(
            format=f"{self.name} {kind or 'lora'}",
            loras=tuple(loras),
            replaced=replaced,
            base=_base(file),
            faults=tuple(pairs.faults),
        )


def _base(file: AdapterFile) -> str | None:
    model = (file.config or {}).get("model")
    return model if isinstance(model, str) and model else None


def _check_dora(pairs: Pairs, path: str, has_magnitude: bool, kind: str | None, *, strict: bool) -> None:
    """Add a fault for a layer that contradicts the config's fine_tune_type."""
    if kind == "dora" and not has_magnitude:
        text = "the tensor is missing, while the config says fine_tune_type = dora"
        pairs.faults.append(AdapterFault("missing", f"{path}.m", text, nearest=path))
    elif kind == "lora" and has_magnitude and strict:
        text = "the config says fine_tune_type = lora, but the file holds this tensor (strict=False trusts the file)"
        pairs.faults.append(AdapterFault("config", f"{path}.m", text, nearest=path))


def _settings(file: AdapterFile, options: ReadOptions) -> tuple[str | None, int | None, Scaling, float]:
    """Return fine_tune_type, rank, scaling and dropout."""
    config = file.config or {}
    kind = config.get("fine_tune_type")
    if kind not in {None, "lora", "dora"}:
        raise UnsupportedError(
            f"the adapter is of mlx-lm's type {shown(str(kind))!r}; this version loads lora and dora",
            where=file.config_label,
            cure="fuse it with mlx_lm.fuse and load the result",
        )
    given: Any = config.get("lora_parameters", {})
    check = Checks(given if isinstance(given, dict) else {})
    if not isinstance(given, dict):
        check.faults.append("lora_parameters must be an object")
    rank = check.integer("rank")
    dropout = check.number("dropout", 0.0, low=0.0, high=1.0)
    scale = check.number("scale", 1.0, low=-1e12, high=1e12)
    # Versions before 0.16 multiplied the scale by alpha / rank, and wrote alpha.
    old = check.number("alpha", 1.0, low=-1e12, high=1e12) if "alpha" in check.config else None
    if check.faults:
        raise CorruptError(
            f"{len(check.faults)} settings of the adapter's config are not valid",
            where=f"{file.config_label}: " + "; ".join(check.faults),
            cure="fetch the file again, or correct it",
        )
    if options.alpha is not None:
        return kind, rank, Scaling(options.alpha), dropout
    if "scale" not in check.config:
        raise UsageError(
            "the scale of an mlx-lm adapter is in its config (lora_parameters.scale), which is not there",
            where=file.label,
            cure=Cures(
                "put the adapter_config.json beside the weights",
                Wording("pass {alpha} (scale times rank)", alpha=...),
            ),
        )
    return kind, rank, Scaling(fixed=scale) if old is None else Scaling(alpha=scale * old), dropout
