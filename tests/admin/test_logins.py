"""Log-ins to the dashboard: each browser has a path, a cookie and an end of its own; over real sockets and in a browser."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox.admin.logins import LOGIN_S, MAX_SESSIONS, SESSION_S, BrowserSession, Logins, split_prefix
from tests.browser import FLAGS, browsing, follow
from tests.conftest import free_port, tool
from tests.daemon import Daemon, pillarbox, wait_until
from tests.test_admin import Client
from tests.test_workers import send


class Clock:
    """Seconds that stand still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def cookie_of(session: BrowserSession) -> str:
    return f"pillarbox={session.secret}"


def log_in(logins: Logins) -> BrowserSession:
    session = logins.begin(logins.new_code(), "127.0.0.1")
    assert session is not None
    return session


# ------------------------------------------------------------------------ the sessions, with a manual clock


def test_code_begins_one_session_within_ten_minutes() -> None:
    clock = Clock()
    logins = Logins(clock)
    code, late = logins.new_code(), logins.new_code()
    assert logins.begin("", "x") is None
    assert logins.begin(code, "x") is not None
    assert logins.begin(code, "x") is None
    clock.now += LOGIN_S
    assert logins.begin(late, "x") is None


def test_session_is_found_by_its_own_path_and_cookie_alone() -> None:
    logins = Logins(Clock())
    one, other = log_in(logins), log_in(logins)
    assert logins.find(one.id, cookie_of(one)) is one
    # A cookie of the same name, of another service of this host, does not hide ours.
    assert logins.find(one.id, f"pillarbox=x; a=b;{cookie_of(one)} ; pillarbox=") is one
    for cookies in ("", "pillarbox", "pillarbox=", cookie_of(other), f"other={one.secret}", f"pillarbox={one.id}"):
        assert logins.find(one.id, cookies) is None
    assert logins.find("x" * 22, cookie_of(one)) is None
    assert len({one.id, one.secret, other.id, other.secret}) == 4
    assert one.secret not in repr(one) and one.id not in repr(one)


def test_session_ends_after_twelve_hours_or_when_it_is_ended() -> None:
    clock = Clock()
    logins = Logins(clock)
    one, other = log_in(logins), log_in(logins)
    assert logins.end(one.name) == [one.name]
    assert logins.find(one.id, cookie_of(one)) is None and not logins.is_alive(one)
    assert logins.find(other.id, cookie_of(other)) is other
    clock.now += SESSION_S
    assert logins.find(other.id, cookie_of(other)) is None and logins.rows() == []
    code, last = logins.new_code(), log_in(logins)
    assert logins.end() == [last.name]
    # A link that was not used yet is void, too.
    assert logins.begin(code, "x") is None


def test_sessions_beyond_the_bound_end_the_oldest() -> None:
    logins = Logins(Clock())
    sessions = [log_in(logins) for _ in range(MAX_SESSIONS + 1)]
    assert [logins.is_alive(one) for one in sessions] == [False] + [True] * MAX_SESSIONS
    assert [row["session"] for row in logins.rows()] == [one.name for one in sessions[1:]]
    shown = json.dumps(logins.rows())
    assert not any(one.id in shown or one.secret in shown for one in sessions)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/s/" + "a" * 22, ("a" * 22, "/")),
        ("/s/" + "a" * 22 + "/", ("a" * 22, "/")),
        ("/s/" + "a" * 22 + "/api/status", ("a" * 22, "/api/status")),
        ("/s/" + "a" * 22 + "//x", ("a" * 22, "//x")),
        ("/s/" + "a" * 23 + "/x", ("", "/s/" + "a" * 23 + "/x")),
        ("/s/" + "a" * 21 + "/x", ("", "/s/" + "a" * 21 + "/x")),
        ("/x/s/" + "a" * 22, ("", "/x/s/" + "a" * 22)),
        ("/", ("", "/")),
    ],
)
def test_prefix_is_split_from_a_path(path: str, found: tuple[str, str]) -> None:
    assert split_prefix(path) == found


