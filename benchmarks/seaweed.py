"""SeaweedFS, a real S3 server, on loopback: for the benchmark of stores, and one test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

BUCKET = "models"
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
_SECONDS = 60  # until it answers


class Seaweed:
    """A server with one bucket, in an empty folder; a context manager. Nothing of it leaves loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = {"accessKey": "access", "secretKey": "secret"}
        identity = {"name": "owner", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        *ports, self.port, grpc = _free_ports(len(_PORTS) + 2)
        command = [
            str(Path(sys.executable).with_name("weed")), "server", f"-dir={self.folder}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={self.folder / 's3.json'}",
            f"-s3.port={self.port}", f"-s3.port.grpc={grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=20",
            *(f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
        ]  # fmt: skip
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait()
            self._make_bucket()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # asked to end, it takes half a minute
        self._process.wait()

    @property
    def options(self) -> dict[str, Any]:
        """What `storage_options` takes to reach it."""
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "access_key_id": "access",
            "secret_access_key": "secret",
            "region": "us-east-1",
            "allow_http": True,
        }

    def store(self, prefix: str = "") -> Any:
        """Return obstore's own store of the bucket, or of a prefix in it."""
        from obstore.store import from_url

        options = {name: value for name, value in self.options.items() if name != "allow_http"}
        return from_url(f"s3://{BUCKET}/{prefix}".rstrip("/"), **options, client_options={"allow_http": True})

    def put(self, folder: Path, prefix: str) -> str:
        """Copy the files of a folder into the bucket; return their address."""
        import obstore

        for path in sorted(folder.iterdir()):
            if path.is_file():
                obstore.put(self.store(), f"{prefix}/{path.name}", path)
        return f"s3://{BUCKET}/{prefix}"

    def _wait(self) -> None:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=1):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"seaweedfs does not answer: {(self.folder / 'log').read_text()[-2000:]}")

    def _make_bucket(self) -> None:
        import obstore

        url = obstore.sign(self.store(), "PUT", "", timedelta(minutes=1))
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=_SECONDS):
            pass


def environment() -> dict[str, str]:
    """Return an environment in which no proxy stands before loopback, and the Hub's client may use that."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "HF_HUB_OFFLINE": "0"}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
