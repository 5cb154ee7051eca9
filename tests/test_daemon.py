"""What the daemon owes its surroundings: structured logs, the service manager's word and sockets, another user."""

from __future__ import annotations

import json
import os
import pwd
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox.daemon.privileges import find_identity
from pillarbox.errors import OptionError
from pillarbox.queue.journal import Journal
from tests.conftest import ROOT, Client, run_async, serving
from tests.daemon import PILLARBOX, Daemon, pillarbox, wait_until
from tests.test_workers import send


def log_lines(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]


def test_log_lines_have_fields_and_what_a_peer_sent_is_escaped(tmp_path: Path) -> None:
    """Rows 102 and 132: nothing from outside ends a line, or reaches a terminal."""
    handler = tmp_path / "evil_mail.py"
    handler.write_text("def fail(item):\n    raise RuntimeError('x\\x1b[31m\\r\\nforged')\n")
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        f"log_level = 'info'\npython_path = ['{tmp_path}']\n[[handlers]]\nmatch = '^evil@'\nuse = 'evil_mail:fail'\n"
    )
    with Daemon(tmp_path, f"--config={file}") as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port)) as sock:
            sock.recv(1000)
            sock.sendall(b"GET / HTTP/1.1\x1b[2J\x00\r\n")
            sock.recv(1000)
        send(daemon.port, "evil@c.test")
        wait_until(lambda: [line for line in log_lines(daemon) if line["event"] == "deferred"])
        lines = log_lines(daemon)
        (queued,) = [line for line in lines if line["event"] == "queued"]
        assert queued["session"].startswith("s") and queued["peer"] == "127.0.0.1"
        (deferred,) = [line for line in lines if line["event"] == "deferred"]
        assert deferred["queue_id"] == queued["queue_id"] and deferred["next_hop"] == "handler:^evil@"
        assert "The handler failed: RuntimeError" in deferred["reply"]
        text = daemon.log.read_text()
        assert "\x1b" not in text and "\x00" not in text and "\r" not in text


def test_row_102_a_hostile_reply_is_escaped_wherever_it_is_shown(tmp_path: Path) -> None:
    from pillarbox.testing import ScriptedServer

    async def main() -> str:
        hostile = "550 5.1.1 <script>alert(1)</script> %s \x1b[31mred\x07 caf\xe9"
        async with ScriptedServer(RCPT=lambda line: hostile if "c@d.test" in line else "450 4.2.1 Later") as relay:
            async with serving(tmp_path, relay=f"127.0.0.1:{relay.port}") as server:
                client = await Client.connect(server)
                await client.ask(b"EHLO x.test")
                reply = await client.transaction(b"Subject: x\r\n\r\nx\r\n", sender=b"back@d.test")
                client.close()
                uid = reply.split()[2]
                for _ in range(2000):
                    found = await server.queue.show(uid)
                    assert found is not None
                    if found["state"] == "bounced":
                        break
                return uid

    uid = run_async(main)
    folder = f"--data-dir={tmp_path}"
    for text in (
        pillarbox("queue", "show", uid, folder).stdout,
        pillarbox("queue", "list", "--all", folder).stdout,
        pillarbox("explain", uid, folder).stdout,
        pillarbox("queue", "export", "-", "--from=<>", folder).stdout,
    ):
        assert "script" in text and "\x1b" not in text and "\x07" not in text


# ------------------------------------------------------------------- service manager