# --------------------------------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Client]]:
    folder = tmp_path_factory.mktemp("logins")
    (folder / "pillarbox.toml").write_text("admin_hosts = ['https://box.test', 'plain.test']\n")
    file = f"--config={folder}/pillarbox.toml"
    with Daemon(folder, file, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        yield daemon, Client(daemon)


Server = tuple[Daemon, Client]


class Browser:
    """A browser's session: its requests have the cookie, under its path."""

    def __init__(self, client: Client, **headers: str) -> None:
        link = client.post("/api/logins")[1]["url"]
        self.client = client
        status, found, _ = client.ask("GET", link.removeprefix(client.url), token=False, **headers)
        assert status == 303
        self.set_cookie = found["set-cookie"]
        self.cookie = self.set_cookie.partition(";")[0]
        self.root = found["location"].removesuffix("/")

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        body = None if method == "GET" else b""
        headers = {"Cookie": self.cookie, "Origin": self.client.url, **headers}
        return self.client.ask(method, self.root + path, body, token=False, **headers)


def test_cookie_opens_nothing_outside_its_own_path(server: Server) -> None:
    _, client = server
    one, other = Browser(client), Browser(client)
    assert one.ask("GET", "/api/status")[0] == 200
    for root in ("", other.root, "/s/" + "x" * 22):
        assert client.ask("GET", f"{root}/api/status", token=False, Cookie=one.cookie)[0] == 401
    # The path alone opens nothing either, nor does a token there.
    assert client.ask("GET", f"{one.root}/api/status", token=False)[0] == 401
    assert client.ask("GET", f"{one.root}/api/status")[0] == 401


def test_links_of_a_page_stay_within_its_session(server: Server) -> None:
    _, client = server
    uid = client.post(
        "/api/messages", b'{"reverse_path": "a@b.test", "recipients": ["c@d.test"], "content": "Subject: x\\n\\nx\\n"}'
    )[1]["uid"]
    browser = Browser(client)
    for path in ("/", "/queue", "/sessions", "/events", f"/message/{uid}"):
        status, _, body = browser.ask("GET", path)
        page = body.decode()
        assert status == 200
        links = re.findall(r'(?:href|src|action|data-post)="(/[^"]*)"', page)
        assert len(links) > 8 and all(link.startswith(browser.root + "/") for link in links)
        assert (f'data-root="{browser.root}"' in page and 'aria-current="page"' in page) or "message" in path
        for link in {link for link in links if "/static/" in link}:
            assert browser.ask("GET", link.removeprefix(browser.root))[0] == 200
    # Programs with the token have the plain paths, and no button to log out.
    plain = client.ask("GET", "/")[2].decode()
    assert 'data-root=""' in plain and "Log out" not in plain and "/s/" not in plain


def test_log_out_ends_the_session_and_its_event_stream(server: Server) -> None:
    daemon, client = server
    browser, other = Browser(client), Browser(client)
    status, headers, body = browser.ask("DELETE", "/api/logins/this")
    assert status == 200 and "Max-Age=0" in headers["set-cookie"] and f"Path={browser.root}/" in headers["set-cookie"]
    assert len(json.loads(body)["ended"]) == 1
    assert browser.ask("GET", "/")[0] == 401
    assert other.ask("GET", "/")[0] == 200
    assert client.ask("DELETE", "/api/logins/this")[0] == 404
    stream: list[bytes] = []

    def watch() -> None:
        stream.append(other.ask("GET", "/api/events?names=message_queued")[2])

    watcher = threading.Thread(target=watch)
    watcher.start()
    wait_until(lambda: client.get("/api/logins"))
    said = pillarbox("admin", "--log-out", f"--data-dir={daemon.data}").stdout
    assert re.fullmatch(r"\d+ browsers? logged out\n", said)
    assert pillarbox("admin", "--sessions", f"--data-dir={daemon.data}").stdout == "no browser is logged in\n"
    assert other.ask("GET", "/")[0] == 401
    wait_until(lambda: send(daemon.port, "x@y.test") or not watcher.is_alive(), step=0.3)
    assert len(stream) == 1


def test_sessions_are_listed_without_what_lets_in(server: Server) -> None:
    daemon, client = server
    browser = Browser(client)
    (row,) = client.get("/api/logins")[-1:]
    assert row["client"] == "127.0.0.1" and 0 < row["ends_in_s"] <= SESSION_S
    said = pillarbox("admin", "--sessions", f"--data-dir={daemon.data}").stdout
    assert row["session"] in said
    assert browser.root[3:] not in said and browser.cookie.partition("=")[2] not in said


def test_log_names_the_session_or_token_and_no_path_that_lets_in(server: Server) -> None:
    daemon, client = server
    browser = Browser(client)
    name = client.get("/api/logins")[-1]["session"]
    assert browser.ask("POST", "/api/queue/pause")[0] == 200
    assert client.post("/api/queue/pause")[0] == 200
    assert client.ask("GET", f"{browser.root}/queue", token=False)[0] == 401

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]

    wait_until(lambda: [one for one in lines() if one["event"] == "admin-refused" and one["path"] == "/queue"])
    by = [(one["action"], one["by"], one["via"]) for one in lines() if one["event"] == "operator"]
    assert by[-4:] == [
        ("new-login-link", "token", "api"),
        ("log-in", name, "dashboard"),
        ("pause", name, "dashboard"),
        ("pause", "token", "api"),
    ]
    assert browser.root not in daemon.log.read_text() and browser.cookie not in daemon.log.read_text()


