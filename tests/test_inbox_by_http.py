"""The inbox by HTTP: which messages a request deletes, whole attachments, who may call it and by which name, what its pages say."""

from __future__ import annotations

import base64
import http.client
import json
import os
import smtplib
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.browser import browsing, follow, shots
from tests.conftest import free_port
from tests.daemon import Daemon
from tests.test_dev import Dev, dev

HEAD = b"Subject: t\r\nMIME-Version: 1.0\r\n"


def raw(server: Dev, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, timeout=30)
    connection.request(method, path, None, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def deliver(server: Dev, octets: bytes, to: str = "c@d.test", sender: str = "a@b.test") -> str:
    with smtplib.SMTP("127.0.0.1", server.port, timeout=30) as client:
        client.ehlo()
        client.mail(sender, ["SMTPUTF8"])
        client.rcpt(to)
        code, reply = client.data(octets)
        assert code == 250, reply
        return reply.decode().split()[1]


def subjects(server: Dev, query: str = "") -> list[str]:
    return [row["subject"] for row in server.ask("GET", "/api/inbox" + query)[1]]


def test_delete_honours_its_filters_and_refuses_unknown_and_empty_ones() -> None:
    with dev() as server:
        for number in range(4):
            server.send(f"to{number}@d.test", f"subject {number}")
        for query in (
            "?to=",
            "?to=&from=",
            "?nonsense=1",
            "?limit=1",
            "?everything=0",
            "?everything=1&to=",
            "?uid=x",
        ):
            status, answer = server.ask("DELETE", "/api/inbox" + query)
            assert status == 400 and answer["error"], query
        assert len(subjects(server)) == 4
        assert len(server.ask("DELETE", "/api/inbox?to=TO1@")[1]["deleted"]) == 1
        assert server.ask("DELETE", "/api/inbox?to=nobody")[1] == {"deleted": []}
        assert len(server.ask("DELETE", "/api/inbox?subject=3&from=a@b")[1]["deleted"]) == 1
        assert len(server.ask("DELETE", "/api/inbox?to=to0&everything=1")[1]["deleted"]) == 1
        assert subjects(server) == ["subject 2"]
        assert len(server.ask("DELETE", "/api/inbox")[1]["deleted"]) == 1
        assert subjects(server) == []


def test_delete_all_on_a_filtered_page_deletes_what_matches(tmp_path: Path) -> None:
    with dev() as server, browsing(server.url) as page:
        for number in range(3):
            server.send(f"to{number}@d.test", f"subject {number}")
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(server.url + "/inbox?to=to1%40d.test&subject=subject+1")
        follow(page, "text=Delete all that match")
        page.wait_for_selector("#inbox >> text=No message matches this filter")
        assert sorted(subjects(server)) == ["subject 0", "subject 2"]
        page.goto(server.url + "/inbox")
        follow(page, "tbody a >> nth=0")
        assert page.locator("text=Release").count() == 0, "there is no way out"
        page.screenshot(path=str(shots(tmp_path) / "dev-message.png"), full_page=True)
        follow(page, "button:text-is('Delete')")
        assert page.url == server.url + "/inbox" and subjects(server) == ["subject 0"]
        page.screenshot(path=str(shots(tmp_path) / "dev-inbox.png"))


def test_filter_ignores_case_in_every_script() -> None:
    with dev() as server:
        deliver(server, b"Subject: =?utf-8?q?=C3=9Cbersicht?=\r\n\r\nx\r\n", "Müller@example.org", "Jörg@example.org")
        for query in ("to=MÜLLER", "from=JÖRG", "subject=übersicht", "to=müller&from=jörg"):
            assert len(subjects(server, "?" + quote(query, safe="=&"))) == 1, query


def test_captured_message_is_kept_as_it_was_sent() -> None:
    with dev() as server:
        sent = b"From: a@example.org\r\nBcc: secret@example.org\r\nReturn-Path: <x@y.test>\r\nSubject: t\r\n\r\nx\r\n"
        content = raw(server, "GET", f"/api/messages/{deliver(server, sent)}/content")[2]
        assert content.endswith(sent) and b"Message-ID" not in content and b"Date:" not in content


def test_attachment_of_a_large_message_is_whole() -> None:
    data = os.urandom(9 << 20)

    part = b"--b\r\nContent-Type: application/pdf; name=%s\r\nContent-Transfer-Encoding: base64\r\n\r\n%s\r\n"
    octets = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nwords\r\n"
    for name, content in ((b"big.pdf", data), (b"small.pdf", b"x" * 1000)):
        octets += part % (name, base64.encodebytes(content).replace(b"\n", b"\r\n"))
    with dev() as server:
        uid = deliver(server, octets + b"--b--\r\n")
        view = server.ask("GET", f"/api/inbox/{uid}")[1]
        assert [(one["name"], one["bytes"]) for one in view["attachments"]] == [
            ("big.pdf", len(data)),
            ("small.pdf", 1000),
        ]
        for number, wanted in ((0, data), (1, b"x" * 1000)):
            status, headers, body = raw(server, "GET", f"/api/messages/{uid}/attachments/{number}")
            assert status == 200 and body == wanted and headers["content-length"] == str(len(wanted))
        assert raw(server, "GET", f"/api/messages/{uid}/attachments/2")[0] == 404
        assert b"small.pdf" in raw(server, "GET", f"/message/{uid}")[2]


def test_message_beyond_the_bound_is_refused_with_413(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from pillarbox.admin import reading

    assert not reading.is_too_large(64 << 20)
    monkeypatch.setattr(reading, "MOST_PARSED_BYTES", 10)
    assert reading.is_too_large(11)
    found = asyncio.run(reading.view([b"x" * 11], 11))
    assert "raw message" in found["notes"][0] and found["text"]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.pdf", 'attachment; filename="a.pdf"'),
        ("my file.pdf", 'attachment; filename="my file.pdf"'),
        ("Ä.pdf", "attachment; filename=\"_.pdf\"; filename*=UTF-8''%C3%84.pdf"),
        ('a";\r\nX: y.pdf', "attachment; filename=\"a____X_ y.pdf\"; filename*=UTF-8''a%22%3B__X%3A%20y.pdf"),
        ("C:\\dir\\a.pdf", 'attachment; filename="a.pdf"'),
        ("../../etc/passwd", 'attachment; filename="passwd"'),
        ("a\u202efdp.exe", 'attachment; filename="a_fdp.exe"'),
    ],
)
def test_download_has_the_name_of_the_attachment(name: str, header: str) -> None:
    from pillarbox.admin.api import content_disposition

    assert content_disposition(name) == header


