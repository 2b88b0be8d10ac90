"""file_sample: a digest of a file's size and of some of its pages, equal for equal files on all hosts."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from shardload._system.file_errors import unreadable

if TYPE_CHECKING:
    from pathlib import Path

PAGES, _PAGE = 8, 2**12
"""How many pages of a file are looked at, and their bytes: a file that is not larger is looked at whole."""


def file_sample(path: Path) -> str:
    """Return the digest of a file's size and of eight of its pages, from the first to the last, equally far apart.

    Another version of weights, trained on say, differs nearly everywhere; what differs between these pages alone is
    not seen. Raises NotFoundError and AccessError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        size = os.fstat(descriptor).st_size
        digest = hashlib.sha256(str(size).encode())
        last = max(size - _PAGE, 0)
        for start in dict.fromkeys(last * number // (PAGES - 1) for number in range(PAGES)):
            digest.update(os.pread(descriptor, _PAGE, start))
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)
    return digest.hexdigest()