def test_cookie_is_secure_behind_a_tls_proxy_alone(server: Server) -> None:
    _, client = server
    assert "Secure" not in Browser(client).set_cookie
    assert "Secure" in Browser(client, Host="box.test").set_cookie
    assert "Secure" in Browser(client, X_Forwarded_Proto="https").set_cookie


def test_log_in_link_is_told_by_way_of_the_tls_proxy_too(server: Server) -> None:
    daemon, client = server
    own, by_proxy = pillarbox("admin", f"--data-dir={daemon.data}").stdout.split()
    assert own.startswith(f"{client.url}/login?code=")
    assert by_proxy == own.replace(client.url, "https://box.test")
    path = by_proxy.removeprefix("https://box.test")
    assert client.ask("GET", path, token=False, Host="box.test")[0] == 303
    assert client.ask("GET", path, token=False)[0] == 403


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:PORT", "http://127.0.0.1:PORT", 200),
        ("localhost:PORT", "http://localhost:PORT", 200),
        # Another port of this host is another site.
        ("127.0.0.1:PORT", "http://127.0.0.1", 403),
        ("127.0.0.1:PORT", "http://127.0.0.1:1", 403),
        ("127.0.0.1:PORT", "http://localhost:PORT", 403),
        ("localhost:PORT", "http://localhost", 403),
        ("127.0.0.1:PORT", "http://mx.test", 403),
        ("plain.test", "http://plain.test", 200),
        ("127.0.0.1:PORT", "http://plain.test", 403),
        ("plain.test", "https://plain.test", 200),
        ("plain.test:80", "http://plain.test", 200),
        ("plain.test:443", "https://plain.test", 200),
        ("plain.test:443", "http://plain.test", 403),
        # A TLS proxy that passes its own name on, or not.
        ("box.test", "https://box.test", 200),
        ("127.0.0.1:PORT", "https://box.test", 200),
        ("127.0.0.1:PORT", "http://box.test", 403),
        ("127.0.0.1:PORT", "https://box.test:444", 403),
        ("127.0.0.1:PORT", "https://box.test.evil.test", 403),
        ("127.0.0.1:PORT", "null", 403),
        ("127.0.0.1:PORT", "", 403),
        ("evil.test", "http://evil.test", 421),
    ],
)
def test_origin_must_be_the_host_of_the_request(server: Server, host: str, origin: str, status: int) -> None:
    _, client = server
    browser, port = Browser(client), client.host.rpartition(":")[2]
    sent = {"Host": host.replace("PORT", port), "Origin": origin.replace("PORT", port)}
    assert browser.ask("POST", "/api/queue/pause", **sent)[0] == status


