"""Access control of the MONAI Label server: Host, Origin and token are checked before a request reaches an endpoint."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from attunet3d.errors import ConfigError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# An environment variable, as other users can read a process's arguments.
TOKEN_VARIABLE = "ATTUNET3D_LABEL_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,}")  # at least 128 bits if random
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
# Only OHIF's pages may run scripts, and nothing else that a browser displays.
_NO_SCRIPTS = [(b"content-security-policy", b"default-src 'none'; sandbox"), (b"x-content-type-options", b"nosniff")]
_ALWAYS = [(b"referrer-policy", b"same-origin"), (b"x-frame-options", b"SAMEORIGIN")]


@dataclass(frozen=True)
class Access:
    """The requests that ``Guard`` accepts.

    Attributes:
        hosts: accepted Host headers: names and addresses of the server, with port.
        origins: further origins whose pages may use the server.
        token: required of each request; None if none is required.
    """

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    token: str | None = field(default=None, repr=False)


def access_of(
    host: str, port: int, allow_hosts: Sequence[str] = (), allow_origins: Sequence[str] = (), token: bool = True
) -> Access:
    """Return the access rules of a server at an address, with the token of the environment or a new one.

    Args:
        host, port: where the server listens.
        allow_hosts: further names or addresses of the server, with or without port.
        allow_origins: further origins whose pages may use it.
        token: whether to require a token.

    Raises:
        ConfigError: a host or origin is malformed, or the token of the environment is too short.
    """
    names = [*_LOOPBACK, f"[{host}]" if ":" in host else host]
    hosts = {f"{name}:{port}".lower() for name in names} | ({name.lower() for name in names} if port == 80 else set())
    for name in map(str.lower, allow_hosts):
        found = _HOST.fullmatch(name)
        if found is None:
            raise ConfigError(
                f"allow_hosts: {name!r}: expected a name or address, e.g. label.example.org:8000",
                arguments=("allow_hosts",),
            )
        hosts |= {name} if found[2] else {name, f"{name}:{port}"}  # without a port: behind a proxy, for http and https
    origins = frozenset(map(_origin, allow_origins))
    return Access(frozenset(hosts), origins, _token() if token else None)


def _origin(url: str) -> str:
    """Normalize an origin as browsers do: no path, and no default port."""
    text = url.lower().removesuffix("/")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or text != f"{parts.scheme}://{parts.netloc}":
        raise ConfigError(
            f"allow_origins: {url!r}: expected scheme and host, e.g. https://ohif.example.org",
            arguments=("allow_origins",),
        )
    if not _HOST.fullmatch(parts.netloc):
        raise ConfigError(f"allow_origins: {url!r}: its host is not a name or address", arguments=("allow_origins",))
    return text.removesuffix({"http": ":80", "https": ":443"}[parts.scheme])


def _token() -> str:
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return secrets.token_urlsafe(32)
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{TOKEN_VARIABLE}: expected at least 22 letters, digits, - or _, chosen at random")
    return token


class Guard:
    """ASGI middleware that answers 403 or 401 to requests that are not allowed.

    Checking the origin prevents cross-site requests, and checking the host prevents DNS rebinding. The token is
    accepted as ``Authorization: Bearer``, as ``?token=``, as first part of the path (3D Slicer keeps the path of the
    URL it is given), or as the cookie that is set when a page is opened with the token in its URL. It is removed before
    the application sees the request, which thus can neither log it nor pass it on.
    """

    def __init__(self, app: App, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of the ASGI server."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # a websocket: MONAI Label has none
            await send({"type": "websocket.close", "code": 1008})
        elif reason := self._foreign(scope):
            await _answer(send, 403, [], reason)
        elif self.access.token is None or self._is_preflight(scope):
            await self.app(_without_cookies(scope), receive, _with_headers(send, _headers_for(scope["path"])))
        else:
            await self._with_token(scope, receive, send, self.access.token)

    def _foreign(self, scope: Scope) -> str:
        """Return the reason why the request is refused even with a token, or ""."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self.access.hosts:
            return "this server does not accept that Host: it is not in allow_hosts"
        own = f"{scope.get('scheme', 'http')}://{hosts[0].lower()}"
        origins = [origin.lower() for origin in _values(scope, b"origin")]
        allowed = bool(origins) and self.access.origins.issuperset(origins)
        sites = _values(scope, b"sec-fetch-site")
        if not allowed and ({*origins} - {own} or {*sites} - {"same-origin", "none"}):
            return "pages of that origin may not use this server: it is not in allow_origins"
        return ""

    def _is_preflight(self, scope: Scope) -> bool:
        """Whether it is a CORS preflight, which browsers send without a token and the CORS middleware answers."""
        asked = scope["method"] == "OPTIONS" and _values(scope, b"access-control-request-method")
        origins = _values(scope, b"origin")
        return bool(asked and origins) and self.access.origins.issuperset(origin.lower() for origin in origins)

    async def _with_token(self, scope: Scope, receive: Receive, send: Send, token: str) -> None:
        inner = _without_cookies(scope)
        cookie = _cookie_name(scope)
        in_url = [_take_from_path(inner, token), _take_from_query(inner, token)]
        in_headers = [_take_from_authorization(inner, token), _is_in_cookie(scope, token, cookie)]
        if not any(in_url + in_headers):
            reason = "no token, or a wrong one: open the URL that `attunet3d label` printed when it started"
            await _answer(send, 401, [(b"www-authenticate", b"Bearer")], reason)
            return
        headers = _headers_for(inner["path"])
        if any(in_url):
            headers.append((b"set-cookie", f"{cookie}={token}; Path=/; HttpOnly; SameSite=Strict".encode()))
            if scope["method"] == "GET" and any("text/html" in accept for accept in _values(scope, b"accept")):
                # A page: redirect, so that address bar, history and referrers do not keep the token.
                query = inner["query_string"]
                # Two leading slashes would denote another host.
                target = quote("/" + inner["path"].lstrip("/")).encode() + (b"?" + query if query else b"")
                await _answer(send, 303, [*headers, (b"location", target)], "")
                return
        await self.app(inner, receive, _with_headers(send, headers))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _take_from_path(scope: Scope, token: str) -> bool:
    first, _, rest = scope["path"].removeprefix("/").partition("/")
    if not _same(first, token):
        return False
    path = "/" + rest.lstrip("/")  # clients may append a path to a URL that ends with a slash
    scope.update(path=path, raw_path=quote(path).encode())
    return True


