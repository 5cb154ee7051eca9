"""Rows of the hostile checklist that are about running a server: load, faults of its surroundings, plugins, shutdown."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import resource
import signal
import smtplib
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, Handler, Reply
from pillarbox.admin import metrics
from pillarbox.admin.facts import Facts
from pillarbox.errors import StoreError
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.server import room
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import ROOT, Client, Wire, cuts, queued, run_async, serving, tool, until, wired
from tests.daemon import PILLARBOX, Daemon, pillarbox, wait_until
from tests.test_explain import settled
from tests.test_workers import send

WHOLE = cuts(1)[0]


# --------------------------------------------------------------------------------- 82


def test_row_82_addresses_with_metacharacters_meet_no_shell(tmp_path: Path) -> None:
    """There is no shell anywhere; an address is text, to handlers as to everybody."""
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"shell\s*=\s*True|os\.system|os\.popen", path.read_text()), path
    mark = tmp_path / "mark"
    taken: list[str] = []

    async def main() -> None:
        async with serving(
            tmp_path / "data", handlers=[Handler("@app.test$", lambda item: taken.extend(item.recipients))]
        ) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            await client.ask(b"MAIL FROM:<a@b.test>")
            addresses = [
                f'"$(touch {mark})"@app.test',
                f'";touch {mark};"@app.test',
                "`id`@app.test",
                '"| id"@app.test',
            ]
            for address in addresses:
                assert (await client.ask(b"RCPT TO:<" + address.encode() + b">")).startswith("250"), address
            assert (await client.ask(b"DATA")).startswith("354")
            client.send(b'Subject: x\r\nContent-Disposition: attachment; filename="a;touch x;.sh"\r\n\r\nx\r\n.\r\n')
            assert (await client.reply()).startswith("250")
            await until(lambda: len(taken) == 4)
            assert taken == addresses and not mark.exists()
            client.close()

    run_async(main)


# --------------------------------------------------------------------- 105, 106, 108, 109


def test_row_105_silent_clients_are_shed_and_good_ones_served(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        options = {
            "max_sessions": 400,
            "max_sessions_per_peer": 1000,
            "clock": clock,
            "store": "memory",
            "trust": ["192.0.2.0/24"],
        }
        async with serving(tmp_path, **options) as server:
            silent = [Wire(server, WHOLE(), f"198.51.100.{n % 250}") for n in range(300)]
            slow = [Wire(server, WHOLE(), f"203.0.113.{n % 250}") for n in range(60)]
            for wire in slow:
                await wire.send(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n")
            strangers = 0
            while strangers < 100:
                wire = Wire(server, WHOLE(), "198.18.0.1")
                await wire.settle()
                strangers += 1
                if wire.replies()[0].startswith("421"):
                    break
            # Strangers are refused before the last tenth of the sessions is gone; that is for those we know.
            assert len(server._parts.context.sessions) <= 362
            good = Wire(server, WHOLE(), "192.0.2.9")
            await good.settle()
            assert good.replies()[0].startswith("220")
            replies = await good.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
            assert replies[-1].startswith("354")
            assert (await good.ask(b"Subject: x\r\n\r\nx\r\n.\r\n"))[-1].startswith("250")
            # An octet now and then buys a command no more time than it has.
            for _ in range(12):
                clock.advance(30)
                for wire in slow:
                    if not wire.transport.closed:
                        await wire.send(b"N")
                await good.ask(b"NOOP\r\n")
            assert all(wire.transport.closed or b"421" in wire.transport.out for wire in silent + slow)
            assert (await good.ask(b"NOOP\r\n"))[-1].startswith("250")
            for session in list(server._parts.context.sessions.values()):
                session._connection.connection_lost(None)

    run_async(main)


def test_row_105_content_that_drips(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(tmp_path, clock=clock, store="memory", trust=["0.0.0.0/0"]) as server:
            wire = Wire(server, WHOLE(), "198.51.100.1")
            await wire.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
            for _ in range(40):
                clock.advance(30)
                if wire.transport.closed:
                    break
                await wire.send(b"x")
            assert wire.transport.closed or b"421" in wire.transport.out
            assert queued(server) == []
            wire.lose()

    run_async(main)


@pytest.mark.parametrize(
    "peers", [["198.51.100.7"] * 60, [f"2001:db8:1:2::{n:x}" for n in range(1, 61)]], ids=["/32", "/64"]
)
def test_row_106_a_flood_from_one_net(tmp_path: Path, peers: list[str]) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", max_sessions_per_peer=50) as server:
            wires = [Wire(server, WHOLE(), peer) for peer in peers]
            greetings = []
            for wire in wires:
                await wire.settle()
                greetings += wire.replies()
            assert sum(reply.startswith("220") for reply in greetings) == 50
            assert sum(reply.startswith("421 4.7.0 Too many sessions from your address") for reply in greetings) == 10
            other = Wire(server, WHOLE(), "2001:db8:1:3::1" if ":" in peers[0] else "198.51.100.8")
            await other.settle()
            assert other.replies()[0].startswith("220")

    run_async(main)


@pytest.mark.alone
def test_row_108_without_descriptors_the_loop_rests_and_comes_back(tmp_path: Path) -> None:
    prlimit = tool("prlimit")
    with Daemon(tmp_path, "--log-level=error", wrap=(prlimit, "--nofile=60")) as daemon:
        held: list[socket.socket] = []
        for _ in range(80):
            sock = socket.create_connection(("127.0.0.1", daemon.port))
            sock.settimeout(10)
            held.append(sock)

        def cpu_s() -> float:
            fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before = cpu_s()
        time.sleep(2.0)
        assert cpu_s() - before < 1.0, "it spins"
        for sock in held:
            sock.close()

        def is_served() -> bool:
            try:
                with smtplib.SMTP("127.0.0.1", daemon.port, timeout=10) as client:
                    return client.sendmail("a@b.test", ["c@d.test"], b"Subject: x\r\n\r\nx\r\n") == {}
            except (OSError, smtplib.SMTPException):
                return False

        wait_until(is_served, 30)
        assert len(daemon.queue()) >= 1


def test_row_109_many_large_messages_at_once_stay_out_of_memory(tmp_path: Path) -> None:
    """A tenth of the row's size, at the same ratio: far more on the wire at once than may be held."""
    size, count = 5 << 20, 60
    line = b"x" * 76 + b"\r\n"
    content = b"Subject: large\r\n\r\n" + line * (size // len(line))
    with Daemon(tmp_path, "--paused") as daemon:
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with smtplib.SMTP("127.0.0.1", daemon.port, timeout=100) as client:
                    client.sendmail("a@b.test", ["c@d.test"], content)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[:3]
        assert len(daemon.queue()) == count and daemon.peak_mb() < 150, daemon.peak_mb()


# -------------------------------------------------------------------------------- 107


def test_row_107_below_the_reserve_no_mail_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    real = os.statvfs
    free = {"bytes": 1 << 40, "inodes": 1000}

    class Found:
        def __init__(self) -> None:
            self.f_frsize, self.f_bavail, self.f_files, self.f_favail = 1, free["bytes"], 10**6, free["inodes"]

    monkeypatch.setattr(room.os, "statvfs", lambda path: Found() if path == str(tmp_path) else real(path))

    async def main() -> None:
        async with serving(tmp_path, clock=clock, reserve_bytes=1 << 20) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            # What was begun is ended, from the reserve.
            await client.ask(b"MAIL FROM:<a@b.test>")
            for change in ({"bytes": 1000}, {"bytes": 1 << 40, "inodes": 0}):
                free.update(change)
                clock.advance(1.1)
                other = await Client.connect(server)
                await other.ask(b"EHLO x.test")
                assert (await other.ask(b"MAIL FROM:<a@b.test>")).startswith("452 4.3.1")
                other.close()
            assert (await client.ask(b"RCPT TO:<c@d.test>")).startswith("250")
            assert (await client.ask(b"DATA")).startswith("354")
            client.send(b"Subject: begun\r\n\r\nx\r\n.\r\n")
            assert (await client.reply()).startswith("250")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("452 4.3.1")
            free.update({"bytes": 1 << 40, "inodes": 1})
            clock.advance(1.1)
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("250")
            client.close()

    run_async(main)


def test_row_107_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    """Really full: the file system gives no more than 3 MB to a file of this server's. The part is removed, the session lives."""
    content = b"Subject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 100_000

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (24 << 20, 24 << 20))

    command = [
        *PILLARBOX,
        "serve",
        "--listen=127.0.0.1:0",
        f"--data-dir={tmp_path / 'data'}",
        "--admin=off",
        "--paused",
        "--no-direct",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        port = int(re.search(r"127\.0\.0\.1:(\d+)", ready)[1])  # type: ignore[index]
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.sendmail("a@b.test", ["c@d.test"], content)
            with pytest.raises(smtplib.SMTPResponseException) as caught:
                client.sendmail("a@b.test", ["c@d.test"], content * 4)
            assert caught.value.smtp_code in (451, 452)
            assert client.noop()[0] == 250
            client.sendmail("a@b.test", ["c@d.test"], content)
        spool = next((tmp_path / "data").glob("spool*"))
        assert len(list(spool.iterdir())) == 2, "the part is gone"
    finally:
        process.terminate()
        process.wait(40)
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


def test_row_107_no_space_left_is_452(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def full(handle: int, pieces: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        async with serving(tmp_path, spool_above_bytes=1000) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            monkeypatch.setattr(os, "writev", full)
            reply = await client.transaction(b"Subject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 5000)
            monkeypatch.setattr(os, "writev", real)
            assert reply.startswith("452 4.3.1")
            # A spool thread removes it.
            await until(lambda: not [name for folder in tmp_path.glob("spool*") for name in os.listdir(folder)])
            assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("250")
            client.close()

    run_async(main)


# -------------------------------------------------------------------------------- 116


@pytest.mark.parametrize("step", [86400.0, -86400.0, 3600.0, -3600.0])
def test_row_116_a_wall_clock_that_steps(tmp_path: Path, step: float) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.1 Later") as relay:
            async with serving(tmp_path, clock=clock, relay=f"127.0.0.1:{relay.port}", store="memory") as server:
                client = await Client.connect(server)
                await client.ask(b"EHLO x.test")
                uids = [(await client.transaction(b"Subject: x\r\n\r\nx\r\n")).split()[2] for _ in range(3)]
                for uid in uids:
                    await settled(server, uid, 1)
                clock.step_wall(step)
                clock.advance(60.0)
                await asyncio.sleep(0.05)
                # No time-out has come of it, and nothing is given up.
                assert (await client.ask(b"NOOP")).startswith("250")
                counters = server._parts.context.counters
                assert counters.bounced == 0
                relay.script("RCPT", "250 OK")
                for _ in range(60 * 30):
                    clock.advance(60.0 if step > 0 else 120.0)
                    await asyncio.sleep(0)
                    if counters.delivered == 3:
                        break
                await until(lambda: counters.delivered == 3)
                client.close()

    run_async(main)


# --------------------------------------------------------------------- 123, 124, 125, 126


@pytest.mark.parametrize("nonsense", [7, "250 fine", b"x", [], {"a": 1}, object(), True, Eat])
@pytest.mark.parametrize("is_async", [False, True])
def test_row_123_a_plugin_that_returns_nonsense(nonsense: Any, is_async: bool) -> None:
    class Odd:
        def on_cmd_rcpt(self, server: Any, event: Any) -> Any:
            return nonsense

    class OddAsync:
        async def on_cmd_rcpt(self, server: Any, event: Any) -> Any:
            await asyncio.sleep(0)
            return nonsense

    async def main() -> None:
        async with wired(WHOLE, plugins={"odd": OddAsync() if is_async else Odd()}) as (server, wire):
            replies = await wire.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nNOOP\r\n")
            assert replies[2].startswith("451 4.3.0") and replies[3].startswith("250")

    run_async(main)


@pytest.mark.parametrize(
    "error", [ValueError("x\r\nforged"), RecursionError(), MemoryError(), asyncio.CancelledError(), KeyError()]
)
def test_row_123_a_plugin_that_raises(error: BaseException) -> None:
    class Broken:
        is_mended = False

        async def on_cmd_mail(self, server: Any, event: Any) -> None:
            await asyncio.sleep(0)
            if not self.is_mended:
                raise error

        def on_message(self, server: Any, event: Any) -> None:
            raise ValueError("at the end")

    async def main() -> None:
        async with wired(WHOLE, plugins={"broken": Broken()}) as (server, wire):
            replies = await wire.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nNOOP\r\n")
            assert replies[1].startswith("451 4.3.0") and replies[2].startswith("250"), replies
            server.plugin_get("broken").is_mended = True
            replies = await wire.ask(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
            assert (await wire.ask(b"x\r\n.\r\n"))[0].startswith("451 4.3.0")
            assert queued(server) == []

    run_async(main)


@pytest.mark.alone
def test_row_124_who_holds_the_loop_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow_mail.py").write_text(
        "import time\nclass Slow:\n    def on_cmd_noop(self, server, event):\n        busy_for(4.0)\n\n"
        "def busy_for(seconds):\n    time.sleep(seconds)\n"
    )
    file = tmp_path / "pillarbox.toml"
    file.write_text(f"python_path = ['{tmp_path}']\n[[plugins]]\nuse = 'slow_mail:Slow'\n")
    with Daemon(tmp_path, f"--config={file}") as daemon, smtplib.SMTP("127.0.0.1", daemon.port, timeout=30) as client:
        assert client.noop()[0] == 250
        held = [line for line in daemon.log.read_text().splitlines() if "event loop is held" in line]
        assert len(held) == 1 and "busy_for" in held[0] and "slow_mail.py:7" in held[0], held
        assert client.rset()[0] == 250


def test_row_124_a_plugin_that_never_answers_has_a_deadline() -> None:
    clock = ManualClock()

    class Hanging:
        deadline_s = 0.1

        async def on_cmd_mail(self, server: Any, event: Any) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        async with wired(WHOLE, plugins={"hanging": Hanging()}, clock=clock) as (server, wire):
            await wire.ask(b"EHLO x.test\r\n")
            await wire.send(b"MAIL FROM:<a@b.test>\r\n")
            await until(lambda: b"451 4.3.0" in wire.transport.out)
            assert (await wire.ask(b"NOOP\r\n"))[-1].startswith("250")

    run_async(main)


def test_row_125_a_handler_that_dies_behind_its_side_effect(tmp_path: Path) -> None:
    """The process is gone between the effect and the outcome: the same uid comes again, and tells that it is the second time."""
    (tmp_path / "dying_mail.py").write_text(
        "import os, pathlib\n"
        f"LOG = pathlib.Path({str(tmp_path / 'effects')!r})\n"
        "def take(item):\n    with LOG.open('a') as file:\n        file.write(f'{item.uid} {item.attempt}\\n')\n"
        "        file.flush()\n        os.fsync(file.fileno())\n"
        "    if len(LOG.read_text().splitlines()) == 1:\n        os._exit(9)\n"
    )
    file = tmp_path / "pillarbox.toml"
    file.write_text(f"python_path = ['{tmp_path}']\n[[handlers]]\nmatch = '^app@'\nuse = 'dying_mail:take'\n")
    first = Daemon(tmp_path, f"--config={file}")
    with smtplib.SMTP("127.0.0.1", first.port) as client:
        try:
            client.sendmail("a@b.test", ["app@c.test"], b"Subject: x\r\n\r\nx\r\n")
        except smtplib.SMTPServerDisconnected:
            pass
    first.process.wait(30)
    with Daemon(tmp_path, f"--config={file}") as second:
        wait_until(lambda: len((tmp_path / "effects").read_text().splitlines()) == 2)
        lines = [line.split() for line in (tmp_path / "effects").read_text().splitlines()]
        assert lines[0][0] == lines[1][0] and [line[1] for line in lines] == ["1", "2"]
        wait_until(lambda: second.queue("--all")[0]["state"] == "delivered")
        attempts = json.loads(second.pillarbox("show", lines[0][0], "--json").stdout)["attempts"]
        assert [attempt["outcome"] for attempt in attempts] == ["ambiguous", "delivered"]


def test_row_126_a_client_that_leaves_while_a_plugin_thinks(tmp_path: Path) -> None:
    """Nobody heard a 250, so nothing is queued; the plugin is let to its end, or cancelled, and never half of it."""
    steps: list[str] = []
    go_on = asyncio.Event()

    class Thinking:
        async def on_message(self, server: Any, event: Any) -> None:
            steps.append("begun")
            try:
                await go_on.wait()
                steps.append("ended")
            except asyncio.CancelledError:
                steps.append("cancelled")
                raise

    async def main() -> None:
        async with serving(tmp_path, store="memory", plugins={"thinking": Thinking()}) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            await client.ask(b"MAIL FROM:<a@b.test>")
            await client.ask(b"RCPT TO:<c@d.test>")
            await client.ask(b"DATA")
            client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
            await until(lambda: steps == ["begun"])
            # A reset. Who only ends its half may still be listening, and is answered.
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
            await until(lambda: not server._parts.context.sessions)
            go_on.set()
            await until(lambda: len(steps) == 2)
            await asyncio.sleep(0.02)
            assert queued(server) == []

    run_async(main)


def test_row_126_a_handler_does_not_know_of_its_client(tmp_path: Path) -> None:
    done: list[str] = []
    go_on = asyncio.Event()

    async def take(item: Any) -> None:
        await go_on.wait()
        done.append(item.uid)

    async def main() -> None:
        async with serving(tmp_path, handlers=[Handler("^app@", take)]) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            uid = (await client.transaction(b"Subject: x\r\n\r\nx\r\n", to=b"app@d.test")).split()[2]
            client.writer.transport.abort()
            await until(lambda: not server._parts.context.sessions)
            go_on.set()
            await until(lambda: done == [uid])
            await settled(server, uid, 1)

    run_async(main)


# -------------------------------------------------------------------------- 127, 128


@pytest.mark.parametrize("workers", [1, 2])
def test_row_127_sigterm_in_the_middle_of_content(tmp_path: Path, workers: int) -> None:
    with Daemon(tmp_path, "--paused", f"--workers={workers}") as daemon:
        idle, busy = smtplib.SMTP("127.0.0.1", daemon.port), smtplib.SMTP("127.0.0.1", daemon.port)
        idle.ehlo()
        busy.ehlo()
        busy.mail("a@b.test")
        busy.rcpt("c@d.test")
        busy.putcmd("data")
        assert busy.getreply()[0] == 354
        busy.send(b"Subject: begun\r\n\r\nhalf")
        daemon.process.send_signal(signal.SIGTERM)
        assert idle.getreply() == (421, b"4.3.2 Shutting down: try again later")
        busy.send(b" and half\r\n.\r\n")
        code, text = busy.getreply()
        assert code == 250, text
        assert daemon.process.wait(40) == 0
        idle.close()
        busy.close()
        assert [row["subject"] for row in daemon.queue()] == ["begun"]


def test_row_128_a_broken_file_on_reload_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text("max_size_bytes = 100000\n")
    with Daemon(tmp_path, f"--config={file}") as daemon:
        for broken in (
            "max_size_bytes = \n",
            "max_size_bytes = -1\n",
            "nonsense = 1\n",
            "\xff\xfe",
            "[[plugins]]\nuse = 'no:x'\n",
        ):
            daemon.log.write_text("")
            file.write_bytes(broken.encode("latin-1"))
            daemon.process.send_signal(signal.SIGHUP)
            # A plugin is not made anew by a reload; every other fault is told with its line.
            if "plugins" in broken:
                continue
            wait_until(lambda: "not reloaded, everything stays as it was" in daemon.log.read_text())
            assert f"{file}:1" in daemon.log.read_text()
            with smtplib.SMTP("127.0.0.1", daemon.port) as client:
                client.ehlo()
                assert client.esmtp_features["size"] == "100000"


# --------------------------------------------------------------------- 131, 132, 135


def test_row_131_garbage_on_the_control_socket(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused") as daemon:
        send(daemon.port, "c@d.test")
        for octets in (
            b"\x00" * 5000 + b"\n",
            b"{}\n",
            b"[]\n",
            b'{"verb": "cancel"}\n',
            b'{"verb": "cancel", "query": {"limit": 1}}\n',
            b'{"verb": "cancel", "query": {"uids": 7}}\n',
            b"{" * 100_000 + b"\n",
            b"x" * (2 << 20),
            b'{"verb": "explain"}\n',
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(daemon.data / "control.sock"))
                try:
                    sock.sendall(octets)
                    sock.shutdown(socket.SHUT_WR)
                    assert b'"ok": true' not in sock.recv(65536)
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert [row["state"] for row in daemon.queue()] == ["queued"]
        assert (daemon.data / "control.sock").stat().st_mode & 0o777 == 0o600


def test_row_132_labels_are_bounded_and_escaped() -> None:
    lane = {"state": "busy", "waiting": 1, "busy": 1, "connections": 1}
    hops = [f"mx:d{n}.test" for n in range(10_000)] + [
        'mx:a"b\n# HELP forged\nforged 1',
        "mx:" + "x" * 5000,
        "mx:\x1b[2J",
    ]
    live = {
        "counters": {},
        "sessions": [],
        "lanes": [{"next_hop": hop, **lane, "waiting": 2 if "d" not in hop else 1} for hop in hops],
    }
    body, _ = metrics.render(Facts(live, {"paused": False, "in_hand": 0, "recipients": {"queued": 1}}))
    text = body.decode()
    assert len(set(re.findall(r'next_hop="((?:[^"\\]|\\.)*)"', text))) <= 51
    assert not re.search(r"^forged", text, re.M) and len(body) < 100_000
    assert all(line.startswith(("#", "pillarbox_", "process_", "python_")) for line in text.splitlines())


def test_row_135_a_spool_that_leads_elsewhere(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    store = SqliteStore(str(data))
    store.open()
    spool = Path(store.spool)
    store.close()
    os.chmod(spool, 0o755)
    store.open()
    assert spool.stat().st_mode & 0o777 == 0o700
    store.close()
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    spool.rmdir()
    spool.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.open()
    assert (elsewhere / "precious").exists()
    done = pillarbox("serve", "--listen=127.0.0.1:0", f"--data-dir={data}", "--admin=off", ok=False)
    assert done.returncode == 1 and "is a symbolic link" in done.stderr
    spool.unlink()
    if os.geteuid() == 0:
        spool.mkdir()
        os.chown(spool, 65534, 65534)
        with pytest.raises(StoreError, match="belongs to nobody"):
            store.open()


def test_row_135_the_queue_is_the_owners_alone(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused") as daemon:
        send(daemon.port, "c@d.test")
        for path in (daemon.data, *daemon.data.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path


def test_reply_is_public() -> None:
    assert str(Reply(250, None, "OK")) == "250 OK"
