"""What stands between the network and the models: who may ask, how much, for how long.

An ASGI layer around the application. In order: the Host header must name this server (a page elsewhere cannot reach it
by rebinding a name), a foreign Origin is refused, a token is compared in constant time, a body may have so many bytes
and take so long to arrive. Every answer carries headers that keep a browser from doing more than the page needs.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from metier.core.errors import InputError
from metier.serve.protocol import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/health", "/page/")
"""Reached without a token: the page itself, which then asks for it, and whether the server is up."""
SHORTEST_TOKEN = 16

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """body_bytes: of a request. prompt_tokens, new_tokens: of a request; None: what the model's context allows.
    seconds: an answer may take. body_seconds: a request may take to arrive.
    """

    body_bytes: int = 1_000_000
    prompt_tokens: int | None = None
    new_tokens: int = 2048
    seconds: float = 300.0
    body_seconds: float = 15.0


@dataclass(frozen=True)
class Door:
    """Where the server listens, and what opens it. hosts: names besides loopback ones by which it may be called."""

    host: str
    port: int
    token: str = ""
    hosts: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise InputError for an address that others can reach and that nothing guards."""
        if self.token and len(self.token) < SHORTEST_TOKEN:
            raise InputError(
                f"the token has fewer than {SHORTEST_TOKEN} characters",
                where="METIER_TOKEN",
                cure="make one: python -c 'import secrets; print(secrets.token_urlsafe(24))'",
            )
        if self.host not in LOOPBACK and not self.token:
            raise InputError(
                "others could reach this address, and no token guards it",
                where="--host",
                value=self.host,
                cure="put a token into the environment variable METIER_TOKEN, or stay on 127.0.0.1",
            )

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server."""
        parts = urlsplit(f"//{host}")
        try:
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        return name in (*LOOPBACK, self.host, *self.hosts) and port in (self.port, None)


class Guard:
    """The layer. Raises nothing: what is refused gets its answer here."""

    def __init__(self, app: App, door: Door, limits: Limits) -> None:
        self._app, self._door, self._limits = app, door, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._admit(scope, headers)
            body = await asyncio.wait_for(self._body(headers, receive), self._limits.body_seconds)
        except RequestError as error:
            await _refuse(send, error)
            return
        except TimeoutError:
            await _refuse(send, RequestError(408, "the request took too long to arrive", code="timeout"))
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if not self._door.knows(host):
            raise RequestError(421, "this server is not called by that name", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestError(403, "pages from elsewhere may not ask", code="wrong_origin")
        path = str(scope["path"])
        if not self._door.token or path in OPEN_PATHS[:2] or path.startswith(OPEN_PATHS[2]):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._door.token.encode())
        if scheme.lower() != "bearer" or not same:
            raise RequestError(401, "the token is missing or wrong", code="invalid_api_key")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """The whole body; None where the client left."""
        most = self._limits.body_bytes
        told = headers.get("content-length", "0")
        if told.isdigit() and int(told) > most:
            raise _too_large(most)
        found = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            found += message.get("body", b"")
            if len(found) > most:
                raise _too_large(most)
            if not message.get("more_body", False):
                return bytes(found)


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"a request has at most {most:,} bytes", code="request_too_large")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes (a client that leaves)."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            have = {name for name, _ in message["headers"]}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in have]
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return sending


async def _refuse(send: Send, error: RequestError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
