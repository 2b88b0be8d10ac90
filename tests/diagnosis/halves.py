"""The rule that splits model families into those the doctor was developed on and those it was judged on.

It was committed before the doctor's engine was written. A family is a package of `transformers.models` that has a
checkpoint conversion of its own or by way of another family. Engine and word lists are developed by looking at the
development half only; the held-out half is run once at the end, and what came out is recorded with the commit of the
engine in docs/doctor.md.

What is counted, over the keys of the model:

- right: the doctor's map gives the key exactly the values that the conversion's own author gives it (every element of
  every tensor is numbered, so a swapped, permuted or interleaved tensor is wrong, whatever its shape);
- applied: the key's rule has confidence 0.95 or more and no unproven layout: it may be applied without being asked;
- wrong: applied, and not right. A key that the doctor leaves open is neither right nor wrong.
- perfect: a family whose keys are all right.

The first split has been used up: the table of its held-out half is printed in docs/doctor.md, misses and all. The
second split asks the same of all families anew, by another hash. It was committed before anything was run on it. Rules
are mended by looking at its development half alone, and its held-out half is run once when they are done. About half of
its held-out families were in the development half of the first split, so they are held out from what was learnt since,
not from all that was learnt. Those that were held out both times are counted apart.

The third split asks once more, as the second one's held-out half has been run and its misses printed. It too was
committed before anything was run on it; rules are mended by looking at its development half alone, and its held-out
half is run once at the end. The families that all three splits held out are counted apart.

Families that share their conversion with one of the development half are counted in the whole, and once more apart.
"""

from __future__ import annotations

import hashlib


def is_held_out(family: str) -> bool:
    """Whether a family belongs to the held-out half: the first byte of its name's SHA-256 is odd."""
    return hashlib.sha256(family.encode()).digest()[0] % 2 == 1


def is_held_out_again(family: str) -> bool:
    """Whether a family belongs to the held-out half of the second split: the same byte, of `second split: NAME`."""
    return hashlib.sha256(f"second split: {family}".encode()).digest()[0] % 2 == 1


def is_held_out_third(family: str) -> bool:
    """Whether a family belongs to the held-out half of the third split: the same byte, of `third split: NAME`."""
    return hashlib.sha256(f"third split: {family}".encode()).digest()[0] % 2 == 1
