"""Real programs against the real server: clients, sinks, the command line, kill -9, strace, large messages."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import smtplib
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, free_port, run_async, tool
from tests.daemon import Daemon, pillarbox, sink, smtp_source, wait_until

CI = bool(os.environ.get("CI"))


# -------------------------------------------------------------------------- clients


def with_swaks(port: int) -> None:
    subprocess.run(
        [
            tool("swaks"),
            "--server",
            f"127.0.0.1:{port}",
            "--from",
            "a@b.test",
            "--to",
            "swaks@d.test",
            "--helo",
            "x.test",
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )


def with_curl(port: int) -> None:
    text = "From: a@b.test\r\nTo: curl@d.test\r\nSubject: by curl\r\n\r\nbody\r\n"
    command = [
        tool("curl"),
        "-sS",
        f"smtp://127.0.0.1:{port}/x.test",
        "--mail-from",
        "a@b.test",
        "--mail-rcpt",
        "curl@d.test",
        "-T",
        "-",
    ]
    subprocess.run(command, check=True, input=text.encode(), capture_output=True, timeout=30)


def with_smtplib(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="x.test") as client:
        client.sendmail("a@b.test", ["smtplib@d.test"], "Subject: by smtplib\r\n\r\nbody")


def with_msmtp(port: int) -> None:
    command = [
        tool("msmtp"),
        "--host=127.0.0.1",
        f"--port={port}",
        "--from=a@b.test",
        "--tls=off",
        "--auth=off",
        "msmtp@d.test",
    ]
    subprocess.run(command, check=True, input=b"Subject: by msmtp\n\nbody\n", capture_output=True, timeout=30)


def with_aiosmtplib(port: int) -> None:
    import aiosmtplib

    asyncio.run(
        aiosmtplib.send(
            "Subject: by aiosmtplib\r\n\r\nbody\r\n",
            sender="a@b.test",
            recipients=["aiosmtplib@d.test"],
            hostname="127.0.0.1",
            port=port,
        )
    )


CLIENTS = {
    "swaks": with_swaks,
    "curl": with_curl,
    "smtplib": with_smtplib,
    "msmtp": with_msmtp,
    "aiosmtplib": with_aiosmtplib,
}


def test_clients(tmp_path: Path) -> None:
    with Daemon(tmp_path) as server:
        for name, send in CLIENTS.items():
            send(server.port)
            assert [r["recipients"][0]["address"] for r in server.queue("--to", name)] == [f"{name}@d.test"]
        rows = server.queue()
        assert len(rows) == len(CLIENTS) and {row["state"] for row in rows} == {"queued"}
        text = server.pillarbox("show", rows[0]["uid"]).stdout
        assert "no smart host is set" in text and "swaks@d.test" in text


# ------------------------------------------------------------------- command line


def test_queue_commands_running_and_stopped(tmp_path: Path) -> None:
    server = Daemon(tmp_path, "--paused")
    for n in range(4):
        pillarbox("send", f"--server={server.address}", "--from=a@b.test", f"--to=r{n}@d.test", f"--subject=Number {n}")
    uids = [row["uid"] for row in server.queue()]
    assert len(uids) == 4

    def exercise() -> None:
        assert "2 messages held" in server.pillarbox("hold", uids[0], uids[1]).stdout
        assert [r["uid"] for r in server.queue("--state", "held")] == uids[:2]
        assert "1 message released" in server.pillarbox("release", uids[0]).stdout
        assert "1 message released" in server.pillarbox("release", "--all").stdout
        assert "1 message due now" in server.pillarbox("retry", "--to", "r3@").stdout
        assert server.queue("--older-than", "1h") == [] and len(server.queue("--from", "a@b")) == 4
        assert "queue is paused" in server.pillarbox("list").stderr
        shown = json.loads(server.pillarbox("show", uids[0], "--json").stdout)
        assert shown["subject"] == "Number 0" and shown["recipients"][0]["state"] == "queued"
        for arguments, code in (
            (("cancel",), 2),
            (("cancel", "--to", ""), 2),
            (("list", "--state", "odd"), 2),
            (("list", "--older-than", "soon"), 2),
            (("list", "--limit", "99999999999999999999"), 2),
            (("list", "--nonsense"), 2),
            (("show",), 2),
            (("show", "NOTHERE"), 1),
            (("hold", "NOTHERE"), 1),
        ):
            done = server.pillarbox(*arguments, ok=False)
            assert done.returncode == code, (arguments, done)
            assert "Traceback" not in done.stderr

    exercise()
    assert server.stop() == 0
    exercise()
    assert "1 message cancelled" in server.pillarbox("cancel", uids[3]).stdout
    assert len(server.queue()) == 3 and len(server.queue("--all")) == 4
    assert "not running" in server.pillarbox("show", uids[0]).stdout
    server.pillarbox("resume")
    again = Daemon(tmp_path)
    assert "paused" not in again.pillarbox("list").stderr
    again.pillarbox("pause")
    assert again.stop() == 0
    third = Daemon(tmp_path)
    assert "paused" in third.pillarbox("list").stderr, "a pause outlives a restart"
    assert "3 messages cancelled" in third.pillarbox("cancel", "--all").stdout
    assert third.queue() == [] and "empty" in third.pillarbox("list").stderr
    done = pillarbox("serve", "--listen=127.0.0.1:0", f"--data-dir={third.data}", ok=False)
    assert done.returncode == 1 and "pid" in done.stderr, "one server per directory"
    assert third.stop() == 0


def test_errors_are_one_line(tmp_path: Path) -> None:
    port = free_port()
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("serve", "--relay=a:b:c"), 2, "brackets"),
        (("serve", "--hostname=not a name"), 2, "hostname"),
        (("serve", "--trust=everyone"), 2, "CIDR"),
        (("serve", "--domain=-x-"), 2, "domain"),
        (("serve", "--log-level=loud"), 2, "warning"),
        (("serve", "--tls-cert=/nowhere.pem", f"--data-dir={tmp_path}"), 2, "PEM"),
        (("serve", "--relay-pass-file=/nowhere"), 2, "No such file"),
        (("serve", "--listen=192.0.2.1:2525", f"--data-dir={tmp_path}"), 1, "cannot listen on 192.0.2.1:2525"),
        (("serve", f"--data-dir={__file__}"), 1, "--data-dir"),
        (("queue", "list", "--data-dir=/nowhere/at/all"), 1, "no queue"),
        (("queue", "list", f"--data-dir={tmp_path / '..'}"), 1, "no queue"),
        (("send", f"--server=127.0.0.1:{port}", "--to=a@b.test"), 1, "is the server running"),
        (("send", "--server=a:b:c", "--to=a@b.test"), 2, "--server"),
        (("send", "--to=a@b.test", "/nowhere/file"), 2, "cannot read"),
        (("nonsense",), 2, "No such command"),
    ]
    for arguments, code, word in cases:
        done = pillarbox(*arguments, ok=False)
        assert done.returncode == code, (arguments, done.stderr)
        assert word in done.stderr.replace("\n", " "), (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_send(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--domain=ours.test", "--trust=192.0.2.0/24") as server:
        where = f"--server={server.address}"
        refused = pillarbox("send", where, "--to=x@far.test", ok=False)
        assert refused.returncode == 1 and "5.7.1" in refused.stderr
    with Daemon(tmp_path / "b") as server:
        where = f"--server={server.address}"
        done = pillarbox(
            "send", where, "--to=a@b.test", "--to=c@d.test", "--subject=Grüße", "-", stdin="Hallo\nWelt ü\n"
        )
        assert done.stdout.startswith("250 2.0.0 ")
        partial = pillarbox("send", where, "--to=a@b.test", "--to=bad", ok=False)
        assert partial.returncode == 1 and "refused: bad" in partial.stderr
        many = pillarbox("send", where, "--to=a@b.test", "--count=20")
        assert "20 messages accepted" in many.stdout
        rows = server.queue()
        assert len(rows) == 22 and rows[0]["subject"] == "Grüße" and len(rows[0]["recipients"]) == 2


def test_passwd_and_auth_file(tmp_path: Path, certificate: dict[str, str]) -> None:
    path = str(tmp_path / "accounts")
    assert pillarbox("passwd", "bob", f"--file={path}", "--password-stdin", stdin="secret\n").stdout == "added bob\n"
    pillarbox("passwd", "eve", f"--file={path}", "--password-stdin", "--may-send-as=@any.test", stdin="pass\n")
    assert "changed bob" in pillarbox("passwd", "bob", f"--file={path}", "--password-stdin", stdin="secret2\n").stdout
    assert os.stat(path).st_mode & 0o777 == 0o600 and "secret" not in Path(path).read_text()
    tls = (
        f"--tls-cert={certificate['cert']}",
        f"--tls-key={certificate['key']}",
        f"--auth-file={path}",
        "--trust=192.0.2.0/24",
    )
    import ssl

    context = ssl.create_default_context(cafile=certificate["ca"])

    def login(port: int, name: str, password: str, sender: str) -> None:
        with smtplib.SMTP("localhost", port, local_hostname="x.test") as client:
            client.starttls(context=context)
            client.login(name, password)
            client.sendmail(sender, ["far@away.test"], "Subject: x\r\n\r\nx\r\n")

    with Daemon(tmp_path, *tls) as server:
        login(server.port, "bob", "secret2", "bob@mx.test")
        login(server.port, "eve", "pass", "whoever@any.test")
        with pytest.raises(smtplib.SMTPSenderRefused, match="553"):
            login(server.port, "bob", "secret2", "eve@mx.test")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            login(server.port, "bob", "secret", "bob@mx.test")
        pillarbox("passwd", "eve", f"--file={path}", "--delete")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            login(server.port, "eve", "pass", "whoever@any.test")
        assert [row["received"]["user"] for row in server.queue()] == ["bob", "eve"]
    assert pillarbox("passwd", "eve", f"--file={path}", "--delete", ok=False).returncode == 1
    assert pillarbox("passwd", "a:b", f"--file={path}", "--password-stdin", stdin="x\n", ok=False).returncode == 2


def test_sigterm_is_graceful(tmp_path: Path) -> None:
    server = Daemon(tmp_path, "--grace=10")
    import socket

    idle = socket.create_connection(("127.0.0.1", server.port))
    busy = socket.create_connection(("127.0.0.1", server.port))
    idle_file, busy_file = idle.makefile("rwb"), busy.makefile("rwb")
    idle_file.readline(), busy_file.readline()

    def say(line: bytes) -> bytes:
        busy_file.write(line + b"\r\n")
        busy_file.flush()
        return busy_file.readline()

    say(b"HELO x.test"), say(b"MAIL FROM:<a@b.test>"), say(b"RCPT TO:<c@d.test>")
    assert say(b"DATA").startswith(b"354")
    server.process.terminate()
    assert idle_file.readline().startswith(b"421 4.3.2")
    busy_file.write(b"Subject: late\r\n\r\nbut not lost\r\n")
    busy_file.flush()
    assert say(b".").startswith(b"250 2.0.0")
    assert busy_file.readline().startswith(b"421 4.3.2")
    assert server.process.wait(20) == 0
    assert [row["subject"] for row in server.queue()] == ["late"]


# -------------------------------------------------------------------------- sinks


def dumped(folder: Path) -> Counter[str]:
    """Recipients of all messages that a sink has dumped, by their number of copies."""
    found: Counter[str] = Counter()
    for file in folder.glob("m.*"):
        found.update(re.findall(r"^X-Rcpt-Args: <(.*?)>", file.read_text(errors="replace"), re.M))
    return found


def numbered(count: int) -> set[str]:
    return {f"{n}c@d.test" for n in range(1, count + 1)} if count else set()


def test_all_arrive_once(tmp_path: Path) -> None:
    count = 1000 if CI else 5000
    with (
        sink(tmp_path / "sink", "-d", "m.") as (port, folder),
        Daemon(tmp_path, f"--relay=127.0.0.1:{port}", "--log-level=error") as server,
    ):
        assert smtp_source(server.port, count, "-s", "20", "-N").returncode == 0
        wait_until(lambda: server.queue("--limit", "1") == [], 90)
        assert len(list(folder.glob("m.*"))) == count
        copies = dumped(folder)
        assert len(copies) == count and set(copies.values()) == {1}


TROUBLES = [
    ("-q", "rcpt"), ("-q", "data"), ("-q", "."), ("-Q", "rcpt"), ("-Q", "data"), ("-Q", "."),
    ("-r", "rcpt"), ("-r", "data"), ("-r", "."),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "command"), TROUBLES)
def test_troubled_sinks(tmp_path: Path, flag: str, command: str) -> None:
    """Disconnect, 421 and 4yz on RCPT, DATA and the dot: all arrive in the end, attempts and replies show."""
    port, count = free_port(), 40
    with Daemon(
        tmp_path, f"--relay=127.0.0.1:{port}", "--log-level=error", "--retry-first=2", "--retry-longest=4"
    ) as server:
        with sink(tmp_path / "bad", flag, command, port=port):
            assert smtp_source(server.port, count, "-s", "5", "-N").returncode == 0
            rows = wait_until(lambda: [r for r in server.queue() if r["recipients"][0]["attempts"]], 30)
            shown = json.loads(server.pillarbox("show", rows[0]["uid"], "--json").stdout)
            assert shown["attempts"] and shown["recipients"][0]["last_reply"][0] == "4"
            assert shown["attempts"][0]["outcome"] in ("deferred", "ambiguous")
        with sink(tmp_path / "good", "-d", "m.", port=port) as (_, folder):
            server.pillarbox("retry", "--all")
            wait_until(lambda: server.queue() == [], 60)
            assert len(dumped(folder)) == count and max(dumped(folder).values()) == 1


@pytest.mark.parametrize("command", ["rcpt", "data", "."])
def test_refusing_sink(tmp_path: Path, command: str) -> None:
    """5yz: bounced, and a DSN is made (which this sink refuses, too: no second one)."""
    with (
        sink(tmp_path / "sink", "-f", command) as (port, _),
        Daemon(tmp_path, f"--relay=127.0.0.1:{port}", "--log-level=error") as server,
    ):
        assert smtp_source(server.port, 10, "-s", "2", "-N").returncode == 0
        wait_until(lambda: len(server.queue("--all")) == 20 and server.queue() == [], 40)
        rows = server.queue("--all")
        assert {row["state"] for row in rows} == {"bounced"}
        assert sum(row["reverse_path"] is None for row in rows) == 10
        assert rows[0]["recipients"][0]["last_reply"].startswith("5")


def test_sink_is_stopped_and_restarted(tmp_path: Path) -> None:
    port, count = free_port(), 200
    with Daemon(tmp_path, f"--relay=127.0.0.1:{port}", "--log-level=error") as server:
        with sink(tmp_path / "one", "-d", "m.", port=port) as (_, first):
            assert smtp_source(server.port, count, "-s", "10", "-N").returncode == 0
            wait_until(lambda: server.queue("--limit", "1") == [], 60)
        # Down: what comes now waits, with its reason.
        assert smtp_source(server.port, 20, "-s", "5", "-N").returncode == 0
        wait_until(lambda: any(r["recipients"][0]["last_reply"] for r in server.queue()), 30)
        assert len(server.queue()) == 20
        with sink(tmp_path / "two", "-d", "m.", port=port) as (_, second):
            # By itself, without any command: the next probe finds it.
            wait_until(lambda: server.queue() == [], 60)
            assert len(dumped(first)) == count and set(dumped(first).values()) == {1}
            assert len(dumped(second)) == 20 and set(dumped(second).values()) == {1}


# ----------------------------------------------------------------------- kill and disk


class Sender(threading.Thread):
    """Sends numbered messages over one connection after the other; remembers each that got its 250."""

    def __init__(self, port: int, name: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self._port, self._prefix, self._stop_event = port, name, stop

    def run(self) -> None:
        number = 0
        while not self._stop_event.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self._port, local_hostname="x.test", timeout=10) as client:
                    for _ in range(50):
                        number += 1
                        address = f"{self._prefix}-{number}@d.test"
                        # Some large enough for the spool.
                        body = "y" * 70 + "\r\n"
                        client.sendmail(
                            "a@b.test",
                            [address],
                            f"Subject: {number}\r\n\r\n{body * (3000 if number % 25 == 0 else 3)}",
                        )
                        self.acknowledged.append(address)
                        if self._stop_event.is_set():
                            return
            except (OSError, smtplib.SMTPException):
                self._stop_event.wait(0.02)


def test_kill_9_loses_nothing_that_had_its_250(tmp_path: Path) -> None:
    rounds = 6 if CI else 20
    rng = random.Random(20)
    listen = f"127.0.0.1:{free_port()}"
    with sink(tmp_path / "sink", "-d", "m.") as (port, folder):
        options = (f"--relay=127.0.0.1:{port}", "--log-level=error")
        stop = threading.Event()
        senders = [Sender(int(listen.rpartition(":")[2]), f"t{n}", stop) for n in range(8)]
        server = Daemon(tmp_path, *options, listen=listen)
        for sender in senders:
            sender.start()
        for _ in range(rounds):
            before = sum(len(s.acknowledged) for s in senders)
            wait_until(lambda before=before: sum(len(s.acknowledged) for s in senders) > before, 20)
            time.sleep(rng.uniform(0.05, 0.5))
            server.kill()
            server = Daemon(tmp_path, *options, listen=listen)
        stop.set()
        for sender in senders:
            sender.join(20)
        acknowledged = [address for sender in senders for address in sender.acknowledged]
        wait_until(lambda: server.queue("--limit", "1") == [], 120)
        server.stop()
        arrived = dumped(folder)
        missing = [address for address in acknowledged if not arrived[address]]
        assert len(acknowledged) > rounds * 5 and not missing, f"{len(missing)} of {len(acknowledged)} are lost"
        assert os.listdir(server.data / "spool") == [], "and no spool file is left over"


@pytest.mark.parametrize("size", [2_000, 700_000], ids=["small", "spooled"])
def test_fdatasync_between_content_and_250(tmp_path: Path, size: int) -> None:
    """A kill does not test the disk: strace shows the sync before each 250."""
    trace = tmp_path / "trace"
    calls = "read,recvfrom,recvmsg,readv,write,writev,sendto,sendmsg,fdatasync,fsync,pwrite64,close,accept,accept4"
    wrap = (tool("strace"), "-f", "-ttt", "-s", "1000000", "-e", f"trace={calls}", "-o", str(trace))
    server = Daemon(tmp_path, "--log-level=error", wrap=wrap)
    body = ("z" * 70 + "\r\n") * (size // 72)
    for n in range(3):
        with smtplib.SMTP("127.0.0.1", server.port, local_hostname="x.test", timeout=60) as client:
            client.sendmail("a@b.test", ["c@d.test"], f"Subject: {n}\r\n\r\n{body}marker{n}\r\n")
    # strace passes no signal on to what it runs.
    child = int(Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[0])
    os.kill(child, 15)
    server.process.wait(30)
    lines = trace.read_text(errors="replace").splitlines()
    for n in range(3):
        # The read that has the marker, or the terminator alone, where that came in a segment of its own.
        last = max(i for i, line in enumerate(lines) if f"marker{n}\\r\\n" in line and "read" in line + "recv")
        replied = next(
            i for i in range(last, len(lines)) if "250 2.0.0" in lines[i] and "accepted for delivery" in lines[i]
        )
        between = lines[last:replied]
        synced = [line for line in between if re.search(r"(fdatasync|fsync)(\(.*\)|.*resumed.*\)) += 0", line)]
        # One for the WAL; for a spooled message its file's, its folder's, and the WAL's.
        assert len(synced) >= (1 if size < 10_000 else 3), between[-20:]


def test_large_messages_with_flat_memory(tmp_path: Path) -> None:
    """One of 50 MB, and 40 of 10 MB at once: under 150 MB of memory, the same octets at the far end."""
    digests: list[str] = []

    async def main() -> None:
        received: list[str] = []

        async def far_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """A counting next hop that hashes content as it comes."""
            writer.write(b"220 far.test\r\n")
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"DATA":
                    writer.write(b"354 go\r\n")
                    digest = hashlib.sha256()
                    in_header = True
                    while (line := await reader.readline()) != b".\r\n":
                        line = line[1:] if line.startswith(b".") else line
                        in_header = in_header and not line.startswith(b"X-Start")
                        if not in_header:
                            digest.update(line)
                    received.append(digest.hexdigest())
                writer.write(b"250-far.test\r\n250 PIPELINING\r\n" if verb == b"EHLO" else b"250 ok\r\n")
                if verb == b"QUIT":
                    break
            writer.close()

        far = await asyncio.start_server(far_end, "127.0.0.1", 0, limit=1 << 20)
        port = far.sockets[0].getsockname()[1]
        server = await asyncio.to_thread(Daemon, tmp_path, f"--relay=127.0.0.1:{port}", "--log-level=error")

        def message(seed: int, megabytes: int) -> bytes:
            rng = random.Random(seed)
            line = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz.", k=76)) + b"\r\n"
            return b"X-Start: %d\r\n\r\n" % seed + line * (megabytes * 1024 * 1024 // len(line))

        def send(octets: bytes) -> None:
            with smtplib.SMTP("127.0.0.1", server.port, local_hostname="x.test", timeout=100) as client:
                client.sendmail("a@b.test", ["c@d.test"], octets)

        big = message(1, 50)
        digests.append(hashlib.sha256(big).hexdigest())
        await asyncio.to_thread(send, big)
        del big
        ten = [message(seed, 10) for seed in range(2, 42)]
        digests.extend(hashlib.sha256(one).hexdigest() for one in ten)
        await asyncio.gather(*(asyncio.to_thread(send, one) for one in ten))
        async with asyncio.timeout(100):
            while len(received) < 41:
                await asyncio.sleep(0.05)
        assert Counter(received) == Counter(digests)
        peak = server.peak_mb()
        assert peak < 150, f"peak memory {peak:.0f} MB"
        await asyncio.to_thread(wait_until, lambda: server.queue() == [])
        await asyncio.to_thread(wait_until, lambda: os.listdir(server.data / "spool") == [], 30)
        await asyncio.to_thread(server.stop)
        far.close()

    run_async(main, timeout_s=115)


# --------------------------------------------------------------------------- documents


def test_the_readme_example(tmp_path: Path) -> None:
    """The ten lines of the README, as they stand there."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    port = free_port()
    code = code.replace("port=2525", f"port={port}").replace("./mail", str(tmp_path / "mail"))
    import sys

    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        from tests.daemon import is_open

        wait_until(lambda: is_open(port))
        with smtplib.SMTP("127.0.0.1", port, local_hostname="x.test") as client:
            client.ehlo()
            client.mail("a@b.test")
            assert client.rcpt("news@d.test") == (550, b"5.7.1 No newsletters")
            assert client.rcpt("c@d.test")[0] == 250
    finally:
        child.terminate()
        child.wait()


