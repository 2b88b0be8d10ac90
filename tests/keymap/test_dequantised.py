"""Dequantised: a view of a packed weight needs no more of its parts than the block that it covers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from shardload.dequantise import Scheme, Weight
from shardload.keymap.assembly import assemble
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import Joined, as_view, join, leaves, narrowed, reading_places, transposed
from shardload.keymap.reshaped import permuted, reshaped
from shardload.tensor_ref import Span, TensorRef


@dataclass(frozen=True)
class Doubled(Scheme):
    """Numbers that are stored halved, in blocks of two rows and three columns."""

    label = "halves"

    def window(self, rows, columns):
        return (
            range(rows.start // 2 * 2, -(-rows.stop // 2) * 2),
            range(columns.start // 3 * 3, -(-columns.stop // 3) * 3),
        )

    def cuts(self, rows, columns):
        return {"halves": ((0, rows.start, len(rows)), (1, columns.start, len(columns)))}

    def decode(self, parts, rows, columns):
        assert parts["halves"].shape == (len(rows), len(columns))
        return parts["halves"] * 2


def made(shape=(4, 6, 9), name="a"):
    rows, columns = shape[0] * shape[1], shape[2]
    ref = TensorRef(name, "F32", (rows, columns), "file", Span(0, rows * columns * 4))
    values = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    return Dequantised.of(Weight("w", Doubled(), shape, (("halves", ref),)), "F32"), values


def read_from(values):
    def read(ref):
        flat = values.reshape(-1)[ref.span.start // 4 :]
        strides = ref.strides or torch.empty(ref.shape, device="meta").stride()
        return flat.as_strided(ref.shape, strides, flat.storage_offset())

    return read


def test_views_of_views_are_those_of_torch():
    tensor, values = made()
    generator = random.Random(1)
    read = read_from(values)
    for _ in range(60):
        part, own = tensor, (values * 2).view(tensor.shape)
        for _ in range(generator.randint(1, 5)):
            dim = generator.randrange(len(part.shape))
            match generator.randrange(4):
                case 0:
                    start, stop = sorted(generator.sample(range(part.shape[dim] + 1), 2))
                    part, own = narrowed(part, dim, start, stop - start), own.narrow(dim, start, stop - start)
                case 1:
                    order = generator.sample(range(len(part.shape)), len(part.shape))
                    part, own = permuted(part, order), own.permute(order)
                case 2:
                    shape = (own.numel(),) if generator.random() < 0.3 else (*own.shape[:-2], -1)
                    own = own.reshape(shape)
                    part = reshaped(part, own.shape)
                case _:
                    other = generator.randrange(len(part.shape))
                    part, own = transposed(part, dim, other), own.transpose(dim, other)
            if own.dim() < 2:
                break
        assert part.shape == own.shape
        assert torch.equal(assemble(part, read), own)


def test_a_row_needs_the_rows_of_its_block_alone():
    tensor, _ = made()
    row = narrowed(narrowed(tensor, 0, 2, 1), 1, 3, 1)  # row 15 of the matrix
    (ref,) = leaves(row)
    assert ref.shape == (2, 9)
    assert ref.span == Span(14 * 36, 16 * 36)
    (ref,) = leaves(narrowed(row, 2, 4, 1))
    assert ref.shape == (2, 3)
    assert ref.span.start == (14 * 9 + 3) * 4


def test_neighbours_become_one_again():
    tensor, _ = made()
    halves = [narrowed(tensor, 0, 0, 2), narrowed(tensor, 0, 2, 2)]
    assert join(halves, 0) == tensor
    assert isinstance(join(halves[::-1], 0), Joined)
    assert as_view(tensor) is None


def test_parts_of_a_weight_are_read_together():
    main = TensorRef("q", "F32", (4, 3), "a", Span(100, 148))
    far = TensorRef("s", "F32", (4, 3), "a", Span(9000, 9048))
    elsewhere = TensorRef("z", "F32", (4, 3), "b", Span(8, 56))
    weight = Weight("w", Doubled(), (4, 3), (("halves", main), ("far", far), ("elsewhere", elsewhere)))
    places = {ref.name: place for ref, place in reading_places(Dequantised.of(weight, "F32"))}
    assert places == {"q": 100, "s": 100, "z": 8}
