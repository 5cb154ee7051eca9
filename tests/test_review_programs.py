"""Faults that a review of inbox, client, sendmail, mailboxes and explain found, each with its reproduction."""

from __future__ import annotations

import asyncio
import os
import smtplib
import socket
import subprocess
import sys
import threading
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

import pillarbox as public
from pillarbox import Handler
from pillarbox.admin import reading
from pillarbox.capture import Fault, Faults
from pillarbox.client import without_bcc
from pillarbox.daemon.systemd import activated_sockets
from pillarbox.errors import OptionError, StateError
from pillarbox.queue.enqueue import message_octets
from pillarbox.queue.whole import ask_all
from pillarbox.testing import ManualClock, ScriptedServer, SmtpServer
from pillarbox.webhook import SignatureError, Webhook, verify
from tests.conftest import run_async, serving, until
from tests.daemon import PILLARBOX, Daemon, pillarbox, sink, wait_until
from tests.test_dev import dev
from tests.test_explain import settled
from tests.test_workers import send


def test_looking_at_a_queue_does_not_hinder_a_start_nor_a_restart(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused") as daemon:
        send(daemon.port, "a@c.test")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            ask_all(str(tmp_path / "data"), {"verb": "status"})
            stop.wait(0.02)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(2):
            with Daemon(tmp_path, "--paused") as daemon:
                for _ in range(2):
                    daemon.process.send_signal(12)
                    assert daemon.process.stdout is not None
                    assert "ready on" in daemon.process.stdout.readline()
                send(daemon.port, "b@c.test")
    finally:
        stop.set()
        looking.join()


@pytest.mark.parametrize(
    ("replies", "code"), [({"QUIT": "421 4.3.2 Shutting down"}, 0), ({"QUIT": "421 x", "RCPT": "550 5.1.1 No"}, 69)]
)
def test_what_a_server_says_to_quit_changes_nothing(replies: dict[str, str], code: int) -> None:
    async def main() -> None:
        async with ScriptedServer(**replies) as peer:
            environment = {**os.environ, "PILLARBOX_SENDMAIL": f"127.0.0.1:{peer.port}"}
            command = [*PILLARBOX, "sendmail", "-i", "-f", "a@b.test", "c@d.test"]
            done = await asyncio.to_thread(
                subprocess.run, command, input=b"x\n", env=environment, capture_output=True, timeout=60
            )
            assert done.returncode == code and len(peer.messages) == (code == 0)

    run_async(main)


@pytest.mark.parametrize(
    ("arguments", "text", "code", "recipients"),
    [
        (["good@x.test", "a@b@c.test"], b"x\n", 65, []),
        (["Smith, John <j@x.test>"], b"x\n", 0, ["Smith@HOST", "j@x.test"]),
        (["root"], b"x\n", 0, ["root@HOST"]),
        (["-t"], "To: J <jürgen@exämple.test>\n\nx\n".encode(), 0, ["jürgen@exämple.test"]),
        (["-t"], b"From me Mon Nov 23\nTo: a@b.test\n\nx\n", 0, ["a@b.test"]),
        (["-F", "-q", "a@b.test"], b"x\n", 0, ["a@b.test"]),
        (["-oitrue", "a@b.test"], b"x\n.\ny\n", 0, ["a@b.test"]),
        (
            ["-t"],
            b"Resent-To: new@x.test\nResent-Bcc: secret@x.test\nTo: old@x.test\n\nx\n",
            0,
            ["new@x.test", "secret@x.test"],
        ),
    ],
)
def test_sendmail_as_it_is_called(arguments: list[str], text: bytes, code: int, recipients: list[str]) -> None:
    from pillarbox.places import default_hostname

    async def main() -> None:
        async with ScriptedServer() as peer:
            environment = {**os.environ, "PILLARBOX_SENDMAIL": f"127.0.0.1:{peer.port}"}
            command = [*PILLARBOX, "sendmail", *arguments]
            done = await asyncio.to_thread(
                subprocess.run, command, input=text, env=environment, capture_output=True, timeout=60
            )
            assert done.returncode == code, done.stderr
            if not code:
                (message,) = peer.messages
                wanted = [one.replace("HOST", default_hostname()) for one in recipients]
                found = [line.partition("<")[2].partition(">")[0] for line in message[1]]
                assert found == wanted or not all(w.isascii() for w in wanted)
                assert b"secret@" not in message[2] and not message[2].startswith(b"From ")
                assert b"\ny\r\n" in message[2] or b".\n" not in text

    run_async(main)


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_what_was_on_its_way_to_a_paused_hop_goes_on_at_once(tmp_path: Path, store: str) -> None:
    taken: list[str] = []
    go_on = asyncio.Event()

    async def slow(item: Any) -> None:
        await go_on.wait()
        taken.append(item.uid)

    async def main() -> None:
        async with serving(tmp_path, store=store, handlers=[Handler("@one", slow, concurrency=1)]) as server:
            hop = server._parts.router.next_hop("x@one.test")
            some = [
                asyncio.ensure_future(server.enqueue(reverse_path="a@b.test", recipients=["x@one.test"], content="x"))
                for _ in range(30)
            ]
            await asyncio.sleep(0)
            await server.pause_queue(hop)
            await asyncio.gather(*some)
            go_on.set()
            await until(lambda: not server._parts.scheduler.in_hand)
            await server.resume_queue(hop)
            await until(lambda: len(taken) == 30, 10)

    run_async(main)


def test_nothing_expires_because_its_next_hop_is_paused(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with ScriptedServer() as relay:
            async with serving(tmp_path, relay=f"127.0.0.1:{relay.port}", clock=clock, expire_s=100.0) as server:
                await server.pause_queue(server._parts.router.next_hop("c@d.test"))
                uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x")
                for _ in range(10):
                    clock.advance(61)
                    await asyncio.sleep(0.01)
                found = await server.queue.show(uid)
                assert found is not None and found["state"] == "queued" and server._parts.context.counters.bounced == 0
                await server.resume_queue(server._parts.router.next_hop("c@d.test"))
                await relay.wait_for(1)

    run_async(main)


@pytest.mark.parametrize("workers", [1, 2])
def test_enqueue_waits_for_a_restart(tmp_path: Path, workers: int) -> None:
    with Daemon(tmp_path, "--paused", f"--workers={workers}") as daemon:
        client = public.connect(daemon.data, patience_s=60)
        failed: list[BaseException] = []
        taken: list[str] = []
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    taken.append(client.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x"))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            daemon.process.send_signal(12)
            assert daemon.process.stdout is not None
            assert "ready on" in daemon.process.stdout.readline()
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed and {row["uid"] for row in daemon.queue()} == set(taken)


def test_export_and_import_keep_what_there_is(tmp_path: Path) -> None:
    box = tmp_path / "box"
    with Daemon(tmp_path, "--paused") as daemon:
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            client.ehlo()
            client.command_encoding = "utf-8"
            client.mail("a@b.test", ["SMTPUTF8"])
            client.rcpt("jürgen@exämple.test")
            client.data(b"Subject: utf\r\n\r\nx\r\n")
        send(daemon.port, "held@c.test")
        held = next(row["uid"] for row in daemon.queue() if row["recipients"][0]["address"] == "held@c.test")
        daemon.pillarbox("hold", held)
        pillarbox("queue", "export", str(box), f"--data-dir={daemon.data}")
        done = pillarbox(
            "queue", "export", str(tmp_path / "other"), held, "unknown", f"--data-dir={daemon.data}", ok=False
        )
        assert done.returncode == 1 and "not exported: unknown" in done.stderr
    target = tmp_path / "target"
    with Daemon(target, "--paused", "--max-size=5000") as daemon:
        arguments = ("queue", "import", str(box), f"--data-dir={daemon.data}")
        assert "2 messages imported" in pillarbox(*arguments).stderr
        assert "0 messages imported" in pillarbox(*arguments).stderr, "none comes twice"
        rows = {row["recipients"][0]["address"]: row for row in daemon.queue()}
        assert set(rows) == {"jürgen@exämple.test", "held@c.test"}
        assert rows["held@c.test"]["state"] == "held"
        with open(box, "ab") as file:
            file.write(b"From x Mon Nov 23 02:00:00 2026\nX-Envelope-To: big@d.test\n\n" + b"y\n" * 9000 + b"\n")
        done = pillarbox(*arguments, ok=False)
        assert done.returncode == 1 and "import again for the rest" in done.stderr
    # Into a queue that does not run: the same.
    third = tmp_path / "third"
    third.mkdir()
    arguments = ("queue", "import", str(box), f"--data-dir={third}")
    assert "3 messages imported" in pillarbox(*arguments).stderr
    assert "0 messages imported" in pillarbox(*arguments).stderr


def test_messages_of_pythons_own(tmp_path: Path) -> None:
    message = EmailMessage()
    message["From"] = "a@b.test"
    message["To"] = ", ".join(f"Recipient Number {n} <r{n}@example.org>" for n in range(60))
    message["Resent-Bcc"] = "secret@b.test"
    message.set_content("x")
    octets = without_bcc(message_octets(message))
    assert max(len(line) for line in octets.split(b"\r\n")) <= 998 and b"secret@" not in octets
    message = EmailMessage()
    message["To"] = "Jürgen <jürgen@exämple.org>"
    message.set_content("x")
    assert "jürgen@xn--exmple-cua.org".encode() in message_octets(message), "the domain in A-labels"


def test_dev_on_a_queue_that_has_mail(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused") as daemon:
        send(daemon.port, "real@c.test")
    with (
        sink(tmp_path / "sink", "-d", "%M") as (port, folder),
        dev(f"--data-dir={daemon.data}", f"--relay=127.0.0.1:{port}") as server,
    ):
        server.send("caught@c.test")
        assert [m["to"] for m in server.ask("GET", "/api/inbox")[1]] == [["caught@c.test"]]
        states = {row["state"] for row in server.ask("GET", "/api/messages")[1]}
        assert states == {"held"} and list(folder.iterdir()) == []


def test_the_inbox_hears_of_everything(tmp_path: Path) -> None:
    class Eating:
        def on_message_queued(self, server: Any, event: Any) -> Any:
            return public.Eat.ALL

    async def main() -> None:
        async with ScriptedServer(RCPT="550 5.1.1 No") as relay:
            given = {
                "capture": True,
                "relay": f"127.0.0.1:{relay.port}",
                "plugins": {"eating": Eating()},
                "capture_messages": 3,
            }
            async with serving(tmp_path, **given) as server:
                uid = await server.enqueue(
                    reverse_path="back@b.test", recipients=["c@d.test"], content="Subject: x\n\nx\n"
                )
                assert (await server.inbox.wait_for(subject="x", timeout=0)).uid == uid
                waiting = asyncio.ensure_future(server.inbox.wait_for(to="back@b.test", timeout=10))
                assert await server.inbox.release(uid)
                report = await waiting
                assert report.reverse_path == "" and "5.1.1" in report.octets.decode()
                await settled(server, uid, 1)
                assert await server.inbox.delete([uid]) == [] and not await server.inbox.release(uid)
            for _ in range(3):
                async with serving(tmp_path, **given) as server:
                    for _ in range(3):
                        await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x")
                    for _ in range(500):
                        if len(await server.inbox.messages()) <= 3:
                            break
                    assert len(await server.inbox.messages()) <= 3

    run_async(main)


def test_explain_on_a_full_disk_and_for_a_foreign_sender(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, reserve_bytes=1 << 60) as server:
            found = await server.explain("c@d.test")
            assert found is not None and found["reply"].startswith("452 4.3.1") and found["verdict"] == "defers"
        async with serving(tmp_path, capture=True) as server:
            found = await server.explain("c@d.test", sender="alice@b.test", user="bob@b.test")
            assert found is not None and found["reply"].startswith("553 5.7.1")

    run_async(main)


def test_mail_is_parsed_away_from_where_we_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the working directory's is none of the standard library's."""
    (tmp_path / "calendar.py").write_text("raise SystemExit('run')\n")
    monkeypatch.chdir(tmp_path)
    content = b"Subject: x\r\n\r\nbody\r\n"
    found = run_async(lambda: reading.view([content], len(content)))
    assert found["text"].strip() == "body"


def test_small_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text("\n")
    for given in ({"secret": ""}, {"secret_file": str(tmp_path / "empty")}, {"secret": "whsec_"}):
        with pytest.raises(OptionError, match="the secret is empty"):
            Webhook("http://x", **given)
    headers = {"webhook-id": "u", "webhook-timestamp": "1" * 5000, "webhook-signature": "v1,x"}
    with pytest.raises(SignatureError):
        verify("s", headers, b"")
    faults = Faults([Fault("refuse", to="*@[127.0.0.1]")])
    assert faults.deadline_s > 3600
    from pillarbox.capture.faults import _fits

    assert _fits("*@[127.0.0.1]", ["a@[127.0.0.1]"]) and not _fits("*@[127.0.0.1]", ["a@1"])
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with monkeypatch.context() as patch:
        patch.setattr("pillarbox.daemon.systemd._FIRST", 4000)
        with pytest.raises(OptionError, match="4000 is none"):
            activated_sockets()
    server = SmtpServer().start()
    server.stop()
    with pytest.raises(StateError, match="does not run any more"):
        server.inbox.messages()
    client = public.connect(tmp_path, patience_s=0.1)
    with pytest.raises(OptionError, match="reverse_path"):
        client.enqueue(reverse_path=b"x", recipients=["a@b.test"], content="x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="too many"):
        client.enqueue(
            reverse_path="x@y.test", recipients=[f"r{n}@example{n}.test" for n in range(50_000)], content="x"
        )


def test_an_upload_that_breaks_off_is_no_fault_of_ours(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused") as daemon:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(daemon.data / "control.sock"))
            sock.sendall(
                b'{"verb":"enqueue","item":{"reverse_path":"a@b.test","recipients":["c@d.test"]},"size_bytes":10}\nabc'
            )
        wait_until(lambda: daemon.queue() == [])
        assert "Traceback" not in daemon.log.read_text() and sys.version_info >= (3, 11)
