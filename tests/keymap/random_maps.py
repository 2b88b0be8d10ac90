"""Random key sets, and random maps that fit them, each rule with what it means in torch's own words.

`round_trip(seed)` is one case on names and shapes: apply, invert, compare; it needs no torch and takes well under a
millisecond, so that a fuzzer can run a million of them.
"""

from __future__ import annotations

import json
from math import prod
from random import Random

from shardload import KeyMap
from shardload.tensor_ref import Span, TensorRef

NAMES = "attn mlp norm proj up down gate query key value dense embed head conv weight bias".split()


def refs_of(shapes: dict[str, tuple[int, ...]], shards: int = 1, dtype: str = "F32") -> dict[str, TensorRef]:
    """Return headers for shapes, dealt to shards round robin and packed in each."""
    ends = [0] * shards
    found = {}
    for place, (name, shape) in enumerate(shapes.items()):
        shard = place % shards
        stop = ends[shard] + prod(shape) * 4
        found[name] = TensorRef(name, dtype, shape, f"{shard}.safetensors", Span(ends[shard], stop))
        ends[shard] = stop
    return found


class RandomMap:
    """A map that grows rule by rule over families of equally shaped tensors: {template: (indices, shape)}."""

    def __init__(self, seed: int, most_rules: int = 6) -> None:
        self.rng = rng = Random(seed)
        self.fresh = 0
        self.key_map = KeyMap()
        self.words: list[tuple] = []
        self.families: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        wrapper = rng.choice(["", "module.", "_orig_mod.module."])
        for place in range(rng.randint(1, 4)):
            shape = tuple(rng.choice([1, 2, 3, 4, 6, 8]) for _ in range(rng.randint(1, 3)))
            name = f"{rng.choice(NAMES)}{place}.{rng.choice(NAMES)}"
            indices = tuple(range(rng.randint(1, 4)))
            if rng.random() < 0.8:
                self.families[f"{wrapper}layers.{{}}.{name}"] = indices, shape
            else:
                self.families[f"{wrapper}{name}"] = (), shape
        self.source = self._shapes()
        if wrapper and rng.random() < 0.7:
            self._strip(wrapper)
        for _ in range(rng.randint(0, most_rules)):
            step = rng.choice(
                "_rename _shift _segment _split _cat _stack _unstack _transpose _pad _alias".split()
            )
            getattr(self, step)()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            key: shape
            for template, (indices, shape) in self.families.items()
            for key in keys_of(template, indices)
        }

    def _name(self) -> str:
        self.fresh += 1
        return f"{self.rng.choice(NAMES)}_{self.fresh}"

    def _pick(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        template = self.rng.choice(list(self.families))
        return template, *self.families[template]

    def _replace(self, old: str, **new: tuple) -> None:
        self.families.pop(old)
        self.families |= new

    def _strip(self, wrapper: str) -> None:
        self.key_map = self.key_map.rename(wrapper + "{...}", "{...}")
        self.words.append(("prefix", wrapper))
        self.families = {t.removeprefix(wrapper): entry for t, entry in self.families.items()}

    def _rename(self) -> None:
        old, indices, shape = self._pick()
        new = self._like(old)
        self.key_map = self.key_map.rename(old, new)
        self.words.append(("rename", old, new, indices))
        self._replace(old, **{new: (indices, shape)})

    def _like(self, template: str) -> str:
        return f"{self._name()}.{{}}.{self._name()}" if "{}" in template else f"{self._name()}.{self._name()}"

    def _shift(self) -> None:
        old, indices, shape = self._pick()
        if "{}" not in old:
            return
        by = self.rng.randint(1, 3)
        new = self._like(old)
        self.key_map = self.key_map.rename(old, new.replace("{}", f"{{+{by}}}"))
        self.words.append(("shift", old, new, indices, by))
        self._replace(old, **{new: (tuple(index + by for index in indices), shape)})

    def _segment(self) -> None:
        segments = sorted({s for template in self.families for s in template.split(".")} - {"{}"})
        old, new = self.rng.choice(segments), self._name()
        self.key_map = self.key_map.rename(old, new, everywhere=True)
        self.words.append(("segment", old, new))
        self.families = {
            ".".join(new if s == old else s for s in template.split(".")): entry
            for template, entry in self.families.items()
        }

    def _split(self) -> None:
        old, indices, shape = self._pick()
        dim = self.rng.randrange(len(shape)) if shape else 0
        if not shape or shape[dim] < 2:
            return
        count = self.rng.randint(2, min(3, shape[dim]))
        cuts = sorted(self.rng.sample(range(1, shape[dim]), count - 1))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, shape[dim]], strict=True)]
        news = [self._like(old) for _ in sizes]
        self.key_map = self.key_map.split(old, news, sizes, dim)
        self.words.append(("split", old, news, indices, sizes, dim))
        parts = {
            new: (indices, (*shape[:dim], size, *shape[dim + 1 :]))
            for new, size in zip(news, sizes, strict=True)
        }
        self._replace(old, **parts)

    def _cat(self) -> None:
        first, indices, shape = self._pick()
        dim = self.rng.randrange(len(shape)) if shape else 0
        fitting = [
            template
            for template, (others, other) in self.families.items()
            if template != first and others == indices and len(other) == len(shape) and shape
            if other[:dim] == shape[:dim] and other[dim + 1 :] == shape[dim + 1 :]
            if ("{}" in template) == ("{}" in first)
        ]
        if not fitting:
            return
        olds = [first, *self.rng.sample(fitting, self.rng.randint(1, min(2, len(fitting))))]
        self.rng.shuffle(olds)
        sizes = [self.families[old][1][dim] for old in olds]
        new = self._like(first)
        self.key_map = self.key_map.cat(olds, new, dim, sizes if self.rng.random() < 0.5 else None)
        self.words.append(("cat", olds, new, indices, dim))
        for old in olds:
            self.families.pop(old)
        self.families[new] = indices, (*shape[:dim], sum(sizes), *shape[dim + 1 :])

    def _stack(self) -> None:
        old, indices, shape = self._pick()
        if "{}" not in old or indices != tuple(range(len(indices))):
            return
        dim = self.rng.randint(0, len(shape))
        new = f"{self._name()}.{self._name()}"
        self.key_map = self.key_map.stack(old.replace("{}", "{n}"), new, dim)
        self.words.append(("stack", old, new, len(indices), dim))
        self._replace(old, **{new: ((), (*shape[:dim], len(indices), *shape[dim:]))})

    def _unstack(self) -> None:
        old, _, shape = self._pick()
        if "{}" in old or not shape:
            return
        dim = self.rng.randrange(len(shape))
        new = f"{self._name()}.{{}}.{self._name()}"
        self.key_map = self.key_map.unstack(old, new.replace("{}", "{n}"), dim)
        self.words.append(("unstack", old, new, shape[dim], dim))
        self._replace(old, **{new: (tuple(range(shape[dim])), (*shape[:dim], *shape[dim + 1 :]))})

    def _transpose(self) -> None:
        old, indices, shape = self._pick()
        if len(shape) < 2:
            return
        first, second = self.rng.sample(range(-len(shape), len(shape)), 2)
        order = list(shape)
        order[first], order[second] = order[second], order[first]
        self.key_map = self.key_map.transpose(old, (first, second))
        self.words.append(("transpose", old, indices, first, second))
        self.families[old] = indices, tuple(order)

    def _pad(self) -> None:
        old, indices, shape = self._pick()
        if not shape:
            return
        rows = shape[0] + self.rng.randint(0, 3)
        self.key_map = self.key_map.pad_rows(old, rows, 0.5)
        self.words.append(("pad", old, indices, rows, 0.5))
        self.families[old] = indices, (rows, *shape[1:])

    def _alias(self) -> None:
        old, indices, shape = self._pick()
        new = self._like(old)
        self.key_map = self.key_map.alias(old, new)
        self.words.append(("alias", old, new, indices))
        self.families[new] = indices, shape


