"""StoreAddress: what `s3://bucket/prefix` or `https://host/path` names, and the store of obstore that reaches it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shardload.checkpoint.sources.store_errors import is_of_store
from shardload.errors import UnsupportedError, UsageError, Wording

_FILE = re.compile(
    r"\.(?:safetensors|bin|pth?|ckpt|gguf|distcp|index\.json|safetensors\.index\.[\w.-]+\.json)$|/\.metadata$",
    re.IGNORECASE,
)

_STORE_SETTINGS = {"config", "client_options", "retry_config", "credential_provider"}
_CLIENT_SETTINGS = {
    *(
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "default_headers",
    ),
    *("http1_only", "http2_keep_alive_interval", "http2_keep_alive_timeout", "http2_keep_alive_while_idle"),
    *("http2_only", "pool_idle_timeout", "pool_max_idle_per_host", "proxy_url", "proxy_ca_certificate"),
    *("proxy_excludes", "root_certificate", "randomize_addresses", "read_timeout", "timeout", "user_agent"),
}
_FSSPEC = {
    "s3": {
        "key": "access_key_id",
        "secret": "secret_access_key",
        "token": "session_token",
        "endpoint_url": "endpoint",
        "anon": "skip_signature",
    },
    "gs": {"endpoint_url": "endpoint"},
    "az": {"sas_token": "sas_key", "anon": "skip_signature"},
}
"""Names of fsspec's file systems (s3fs, gcsfs, adlfs) -> obstore's."""


@dataclass(frozen=True)
class StoreAddress:
    """A place in a store: the address of its root, without a slash at the end, and the file that was named, if one was.

    >>> StoreAddress.of("s3://models/glm/model.safetensors")
    StoreAddress(root='s3://models/glm', named='model.safetensors')
    """

    root: str
    named: str | None = None

    @classmethod
    def of(cls, text: str) -> StoreAddress:
        """Read an address. Raises UsageError for one that holds a query, a password, or no place at all."""
        try:
            parts = urlsplit(text)
        except ValueError:  # brackets of IPv6 that are not closed, say
            raise UsageError(
                "the address of a store can't be read",
                where=f"{text.partition('://')[0]}://…",
                cure="write it as s3://bucket/prefix",
            ) from None
        scheme = parts.scheme.lower()
        shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.query or parts.fragment or (parts.username is not None and not scheme.startswith("abfs")):
            raise UsageError(
                "the address of a store holds no query, no fragment and no password",
                where=shown,
                cure=Wording(
                    "pass credentials in {storage_options}, or by the environment", storage_options=...
                ),
            )
        if not parts.netloc or any(part in {".", ".."} for part in parts.path.split("/")):
            raise UsageError(f"{shown!r} names no place in a store", cure="write it as s3://bucket/prefix")
        if parts.netloc.lower() in {"huggingface.co", "hf.co"}:
            raise UsageError(
                "a page of the Hub is no store", where=shown, cure="pass the repo's name: 'org/name'"
            )
        path = re.sub("/+", "/", parts.path).rstrip("/")
        if _FILE.search(path):
            folder, _, name = path.rpartition("/")
            return cls(f"{scheme}://{parts.netloc}{folder}", name)
        return cls(f"{scheme}://{parts.netloc}{path}")

    @property
    def is_web(self) -> bool:
        """Whether it is a plain web server, which lists nothing."""
        return self.root.startswith(("http://", "https://"))

    def connect(self, options: Mapping[str, Any] | None) -> Any:
        """Return obstore's store. Raises UnsupportedError without obstore, UsageError for options that it refuses."""
        try:
            from obstore.store import HTTPStore, from_url
        except ModuleNotFoundError:
            raise UnsupportedError(
                "checkpoints in a store are read by obstore, which is not installed",
                where=self.root,
                cure="pip install obstore (or: pip install 'shardload[remote]')",
            ) from None
        try:
            settings = self.settings(options)
            return (
                HTTPStore.from_url(self.root, **settings) if self.is_web else from_url(self.root, **settings)
            )
        except BaseException as error:
            if not is_of_store(error):
                raise
        names = sorted(map(str, options or ())) if isinstance(options, Mapping | None) else ["no mapping"]
        # Not the error of obstore: it may show what it was given.
        raise UsageError(
            Wording("{storage_options} does not suit this store, or its address", storage_options=...),
            where=f"{self.root}; given: {', '.join(names) or 'nothing'}",
            cure="use the names of obstore or of fsspec, and plain values; the rest comes from the environment",
        )

    def settings(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return options as obstore takes them: the client's apart, names of fsspec translated."""
        kind = {"s3": "s3", "s3a": "s3", "gs": "gs"}.get(self.root.partition(":")[0], "az")
        settings: dict[str, Any] = {}
        client: dict[str, Any] = {"allow_http": True} if self.root.startswith("http://") else {}
        for name, value in (options or {}).items():
            if name in _CLIENT_SETTINGS:
                client[name] = value
            elif name == "client_options":
                client.update(value)
            elif name in _STORE_SETTINGS or self.is_web:
                settings[name] = value
            else:
                settings[_FSSPEC[kind].get(name, name)] = value
        return {**settings, **({"client_options": client} if client else {})}
