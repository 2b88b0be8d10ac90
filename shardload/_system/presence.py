"""Presence: whether the process of another rank is there, however busy it is. Imported only where there are ranks.

The system closes what a process has open when the process ends, and tells whoever is connected to it. Each rank has a
socket that listens and is never read from; another rank that is connected to it learns of its end at once, without a
thread and without a time-out that a slow rank could miss. Where no connection can be made, nothing is concluded.
"""

from __future__ import annotations

import os
import platform
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_PATIENCE = 1.0  # seconds in which a connection has to be made
_LOOPBACK = "127.0.0.1"
_WAITING = 64  # connections that may wait to be accepted

_LISTENING: dict[tuple[int, str], socket.socket] = {}
"""The listening socket of this process, by its number (a fork has that of its parent) and its address."""
_ACCEPTED: list[socket.socket] = []


def announce(store: Store, rank: int) -> None:
    """Let other ranks see by the store where this process can be watched."""
    found = _own_address(store)
    if found is None:
        return
    family, address = found
    listening = _LISTENING.get((os.getpid(), address))
    if listening is None:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.bind((address, 0))
            listening.listen(_WAITING)
        except OSError:
            listening.close()
            return
        listening.setblocking(False)
        _LISTENING[os.getpid(), address] = listening
    _make_room(listening)
    store.set(f"present/{rank}", "\n".join([_host(), address, str(listening.getsockname()[1])]))


class Watch:
    """Watches the process of one rank, once that has announced itself."""

    def __init__(self, store: Store, rank: int) -> None:
        self.rank = rank
        self._store = store
        self._socket: socket.socket | None = None
        self._in_vain = False

    def has_ended(self) -> bool:
        """Whether the process is known to have ended."""
        if self._in_vain:
            return False
        if self._socket is None:
            return self._refused()
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End the watch."""
        self._in_vain = True
        if self._socket is not None:
            self._socket.close()

    def _refused(self) -> bool:
        """Connect; return whether this host says that nobody listens there any more."""
        key = f"present/{self.rank}"
        if not self._store.check([key]):
            return False
        host, address, port = bytes(self._store.get(key)).decode().split("\n")
        if address == _LOOPBACK and host != _host():
            self._in_vain = True
            return False
        try:
            self._socket = socket.create_connection((address, int(port)), _PATIENCE)
        except ConnectionRefusedError:
            self._in_vain = host != _host()  # another host may only refuse to be reached
            return not self._in_vain
        except OSError:
            self._in_vain = True
            return False
        self._socket.setblocking(False)
        # For hosts that end without a word.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return False


def _make_room(listening: socket.socket) -> None:
    """Accept who has connected, and forget who has closed the connection."""
    with suppress(OSError):
        while True:
            _ACCEPTED.append(listening.accept()[0])
            _ACCEPTED[-1].setblocking(False)
    for each in list(_ACCEPTED):
        try:
            closed = not each.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            closed = False
        except OSError:
            closed = True
        if closed:
            _ACCEPTED.remove(each)
            each.close()


def _own_address(store: Store) -> tuple[int, str] | None:
    """Return the address of this host on the way to the one that holds the store.

    A store without an address, a file, shows none: then ranks of the same host see one another.
    """
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    host, port = getattr(store, "host", None), getattr(store, "port", None)
    if not host or not port:
        return socket.AF_INET, _LOOPBACK
    with suppress(OSError):
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)  # sends nothing
                return family, probe.getsockname()[0]
    return None


def _host() -> str:
    """Return what tells hosts apart, and containers that have networks of their own."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{booted} {Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return platform.node()
