"""Inputs that most forward passes take: token ids, images, sound, found by the names of the arguments."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

IDS = ("input_ids", "decoder_input_ids")
TOLERANCE = 1e-5


def outputs_of_both(ours: nn.Module, theirs: nn.Module) -> tuple[str, list[str]]:
    """Return whether the outputs were compared ("equal", "different", "not run"), and a fault for each difference."""
    wanted: list[torch.Tensor] | None = None
    for arguments in candidates(theirs):
        try:
            wanted = _run(theirs, arguments)
        except Exception:  # noqa: BLE001 - the class takes other inputs
            continue
        if wanted:
            break
    if not wanted:
        return "not run", []
    try:
        got = _run(ours, arguments)
    except Exception as error:  # noqa: BLE001
        return "different", [f"the forward pass fails: {type(error).__name__}: {error}"[:300]]
    if len(got) != len(wanted):
        return "different", [f"{len(got)} outputs, not {len(wanted)}"]
    worst = max(_distance(one, other) for one, other in zip(got, wanted, strict=True))
    return ("equal", []) if worst <= TOLERANCE else ("different", [f"outputs differ by {worst:.1e}"])


def candidates(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield sets of arguments to try, the fewest first."""
    taken = inspect.signature(model.forward).parameters
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    known = {name: make for name, make in _makers(model.config).items() if name in taken}
    main = getattr(model, "main_input_name", "input_ids")
    main = [main] if isinstance(main, str) else list(main)
    names = [name for name in (*main, *IDS, *known) if name in known]
    needed = [name for name, one in taken.items() if one.default is one.empty and name in known]
    encoder = ["decoder_input_ids"] if "decoder_input_ids" in known else []
    sets = [main, [*main, *encoder], needed, ["input_ids"], ["input_ids", "pixel_values"], [*needed, *names]]
    seen = set()
    for chosen in sets:
        these = tuple(dict.fromkeys(name for name in chosen if name in known))
        if not these or these in seen:
            continue
        seen.add(these)
        generator = torch.Generator().manual_seed(2)
        made = {name: known[name](generator) for name in these}
        made = {name: one.to(dtype) if one.is_floating_point() else one for name, one in made.items()}
        yield made
        if "input_features" in made:  # frames come first in some models
            yield made | {"input_features": made["input_features"].transpose(1, 2)}


def _makers(config: Any) -> dict[str, Any]:
    vocabulary = _setting(config, ("vocab_size",), 100)
    channels = _setting(config, ("num_channels", "in_channels", "in_chans"), 3)
    side = _setting(config, ("image_size", "img_size"), 64)
    side = side if isinstance(side, list | tuple) else (side, side)
    bins = _setting(config, ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_size"), 80)
    frames = 2 * _setting(config, ("max_source_positions",), 50)

    def ids(generator: torch.Generator) -> torch.Tensor:
        return torch.randint(3, min(vocabulary, 60), (2, 7), generator=generator)

    def noise(*shape: int) -> Any:
        return lambda generator: torch.randn(shape, generator=generator)

    return {
        "input_ids": ids,
        "decoder_input_ids": ids,
        "pixel_values": noise(2, channels, *side),
        "pixel_values_videos": noise(2, _setting(config, ("num_frames",), 4), channels, *side),
        "input_features": noise(2, bins, frames),
        "input_values": noise(2, 1, 1600) if hasattr(config, "audio_channels") else noise(2, 1600),
        "hidden_states": noise(2, 7, _setting(config, ("hidden_size",), 64)),
    }


def _setting(config: Any, names: tuple[str, ...], otherwise: Any) -> Any:
    """Return the first setting of these names in a config or in one inside it."""
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    for one in (config, *inner):
        for name in names:
            value = _own(one, name)
            if isinstance(value, int | list | tuple):
                return value
    return otherwise


def _own(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001 - a setting that differs between the layers
        return None


def _run(model: nn.Module, arguments: dict[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    with torch.no_grad():
        return list(_tensors(model(**{name: one.clone() for name, one in arguments.items()})))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for one in output.values():
            yield from _tensors(one)
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors(one)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference over the largest value; infinite for other shapes or dtypes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    one, other = (tensor.double().nan_to_num(nan=7.0, posinf=8.0, neginf=-8.0) for tensor in (one, other))
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