def _take_from_query(scope: Scope, token: str) -> bool:
    parts = scope["query_string"].decode("latin-1").split("&")
    tokens = [part for part in parts if part.startswith("token=")]
    scope["query_string"] = "&".join(part for part in parts if part not in tokens).encode("latin-1")
    return any(_same(part.removeprefix("token="), token) for part in tokens)


def _take_from_authorization(scope: Scope, token: str) -> bool:
    def holds(key: bytes, value: bytes) -> bool:
        scheme, _, given = value.decode("latin-1").partition(" ")
        return key == b"authorization" and scheme.lower() == "bearer" and _same(given.strip(), token)

    kept = [(key, value) for key, value in scope["headers"] if not holds(key, value)]
    found = len(kept) < len(scope["headers"])
    scope["headers"] = kept
    return found


def _is_in_cookie(scope: Scope, token: str, name: str) -> bool:
    cookies = [part.strip() for value in _values(scope, b"cookie") for part in value.split(";")]
    return any(_same(part.removeprefix(f"{name}="), token) for part in cookies if part.startswith(f"{name}="))


def _without_cookies(scope: Scope) -> Scope:
    """Drop cookies, also those of other programs on this host: MONAI Label would forward them to the archive."""
    return {**scope, "headers": [(key, value) for key, value in scope["headers"] if key != b"cookie"]}


def _cookie_name(scope: Scope) -> str:
    """Name the cookie by port: browsers send the cookies of a host to all its ports."""
    port = re.search(r":([0-9]+)$", _values(scope, b"host")[0])
    return f"attunet3d_label_{port[1] if port else 80}"


def _headers_for(path: str) -> list[tuple[bytes, bytes]]:
    return _ALWAYS + ([] if path.startswith("/ohif/") else _NO_SCRIPTS)


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def extended(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return extended


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], detail: str) -> None:
    body = json.dumps({"detail": detail}).encode() if detail else b""
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*about, *headers]})
    await send({"type": "http.response.body", "body": body})