def start(arguments: list[str], environment: dict[str, str], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_service_manager_is_told(tmp_path: Path, workers: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = tempfile.mktemp(prefix="notify-")
        manager.bind(path)
        manager.settimeout(30)
        command = [
            *PILLARBOX,
            "serve",
            "--listen=127.0.0.1:0",
            f"--data-dir={tmp_path / 'data'}",
            "--admin=off",
            f"--workers={workers}",
        ]
        process = start(command, {"NOTIFY_SOCKET": path})
        try:
            words = manager.recv(4096).decode().split("\n")
            assert (
                words[0] == "READY=1" and f"MAINPID={process.pid}" in words and words[2].startswith("STATUS=listens on")
            )
            # What the first burst would have to wait for is there.
            journals = [f"queue-{n}.journal" for n in range(workers)] if Journal.is_possible() else []
            wait_until(lambda: sorted(path.name for path in (tmp_path / "data").glob("*.journal")) == journals)
            os.kill(process.pid, signal.SIGUSR2)
            assert b"READY=1" in manager.recv(4096), "after a restart of its own, too"
            process.send_signal(signal.SIGTERM)
            assert manager.recv(4096) == b"STOPPING=1"
            assert process.wait(40) == 0
        finally:
            process.kill()
            process.wait()
            os.unlink(path)
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_of_the_service_manager(tmp_path: Path, workers: int, certificate: dict[str, str]) -> None:
    """Bound by somebody else, before we start: a connection that came early is served."""
    plain, login = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    port, login_port = plain.getsockname()[1], login.getsockname()[1]
    early = smtplib.SMTP()
    waiting = socket.create_connection(("127.0.0.1", port))
    script = (
        "import os, sys\nfor number, fd in enumerate(map(int, sys.argv[1:3])):\n    os.dup2(fd, 3 + number)\n    os.set_inheritable(3 + number, True)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\nos.execvp(sys.argv[3], sys.argv[3:])\n"
    )
    # Out of the way of 3 and 4.
    handles = [os.dup2(sock.fileno(), 100 + number) for number, sock in enumerate((plain, login))]
    auth = tmp_path / "accounts"
    subprocess.run(
        [*PILLARBOX, "passwd", f"--file={auth}", "--password-stdin", "me@b.test"],
        input="secret\n",
        text=True,
        check=True,
        capture_output=True,
    )
    command = [
        sys.executable, "-c", script, *map(str, handles), *PILLARBOX, "serve", f"--data-dir={tmp_path / 'data'}", "--admin=off",
        f"--workers={workers}", "--no-direct", f"--tls-cert={certificate['cert']}", f"--tls-key={certificate['key']}", f"--auth-file={auth}",
    ]  # fmt: skip
    process = start(command, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "mx:submission"}, pass_fds=handles)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert f"127.0.0.1:{port} 127.0.0.1:{login_port}" in ready, ready
        waiting.settimeout(20)
        assert waiting.recv(100).startswith(b"220")
        waiting.close()
        with smtplib.SMTP("127.0.0.1", login_port) as client:
            client.ehlo()
            assert client.mail("a@b.test")[0] == 530
        send(port, "a@c.test")
        os.kill(process.pid, signal.SIGUSR2)
        assert "ready on" in process.stdout.readline()
        send(port, "b@c.test")
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        # They are not ours to remove: the next start has them again.
        assert plain.fileno() > 0
        rows = json.loads(pillarbox("queue", "list", "--json", f"--data-dir={tmp_path / 'data'}").stdout)
        assert len(rows) == 2
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        for handle in handles:
            os.close(handle)
        plain.close()
        login.close()
        early.close()


# ------------------------------------------------------------------------ another user


def test_users_that_are_not_there() -> None:
    with pytest.raises(OptionError, match="there is no user 'no-such-user'"):
        find_identity("no-such-user")
    with pytest.raises(OptionError, match="there is no group 'no-such-group'"):
        find_identity("nobody:no-such-group")
    assert find_identity("nobody").uid == pwd.getpwnam("nobody").pw_uid


def test_root_becomes_another_user(tmp_path: Path) -> None:
    """Port 25 is bound by root, and served by nobody; restarted, it is still that."""
    if os.geteuid() != 0:
        done = pillarbox("serve", "--user=nobody", f"--data-dir={tmp_path}", "--listen=127.0.0.1:0", ok=False)
        assert done.returncode == 2 and "only root can become nobody" in done.stderr
        return
    base = Path(tempfile.mkdtemp(prefix="pillarbox-user-", dir="/var/tmp"))
    base.chmod(0o755)
    data = base / "data"
    command = [
        *PILLARBOX,
        "serve",
        "--listen=127.0.0.44:25",
        "--user=nobody",
        f"--data-dir={data}",
        "--admin=off",
        "--no-direct",
    ]
    if not all(folder.stat().st_mode & 0o001 for folder in (ROOT, *ROOT.parents)):
        # This copy of the program is root's alone: then it says so, and does not begin what it could not go on with.
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "nobody cannot read the program at" in done.stderr, done.stderr
        return
    process = start(command, {})
    try:
        assert process.stdout is not None and "ready on 127.0.0.44:25" in process.stdout.readline()
        assert data.stat().st_uid == pwd.getpwnam("nobody").pw_uid and data.stat().st_mode & 0o777 == 0o700
        for _ in range(2):
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}\t" in status
            with smtplib.SMTP("127.0.0.44", 25) as client:
                client.sendmail("a@b.test", ["c@d.test"], b"Subject: x\r\n\r\nx\r\n")
            os.kill(process.pid, signal.SIGUSR2)
            assert "ready on 127.0.0.44:25" in process.stdout.readline()
        again = pillarbox("serve", "--listen=127.0.0.1:0", f"--data-dir={data}", "--user=daemon", ok=False)
        assert again.returncode == 2 and "is not daemon's" in again.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        process.stdout.close()  # type: ignore[union-attr]
        subprocess.run(["rm", "-rf", str(base)], check=True)


def test_a_second_server_refuses(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        before = time.monotonic()
        done = pillarbox("serve", "--listen=127.0.0.1:0", f"--data-dir={daemon.data}", "--admin=off", ok=False)
        assert done.returncode == 1 and f"pid {daemon.process.pid}" in done.stderr and time.monotonic() - before < 20
        send(daemon.port, "a@c.test")
