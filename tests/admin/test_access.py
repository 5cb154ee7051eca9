"""Who is let in to the admin API, request by request: token, session, Host, Origin and method, without a server."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from pillarbox.admin import access, logins
from pillarbox.admin.access import Access, Guard
from pillarbox.admin.logins import COOKIE, LOGIN_S, Logins
from pillarbox.admin.tokens import new_token
from pillarbox.webhook import SignatureError, secret_key, signature, verify
from tests.conftest import run_async

TOKEN, READ, METRICS = "t" * 43, "r" * 43, "m" * 43
OURS = "127.0.0.1:8025"


def access_of(**more: Any) -> Access:
    return Access({OURS, "localhost:8025", "mail.test"}, TOKEN, scoped={"read": READ, "metrics": METRICS}, **more)


def scope_of(path: str = "/api/status", method: str = "GET", **headers: str) -> dict[str, Any]:
    given = {"host": OURS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value != "-"]
    return {"type": "http", "path": path, "method": method, "headers": raw, "server": ("127.0.0.1", 8025), "state": {}}


def code_of(entrance: Access, *given: Any, **more: str) -> int:
    """The status of the refusal, 0 for a request that is let in."""
    refusal = entrance.enter(scope_of(*given, **more))
    return 0 if refusal is None else refusal.status_code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (f"Bearer {TOKEN}", 0), (f"bearer {TOKEN}", 0), (f"Bearer  {TOKEN} ", 0), (f"Basic {TOKEN}", 401), (TOKEN, 401), ("Bearer", 401), ("Bearer ", 401),
        (f"Bearer {TOKEN[:-1]}", 401), (f"Bearer {TOKEN}x", 401), (f"Bearer {TOKEN.upper()}", 401), ("Bearer t", 401), ("-", 401),
        (f"Bearer {TOKEN} {TOKEN}", 401), ("Bearer \xff", 401), (f"Token {TOKEN}", 401), (f"Bearer {TOKEN},{READ}", 401),
    ],
)  # fmt: skip
def test_bearer_token_is_the_whole_token(given: str, code: int) -> None:
    assert code_of(access_of(), authorization=given) == code
    assert access_of().is_holder(scope_of(authorization=given)) is (code == 0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_token_that_may_less_changes_nothing(method: str) -> None:
    is_safe, entrance = method in ("GET", "HEAD", "OPTIONS"), access_of()
    assert code_of(entrance, "/api/messages", method, authorization=f"Bearer {TOKEN}") == 0
    assert code_of(entrance, "/api/messages", method, authorization=f"Bearer {READ}") == (0 if is_safe else 403)
    assert code_of(entrance, "/api/messages", method, authorization=f"Bearer {METRICS}") == 403
    assert code_of(entrance, "/metrics", method, authorization=f"Bearer {METRICS}") == (0 if is_safe else 403)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/queue",
        "/api/status",
        "/api/messages",
        "/metrics",
        "/readyz",
        "/static/app.js",
        "/healthz/",
        "/login/x",
        "/events",
    ],
)
def test_path_wants_a_token_unless_it_is_named_open(path: str) -> None:
    assert code_of(access_of(), path) == 401
    assert code_of(access_of(is_open=True), path) == 0
    for free in ("/healthz", "/login"):
        assert code_of(access_of(), free) == 0


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        (OURS, True), ("localhost:8025", True), ("LOCALHOST:8025", True), ("mail.test", True), ("mail.test:443", True), ("evil.test", False), ("", False), ("-", False),
        ("127.0.0.1", False), ("127.0.0.1:8026", False), ("127.0.0.1:8025.evil.test", False), ("evil.test:8025", False), ("mail.test.evil.test", False),
        ("xmail.test", False), ("localhost", False), ("[::1]:8025", False),
    ],
)  # fmt: skip
def test_host_must_be_ours_without_a_token(host: str, is_ours: bool) -> None:
    for entrance in (access_of(), access_of(is_open=True)):
        wanted = 421 if not is_ours else 0 if entrance.is_open else 401
        assert code_of(entrance, host=host) == wanted
        # DNS rebinding: a web site does not know the token.
        assert code_of(entrance, host=host, authorization=f"Bearer {TOKEN}") == 0
    assert code_of(access_of(), "/healthz", host=host) == 0


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("localhost:9", True),
        ("127.0.0.1:7", True),
        ("127.0.0.1:8025", True),
        ("192.0.2.1:8025", False),
        ("evil.test", False),
    ],
)
def test_host_on_a_wildcard_is_the_address_that_was_called_or_a_local_name(host: str, is_ours: bool) -> None:
    assert code_of(access_of(is_wildcard=True, is_open=True), host=host) == (0 if is_ours else 421)


def session_of(entrance: Access) -> tuple[str, str]:
    """(path, Cookie header) of a browser that has logged in."""
    session = entrance.logins.begin(entrance.logins.new_code(), "192.0.2.7")
    assert session is not None
    return session.root, f"{COOKIE}={session.secret}"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
def test_session_changes_things_only_from_a_page_of_ours(method: str) -> None:
    entrance = access_of()
    root, cookie = session_of(entrance)
    is_safe, path = method in ("GET", "HEAD", "OPTIONS"), f"{root}/api/queue/pause"
    assert code_of(entrance, path, method, cookie=cookie) == (0 if is_safe else 403)
    assert code_of(entrance, path, method, cookie=cookie, origin=f"http://{OURS}") == 0
    for origin in (
        "http://evil.test",
        "null",
        "http://127.0.0.1:9",
        f"https://{OURS}.evil.test",
        "http://localhost:8025",
    ):
        assert code_of(entrance, path, method, cookie=cookie, origin=origin) == 403, origin
        # The same from a script that has the token: a browser has sent it.
        assert code_of(entrance, "/api/queue/pause", method, authorization=f"Bearer {TOKEN}", origin=origin) == 403
    for site in ("cross-site", "same-site", "anything"):
        assert code_of(entrance, path, method, cookie=cookie, origin=f"http://{OURS}", sec_fetch_site=site) == 403
    for site in ("same-origin", "none"):
        assert code_of(entrance, path, method, cookie=cookie, origin=f"http://{OURS}", sec_fetch_site=site) == 0


def test_cookie_opens_its_own_session_alone() -> None:
    entrance = access_of()
    root, cookie = session_of(entrance)
    other_root, other_cookie = session_of(entrance)
    assert (
        code_of(entrance, f"{root}/", cookie=cookie)
        == code_of(entrance, f"{root}/", cookie=f"x=y; {COOKIE}=z; {cookie}")
        == 0
    )
    for path, given in (
        (f"{root}/", other_cookie), (f"{other_root}/", cookie), ("/", cookie), ("/api/status", cookie), (f"{root}/", "-"), (f"{root}/", f"{COOKIE}="),
        (f"{root}/", cookie[:-1]), (f"{root}/", cookie + "x"), (f"{root}/", f"{COOKIE}={TOKEN}"), (f"{root}/", cookie.partition("=")[2]),
        (f"/s/{root[3:][::-1]}/", cookie), (f"{root}/", f"other{cookie}"),
    ):  # fmt: skip
        assert code_of(entrance, path, cookie=given) == 401, (path, given)
    assert TOKEN not in cookie and root.removeprefix("/s/") not in cookie
    # A token opens no session's path.
    assert code_of(entrance, f"{root}/", authorization=f"Bearer {TOKEN}") == 401


def test_log_in_code_works_once_and_for_ten_minutes() -> None:
    now = 1000.0
    found = Logins(lambda: now)
    first, second = found.new_code(), found.new_code()
    assert len(first) >= 22 and first != second
    assert found.begin("", "x") is None and found.begin("wrong", "x") is None
    assert found.begin(first, "x") is not None and found.begin(first, "x") is None
    now += LOGIN_S - 1
    third = found.new_code()
    now += 1
    assert found.begin(second, "x") is None and found.begin(third, "x") is not None


def test_every_answer_has_the_headers_that_keep_other_sites_out() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        for given in ({}, {"authorization": f"Bearer {TOKEN}"}):
            sent.clear()
            await Guard(app, access_of())(scope_of(**given), None, send)  # type: ignore[arg-type]
            headers = dict(sent[0]["headers"])
            policy = headers[b"content-security-policy"]
            for part in (b"default-src 'self'", b"frame-ancestors 'none'", b"base-uri 'none'", b"form-action 'self'"):
                assert part in policy.split(b"; ")
            assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"cache-control"] == b"no-store"
            assert (
                headers[b"referrer-policy"] == b"no-referrer"
                and headers[b"cross-origin-opener-policy"] == b"same-origin"
            )
            assert headers[b"cross-origin-resource-policy"] == b"same-origin"

    run_async(main)


# ------------------------------------------------------------------------- secrets are compared in constant time


def _noted(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> list[bytes]:
    """What goes through hmac.compare_digest from now on."""
    compared: list[bytes] = []
    real = hmac.compare_digest

    def noting(one: Any, two: Any) -> bool:
        compared.extend((one, two))
        return real(one, two)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    assert all(module.hmac is hmac for module in modules)
    return compared


def test_tokens_and_cookies_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = _noted(monkeypatch, access, logins)
    entrance = access_of()
    root, cookie = session_of(entrance)
    assert code_of(entrance, authorization=f"Bearer {METRICS}") == 403
    # Each token is looked at, whichever fits.
    assert {TOKEN.encode(), READ.encode(), METRICS.encode()} <= set(compared)
    assert code_of(entrance, f"{root}/", cookie=f"{COOKIE}=wrong") == 401
    assert cookie.partition("=")[2].encode() in compared and b"wrong" in compared


def test_signatures_of_webhooks_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = _noted(monkeypatch)
    right = signature(secret_key("key"), "U1", "1000", b"x")
    headers = {"webhook-id": "U1", "webhook-timestamp": "1000", "webhook-signature": right}
    assert verify("key", headers, b"x", now=1000) == "U1" and right.encode() in compared
    compared.clear()
    with pytest.raises(SignatureError):
        verify("key", {**headers, "webhook-signature": "v1,wrong"}, b"x", now=1000)
    assert b"v1,wrong" in compared


def test_tokens_are_long_and_differ() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and all(len(token) >= 43 for token in tokens)


# ------------------------------------------------------------------------- signatures of webhooks

BODY = b'{"url": "https://app.test/in", "content": "eA==", "uid": "U1", "pad": "' + b" " * 200 + b'"}'


def signed(uid: str = "U1", moment: str = "1000", body: bytes = BODY, key: str = "key") -> dict[str, str]:
    text = signature(secret_key(key), uid, moment, body)
    return {"webhook-id": uid, "webhook-timestamp": moment, "webhook-signature": text}


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({"webhook-id": "U2"}, BODY), ({"webhook-id": ""}, BODY), ({"webhook-timestamp": "1001"}, BODY), ({"webhook-timestamp": "01000"}, BODY),
        ({"webhook-signature": ""}, BODY), ({"webhook-signature": "v1,"}, BODY), ({"webhook-signature": signed(key="other")["webhook-signature"]}, BODY),
        ({"webhook-signature": signed()["webhook-signature"][3:]}, BODY), ({"webhook-signature": signed()["webhook-signature"][:-1]}, BODY),
        ({}, BODY[:-1]), ({}, BODY + b" "), ({}, BODY[:-1] + b"E"), ({}, b""), ({}, BODY.upper()), ({"X-Pillarbox-Envelope": "e30="}, BODY),
        ({"webhook-timestamp": "\u0661000"}, BODY), ({"webhook-timestamp": "-1000"}, BODY), ({"webhook-timestamp": "1000.0"}, BODY),
        ({"webhook-timestamp": "9" * 13}, BODY),
    ],
)  # fmt: skip
def test_signature_covers_id_time_and_the_whole_body(change: dict[str, str], body: bytes) -> None:
    assert verify("key", signed(), BODY, now=1000) == "U1"
    with pytest.raises(SignatureError):
        verify("key", {**signed(), **change}, body, now=1000)


@pytest.mark.parametrize(
    ("now", "is_right"),
    [(700, True), (1000, True), (1300, True), (699, False), (1301, False), (0, False), (1e9, False)],
)
def test_signature_is_right_for_five_minutes_each_way(now: float, is_right: bool) -> None:
    if is_right:
        assert verify("key", signed(), BODY, now=now) == "U1"
    else:
        with pytest.raises(SignatureError, match="too far"):
            verify("key", signed(), BODY, now=now)


def test_one_of_several_signatures_and_the_own_url_are_enough() -> None:
    several = {**signed(), "webhook-signature": f"v1,xx {signed()['webhook-signature']} v2,yy"}
    assert verify("key", several, BODY, now=1000) == "U1"
    with_type = {**signed(), "content-type": "application/json"}
    assert verify("key", with_type, BODY, url="https://app.test/in", now=1000) == "U1"
    for url in ("https://other.test/in", "https://app.test/in/", "", "https://app.test"):
        with pytest.raises(SignatureError, match="another URL"):
            verify("key", with_type, BODY, url=url, now=1000)
    with pytest.raises(SignatureError, match="another URL"):
        verify("key", signed(body=b"none"), b"none", url="https://app.test/in", now=1000)
