"""The admin API and the dashboard: who is let in, what they say, what they do; over real sockets."""

from __future__ import annotations

import http.client
import json
import re
import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pillarbox.admin.api import ROWS
from pillarbox.admin.parsed import parsed_view
from pillarbox.admin.rows import openapi
from tests.browser import browsing, follow, shots
from tests.conftest import free_port
from tests.daemon import Daemon, pillarbox, sink, smtp_source, wait_until
from tests.test_workers import send


class Client:
    """HTTP to one server, by its token unless told otherwise."""

    def __init__(self, daemon: Daemon) -> None:
        found = json.loads((daemon.data / "admin.json").read_text())
        self.url, self.token = found["url"], found["token"]
        self.host = self.url.removeprefix("http://")

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, token: bool = True, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {self.token}"
        connection.putrequest(method, path, skip_host="Host" in sent)
        if body is not None:
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def get(self, path: str) -> Any:
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        status, _, found = self.ask("POST", path, body, **headers)
        return status, json.loads(found)


@pytest.fixture(scope="module", params=[1, 2])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Client]]:
    folder = tmp_path_factory.mktemp("admin")
    with Daemon(folder, f"--workers={request.param}", "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        yield daemon, Client(daemon)


Server = tuple[Daemon, Client]


def test_a_token_always_but_for_healthz(server: Server) -> None:
    daemon, client = server
    assert (daemon.data / "admin.json").stat().st_mode & 0o777 == 0o600
    assert f"admin: {client.url}" in daemon.ready
    assert client.ask("GET", "/healthz", token=False)[::2] == (200, b"ok\n")
    for row in ROWS:
        path = row.path.replace("{uid}", "x").replace("{action}", "hold").replace("{session}", "x")
        if path != "/healthz":
            status, headers, body = client.ask(row.method, path, b"{}" if row.method == "POST" else None, token=False)
            assert status == 401, path
            assert headers["www-authenticate"] == "Bearer"
            assert b"admin.json" in body
    for path in ("/", "/queue", "/static/app.js", "/samples", "/message/x"):
        assert client.ask("GET", path, token=False)[0] == 401
    assert client.ask("GET", "/api/status", token=False, Authorization="Bearer " + "x" * 43)[0] == 401
    assert client.ask("GET", "/api/status", token=False, Authorization="Basic " + client.token)[0] == 401
    assert client.ask("GET", "/api/status", token=False, Cookie="pillarbox=x; pillarbox=y; =")[0] == 401


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1", "localhost:1", "", "127.0.0.1:8025.evil.test"])
def test_row_131_another_host_is_refused(server: Server, host: str) -> None:
    """DNS rebinding: a web site whose name was made to point here does not know the token."""
    _, client = server
    assert client.ask("GET", "/readyz", token=False, Host=host)[0] in (400, 421)
    assert client.ask("GET", "/api/status", token=False, Host=host)[0] in (400, 421)


def test_a_login_works_once_and_its_cookie_changes_nothing_from_elsewhere(server: Server) -> None:
    _, client = server
    path = client.post("/api/logins")[1]["url"].removeprefix(client.url)
    status, headers, _ = client.ask("GET", path, token=False)
    root = headers["location"].removesuffix("/")
    assert status == 303 and re.fullmatch(r"/s/[\w-]{22}", root)
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and f"Path={root}/;" in cookie
    cookie = cookie.partition(";")[0]
    assert client.token not in cookie
    again = client.ask("GET", path, token=False)
    assert again[0] == 403 and b"used already" in again[2]
    assert client.ask("GET", "/login?code=", token=False)[0] == 403
    assert client.ask("GET", f"{root}/", token=False, Cookie=cookie)[0] == 200
    # A form or a script on another site: the browser adds the cookie, and says where it comes from, or nothing.
    for origin in ({"Origin": "http://evil.test"}, {"Origin": "null"}, {}):
        assert client.ask("POST", f"{root}/api/queue/resume", b"", token=False, Cookie=cookie, **origin)[0] == 403
    assert client.get("/api/status")["paused"] is True
    assert client.ask("POST", f"{root}/api/queue/pause", b"", token=False, Cookie=cookie, Origin=client.url)[0] == 200
    assert client.ask("GET", "/api/status", token=True, Origin="https://evil.test")[0] == 403


def test_the_command_gives_a_new_link(server: Server, tmp_path: Path) -> None:
    daemon, client = server
    link = pillarbox("admin", f"--data-dir={daemon.data}").stdout.strip()
    assert link.startswith(f"{client.url}/login?code=")
    assert client.ask("GET", link.removeprefix(client.url), token=False)[0] == 303
    nobody = pillarbox("admin", f"--data-dir={tmp_path}", ok=False)
    assert nobody.returncode == 1
    assert "no server with an admin API runs" in nobody.stderr


def test_pages_forbid_what_comes_from_elsewhere(server: Server) -> None:
    _, client = server
    for path in ("/", "/queue", "/sessions", "/events", "/message/none", "/api/status", "/static/app.css"):
        status, headers, _ = client.ask("GET", path)
        assert status == (404 if path.endswith("none") else 200)
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
    assert client.ask("GET", "/static/../api.py")[0] == 404
    assert client.ask("GET", "/static/%2e%2e/api.py")[0] == 404


def test_messages_by_http(server: Server) -> None:
    daemon, client = server
    body = json.dumps(
        {"reverse_path": "a@b.test", "recipients": ["api@c.test"], "content": "Subject: x\n\nhello\n"}
    ).encode()
    status, first = client.post("/api/messages", body, Content_Type="application/json", Idempotency_Key="order-1")
    assert status == 201
    status, second = client.post("/api/messages", body, Idempotency_Key="order-1")
    assert (status, second["uid"], second["queued"]) == (200, first["uid"], "before")
    raw = b"From: a@b.test\r\nSubject: raw\r\n\r\n<script>alert(1)</script>\r\n"
    status, found = client.post(
        "/api/messages?from=a@b.test&to=r1@c.test&to=r2@c.test", raw, Content_Type="message/rfc822"
    )
    assert status == 201
    shown = client.get(f"/api/messages/{found['uid']}")
    assert [r["address"] for r in shown["recipients"]] == ["r1@c.test", "r2@c.test"]
    assert shown["waiting_for"] == "the queue is paused: pillarbox queue resume"
    status, headers, content = client.ask("GET", f"/api/messages/{found['uid']}/content")
    assert headers["content-type"] == "message/rfc822"
    assert headers["content-disposition"].startswith("attachment")
    assert content.endswith(raw)
    assert client.get(f"/api/messages/{found['uid']}/parsed")["text"].strip() == "<script>alert(1)</script>"
    page = client.ask("GET", f"/message/{found['uid']}")[2].decode()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    listed = client.get("/api/messages?recipient=api@")
    assert [row["uid"] for row in listed] == [first["uid"]]
    assert len(client.get("/api/messages?limit=1")) == 1
    assert found["uid"] in {row["uid"] for row in daemon.queue()}

    for path, wanted in ((f"{found['uid']}/hold", 200), (f"{found['uid']}/hold", 409), ("nothing/hold", 404)):
        assert client.post(f"/api/messages/{path}")[0] == wanted, path
    assert client.get(f"/api/messages/{found['uid']}")["state"] == "held"
    assert client.post("/api/queue/cancel?recipient=r1@")[1] == {"changed": [found["uid"]]}
    assert client.post("/api/queue/cancel?everything=1")[0] == 200
    assert client.get("/api/messages") == []
    assert {row["state"] for row in client.get("/api/messages?is_all=1")} == {"cancelled"}
    assert client.ask("GET", f"/api/messages/{found['uid']}/content")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "word"),
    [
        ("GET", "/api/messages?stat=held", None, "unknown filter 'stat'"),
        ("GET", "/api/messages?state=gone", None, "unknown state"),
        ("GET", "/api/messages?limit=x", None, "limit"),
        ("GET", "/api/messages?sender=", None, "would mean every message"),
        ("GET", "/api/messages?received_before=soon", None, "float"),
        ("POST", "/api/queue/cancel", b"", "everything=1"),
        ("POST", "/api/queue/explode?everything=1", b"", "hold, release"),
        ("POST", "/api/messages/x/explode", b"", "hold, release"),
        ("POST", "/api/messages", b"[]", "an object"),
        ("POST", "/api/messages", b"{", "Expecting"),
        ("POST", "/api/messages", b"{}", "'reverse_path' is missing"),
        ("POST", "/api/messages", b'{"reverse_path": "", "recipients": ["no address"], "content": "x"}', "no address"),
        ("GET", "/api/events?names=nothing", None, "there is no event 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_said(server: Server, method: str, path: str, body: bytes | None, word: str) -> None:
    _, client = server
    status, _, found = client.ask(method, path, body)
    assert status == 400, found
    assert word in json.loads(found)["error"]


def test_garbage_does_no_harm(server: Server) -> None:
    _, client = server
    host, _, port = client.host.rpartition(":")
    for garbage in (
        b"\0" * 1000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"EHLO x\r\n",
        b"POST /api/messages HTTP/9\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), 10) as sock:
            sock.settimeout(10)
            try:
                sock.sendall(garbage + b"\r\n\r\n")
                sock.recv(4096)
            except (ConnectionError, TimeoutError):
                pass
    key = "x" * 65
    assert client.post("/api/messages", b'{"recipients": ["a@b.test"], "content": "x"}', Idempotency_Key=key)[0] == 400
    assert client.ask("GET", "/healthz")[0] == 200


def test_metrics_are_prometheus_and_bounded(server: Server) -> None:
    daemon, client = server
    send(daemon.port, "metrics@c.test")
    status, headers, body = client.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["pillarbox_messages_accepted"].samples[0].value >= 1
    states = {sample.labels["state"]: sample.value for sample in families["pillarbox_queue_recipients"].samples}
    assert states["queued"] >= 1
    assert set(states) == {"queued", "deferred", "held"}, "history is not the queue"
    assert sum(len(family.samples) for family in families.values()) < 500
    names = ("disk_free_bytes", "build_info", "database_up", "accept_delay_seconds", "queue_oldest_message_seconds")
    assert all(f"pillarbox_{name}" in families for name in names)
    waiting = families["pillarbox_lane_waiting"].samples
    assert sum(sample.value for sample in waiting) >= 1, "what waits in the store counts"


def test_sessions_status_options(server: Server) -> None:
    daemon, client = server
    with smtplib.SMTP("127.0.0.1", daemon.port) as smtp:
        smtp.ehlo("client.test")
        smtp.mail("me@b.test")
        [session] = [one for one in client.get("/api/sessions") if one["helo"] == "client.test"]
        assert (session["peer"], session["state"], session["reverse_path"]) == ("127.0.0.1", "mail", "me@b.test")
        assert b"client.test" in client.ask("GET", "/sessions")[2]
    assert client.get("/api/options")["hostname"] == "mx.test"
    assert "relay_pass" not in client.get("/api/options")
    assert client.ask("GET", "/readyz")[0] == 200
    assert client.get("/samples")[0]["at"] > 0


def test_openapi_tells_every_route() -> None:
    described = openapi(ROWS)
    assert described["openapi"] == "3.1.0"
    assert sum(len(methods) for methods in described["paths"].values()) == len(ROWS)
    assert json.loads(json.dumps(described)) == described


def test_the_event_stream_with_filters(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        connection = http.client.HTTPConnection(client.host, timeout=20)
        path = f"/api/events?names=message_queued,connection&text={quote('wanted@')}"
        connection.request("GET", path, headers={"Authorization": f"Bearer {client.token}"})
        answer = connection.getresponse()
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        assert answer.readline().startswith(b":")
        send(daemon.port, "other@c.test")
        send(daemon.port, "wanted@c.test")
        answer.readline()
        told = json.loads(answer.readline().removeprefix(b"data: "))
        assert (told["event"], told["recipients"], told["subject"]) == ("message_queued", ["wanted@c.test"], "hello")
        connection.close()
        # Whoever left is found out, and costs nothing any more: nobody listens.
        send(daemon.port, "wanted@c.test")
        assert len(daemon.queue()) == 3


def test_a_shutdown_does_not_wait_for_who_watches(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}")
    client = Client(daemon)
    connection = http.client.HTTPConnection(client.host, timeout=20)
    connection.request("GET", "/api/events", headers={"Authorization": f"Bearer {client.token}"})
    connection.getresponse().readline()
    assert daemon.stop() == 0
    connection.close()
    assert json.loads((daemon.data / "admin.json").read_text()) == {"url": "", "token": client.token}


def test_addresses_of_the_admin_side(tmp_path: Path) -> None:
    port = free_port()
    with Daemon(tmp_path / "one", "--paused", f"--admin=127.0.0.1:{port}") as daemon:
        assert f"admin: http://127.0.0.1:{port}" in daemon.ready
        for workers in ("1", "2"):
            taken = pillarbox(
                "serve", "--listen=127.0.0.1:0", f"--data-dir={tmp_path / 'two'}", f"--admin=127.0.0.1:{port}",
                f"--workers={workers}", ok=False,
            )  # fmt: skip
            assert taken.returncode == 1
            assert f"cannot listen on 127.0.0.1:{port} for the admin API" in taken.stderr
    with Daemon(tmp_path / "three", "--paused") as daemon:
        assert "admin: " not in daemon.ready
        assert not (daemon.data / "admin.json").exists()
    wrong = pillarbox("serve", "--admin=smtps://x:1", ok=False)
    assert wrong.returncode == 2
    assert "give HOST:PORT, or off" in wrong.stderr


def test_the_token_outlives_a_restart(tmp_path: Path) -> None:
    admin = f"--admin=127.0.0.1:{free_port()}"
    with Daemon(tmp_path, admin) as daemon:
        before = Client(daemon).token
    with Daemon(tmp_path, admin) as daemon:
        assert Client(daemon).token == before


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"no header at all",
        b"Subject: =?utf-8?q?=ff=fe?=\r\n\r\nx",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/plain; charset=nonsense\r\n\r\n\xff\r\n",
        b"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!",
        b"From: \xff\xfe <a@b>\r\nTo: =?x?y?z?=, <<<>>>\r\nDate: \0\r\n\r\n\0\0",
        b"Content-Type: " + b"a/" * 5000 + b"\r\n\r\nx",
    ],
)
def test_broken_mail_is_shown_somehow(octets: bytes) -> None:
    json.dumps(parsed_view(octets))


def test_lanes_and_delivery_are_seen(tmp_path: Path) -> None:
    with sink(tmp_path / "sink") as (port, _):
        with Daemon(tmp_path, f"--relay=127.0.0.1:{port}", f"--admin=127.0.0.1:{free_port()}") as daemon:
            client = Client(daemon)
            send(daemon.port, "a@c.test")
            wait_until(lambda: client.get("/api/messages?is_all=1")[0]["state"] == "delivered")
            [lane] = client.get("/api/lanes")
            assert (lane["next_hop"], lane["state"]) == (f"relay:127.0.0.1:{port}", "idle")
            uid = client.get("/api/messages?is_all=1")[0]["uid"]
            page = client.ask("GET", f"/message/{uid}")[2].decode()
            assert "delivered" in page and "content of a finished message is not kept" in page
            assert b"next_hop" in client.ask("GET", "/metrics")[2]


def test_in_a_browser(tmp_path: Path) -> None:
    """The printed address, a message that appears, an action, the live view, charts that move; nothing from elsewhere."""
    pictures = shots(tmp_path)
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        login = pillarbox("admin", f"--data-dir={daemon.data}").stdout.strip()
        with browsing(client.url) as page:
            page.goto(login)
            assert page.locator("h1").inner_text() == "Paused"
            pillarbox("send", f"--server={daemon.address}", "--to=browser@c.test", "--subject=hello", "--count=3")
            page.wait_for_selector("[data-counter=accepted]:text-is('3')", timeout=20_000)
            page.wait_for_selector("[data-chart=accepted] polyline", state="attached")
            page.wait_for_selector("#states :text-is('3')", timeout=20_000)
            before = page.locator("[data-chart=accepted] polyline").get_attribute("points")
            page.wait_for_function(
                "old => document.querySelector('[data-chart=accepted] polyline').getAttribute('points') !== old",
                arg=before,
                timeout=20_000,
            )
            page.screenshot(path=str(pictures / "overview.png"))
            follow(page, "nav >> text=Queue")
            follow(page, "tbody tr >> nth=0 >> a")
            assert page.locator("h1").inner_text() == "hello"
            follow(page, "button:text-is('Hold')")
            page.wait_for_selector("h1 + .state.held")
            page.on("dialog", lambda dialog: dialog.accept())
            page.screenshot(path=str(pictures / "message.png"), full_page=True)
            follow(page, "button:text-is('Cancel')")
            page.wait_for_selector("h1 + .state.cancelled")
            assert len(daemon.queue("--state=cancelled")) == 1
            follow(page, "nav >> text=Events")
            page.fill("#text", "live@")
            page.wait_for_timeout(600)
            send(daemon.port, "other@c.test")
            send(daemon.port, "live@c.test")
            page.wait_for_selector("#stream tr")
            assert page.locator("#stream tr").count() == 1
            page.screenshot(path=str(pictures / "events.png"))
            page.set_viewport_size({"width": 380, "height": 800})
            follow(page, "nav >> text=Queue")
            assert page.evaluate("document.documentElement.scrollWidth") <= 380
            page.screenshot(path=str(pictures / "queue-on-a-telephone.png"))


def test_many_tabs_do_not_grow_memory(tmp_path: Path) -> None:
    """Fifty dashboards that nobody looks at: each has its event stream open, reads nothing of it, and asks for samples."""
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        host, port = client.host.split(":")
        tabs = []
        for _ in range(50):
            sock = socket.create_connection((host, int(port)))
            sock.sendall(
                f"GET /api/events?names=all HTTP/1.1\r\nHost: {client.host}\r\nAuthorization: Bearer {client.token}\r\n\r\n".encode()
            )
            assert b"200 OK" in sock.recv(1000)
            tabs.append(sock)

        def resident_mb() -> float:
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024

        def load() -> None:
            smtp_source(daemon.port, 800, "-s", "10", "-l", "1000")
            for _ in range(50):
                client.get("/samples")
                client.get("/api/status")

        # What the streams may hold, and what the server needs in any case.
        load()
        load()
        before = resident_mb()
        for _ in range(4):
            load()
        grown = resident_mb() - before
        assert grown < 12, grown
        for sock in tabs:
            sock.close()
        wait_until(lambda: client.get("/api/status")["counters"]["accepted"] == 4800)


def test_a_stream_is_bounded_in_events_a_second(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)

        def read(query: str, count: int) -> list[dict[str, Any]]:
            connection = http.client.HTTPConnection(client.host, timeout=20)
            connection.request(
                "GET", f"/api/events?names=message_queued{query}", headers={"Authorization": f"Bearer {client.token}"}
            )
            answer = connection.getresponse()
            answer.readline()
            smtp_source(daemon.port, count, "-s", "5", "-l", "500")
            send(daemon.port, "last@c.test")
            found: list[dict[str, Any]] = []
            wait_until(lambda: client.get("/api/status")["counters"]["accepted"] >= count)
            while True:
                line = answer.readline()
                if line.startswith(b"data: "):
                    found.append(json.loads(line[6:]))
                    if "last@c.test" in line.decode():
                        break
                    if sum(one["event"] == "message_queued" for one in found) == 20 and query == "&rate=20":
                        break
            connection.close()
            return found

        assert sum(one["event"] == "message_queued" for one in read("&rate=0", 300)) == 301
        assert len(read("&rate=20", 300)) <= 25
        assert client.ask("GET", "/api/events?rate=-1")[0] == 400
