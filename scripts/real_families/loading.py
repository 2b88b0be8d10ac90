"""Loading, compared with the class built on the CPU and filled by torch: each step is one column of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from family import Family
    from torch import nn


def logits(family: Family, suffix: str) -> str:
    """Compare the logits of a plain forward pass."""
    model = family.load(suffix)
    with torch.no_grad():
        expected, got = (m(family.ids(), return_dict=True).logits for m in (family.oracle, model))
    return same({"logits": expected}, {"logits": got}) + f", {str(got.dtype).removeprefix('torch.')}"


def outputs(family: Family) -> str:
    """Compare hidden states and the tuple that `return_dict=False` gives."""
    results = []
    for model in (family.oracle, family.load("bin")):
        with torch.no_grad():
            full = model(family.ids(), output_hidden_states=True, return_dict=True)
            plain = model(family.ids(), return_dict=False)
        shape = f"; return_dict=False gives a {type(plain).__name__}" * (type(plain) is not tuple)
        states = full.hidden_states
        states = states if isinstance(states, tuple) else (states,)
        results.append({"logits": plain[0] if shape == "" else plain.logits})
        results[-1] |= {f"hidden {n}": h for n, h in enumerate(states)}
    return same(*results) + shape


def cache(family: Family) -> str:
    """Decode three tokens with the cache; also compare their logits with a pass without it."""
    results, ids = [], family.ids()
    for model in (family.oracle, family.load("bin")):
        with torch.no_grad():
            results.append(decode(model, ids, 3))
    verdict = same(*results)
    with torch.no_grad():
        uncached = family.oracle(results[0]["ids"][:, :-1], return_dict=True).logits[:, -1]
    difference = (uncached.float() - results[0]["logits 2"].float()).abs().max().item()
    return f"{verdict}; {difference:.1g} from no cache"


def training(family: Family) -> str:
    """Compare loss and gradients in float32: kept activations, and checkpointed ones in both of torch's ways."""
    counts = []
    for way in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        results = []
        # A new oracle: some code keeps rotary tables of the dtype in which it ran first.
        for model in (family.make_oracle(), family.load("safetensors")):
            model.float().train()
            if way is not None:
                if not model.supports_gradient_checkpointing:
                    continue
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=way)
                model.enable_input_require_grads()
                assert model.is_gradient_checkpointing
            torch.manual_seed(1)
            loss = family.loss(model)
            loss.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            results.append({"loss": loss.detach(), **gradients})
        if results:
            same(*results)
            counts.append(len(results[0]) - 1)
    ways = "" if len(counts) == 3 else "; the class supports no checkpointing"
    if len(set(counts)) != 1:
        raise ValueError(f"different numbers of gradients: {counts}")
    return f"equal, {counts[0]} gradients{ways}"


def on_meta(family: Family) -> str:
    """List parameters, buffers and plain tensor attributes that are still on meta."""
    left = []
    for suffix in ("bin", "safetensors"):
        for path, module in family.load(suffix).named_modules():
            held = {**module._parameters, **module._buffers, **vars(module)}
            left += [f"{path}.{n}" for n, v in held.items() if isinstance(v, torch.Tensor) and v.is_meta]
    if left:
        raise ValueError(f"on meta: {', '.join(left)}")
    return "nothing"


def decode(model: nn.Module, ids: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Choose the likeliest token `steps` times with the class's own hooks for generation."""
    kwargs: dict[str, Any] = {"use_cache": True}
    results = {}
    for step in range(steps):
        inputs = model.prepare_inputs_for_generation(ids, **kwargs)
        inputs.setdefault("use_cache", True)
        output = model(**inputs, return_dict=True)
        for name in ("position_ids", "attention_mask"):
            if step == 0 and inputs.get(name) is not None:
                kwargs[name] = inputs[name]
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        results[f"logits {step}"] = output.logits[:, -1]
        ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return {**results, "ids": ids}


def same(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> str:
    """Return "equal" when every tensor is finite and agrees to the bit; raises ValueError naming one that is not."""
    if expected.keys() != got.keys():
        raise ValueError(f"different tensors: {sorted(expected.keys() ^ got.keys())[:4]}")
    for name, value in expected.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} of the oracle is not finite")
        if value.dtype != got[name].dtype or not torch.equal(value, got[name]):
            raise ValueError(
                f"{name} differs by {(value.float() - got[name].float()).abs().max().item():.2g}"
            )
    return "equal"


STEPS: dict[str, Callable[[Family], str]] = {
    "import": lambda family: family.import_class(),
    "build": lambda family: family.build(),
    ".bin logits": lambda family: logits(family, "bin"),
    ".safetensors logits": lambda family: logits(family, "safetensors"),
    "hidden states, tuples": outputs,
    "with cache": cache,
    "training": training,
    "on meta": on_meta,
}
