"""Decides which requests the server answers, by path and headers, before a body is read.

Any page that is open in the user's browser can send requests to this machine. Checking the Host header keeps
out names that somebody has pointed at this machine (DNS rebinding); checking the Origin header keeps out
pages of other sites; and the token, if there is one, keeps out everybody who does not know it.
"""

import hmac
import ipaddress
import json
import platform
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

PUBLIC_PATHS = frozenset({"/", "/chat.css", "/chat.js"})
"""Paths that need no token: the page holds no secret, and a browser opens it without one."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every response."""

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _name_of(host_header: str) -> str:
    """The Host header without its port, which with port forwarding is not ours."""
    name, colon, port = host_header.rpartition(":")
    return (name if colon and (port.isdigit() or not port) else host_header).lower()


class Gate:
    """An ASGI application in front of another one, which it protects."""

    def __init__(self, application: Callable, host: str, token: str | None):
        self.application, self.host = application, host.lower()
        self.credentials = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # the server offers nothing else, such as WebSockets

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal:
            await _respond(send_with_headers, *refusal)
        else:
            await self.application(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, dict] | None:
        """(status, error) for a request that is refused; None for one that is let in."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_ours(_name_of(host)):
            message = "this server does not go by the name in the Host header"
            return 403, error_body(message, code="host_not_allowed")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, error_body("requests of other pages are not answered", code="origin_not_allowed")
        if self.credentials and scope["path"] not in PUBLIC_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.credentials):
                message = "the token is missing or wrong: send it as Authorization: Bearer TOKEN"
                return 401, error_body(message, "authentication_error", code="invalid_api_key")
        return None

    def _is_ours(self, name: str) -> bool:
        """Whether a host can only mean this machine. An address does; only names can be pointed elsewhere."""
        if is_loopback(name) or name == self.host:
            return True
        return not is_loopback(self.host) and (_address(name) is not None or name == platform.node().lower())


async def _respond(send: Send, status: int, body: dict) -> None:
    """Answer without reading the request's body, which may be endless, and close the connection."""
    content = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
