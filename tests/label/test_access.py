"""Host, Origin and token, without a server."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from attunet3d.errors import ConfigError
from attunet3d.label.access import TOKEN_VARIABLE, Access, Guard, access_of

TOKEN = "t" * 43
HOST = "127.0.0.1:8000"
OHIF = "https://ohif.example.org"


def ask(
    path: str = "/info/",
    method: str = "GET",
    access: Access | None = None,
    host: str | None = HOST,
    kind: str = "http",
    **headers: str,
) -> tuple[int, dict[str, str], dict[str, Any] | None]:
    """Status and headers of the answer, and the scope that the guarded application saw, if it saw one."""
    seen: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> None: ...

    path, _, query = path.partition("?")
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    pairs += [(b"host", host.encode())] if host is not None else []
    scope = {"type": kind, "method": method, "scheme": "http", "path": path, "raw_path": path.encode()}
    scope |= {"query_string": query.encode(), "headers": pairs}
    access = access or Access(frozenset({HOST, "localhost:8000"}), frozenset({OHIF}), TOKEN)
    asyncio.run(Guard(app, access)(scope, receive, send))
    first = sent[0]
    status = first.get("status", first.get("code"))
    answered = {key.decode(): value.decode() for key, value in first.get("headers", ())}
    return status, answered, seen[0] if seen else None


BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/info/", BEARER),
        ("/info/", {"authorization": f"bearer {TOKEN}"}),
        (f"/{TOKEN}/info/", {}),
        (f"/info/?token={TOKEN}", {}),
        ("/info/", {"cookie": f"a=b; attunet3d_label_8000={TOKEN}; c=d"}),
        (f"/{TOKEN}/info/", {"authorization": "Bearer of MONAI Label's login"}),
    ],
)
def test_a_token_lets_in_and_is_not_handed_on(path: str, headers: dict[str, str]) -> None:
    status, _, scope = ask(path, **headers)
    assert status == 200
    assert scope is not None
    assert scope["path"] == "/info/"
    assert TOKEN not in repr(scope)
    assert b"cookie" not in dict(scope["headers"])
    if "login" in headers.get("authorization", ""):
        assert (b"authorization", b"Bearer of MONAI Label's login") in scope["headers"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/info/", {}),
        ("/info/", {"authorization": "Bearer "}),
        ("/info/", {"authorization": f"Bearer {TOKEN[:-1]}"}),
        ("/info/", {"authorization": f"Basic {TOKEN}"}),
        ("/info/", {"authorization": "Bearer ümlaut"}),
        (f"/{TOKEN}x/info/", {}),
        (f"/x/{TOKEN}/info/", {}),
        ("/info/?token=", {}),
        (f"/info/?tokens={TOKEN}", {}),
        ("/info/", {"cookie": f"attunet3d_label_8001={TOKEN}"}),
        ("/info/", {"cookie": f"attunet3d_label_8000=x{TOKEN}"}),
        ("/info/", {"x_token": TOKEN}),
    ],
)
def test_no_token_or_a_wrong_one_is_refused(path: str, headers: dict[str, str]) -> None:
    status, answered, scope = ask(path, **headers)
    assert (status, answered["www-authenticate"], scope) == (401, "Bearer", None)


def test_cookies_of_other_programs_are_not_handed_on_without_a_token_either() -> None:
    _, _, scope = ask(access=Access(frozenset({HOST})), cookie="session_of_another_port=x")
    assert scope is not None
    assert b"cookie" not in dict(scope["headers"])


def test_a_page_is_given_a_cookie_and_an_address_without_the_token() -> None:
    for path in (f"/{TOKEN}/ohif/viewer?a=%20b", f"/ohif/viewer?token={TOKEN}&a=%20b", f"/{TOKEN}//ohif/viewer?a=%20b"):
        status, answered, scope = ask(path, accept="text/html,*/*", sec_fetch_site="none")
        assert (status, answered["location"], scope) == (303, "/ohif/viewer?a=%20b", None)
        assert answered["set-cookie"] == f"attunet3d_label_8000={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
        assert answered["referrer-policy"] == "same-origin"
    for path in (f"/{TOKEN}//evil.example/", f"//evil.example/?token={TOKEN}"):
        assert ask(path, accept="text/html")[1]["location"] == "/evil.example/"
    status, answered, _ = ask(f"/{TOKEN}/", accept="*/*")  # a program that keeps cookies
    assert (status, "set-cookie" in answered) == (200, True)
    assert "set-cookie" not in ask(**BEARER)[1]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:8001", "127.0.0.1.evil.example:8000", "", None],
)
def test_another_host_is_refused_whoever_asks(host: str | None) -> None:
    assert ask(host=host, **BEARER)[::2] == (403, None)
    assert ask(host=host, access=Access(frozenset({HOST})))[::2] == (403, None)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "http://localhost:8000"},  # the page of another name of this server has another cookie
        {"origin": f"{OHIF}.evil.example"},
        {"origin": "http://evil.example", "access_control_request_method": "PUT"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": f"http://{HOST}", "sec_fetch_site": "cross-site"},
    ],
)
def test_another_origin_is_refused_whoever_asks(method: str, headers: dict[str, str]) -> None:
    status, answered, scope = ask(method=method, **BEARER, **headers)
    assert (status, scope) == (403, None)
    assert not any(name.startswith("access-control") for name in answered)
    assert ask(method=method, access=Access(frozenset({HOST})), **headers)[::2] == (403, None)  # with --no-token too


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": f"http://{HOST}"},
        {"origin": f"http://{HOST}", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"origin": OHIF, "sec_fetch_site": "cross-site"},
        {"origin": OHIF.upper()},
    ],
)
def test_its_own_pages_and_those_allowed_may_ask(headers: dict[str, str]) -> None:
    assert ask(method="POST", **BEARER, **headers)[0] == 200
    assert ask(method="POST", **headers)[0] == 401


def test_only_a_preflight_of_an_allowed_origin_needs_no_token() -> None:
    preflight = {"method": "OPTIONS", "access_control_request_method": "PUT"}
    assert ask(**preflight, origin=OHIF)[0] == 200
    assert ask(method="OPTIONS", origin=OHIF)[0] == 401
    assert ask(method="PUT", access_control_request_method="PUT", origin=OHIF)[0] == 401
    assert ask(**preflight, origin=f"http://{HOST}")[0] == 401
    assert ask(**preflight)[0] == 401


def test_websockets_are_closed() -> None:
    assert ask(kind="websocket", **BEARER)[::2] == (1008, None)


def test_nothing_but_ohif_runs_scripts() -> None:
    assert ask("/datastore/image", **BEARER)[1]["content-security-policy"] == "default-src 'none'; sandbox"
    assert "content-security-policy" not in ask(f"/{TOKEN}/ohif/app.js")[1]
    assert ask(f"/{TOKEN}/info/")[1]["x-content-type-options"] == "nosniff"


def test_the_token_is_random_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    first, second = (access_of("127.0.0.1", 8000) for _ in range(2))
    assert first.token != second.token
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", first.token or "")
    assert (first.token or "") not in repr(first)
    assert access_of("127.0.0.1", 8000, token=False).token is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert access_of("127.0.0.1", 8000).token == TOKEN


@pytest.mark.parametrize("token", ["", "short", "a" * 21, "a/" * 20, "ü" * 30, f"{TOKEN}\n"])
def test_a_token_of_the_environment_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ConfigError, match=f"{TOKEN_VARIABLE}: expected at least 22") as error:
        access_of("127.0.0.1", 8000)
    assert not token or token not in str(error.value)


def test_the_names_of_the_server() -> None:
    loopback = {"127.0.0.1:8000", "localhost:8000", "[::1]:8000"}
    assert access_of("127.0.0.1", 8000).hosts == loopback
    assert access_of("::1", 8000).hosts == loopback
    assert access_of("192.168.1.5", 8000).hosts == loopback | {"192.168.1.5:8000"}
    assert access_of("fe80::1", 8000).hosts == loopback | {"[fe80::1]:8000"}
    assert {"127.0.0.1", "localhost:80"} < access_of("127.0.0.1", 80).hosts  # browsers leave this port out
    hosts = access_of("0.0.0.0", 8000, ["Label.example.org", "10.0.0.1:9000"]).hosts
    assert hosts == loopback | {"0.0.0.0:8000", "label.example.org", "label.example.org:8000", "10.0.0.1:9000"}


@pytest.mark.parametrize("name", ["", "*", "http://a", "a/b", "a b", "a:", "a:x", "a,b", "*.example.org"])
def test_a_host_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="allow_hosts"):
        access_of("127.0.0.1", 8000, [name])


def test_origins_are_as_browsers_write_them() -> None:
    given = ["https://OHIF.example.org/", "http://a:80", "http://a:8080", "https://b:443"]
    expected = {"https://ohif.example.org", "http://a", "http://a:8080", "https://b"}
    assert access_of("127.0.0.1", 8000, (), given).origins == expected


@pytest.mark.parametrize(
    "url", ["", "*", "null", "ohif.example.org", "file:///", "http://", "http://a/b", "http://a?b"]
)
def test_an_origin_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="allow_origins"):
        access_of("127.0.0.1", 8000, (), [url])


@pytest.mark.parametrize("url", ["http://*.a", "http://u:p@a", "https://a,b", "http://a#b"])
def test_an_origin_without_a_host_of_its_own_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="allow_origins"):
        access_of("127.0.0.1", 8000, (), [url])