def test_make_serve_says_what_the_readme_says() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", text):
        assert re.search(rf"^{target}:", makefile, re.M), target


def example(name: str) -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_examples(tmp_path: Path) -> None:
    from tests.conftest import Client, serving

    async def main() -> None:
        asked: list[tuple[str, asyncio.Future[bool]]] = []

        def ask(address: str) -> asyncio.Future[bool]:
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            asked.append((address, future))
            if not address.startswith("slow"):
                future.set_result(True)
            return future

        plugins = {
            "refuse": example("refuse_recipient").RefuseNo(),
            "courteous": example("rewrite_replies").Courteous(),
            "tag": example("change_subject").TagSubject("[t]"),
            "ask": example("async_check").AskFirst(ask),
        }
        async with serving(tmp_path, store="memory", plugins=plugins) as server:
            client, other = await Client.connect(server), await Client.connect(server)
            await client.ask(b"EHLO x.test")
            await other.ask(b"EHLO x.test")
            client.send(b"MAIL FROM:<slow@b.test>\r\n")
            while not asked:
                await asyncio.sleep(0)
            # The other session does not wait with it.
            reply = await other.transaction(b"Subject: hello\r\n\r\nx\r\n")
            assert reply.startswith("250")
            content = server._parts.store.content(reply.split()[2])
            assert content is not None and content.header("Subject") == "[t] hello"
            asked[0][1].set_result(False)
            assert await client.reply() == "550 5.7.1 We are sorry: This sender is not welcome"
            await client.ask(b"MAIL FROM:<a@b.test>")
            assert (await client.ask(b"RCPT TO:<no-one@d.test>")).startswith(
                "550 5.7.1 We are sorry: no-one@d.test takes no mail"
            )
            client.close(), other.close()
        module = example("async_check")
        assert await module.slow_directory("a@spam.example") is False
        assert callable(example("embed").main)

    run_async(main)
