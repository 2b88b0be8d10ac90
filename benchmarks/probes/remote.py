"""Measures a load of a store without a disk: `python -m benchmarks.probes.remote FOLDER`.

A Llama lies in SeaweedFS on loopback. In turn, each in a process of its own: obstore alone reads all of its shards,
8 MiB a request, four requests at a time, and drops the bytes, or keeps them; shardload loads the model. Then
RangeReader, which reads the Hub, reads one shard from a server that does nothing but send files, 8 MiB a request, one
after another; beside it `http.client` on one connection that is kept. Printed are seconds, bytes a second, and what
was written to the disk.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peak import Peak, anonymous
from benchmarks.seaweed import Seaweed, environment

PIECE = 8 * 2**20
CONNECTIONS = 4
_STORES = ("obstore", "kept", "shardload")
_TURNS = 3  # of these; the middle one of each counts
_ROUNDS = 4  # of RangeReader and its floor, in turn


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(WAYS[sys.argv[1]](*sys.argv[2:])), flush=True)
        os._exit(0)
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch, Seaweed(Path(scratch) / "weed") as server:
        where = server.put(folder, "llama")
        turns = [
            {way: _child(way, where, json.dumps(server.options)) for way in _STORES} for _ in range(_TURNS)
        ]
    said = {
        way: sorted((turn[way] for turn in turns), key=lambda each: each["seconds"])[_TURNS // 2]
        for way in _STORES
    }
    largest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    said["ranges"] = _child("ranges", str(largest))
    ours, theirs = said["shardload"], said["obstore"]
    print(
        json.dumps({
            **ours,
            "obstore_s": theirs["seconds"],
            "kept_s": said["kept"]["seconds"],
            "kept_share": said["kept"]["seconds"] / ours["weights_s"] * ours["nbytes"] / theirs["nbytes"],
            "rate": theirs["nbytes"] / 1e9 / theirs["seconds"],
            "ours_rate": ours["nbytes"] / 1e9 / ours["weights_s"],
            "share": theirs["seconds"] / ours["weights_s"] * ours["nbytes"] / theirs["nbytes"],
            **said["ranges"],
        })
    )  # fmt: skip


def _child(way: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.probes.remote", way, *arguments]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _kept(where: str, options: str) -> dict[str, float]:
    return _obstore(where, options, keep=True)


def _obstore(where: str, options: str, *, keep: bool = False) -> dict[str, float]:
    import obstore
    from obstore.store import from_url

    settings = {name: value for name, value in json.loads(options).items() if name != "allow_http"}
    store = from_url(where, **settings, client_options={"allow_http": True})
    sizes = {meta["path"]: meta["size"] for page in obstore.list(store) for meta in page}
    pieces = [
        (path, start, min(start + PIECE, size))
        for path, size in sizes.items()
        if path.endswith(".safetensors")
        for start in range(0, size, PIECE)
    ]

    kept = []

    def read(piece: tuple[str, int, int]) -> int:
        path, start, stop = piece
        got = obstore.get_range(store, path, start=start, end=stop)
        if keep:
            kept.append(got)
        return len(got)

    started = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        nbytes = sum(pool.map(read, pieces))
    return {"seconds": time.monotonic() - started, "nbytes": nbytes}


def _shardload(where: str, options: str) -> dict[str, float]:
    import obstore  # noqa: F401 - its import is not the load's
    from transformers import LlamaForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401

    import shardload
    import shardload.loading.fill

    before, peak, written = anonymous(), Peak(), _written()
    started = time.monotonic()
    model = shardload.from_pretrained(
        where, model_class=LlamaForCausalLM, storage_options=json.loads(options), progress=False
    )
    seconds = time.monotonic() - started
    report = shardload.report_of(model)
    result = sum(parameter.nbytes for parameter in {id(p): p for p in model.parameters()}.values())
    taken = peak.end() - before
    return {
        "seconds": seconds,
        "weights_s": report.seconds["fill"],
        "nbytes": report.nbytes,
        "result": result,
        "anon": taken,
        "beyond": taken - result,
        "written": _written() - written,
    }


def _ranges(file: str) -> dict[str, float]:
    from shardload.checkpoint.sources.hub_errors import Asked
    from shardload.checkpoint.sources.ranges import RangeReader

    length = Path(file).stat().st_size
    size = length // PIECE * PIECE
    buffer = memoryview(bytearray(PIECE))
    command = [sys.executable, "-m", "benchmarks.probes.remote", "serve", file]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        port = int(server.stdout.readline())
        asked = Asked("org/name", "main", "file")
        reader = RangeReader(f"http://127.0.0.1:{port}/", length, headers={}, asked=asked)
        kept = http.client.HTTPConnection("127.0.0.1", port)

        def ours() -> None:
            for at in range(0, size, PIECE):
                reader.read_into(at, buffer)

        def floor() -> None:
            for at in range(0, size, PIECE):
                kept.request("GET", "/", headers={"Range": f"bytes={at}-{at + PIECE - 1}"})
                response, rest = kept.getresponse(), buffer
                while rest:
                    rest = rest[response.readinto(rest) :]

        rates: dict[str, list[float]] = {"ranges": [], "floor": []}
        for _ in range(_ROUNDS):
            for name, read in (("ranges", ours), ("floor", floor)):
                started = time.monotonic()
                read()
                rates[name].append(size / 1e9 / (time.monotonic() - started))
    finally:
        server.kill()
    return {name: sorted(each)[len(each) // 2] for name, each in rates.items()}


def _serve(file: str) -> Any:
    """Send parts of one file to whoever asks, until the process is ended."""
    descriptor = os.open(file, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(connection, descriptor, size), daemon=True).start()


def _answer(connection: socket.socket, descriptor: int, size: int) -> None:
    asked = b""
    while received := connection.recv(2**16):
        asked += received
        while b"\r\n\r\n" in asked:
            head, _, asked = asked.partition(b"\r\n\r\n")
            found = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
            assert found
            start, stop = int(found[1]), int(found[2]) + 1
            answer = f"Content-Length: {stop - start}\r\nContent-Range: bytes {start}-{stop - 1}/{size}"
            connection.sendall(f"HTTP/1.1 206 Partial Content\r\n{answer}\r\n\r\n".encode())
            while start < stop:
                start += os.sendfile(connection.fileno(), descriptor, start, stop - start)


WAYS: dict[str, Any] = {
    "obstore": _obstore,
    "kept": _kept,
    "shardload": _shardload,
    "ranges": _ranges,
    "serve": _serve,
}


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


if __name__ == "__main__":
    main()