def test_wrong_token_does_not_pass_the_host_check_where_none_is_asked_for() -> None:
    """A page whose name was made to point here may send any header but Host: it is no holder of a token."""
    from pillarbox.admin.access import Access

    access = Access({"localhost:8025"}, "A" * 40, scoped={"metrics": "B" * 40}, is_open=True)

    def refused(host: str, authorization: str) -> bool:
        headers = [(b"host", host.encode()), (b"authorization", authorization.encode())]
        scope = {"type": "http", "method": "GET", "path": "/api/inbox", "headers": headers}
        return access.enter(scope) is not None

    assert not refused("localhost:8025", "Bearer wrong")
    for given in ("Bearer wrong", "Bearer ", "Basic " + "A" * 40, "Bearer " + "A" * 39):
        assert refused("evil.test:8025", given)
    assert not refused("mail:8025", "Bearer " + "A" * 40)


def test_restart_ends_every_session(tmp_path: Path) -> None:
    port = free_port()
    with Daemon(tmp_path, f"--admin=127.0.0.1:{port}") as daemon:
        token = Client(daemon).token
        browser = Browser(Client(daemon))
    with Daemon(tmp_path, f"--admin=127.0.0.1:{port}") as daemon:
        assert Client(daemon).token == token
        assert browser.ask("GET", "/")[0] == 401


def test_log_in_link_is_not_written_where_stdout_is_no_terminal(tmp_path: Path) -> None:
    with Daemon(tmp_path, f"--admin=127.0.0.1:{free_port()}") as daemon:
        assert daemon.process.stdout is not None
        line = daemon.process.stdout.readline()
        assert "login?code" not in daemon.ready + line
        assert f"pillarbox admin --data-dir {daemon.data}" in line


def test_taken_usual_port_is_told_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from pillarbox import MailServer
    from pillarbox.admin import server as admin_server

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(admin_server, "DEFAULT", ("127.0.0.1", taken))
        side = admin_server.Admin(MailServer(data_dir=str(tmp_path)))
        sock = side._bind()
        assert sock.getsockname()[1] != taken
        sock.close()
        assert side.moved_from == f"127.0.0.1:{taken}"


# -------------------------------------------------------------------------------------- in a browser


def test_bookmark_leads_to_the_session_of_this_browser(tmp_path: Path) -> None:
    """A plain address and one of an old session: the page that asks for a log-in finds the session of this browser."""
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        login = pillarbox("admin", f"--data-dir={daemon.data}").stdout.strip()
        import playwright.sync_api as playwright

        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=tool("chromium"), args=FLAGS)
            try:
                page = browser.new_page()
                page.goto(f"{client.url}/queue")
                assert page.locator("h1").inner_text() == "Log in"
                page.goto(login)
                root = page.url.removesuffix("/")
                assert re.fullmatch(re.escape(client.url) + r"/s/[\w-]{22}", root)
                for bookmark in ("/queue?state=held", f"/s/{'x' * 22}/queue?state=held"):
                    page.goto(client.url + bookmark)
                    page.wait_for_url(f"{root}/queue?state=held")
                    assert page.locator("h1").inner_text() == "Queue"
                follow(page, "text=Log out")
                page.wait_for_url(f"{client.url}/**")
                page.wait_for_function("localStorage.getItem('pillarbox') === null")
                page.goto(f"{client.url}/queue")
                assert page.locator("h1").inner_text() == "Log in"
            finally:
                browser.close()


def test_server_on_another_port_is_sent_no_cookie(tmp_path: Path) -> None:
    cookies: list[str | None] = []

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookies.append(self.headers.get("Cookie"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
                client = Client(daemon)
                login = pillarbox("admin", f"--data-dir={daemon.data}").stdout.strip()
                with browsing("http://127.0.0.1:") as page:
                    page.goto(login)
                    assert page.context.cookies(page.url)
                    for path in ("/", page.url.removeprefix(client.url).partition("/s/")[0] + "/s/"):
                        page.goto(f"http://127.0.0.1:{other.server_address[1]}{path}")
        finally:
            other.shutdown()
            thread.join()
    assert len(cookies) >= 2 and set(cookies) == {None}