def keys_of(template: str, indices) -> list[str]:
    return [template.replace("{}", str(index)) for index in indices] if "{}" in template else [template]


def expected_shapes(case: RandomMap) -> dict[str, tuple[int, ...]]:
    return case._shapes()


def round_trip(seed: int, shards: int = 2) -> KeyMap:
    """Make one case of a seed; assert that apply gives the shapes meant, and that apply and invert give the headers."""
    case = RandomMap(seed)
    source = refs_of(case.source, shards)
    bound = case.key_map.bind(source)
    mapped = bound.map_headers(source)
    shapes = {name: tensor.shape for name, tensor in mapped.tensors.items()}
    assert shapes == expected_shapes(case), seed
    back = bound.invert()
    assert back.map_headers(mapped.tensors).tensors == source, seed
    again = KeyMap.from_json(json.dumps(json.loads(bound.to_json())))
    assert again == bound, seed
    return bound


def in_torch(words: list[tuple], state: dict) -> dict:
    """Do with tensors what the rules mean: the oracle, in torch's own functions, by full names."""
    import torch

    state = dict(state)
    for word, *rest in words:
        if word == "prefix":
            state = {key.removeprefix(rest[0]): tensor for key, tensor in state.items()}
        elif word == "segment":
            old, new = rest
            state = {
                ".".join(new if s == old else s for s in key.split(".")): tensor
                for key, tensor in state.items()
            }
        elif word in ("rename", "shift"):
            old, new, indices, *by = rest
            for key, other in zip(
                keys_of(old, indices), keys_of(new, [i + sum(by) for i in indices]), strict=True
            ):
                state[other] = state.pop(key)
        elif word == "split":
            old, news, indices, sizes, dim = rest
            for place, key in enumerate(keys_of(old, indices)):
                parts = torch.split(state.pop(key), sizes, dim)
                for new, part in zip(news, parts, strict=True):
                    state[keys_of(new, indices)[place]] = part
        elif word == "cat":
            olds, new, indices, dim = rest
            for place, key in enumerate(keys_of(new, indices)):
                state[key] = torch.cat([state.pop(keys_of(old, indices)[place]) for old in olds], dim)
        elif word == "stack":
            old, new, count, dim = rest
            state[new] = torch.stack([state.pop(key) for key in keys_of(old, range(count))], dim)
        elif word == "unstack":
            old, new, count, dim = rest
            for key, part in zip(keys_of(new, range(count)), torch.unbind(state.pop(old), dim), strict=True):
                state[key] = part
        elif word == "transpose":
            old, indices, first, second = rest
            for key in keys_of(old, indices):
                state[key] = state[key].transpose(first, second)
        elif word == "pad":
            old, indices, rows, value = rest
            for key in keys_of(old, indices):
                tensor = state[key]
                more = torch.full((rows - tensor.shape[0], *tensor.shape[1:]), value, dtype=tensor.dtype)
                state[key] = torch.cat([tensor, more])
        elif word == "alias":
            old, new, indices = rest
            for key, other in zip(keys_of(old, indices), keys_of(new, indices), strict=True):
                state[other] = state[key]
        else:
            raise AssertionError(word)
    return state
