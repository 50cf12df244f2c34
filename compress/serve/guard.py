"""What stands before the service: who may ask, how much they may send, and the headers that every answer has.

Errors are ``application/problem+json`` (RFC 9457) with one sentence. Refused here: a page of another site, a name that is not this host's
while only this machine may ask (DNS rebinding), no or another token, packed bodies, too large or too slow ones, and what a full queue
would not take: where more is asked than can be computed, refusing is most of the work, so it comes before anything is made of a request.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import msgspec

from .decode import Refused
from .settings import HELD_BODIES, LOOPBACK, ServeConfig

PROBLEM = "application/problem+json"
OPEN = ("/", "/healthz", "/readyz")  # without a token
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_ALLOWED = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type"),
    (b"access-control-max-age", b"600"),
]
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def problem(status: int, detail: str) -> bytes:
    """The body of an error."""
    return msgspec.json.encode({"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail})


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, config: ServeConfig, policy: str, refuse_full: Callable[[str], None]) -> None:
        """``refuse_full`` raises Refused for a path behind which no more may wait."""
        self._app, self._config, self._policy, self._refuse_full = app, config, policy.encode(), refuse_full
        self._token = config.token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "HEAD":  # what GET would answer, without its body
            return await self({**scope, "method": "GET"}, receive, _without_body(send))
        headers = dict(scope["headers"])
        own = self._headers(headers, scope["path"])

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own]
            await send(message)

        try:
            self._check(scope, headers)
        except Refused as error:
            body = problem(error.status, error.detail)
            told = {"content-type": PROBLEM, "content-length": str(len(body)), **error.headers}
            start = {"type": "http.response.start", "status": error.status, "headers": _encoded(told)}
            await guarded(start)
            return await send({"type": "http.response.body", "body": body})
        if _preflight(scope, headers):
            await guarded({"type": "http.response.start", "status": 204, "headers": _ALLOWED})
            return await send({"type": "http.response.body", "body": b""})
        return await self._app(scope, receive, guarded)

    def _headers(self, headers: dict[bytes, bytes], path: str) -> list[tuple[bytes, bytes]]:
        found = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
            (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
            (b"content-security-policy", self._policy if path == "/" else _NOTHING.encode()),
        ]
        origin = headers.get(b"origin", b"")
        if self._config.allow_origin:
            found.append((b"vary", b"origin"))
            if origin.decode("latin-1") in self._config.allow_origin:
                found += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", b"retry-after")]
        else:
            found.append((b"cross-origin-resource-policy", b"same-origin"))
        return found

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._config.is_local and (name := re.sub(r":\d+$", "", host).strip("[]")) not in LOOPBACK:
            raise Refused(421, f"host ({name[:60]}) is none of {', '.join(LOOPBACK)}; serve with --host where others are to ask")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._config.allow_origin and origin.partition("://")[2] != host:
            raise Refused(403, "pages of other sites may not ask; serve with --allow-origin to let one")
        if self._token is not None and scope["path"] not in OPEN and not _preflight(scope, headers):
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise Refused(401, "a bearer token is needed, as Authorization: Bearer ...", **{"www-authenticate": "Bearer"})
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused(415, "packed bodies are not read; send it without content-encoding")
        if (length := headers.get(b"content-length", b"0")).isdigit() and int(length[:20]) > self._config.body:
            raise Refused(413, f"{int(length[:20]):,} bytes are more than {self._config.body:,}; send fewer or smaller images")
        if scope["method"] == "POST":
            self._refuse_full(scope["path"])


class Bodies:
    """Reads bodies: none larger than allowed, and no more of them together than memory is meant for."""

    def __init__(self, config: ServeConfig) -> None:
        self._most, self._held = config.body, 0
        self._most_held = HELD_BODIES * config.body

    async def read(self, receive: Receive, deadline: float) -> bytes:
        """The whole body, by ``deadline`` on the clock of time.monotonic."""
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the connection ended before the body did")
                    piece = message.get("body", b"")
                    size += len(piece)
                    self._held += len(piece)
                    if size > self._most:
                        raise Refused(413, f"the body has more than {self._most:,} bytes; send fewer or smaller images")
                    if self._held > self._most_held:
                        raise Refused(429, "too much is being sent at once; try again in 1 s", **{"retry-after": "1"})
                    parts.append(piece)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise Refused(408, "the body came too slowly; send it again, or serve with a longer --timeout", connection="close") from None
        finally:
            self._held -= size


def _without_body(send: Send) -> Send:
    async def bare(message: MutableMapping[str, Any]) -> None:
        await send(dict(message, body=b"") if message["type"] == "http.response.body" else message)

    return bare


def _preflight(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether a browser asks on behalf of another site's page, which was found to be allowed, what it may send."""
    return scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
