"""Restrict the host names that a server answers to, so pages of other sites cannot use it through a visitor's browser.

A foreign page can reach a server on this machine or network in two ways: through a name of its own that resolves here
(DNS rebinding), which shows in `Host`, and by a cross-site request, which shows in `Origin`.
"""

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Names:
    """The host names that a server answers to."""

    names: frozenset[str]
    addresses: bool  # whether to allow IP addresses too: nobody can make one resolve elsewhere

    @classmethod
    def of(cls, host: str, allowed: Collection[str] = ()) -> "Names":
        """Return the names for a server on `host`, plus those that the user allows, such as a proxy's."""
        named = frozenset(name.lower() for name in allowed)
        if host in LOCAL:
            return cls(named.union(LOCAL), addresses=False)
        return cls(named.union(LOCAL, {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}), True)

    def refusal(self, host: str, origin: str) -> str:
        """Return why a request with these headers is refused; empty if it is not."""
        name = _name(f"//{host}")
        if not self._knows(name):
            return f"this server does not answer to the name {name!r}: allow it with --allow-host {name}"
        # A proxy may have put its own name for this server into Host; Origin then has the page's name for it.
        if origin and urlsplit(origin).netloc.lower() != host.lower() and _name(origin) not in self.names - set(LOCAL):
            return f"this server does not answer pages of {origin}"
        return ""

    def _knows(self, name: str) -> bool:
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.addresses


class OnlyByName:
    """ASGI middleware that refuses requests to other host names, and from pages of other sites, with status 403."""

    def __init__(self, app: "ASGIApp", *, names: Names) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Refuse a request, or pass it on."""
        from starlette.responses import JSONResponse
        from starlette.websockets import WebSocketClose

        refusal = ""
        if scope["type"] in ("http", "websocket"):  # otherwise the server's own startup and shutdown
            headers: dict[bytes, bytes] = dict(scope["headers"])
            host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
            refusal = self._names.refusal(host, origin)
        if not refusal:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008)(scope, receive, send)
        else:  # in OpenAI's format, which its clients display and others can read
            error = {"message": refusal, "type": "invalid_request_error", "param": None, "code": "host_not_allowed"}
            await JSONResponse({"error": error}, 403)(scope, receive, send)


def _name(url: str) -> str:
    """Return the host in a URL, in lower case and without brackets and port; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