FROM_ELSEWHERE = ("cross-site", "same-site", "nonsense")


def test_request_of_another_site_is_refused_also_for_reading() -> None:
    with dev() as server:
        server.send(subject="code 4711")
        for site in FROM_ELSEWHERE:
            for path in (
                "/api/inbox",
                "/api/inbox/wait?subject=4711&timeout=0",
                "/inbox",
                "/static/app.js",
                "/api/events",
            ):
                status, _, body = raw(server, "GET", path, Sec_Fetch_Site=site)
                assert status == 403 and b"4711" not in body, (site, path)
        for site in ("same-origin", "none"):
            assert raw(server, "GET", "/api/inbox", Sec_Fetch_Site=site)[0] == 200
        headers = raw(server, "GET", "/inbox")[1]
        assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["x-dns-prefetch-control"] == "off"


def test_inbox_answers_by_another_name_with_the_token_or_the_option(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        known = json.loads((daemon.data / "admin.json").read_text())

        def ask(host: str, **headers: str) -> int:
            connection = http.client.HTTPConnection(known["url"].partition("//")[2], timeout=20)
            connection.request("GET", "/api/status", None, {"Host": host, **headers})
            status = connection.getresponse().status
            connection.close()
            return status

        for host in ("mail:8025", "localhost:11080", "evil.test"):
            assert ask(host, Authorization="Bearer " + known["token"]) == 200
            assert ask(host, Authorization="Bearer nonsense") == ask(host) == 421
    with dev("--admin-host=mail", "--admin-host=box.test:99") as server:
        for host, status in (
            ("mail:8025", 200),
            ("mail", 200),
            ("box.test:99", 200),
            ("box.test:98", 421),
            ("evil.test", 421),
        ):
            assert raw(server, "GET", "/api/inbox", Host=host)[0] == status, host
        # A page of that name may act, a page of the same machine on another port may not.
        uid = deliver(server, b"Subject: x\r\n\r\nx\r\n")
        for origin, status in (("http://mail:1", 403), ("http://mail:8025", 200)):
            assert raw(server, "DELETE", f"/api/inbox/{uid}", Host="mail:8025", Origin=origin)[0] == status


def test_browser_without_a_token_gets_a_page_and_a_program_gets_json(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        url = json.loads((daemon.data / "admin.json").read_text())["url"]
        connection = http.client.HTTPConnection(url.partition("//")[2], timeout=20)
        for path, accept, kind in (
            ("/", "text/html,*/*", "text/html; charset=utf-8"),
            ("/message/x", "text/html,*/*", "text/html; charset=utf-8"),
            ("/", "*/*", "application/json"),
            ("/api/status", "text/html,*/*", "application/json"),
            ("/metrics", "text/html,*/*", "application/json"),
        ):
            connection.request("GET", path, None, {"Accept": accept})
            answer = connection.getresponse()
            body = answer.read().decode()
            assert (answer.status, answer.getheader("content-type")) == (401, kind), path
            assert ("pillarbox admin" if "html" in kind else "admin.json") in body
        connection.close()


def test_pages_fit_a_long_address() -> None:
    long = "x" * 60 + "@" + ".".join(["y" * 60] * 2) + ".test"
    with dev() as server, browsing(server.url) as page:
        uid = deliver(server, b"Subject: " + b"s" * 300 + b"\r\n\r\nx\r\n", long, long)
        for path in ("/inbox", f"/message/{uid}", "/queue", "/"):
            for width in (1280, 380):
                page.set_viewport_size({"width": width, "height": 800})
                page.goto(server.url + path)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


def test_queue_page_says_whether_it_is_empty_or_filtered() -> None:
    with dev() as server:
        assert b"The queue is empty." in raw(server, "GET", "/queue")[2]
        server.send()
        assert b"No message matches this filter." in raw(server, "GET", "/queue?recipient=nobody")[2]


def test_dev_logs_each_message() -> None:
    server = Dev()
    uid = deliver(server, b"Subject: x\r\n\r\nx\r\n")
    server.process.terminate()
    _, log = server.process.communicate(timeout=30)
    assert len([line for line in log.splitlines() if uid in line]) == 1, log
