"""Webhooks against a real HTTP server: signed, retried from the queue, bounced where they are wrong."""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from pillarbox import Defer, Handler, Reject
from pillarbox.errors import OptionError
from pillarbox.testing import ManualClock
from pillarbox.webhook import SignatureError, Webhook, received, secret_key, signature, verify
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
                assert told["reverse_path"] == "a@b.test"
                message = email.message_from_bytes(base64.b64decode(told["content"]), policy=email.policy.default)
                assert message.get_content().strip() == "Grüße"

    run_async(main)


def test_raw_and_what_bounces(tmp_path: Path, receiver: Receiver) -> None:
    async def main() -> None:
        async with serving(tmp_path, handlers=[Handler("@app.test$", Webhook(receiver.url, kind="raw"))]) as server:
            receiver.answers = [(200, b""), (422, b"no such user")]
            await server.enqueue(reverse_path="a@b.test", recipients=["x@app.test"], content="Subject: raw\n\nx\n")
            await until(lambda: server._parts.context.counters.delivered == 1)
            _, headers, body = receiver.requests[0]
            assert headers["Content-Type"].startswith("multipart/form-data") and b"Subject: raw\r\n" in body
            request = received(headers, body)
            assert request.envelope["recipients"] == ["x@app.test"] and request.content.endswith(b"\r\n\r\nx\r\n")
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
            assert found is not None and found["recipients"][0]["last_reply"] == (
                "451 4.3.0 no connection to 127.0.0.1:1: Connection refused"
            )

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


def test_raw_request_is_a_form_that_other_parsers_read(tmp_path: Path, receiver: Receiver) -> None:
    content = b"Subject: x\r\n\r\n--pillarbox-U1\r\n\xff\0"
    hook = Webhook(receiver.url, secret=SECRET, kind="raw")
    hook(item(content, [f"user.number.{n}@app.test" for n in range(1000)]))
    _, headers, body = receiver.requests[0]
    assert max(len(f"{name}: {value}") for name, value in headers.items()) < 300, "however many recipients"
    parsed = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    envelope, message = parsed.get_payload()
    assert envelope.get_param("name", header="content-disposition") == "envelope"
    assert message.get_filename() == "U1.eml" and message.get_content_type() == "message/rfc822"
    assert received(headers, body).content == content
    assert len(received(headers, body).envelope["recipients"]) == 1000


@pytest.mark.parametrize("kind", ["raw", "json"])
def test_signature_covers_envelope_and_url(receiver: Receiver, kind: str) -> None:
    Webhook(receiver.url, secret=SECRET, kind=kind)(item(b"Subject: x\r\n\r\n", ["a@app.test"]))
    _, headers, body = receiver.requests[0]
    assert verify(SECRET, headers, body, url=receiver.url) == "U1"
    with pytest.raises(SignatureError, match="another URL"):
        verify(SECRET, headers, body, url="https://other.example/in")
    with pytest.raises(SignatureError, match="none of ours"):
        verify(SECRET, headers, body.replace(b"a@app.test", b"b@app.test"))
    with pytest.raises(SignatureError, match="not signed"):
        verify(SECRET, {**headers, "X-Pillarbox-Envelope": "{}"}, body)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"--x\r\n\r\n{}\r\n--x--\r\n"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
def test_received_refuses_other_requests(kind: str, body: bytes) -> None:
    with pytest.raises(ValueError, match="expected a body of kind"):
        received({"content-type": kind}, body)


def item(content: bytes, recipients: list[str]) -> Any:
    """What a handler gets."""
    return SimpleNamespace(
        uid="U1", attempt=1, reverse_path="a@b.test", recipients=recipients, received_at=1.0, facts={}, content=content
    )


@contextlib.contextmanager
def talking(say: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that reads a request and then does what `say` does; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listening.accept()
                    with sock, contextlib.suppress(OSError):
                        sock.settimeout(10)
                        if tls is not None:
                            sock = tls.wrap_socket(sock, server_side=True)
                        while b"}" not in sock.recv(65536):
                            pass
                        say(sock)
                        ended.wait(5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/"
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def drip(sock: socket.socket, octets: bytes) -> None:
    for octet in octets:
        sock.sendall(bytes([octet]))
        threading.Event().wait(0.05)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\nX-Y: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_time_out_is_of_the_whole_attempt_when_the_answer_drips(before: bytes) -> None:
    def say(sock: socket.socket) -> None:
        sock.sendall(before)
        drip(sock, b"a" * 200)

    with talking(say) as url:
        began = time.monotonic()
        with pytest.raises(Defer, match=r"no answer from 127\.0\.0\.1:[0-9]+ within 0 s|no valid answer"):
            Webhook(url, time_out_s=0.3)(item(b"x", ["a@app.test"]))
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("rest", [b"Content-Length: 100\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\nzz", b"\r\n"])
def test_2xx_counts_once_its_head_is_read(rest: bytes) -> None:
    with talking(lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\n" + rest)) as url:
        Webhook(url, time_out_s=5)(item(b"x", ["a@app.test"]))


def test_status_of_a_refusal_counts_though_its_body_never_ends() -> None:
    with talking(lambda sock: sock.sendall(b"HTTP/1.1 422 no\r\nContent-Length: 100\r\n\r\nx")) as url:
        with pytest.raises(Reject, match="said 422"):
            Webhook(url, time_out_s=0.3)(item(b"x", ["a@app.test"]))


def test_certificate_of_a_webhook_is_verified(tmp_path: Path) -> None:
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with talking(lambda sock: sock.sendall(b"HTTP/1.1 204 ok\r\n\r\n"), server) as url:
        Webhook(url, ca_file=str(tmp_path / "ca.pem"), time_out_s=5)(item(b"x", ["a@app.test"]))
        with pytest.raises(Defer, match="TLS certificate not accepted"):
            Webhook(url, time_out_s=5)(item(b"x", ["a@app.test"]))
