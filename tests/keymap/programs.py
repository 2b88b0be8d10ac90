"""Random programs of views, cuts and joins, run on tensors and on their headers side by side."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from shardload.keymap.assembly import assemble, view_of
from shardload.keymap.traced import TracedTensor
from shardload.tensor_ref import Span, TensorRef

Pair = tuple[Any, Any]


class Program:
    """A tensor and its trace; each step is taken on both."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.stored: dict[str, tuple[torch.Tensor, TensorRef]] = {}
        self.pair = self.new([self.draw.choice([1, 2, 3, 4, 6]) for _ in range(self.draw.randint(1, 4))])

    def new(self, shape: list[int]) -> Pair:
        tensor, name = torch.randn(shape), f"t{len(self.stored)}"
        ref = TensorRef(name, "F32", tuple(shape), "file", Span(0, tensor.numel() * 4))
        self.stored[name] = (tensor, ref)
        return tensor, TracedTensor(ref)

    def both(self, step: Callable[[Any], Any]) -> None:
        self.pair = (step(self.pair[0]), step(self.pair[1]))

    def run(self, steps: int) -> None:
        """Take random steps, then compare what the headers say with the tensor."""
        with torch.no_grad():
            for _ in range(steps):
                self.step()
        tensor, traced = self.pair
        assert traced.shape == tensor.shape == traced.ref.shape
        made = assemble(traced.ref, lambda ref: view_of(*self.stored[ref.name], ref))
        assert torch.equal(made, tensor)

    def step(self) -> None:
        draw, tensor = self.draw, self.pair[0]
        if draw.random() < 0.3:
            shape = self.shape(tensor.numel())
            self.both(lambda one: one.reshape(shape))
        elif draw.random() < 0.3 and tensor.numel() < 400:
            join = draw.choice([torch.stack, torch.cat] if tensor.dim() else [torch.stack])
            dim = draw.randrange(tensor.dim() + (join is torch.stack))
            others = self.new(list(tensor.shape))
            self.pair = tuple(join([*each], dim=dim) for each in zip(self.pair, others, strict=True))
        elif tensor.dim():
            self.of_one_dimension(draw.randrange(-tensor.dim(), tensor.dim()))

    def of_one_dimension(self, dim: int) -> None:
        draw, tensor = self.draw, self.pair[0]
        size, other = tensor.shape[dim], draw.randrange(tensor.dim())
        start, part = draw.randrange(size), draw.randint(1, size)
        order = draw.sample(range(tensor.dim()), tensor.dim())
        divisor = draw.choice([n for n in range(1, size + 1) if size % n == 0])
        sizes = [start, size - start]
        self.both(
            draw.choice(
                [
                    lambda one: one.transpose(dim, other),
                    lambda one: one.permute(order),
                    lambda one: one.permute(order).contiguous().view(-1),
                    lambda one: one.narrow(dim, start, 1),
                    lambda one: one.select(dim, start),
                    lambda one: one.split(part, dim=dim)[-1],
                    lambda one: torch.split(one, sizes, dim=dim)[1],
                    lambda one: torch.chunk(one, part, dim=dim)[0],
                    lambda one: one.unbind(dim)[start],
                    lambda one: one.unflatten(dim, (divisor, -1)),
                    lambda one: one.flatten(),
                    lambda one: one.squeeze(dim),
                    lambda one: one.squeeze(),
                    lambda one: one.unsqueeze(dim),
                    lambda one: one[::part],
                    lambda one: one[..., start % one.shape[-1] :].clone().detach(),
                    lambda one: one.t() if one.dim() < 3 else one.mT,
                ]
            )
        )

    def shape(self, numel: int) -> list[int]:
        shape = []
        while numel > 1:
            size = self.draw.choice([n for n in range(2, numel + 1) if numel % n == 0])
            shape.append(size)
            numel //= size
        for _ in range(self.draw.randint(0, 2)):
            shape.insert(self.draw.randint(0, len(shape)), 1)
        return shape
