"""What a redirect would carry: a store's secrets go to the host that was named, and to no other.

At a redirect to another host obstore drops the headers Authorization and Cookie, and sends all others again: a session
token of AWS, or a header of the caller's own. So a store that uses one of these is asked once for each file, without
following, before obstore is.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from shardload.errors import AccessError, Cures, Wording

if TYPE_CHECKING:
    from collections.abc import Mapping

_DROPPED = {"authorization", "cookie", "cookie2", "proxy-authorization", "www-authenticate"}
_PLAIN = {"user-agent", "accept", "accept-language", "accept-encoding"}
_REDIRECTS = {301, 302, 303, 307, 308}


def require_no_redirect(store: Any, root: str, path: str) -> None:
    """Raise AccessError where a redirect of a file would carry a secret to another host."""
    client = getattr(store, "client_options", None) or {}
    headers = {str(name).lower(): value for name, value in (client.get("default_headers") or {}).items()}
    carried = sorted(headers.keys() - _DROPPED - _PLAIN)
    if root.startswith(("http://", "https://")):
        url = f"{root}/{quote(path)}"
    else:
        signed = _signed(store, path)
        url = signed or ""
        if "X-Amz-Security-Token" in url:
            carried.append("the session token")
    if not carried or not url:
        return
    other = _redirected_to(url, headers, client)
    if other is not None:
        raise AccessError(
            f"the server of {path!r} redirects to another host, which would be sent {', '.join(carried)}",
            where=f"{root}/{path}, redirected to {other}",
            cure=Cures(
                "name the host that has the files",
                Wording(
                    "pass the secret as the header Authorization in {storage_options}", storage_options=...
                ),
            ),
        )


def _signed(store: Any, path: str) -> str | None:
    import obstore

    with suppress(Exception):  # credentials that can't sign, or none
        return str(obstore.sign(store, "HEAD", path, timedelta(minutes=5)))
    return None


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _redirected_to(url: str, headers: Mapping[str, Any], client: Mapping[str, Any]) -> str | None:
    """Return the other host to which a server redirects; None where it does not, or is not reached."""
    handlers: list[urllib.request.BaseHandler] = [_Stay()]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=_context(client)))
    if proxy := client.get("proxy_url"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    sent = {
        name: value.decode() if isinstance(value, bytes) else str(value) for name, value in headers.items()
    }
    request = urllib.request.Request(url, headers=sent, method="HEAD")  # noqa: S310 - the address has a scheme of ours
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=30):
            return None
    except urllib.error.HTTPError as error:
        to = urlsplit(urljoin(url, error.headers.get("Location") or ""))
        error.close()
        here = urlsplit(url)
        if error.code not in _REDIRECTS or (to.scheme, to.netloc) == (here.scheme, here.netloc):
            return None
        return to.hostname or "no host"
    except OSError:
        return None  # obstore will say so


def _context(client: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if client.get("allow_invalid_certificates"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := client.get("root_certificate"):
        text = certificate.decode() if isinstance(certificate, bytes) else certificate
        context.load_verify_locations(cadata=text)
    return context
