"""`pillarbox.connect` from threads and processes, over the control socket and HTTP; Django's backend."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from email.message import EmailMessage
from pathlib import Path

import pytest

import pillarbox
from pillarbox.client import Client
from pillarbox.errors import DuplicateUidError, NotRunningError, OptionError, PillarboxError
from tests.conftest import free_port
from tests.daemon import Daemon, wait_until
from tests.daemon import pillarbox as command


def clients(daemon: Daemon) -> list[Client]:
    """By folder, and by URL."""
    found = json.loads((daemon.data / "admin.json").read_text())
    return [pillarbox.connect(daemon.data), pillarbox.connect(found["url"], token=found["token"])]


def mail(client: Client, to: str = "c@d.test", content: object = "Subject: hi\n\nx\n", **more: object) -> str:
    return client.enqueue(reverse_path="a@b.test", recipients=to, content=content, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_mail_of_every_kind(tmp_path: Path, workers: int) -> None:
    with Daemon(tmp_path, "--paused", f"--workers={workers}", f"--admin=127.0.0.1:{free_port()}") as daemon:
        for number, client in enumerate(clients(daemon)):
            message = EmailMessage()
            message["Subject"], message["From"] = "Grüße", "Me <me@b.test>"
            message["To"], message["Cc"], message["Bcc"] = "one@d.test", "Two <two@d.test>", "secret@d.test"
            message.set_content("hello\n")
            uid = client.send_message(message)
            (row,) = daemon.queue(uid)
            assert row["subject"] == "Grüße" and row["reverse_path"] == "me@b.test"
            assert [r["address"] for r in row["recipients"]] == ["one@d.test", "two@d.test", "secret@d.test"]
            mail(client, content=b"Subject: bytes\r\n\r\nx", uid=f"own-{number}")
            with pytest.raises(DuplicateUidError):
                mail(client, uid=f"own-{number}")
            big = os.urandom(3 << 20).hex().encode()
            lines = b"\r\n".join(big[n : n + 76] for n in range(0, len(big), 76))
            uid = mail(client, content=io.BytesIO(b"Subject: big\r\n\r\n" + lines))
            assert daemon.queue(uid)[0]["size_bytes"] > 6 << 20
            for bad, words in (
                ({"to": "not an address"}, "is no mailbox"),
                ({"to": "a@b.test\r\nRCPT TO:<x@y.test>"}, "is no mailbox"),
                ({"content": 7}, "is not allowed"),
                ({"content": io.StringIO("text")}, "text"),
                ({"uid": "a b"}, "letters, digits"),
            ):
                with pytest.raises(OptionError, match=words):
                    mail(client, **bad)  # type: ignore[arg-type]
            with pytest.raises(OptionError, match="nobody is named"):
                client.send_message(EmailMessage())
        assert len(daemon.queue("--from=<>")) == 0
        stored = [row for row in daemon.queue() if row["subject"] == "Grüße"]
        octets = command("queue", "export", "-", "--format=mbox", stored[0]["uid"], f"--data-dir={daemon.data}").stdout
        assert "secret@" not in octets.partition("\n\n")[0].replace("X-Envelope-To: secret@d.test", "")


def test_too_large(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-size=100000", f"--admin=127.0.0.1:{free_port()}") as daemon:
        for client in clients(daemon):
            with pytest.raises(PillarboxError, match="larger than"):
                mail(client, content=b"x" * 300_000)
            mail(client)


def test_threads_through_restarts(tmp_path: Path) -> None:
    """Sixteen threads; the server is restarted and killed under them: each message that was taken is there, once."""
    taken: list[str] = []
    stop = threading.Event()

    def work(client: Client) -> None:
        while not stop.is_set():
            taken.append(mail(client))

    first = Daemon(tmp_path, "--paused")
    client = pillarbox.connect(first.data, patience_s=60)
    threads = [threading.Thread(target=work, args=(client,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(taken) > 50)
    command("reload", "--restart", f"--data-dir={first.data}")
    before = len(taken)
    wait_until(lambda: len(taken) > before + 200)
    first.kill()
    with Daemon(tmp_path, "--paused") as second:
        before = len(taken)
        wait_until(lambda: len(taken) > before + 50)
        stop.set()
        for thread in threads:
            thread.join(60)
        queued = [row["uid"] for row in second.queue()]
        assert len(queued) == len(set(queued))
        assert set(taken) <= set(queued) and len(taken) == len(set(taken))


def test_nobody_there(tmp_path: Path) -> None:
    for where, token in (
        (str(tmp_path / "none"), None),
        (str(tmp_path), None),
        (f"http://127.0.0.1:{free_port()}", "t"),
    ):
        before = time.monotonic()
        with pytest.raises(NotRunningError, match="start it, or call again"):
            mail(pillarbox.connect(where, token=token, patience_s=0.2))
        assert time.monotonic() - before < 5
    with pytest.raises(OptionError, match="wants token="):
        pillarbox.connect("http://127.0.0.1:1")


def test_garbage_behind_the_socket_of_enqueue(tmp_path: Path) -> None:
    """Hostile row 131: a request that lies about its size, or is none, harms nobody."""
    import socket

    with Daemon(tmp_path, "--paused") as daemon:
        for octets in (
            b'{"verb":"enqueue"}\n',
            b'{"verb":"enqueue","item":[],"size_bytes":3}\nabc',
            b'{"verb":"enqueue","item":{},"size_bytes":-1}\n',
            b'{"verb":"enqueue","item":{},"size_bytes":1e99}\n',
            b'{"verb":"enqueue","item":{"reverse_path":"a@b.test","recipients":["c@d.test"]},"size_bytes":10}\nabc',
            b'{"verb":"enqueue","item":{"reverse_path":1,"recipients":{}},"size_bytes":1}\na',
            b"\x00\xff" * 1000 + b"\n",
            b"[" * 100_000 + b"\n",
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(daemon.data / "control.sock"))
                sock.sendall(octets)
                sock.shutdown(socket.SHUT_WR)
                assert b'"ok": true' not in sock.recv(65536)
        assert daemon.queue() == []
        mail(pillarbox.connect(daemon.data))
        assert len(daemon.queue()) == 1


DJANGO = """
import sys
import django
from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection, mail_admins, send_mail, send_mass_mail
settings.configure(
    EMAIL_BACKEND="pillarbox.django.EmailBackend", PILLARBOX=sys.argv[1], PILLARBOX_TOKEN=sys.argv[2] or None,
    ADMINS=[("Admin", "admin@d.test")], DEFAULT_FROM_EMAIL="Shop <shop@b.test>", SERVER_EMAIL="root@b.test",
)
django.setup()
assert send_mail("Grüße", "text", None, ["One <one@d.test>"], html_message="<b>html</b>") == 1
message = EmailMultiAlternatives("two", "text", "a@b.test", ["to@d.test"], bcc=["hidden@d.test"], cc=["cc@d.test"])
message.attach("a.txt", "x" * 100000, "text/plain")
assert message.send() == 1
assert send_mass_mail([("m", "t", "a@b.test", ["x@d.test"]), ("m", "t", "a@b.test", ["y@d.test"])]) == 2
mail_admins("broken", "everything")
assert EmailMultiAlternatives("nobody", "t", "a@b.test", []).send() == 0
assert get_connection(fail_silently=True, where="/nowhere").send_messages([]) == 0
print("done")
"""


def test_django(tmp_path: Path) -> None:
    """A real Django sends by it, from a process of its own."""
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        found = json.loads((daemon.data / "admin.json").read_text())
        for where, token in ((str(daemon.data), ""), (found["url"], found["token"])):
            done = subprocess.run(
                [sys.executable, "-c", DJANGO, where, token], capture_output=True, text=True, timeout=60
            )
            assert done.stdout == "done\n", done.stderr
        rows = daemon.queue()
        assert len(rows) == 10
        assert [r["address"] for r in rows[1]["recipients"]] == ["to@d.test", "cc@d.test", "hidden@d.test"]
        assert rows[0]["subject"] == "Grüße" and rows[0]["reverse_path"] == "shop@b.test"
