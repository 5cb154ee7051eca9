"""`pillarbox dev` as a process: the inbox by HTTP and in a browser, logins, TLS, faults, release."""

from __future__ import annotations

import http.client
import json
import re
import signal
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browsing, follow, shots
from tests.conftest import free_port
from tests.daemon import PILLARBOX, pillarbox, sink, wait_until


class Dev:
    """The process, and HTTP to it."""

    def __init__(self, *arguments: str) -> None:
        command = [*PILLARBOX, "dev", "--listen=127.0.0.1:0", f"--admin=127.0.0.1:{free_port()}", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        found = re.fullmatch(r"pillarbox: ready on 127\.0\.0\.1:(\d+), inbox: (http://(\S+))/inbox\n", self.ready)
        assert found, self.ready + str(self.process.stderr and self.process.stderr.read())
        self.port, self.url, self.host = int(found[1]), found[2], found[3]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if "json" in answer.getheader("content-type", "") else text

    def send(self, to: str = "c@d.test", subject: str = "hello", message: EmailMessage | None = None) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=20) as client:
            octets = bytes(message) if message else f"Subject: {subject}\r\n\r\nbody\r\n".encode()
            client.sendmail("a@b.test", [to], octets)


@contextmanager
def dev(*arguments: str) -> Iterator[Dev]:
    made = Dev(*arguments)
    try:
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(30) == 0
        assert made.process.stdout is not None and made.process.stderr is not None
        made.process.stdout.close()
        made.process.stderr.close()


def test_inbox_by_http(tmp_path: Path) -> None:
    with sink(tmp_path / "sink", "-d", "%M") as (port, folder), dev(f"--relay=127.0.0.1:{port}", "--keep=4") as server:
        assert server.ask("GET", "/api/inbox") == (200, [])
        for number in range(3):
            server.send(f"to{number}@d.test", f"subject {number}")
        status, found = server.ask("GET", "/api/inbox")
        assert [m["subject"] for m in found] == ["subject 2", "subject 1", "subject 0"]
        assert found[0]["to"] == ["to2@d.test"] and found[0]["from"] == "a@b.test"
        assert [m["subject"] for m in server.ask("GET", "/api/inbox?to=to1@")[1]] == ["subject 1"]
        assert [m["subject"] for m in server.ask("GET", "/api/inbox?subject=2&limit=5")[1]] == ["subject 2"]
        status, one = server.ask("GET", "/api/inbox/wait?subject=subject+1&timeout=5")
        assert status == 200 and one["text"].strip() == "body" and ["Subject", "subject 1"] in one["headers"]
        status, error = server.ask("GET", "/api/inbox/wait?to=nobody&timeout=0.05")
        assert status == 404 and "no message with to='nobody' within 0.05 s" in error["error"]
        for path in (
            "/api/inbox/wait?timeout=never",
            "/api/inbox/wait?timeout=61",
            "/api/inbox?limit=-1",
            "/api/inbox?x=1",
        ):
            assert server.ask("GET", path)[0] == 400, path
        assert server.ask("GET", "/api/inbox/nothing")[0] == 404
        uid = found[2]["uid"]
        assert server.ask("GET", f"/api/inbox/{uid}")[1]["subject"] == "subject 0"
        assert server.ask("POST", f"/api/inbox/{uid}/release") == (200, {"released": uid})
        wait_until(lambda: len(list(folder.iterdir())) == 1)
        wait_until(lambda: "subject 0" in next(folder.iterdir()).read_text())
        assert server.ask("POST", f"/api/inbox/{uid}/release")[0] == 404
        assert server.ask("DELETE", f"/api/inbox/{found[1]['uid']}") == (200, {"deleted": [found[1]["uid"]]})
        assert server.ask("DELETE", f"/api/inbox/{found[1]['uid']}")[0] == 404
        assert [m["subject"] for m in server.ask("GET", "/api/inbox")[1]] == ["subject 2"]
        for number in range(6):
            server.send(subject=f"n{number}")
        wait_until(lambda: [m["subject"] for m in server.ask("GET", "/api/inbox")[1]] == ["n5", "n4", "n3", "n2"])
        assert len(server.ask("DELETE", "/api/inbox?everything=1")[1]["deleted"]) == 4
        assert len(list(folder.iterdir())) == 1, "nothing else has left"
        # What a program puts in is caught like everything.
        mail = {"reverse_path": "a@b.test", "recipients": ["c@d.test"], "content": "Subject: by http\n\nx\n"}
        assert server.ask("POST", "/api/messages", mail)[0] == 201
        assert server.ask("GET", "/api/inbox")[1][0]["subject"] == "by http"
        assert "/api/inbox/wait" in server.ask("GET", "/api/openapi.json")[1]["paths"]


def test_open_on_loopback_but_not_to_other_sites() -> None:
    with dev() as server:
        server.send()
        assert server.ask("GET", "/api/inbox", Host="evil.test")[0] == 421
        assert server.ask("DELETE", "/api/inbox", Origin="http://evil.test")[0] == 403
        assert len(server.ask("GET", "/api/inbox")[1]) == 1
        status, error = server.ask("POST", f"/api/inbox/{server.ask('GET', '/api/inbox')[1][0]['uid']}/release")
        assert status == 400 and "--relay" in error["error"]


