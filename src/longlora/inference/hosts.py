"""Which names a server answers to, so that no page of another site can use it through a visitor's browser.

A page from elsewhere reaches a server on this machine or in this network in two ways: by a name of its own that is made
to resolve here (DNS rebinding), which shows in `Host`, and by a request across sites, which shows in `Origin`.
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
    """By which a server may be asked for."""

    names: frozenset[str]
    addresses: bool  # whether by any IP address too: nobody can make one resolve elsewhere

    @classmethod
    def of(cls, host: str, allowed: Collection[str] = ()) -> "Names":
        """Names of a server that listens on `host`, with more that the user allows, as of a proxy before it."""
        named = frozenset(name.lower() for name in allowed)
        if host in LOCAL:
            return cls(named.union(LOCAL), addresses=False)
        return cls(named.union(LOCAL, {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}), True)

    def refusal(self, host: str, origin: str) -> str:
        """Say why a request with these headers is refused; empty if it is not."""
        name = _name(f"//{host}")
        if not self._knows(name):
            return f"this server does not answer to the name {name!r}: allow it with --allow-host {name}"
        # A proxy may have put its own word for this server into Host; the page's stands in Origin then.
        if origin and urlsplit(origin).netloc.lower() != host.lower() and _name(origin) not in self.names - set(LOCAL):
            return f"this server is not asked from pages of {origin}"
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
    """ASGI middleware that refuses requests under other names, and from pages of other sites, with status 403."""

    def __init__(self, app: "ASGIApp", *, names: Names) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request, or hand it on."""
        from starlette.responses import JSONResponse
        from starlette.websockets import WebSocketClose

        refusal = ""
        if scope["type"] in ("http", "websocket"):  # else the server's own start and end
            headers: dict[bytes, bytes] = dict(scope["headers"])
            host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
            refusal = self._names.refusal(host, origin)
        if not refusal:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008)(scope, receive, send)
        else:  # in OpenAI's form, which its clients show and others can read
            error = {"message": refusal, "type": "invalid_request_error", "param": None, "code": "host_not_allowed"}
            await JSONResponse({"error": error}, 403)(scope, receive, send)


def _name(url: str) -> str:
    """The host that a URL names, in small letters and without brackets and port; empty if it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
