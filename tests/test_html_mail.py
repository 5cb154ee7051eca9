"""HTML mails in Chromium: each shows its text and its pictures, its links open new tabs, and nothing is fetched."""

from __future__ import annotations

import http.client
import re
import smtplib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox.admin.htmlview import html_document
from pillarbox.mail.mime import read_message
from pillarbox.mail.readable import readable
from tests.browser import FLAGS, shots
from tests.conftest import tool
from tests.mail.htmlmail import LINK, MAILS, Mail
from tests.test_dev import Dev, dev


class Elsewhere:
    """Every other host: takes connections, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(10)
            self.asked.append(b"a connection")
            try:
                self.asked[-1] = sock.recv(65536) or b"a connection"
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<title>arrived</title>"
                )
            except OSError:
                pass

    def close(self) -> None:
        self._listener.close()


@contextmanager
def browser_of(folder: Path, elsewhere: Elsewhere) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    flags = [
        *FLAGS,
        f"--host-resolver-rules=MAP *.test 127.0.0.1:{elsewhere.port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--log-net-log={folder / 'net.json'}",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=tool("chromium"), args=flags)
        try:
            yield browser
        finally:
            browser.close()


def send(server: Dev, mail: Mail) -> str:
    with smtplib.SMTP("127.0.0.1", server.port, timeout=20) as client:
        client.ehlo()
        client.mail("a@b.test")
        client.rcpt("c@d.test")
        code, reply = client.data(mail.octets)
    assert code == 250
    return reply.decode().split()[1]


def message_frame(page: Any, url: str) -> Any:
    page.goto(url, wait_until="load")
    page.wait_for_selector("iframe")
    return page.frame(url=re.compile("/html$"))


def test_html_mail_shows_whole_and_fetches_nothing(tmp_path: Path) -> None:
    elsewhere = Elsewhere()
    with dev("--keep=100") as server, browser_of(tmp_path, elsewhere) as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        uids = {mail.name: send(server, mail) for mail in MAILS}
        for mail in MAILS:
            frame = message_frame(page, f"{server.url}/message/{uids[mail.name]}")
            words = " ".join(frame.evaluate("document.body.innerText").split())
            assert mail.words in words, (mail.name, words[:300])
            shown = frame.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length")
            assert shown == mail.pictures, (mail.name, shown)
        assert elsewhere.asked == []
        page.wait_for_timeout(300)
        assert elsewhere.asked == []
        for mail in MAILS:
            if mail.links:
                frame = message_frame(page, f"{server.url}/message/{uids[mail.name]}")
            for link in mail.links:
                with page.context.expect_page(timeout=10_000) as opened:
                    frame.dispatch_event(f"#{link}", "click") if link in "rs" else frame.click(f"#{link}")
                opened.value.wait_for_load_state()
                assert (opened.value.url, opened.value.title()) == (LINK, "arrived"), (mail.name, link)
                assert opened.value.evaluate("[window.opener, document.referrer]") == [None, ""]
                opened.value.close()
                assert frame.url.startswith(server.url), (mail.name, link)
        assert {octets.split(b"\r\n")[0] for octets in elsewhere.asked} <= {
            b"GET /confirm?token=1 HTTP/1.1",
            b"GET /favicon.ico HTTP/1.1",
            b"a connection",
        }
        page.goto(f"{server.url}/message/{uids['pictures of the message']}")
        page.screenshot(path=str(shots(tmp_path) / "html-mail.png"), full_page=True)
    elsewhere.close()
    # What the browser resolved, and connected to, stands in its log: links were followed, and nothing else.
    log = (tmp_path / "net.json").read_text(errors="replace")
    assert "link.test" in log and "evil.test" not in log


def test_link_within_the_message_stays_in_the_frame(tmp_path: Path) -> None:
    elsewhere = Elsewhere()
    body = b"Content-Type: text/html\n\n<a id=l href='#end'>To the end</a>" + b"<br>" * 500 + b"<p id=end>The end</p>"
    with dev() as server, browser_of(tmp_path, elsewhere) as browser:
        page = browser.new_page()
        frame = message_frame(page, f"{server.url}/message/{send(server, Mail('', body, ''))}")
        frame.click("#l")
        page.wait_for_timeout(200)
        assert frame.url.endswith("/html#end") and len(page.context.pages) == 1
        assert frame.evaluate("document.scrollingElement.scrollTop") > 1000
    elsewhere.close()


def test_frame_may_open_tabs_and_nothing_else() -> None:
    with dev() as server:
        uid = send(server, MAILS[0])
        connection = http.client.HTTPConnection(server.host, timeout=20)
        connection.request("GET", f"/message/{uid}/html")
        policy = connection.getresponse().getheader("content-security-policy") or ""
        assert "default-src 'none'" in policy and "form-action 'none'" in policy
        assert "sandbox allow-popups allow-popups-to-escape-sandbox;" in policy
        connection.close()
        page = server.ask("GET", f"/message/{uid}")[1].decode()
        assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in page


@pytest.mark.parametrize(
    ("html", "made"),
    [
        ("<p>x", '<base target="_blank"><p>x'),
        ("<!-- a --> <!DOCTYPE html><p>", '<!-- a --> <!DOCTYPE html><base target="_blank"><p>'),
        ("<!doctype", '<base target="_blank"><!doctype'),
        ("<!-- <a href=x> -->", '<base target="_blank"><!-- <a href=x> -->'),
        ("<abbr>x</abbr> <article> a < b", '<base target="_blank"><abbr>x</abbr> <article> a < b'),
        (
            "<a title='>' href=x>",
            '<base target="_blank"><a target="_blank" rel="noopener noreferrer" title=\'>\' href=x>',
        ),
        ("<style><a></style>", '<base target="_blank"><style><a></style>'),
        ("<a href='x", '<base target="_blank"><a href=\'x'),
        (
            "<iframe src=x></iframe><link rel=preconnect>",
            '<base target="_blank"><iframe srcdoc="" src=x></iframe><link rel="blocked" rel=preconnect>',
        ),
        ("cid:nothing", '<base target="_blank">cid:nothing'),
    ],
)
def test_html_is_kept_but_for_what_is_inserted(html: str, made: str) -> None:
    assert html_document(html, read_message(b"")) == made


def test_html_without_words_leaves_the_page_with_the_rest_of_the_message() -> None:
    octets = b"Subject: s\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\nplain\n--b\nContent-Type: text/html\n\n<html></html>\n--b--\n"
    found = readable(read_message(octets))
    assert (found.text, found.html) == ("plain", "<html></html>")