def test_logins_and_tls() -> None:
    with dev("--auth", "--tls") as server:
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            client.login("any", "thing")
            client.starttls(context=ssl._create_unverified_context())
            client.login("other", "word")
            client.sendmail("a@b.test", ["c@d.test"], b"Subject: x\r\n\r\nx\r\n")
        received = server.ask("GET", "/api/inbox")[1][0]["received"]
        assert received["user"] == "other" and received["tls"]
    with dev() as server, smtplib.SMTP("127.0.0.1", server.port) as client:
        client.ehlo()
        assert not client.has_extn("auth") and not client.has_extn("starttls")


def test_faults_by_option_and_by_http() -> None:
    with dev("--fault=refuse at=rcpt to=*@closed.test") as server:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            server.send("x@closed.test")
        assert server.ask("GET", "/api/faults") == (200, ["refuse at=rcpt to='*@closed.test'"])
        status, error = server.ask("PUT", "/api/faults", ["explode"])
        assert status == 400 and "there are refuse" in error["error"]
        assert server.ask("PUT", "/api/faults", {"a": 1})[0] == 400
        assert server.ask("PUT", "/api/faults", ["defer at=message rate=1"])[0] == 200
        with pytest.raises(smtplib.SMTPDataError):
            server.send("x@closed.test")
        assert server.ask("PUT", "/api/faults", []) == (200, [])
        server.send("x@closed.test")
    done = pillarbox("dev", "--fault=explode", ok=False)
    assert done.returncode == 2 and "there are refuse, defer, delay, drop" in done.stderr


def test_an_inbox_that_stays(tmp_path: Path) -> None:
    folder = f"--data-dir={tmp_path / 'data'}"
    with dev(folder) as server:
        server.send(subject="stays")
    with dev(folder) as server:
        assert [m["subject"] for m in server.ask("GET", "/api/inbox")[1]] == ["stays"]


def hostile_html() -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "<script>alert(1)</script> Grüße"
    message.set_content("plain <b>text</b>")
    message.add_alternative(
        '<style>h1{color:rgb(1, 2, 3)} @import url(http://evil.test/a.css);</style><h1 onclick="x()">Hello</h1>'
        '<img id=own src="cid:pic"><img src="http://evil.test/x.png"><img src=x onerror=alert(1)>'
        "<script>parent.document.body.remove()</script><link rel=stylesheet href=//evil.test/b.css>"
        '<div style="background:url(http://evil.test/c.png)">x</div><iframe src="http://evil.test/"></iframe>',
        subtype="html",
    )
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
    )
    message.get_payload()[1].add_related(png, "image", "png", cid="<pic>")  # type: ignore[index,union-attr]
    message.add_attachment(b"x" * 3000, maintype="text", subtype="html", filename='a "b"<>.html')
    return message


def test_in_a_browser(tmp_path: Path) -> None:
    """Mail shows at once; its HTML is styled, and neither runs nor loads anything."""
    pictures = shots(tmp_path)
    with dev("--keep=100") as server, browsing(server.url, is_hostile=True) as page:
        page.goto(server.url + "/inbox")
        assert "Nothing yet" in page.locator("#inbox").inner_text()
        server.send(subject="first")
        page.wait_for_selector("#inbox tbody a:text-is('first')")
        server.send(message=hostile_html())
        page.wait_for_selector("#inbox tbody tr:nth-child(2)")
        page.screenshot(path=str(pictures / "inbox.png"))
        follow(page, "#inbox tbody tr:nth-child(1) a")
        assert page.locator("h1").first.inner_text() == "<script>alert(1)</script> Grüße"
        frame = page.frame_locator("iframe")
        assert frame.locator("h1").inner_text() == "Hello"
        assert frame.locator("h1").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
        assert frame.locator("#own").evaluate("e => e.naturalWidth") == 1
        page.screenshot(path=str(pictures / "inbox-message.png"), full_page=True)
        link = page.locator("ul a[download]").nth(1)
        assert link.inner_text() == 'a "b"<>.html'
        connection = http.client.HTTPConnection(server.host, timeout=20)
        connection.request("GET", str(link.get_attribute("href")))
        answer = connection.getresponse()
        assert answer.read() == b"x" * 3000 and answer.getheader("content-type") == "application/octet-stream"
        assert (
            answer.getheader("content-disposition")
            == "attachment; filename=\"a _b___.html\"; filename*=UTF-8''a%20%22b%22%3C%3E.html"
        )
        connection.close()
        page.goto(server.url + "/inbox?subject=first")
        assert page.locator("#inbox tbody tr").count() == 1
        page.on("dialog", lambda dialog: dialog.accept())
        follow(page, "#inbox >> text=Delete")
        page.wait_for_selector("#inbox >> text=No message matches this filter")
        page.goto(server.url + "/inbox")
        follow(page, "text=Delete all")
        page.wait_for_selector("#inbox >> text=Nothing yet")
        page.set_viewport_size({"width": 380, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
