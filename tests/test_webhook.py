"""Webhooks against a real HTTP server: signed, retried from the queue, bounced where they are wrong."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler
from pillarbox.errors import OptionError
from pillarbox.testing import ManualClock
from pillarbox.webhook import SignatureError, Webhook, secret_key, signature, verify
from tests.conftest import run_async, serving, until
from tests.daemon import Daemon, wait_until
from tests.test_explain import settled
from tests.test_workers import send

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


class Receiver:
    """Keeps requests; answers as told, one status after the other, then 200."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, bytes]] = []
        receiver = self

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, dict(self.headers), body))
                status, text = receiver.answers.pop(0) if receiver.answers else (200, b"ok")
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/in?a=1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_signed_and_tried_again_until_it_is_taken(tmp_path: Path, receiver: Receiver) -> None:
    clock = ManualClock()

    async def main() -> None:
        hook = Webhook(receiver.url, secret=SECRET, headers={"X-Own": "yes"})
        async with serving(tmp_path, handlers=[Handler("@app.test$", hook)], clock=clock) as server:
            assert server.get_handlers()[0].in_thread
            receiver.answers = [(503, b"busy\r\n\x1b[31m"), (302, b""), (401, b"who")]
            uid = await server.enqueue(
                reverse_path="a@b.test",
                recipients=["x@app.test", "y@app.test"],
                content="Subject: hook\n\nGr\u00fc\u00dfe\n",
            )
            for attempt, words in ((1, "127.0.0.1 said 503: busy"), (2, "said 302"), (3, "said 401: who")):
                await settled(server, uid, attempt)
                found = await server.queue.show(uid)
                assert found is not None and words in found["recipients"][0]["last_reply"]
                clock.advance(3 * 3600)
            await until(lambda: server._parts.context.counters.delivered == 2)
            assert len(receiver.requests) == 4, "a redirect is not followed"
            for number, (path, headers, body) in enumerate(receiver.requests, 1):
                assert path == "/in?a=1" and headers["X-Own"] == "yes"
                assert verify(SECRET, headers, body) == uid
                told = json.loads(body)
                assert told["attempt"] == number and told["recipients"] == ["x@app.test", "y@app.test"]
                assert "Grüße".encode() in base64.b64decode(told["content"]) and told["reverse_path"] == "a@b.test"

    run_async(main)


def test_raw_and_what_bounces(tmp_path: Path, receiver: Receiver) -> None:
    async def main() -> None:
        async with serving(tmp_path, handlers=[Handler("@app.test$", Webhook(receiver.url, kind="raw"))]) as server:
            receiver.answers = [(200, b""), (422, b"no such user")]
            await server.enqueue(reverse_path="a@b.test", recipients=["x@app.test"], content="Subject: raw\n\nx\n")
            await until(lambda: server._parts.context.counters.delivered == 1)
            _, headers, body = receiver.requests[0]
            assert headers["Content-Type"] == "message/rfc822" and b"Subject: raw\r\n" in body
            assert json.loads(headers["X-Pillarbox-Envelope"])["recipients"] == ["x@app.test"]
            assert "webhook-signature" not in headers
            uid = await server.enqueue(reverse_path=None, recipients=["x@app.test"], content="x")
            await until(lambda: server._parts.context.counters.bounced == 1)
            await settled(server, uid, 1)
            found = await server.queue.show(uid)
            assert found is not None and found["recipients"][0]["last_reply"].startswith("550 5.3.0 127.0.0.1 said 422")

    run_async(main)


def test_nobody_listens(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, handlers=[Handler("@app.test$", Webhook("http://127.0.0.1:1/"))]) as server:
            uid = await server.enqueue(reverse_path="a@b.test", recipients=["x@app.test"], content="x")
            await settled(server, uid, 1)
            found = await server.queue.show(uid)
            assert found is not None and "ConnectionRefusedError" in found["recipients"][0]["last_reply"]

    run_async(main)


def test_by_the_configuration_file(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        f"[[handlers]]\nmatch = '@app.test$'\nuse = 'pillarbox.webhook:Webhook'\n"
        f"options = {{ url = '{receiver.url}', secret_file = '{tmp_path / 'secret'}' }}\n"
    )
    with Daemon(tmp_path, f"--config={file}") as daemon:
        send(daemon.port, "x@app.test")
        wait_until(lambda: receiver.requests)
        _, headers, body = receiver.requests[0]
        assert verify(SECRET, headers, body) == json.loads(body)["uid"]


def test_signatures() -> None:
    key = secret_key(SECRET)
    assert key == b"k" * 24 and secret_key("plain") == b"plain"
    headers = {
        "Webhook-Id": "U1",
        "webhook-timestamp": "1000",
        "webhook-signature": "v1,xx " + signature(key, "U1", "1000", b"body"),
    }
    assert verify(SECRET, headers, b"body", now=1100) == "U1"
    for change, words in (
        ({"webhook-signature": "v1,xx"}, "none of ours"),
        ({"Webhook-Id": "U2"}, "none of ours"),
        ({"webhook-timestamp": "x"}, "missing"),
        ({"webhook-timestamp": "1"}, "too far"),
    ):
        with pytest.raises(SignatureError, match=words):
            verify(SECRET, {**headers, **change}, b"body", now=1100)
    with pytest.raises(SignatureError):
        verify(SECRET, headers, b"other body", now=1100)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "ftp://x"}, "give http"),
        ({"url": "http://user:pass@x/"}, "without user and password"),
        ({"url": "http://x", "kind": "xml"}, "there are json and raw"),
        ({"url": "http://x", "secret": "whsec_?"}, "no base64"),
        ({"url": "http://x", "secret_file": "/nowhere"}, "cannot be read"),
        ({"url": "http://x", "headers": {"X": "a\r\nb"}}, "control character"),
        ({"url": "https://x", "ca_file": "/nowhere"}, "cannot be used"),
    ],
)
def test_webhooks_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        Webhook(**given)
    assert words in str(caught.value) and "pass@" not in str(caught.value).replace("user:pass@x", "")
