"""Several worker processes, and restarts without a refused connection, as processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pillarbox.daemon import giveway
from pillarbox.daemon.sockets import bind_all, close_all
from pillarbox.errors import ListenError
from pillarbox.options import parse_options
from pillarbox.queue.whole import ask_all
from tests.conftest import free_port
from tests.daemon import Daemon, is_open, pillarbox, sink, smtp_source, wait_until

CONTENT = b"Subject: hello\r\n\r\nbody\r\n"


def workers_of(pid: int) -> list[int]:
    """The pids of a supervisor's children."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def send(port: int, recipient: str, count: int = 1, size: int = 0) -> None:
    for _ in range(count):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail("a@b.test", [recipient], CONTENT + (b"y" * 76 + b"\r\n") * (size // 78))


def log_events(daemon: Daemon) -> list[str]:
    return [json.loads(line)["event"] for line in daemon.log.read_text().splitlines() if line.startswith("{")]


def test_the_queue_is_one_whichever_worker_has_the_mail(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--workers=3", "--paused") as daemon:
        assert "workers: 3" in daemon.ready
        assert len(workers_of(daemon.process.pid)) == 3
        for number in range(24):
            send(daemon.port, f"r{number}@c.test")
        rows = daemon.queue()
        assert {row["recipients"][0]["address"] for row in rows} == {f"r{n}@c.test" for n in range(24)}
        assert [row["received_at"] for row in rows] == sorted(row["received_at"] for row in rows)
        sessions = {row["received"]["session"].partition("-")[0] for row in rows}
        assert len(sessions) > 1, "the kernel gave everything to one worker"
        assert len(daemon.queue("--limit=5")) == 5
        for row in (rows[0], rows[-1]):
            shown = json.loads(daemon.pillarbox("show", row["uid"], "--json").stdout)
            assert shown["waiting_for"] == "the queue is paused: pillarbox queue resume"
        assert "24 messages held" in daemon.pillarbox("hold", "--all").stdout
        assert "1 message cancelled" in daemon.pillarbox("cancel", rows[3]["uid"]).stdout
        assert len(daemon.queue("--state=held")) == 23
    # The same with nobody running.
    assert len(daemon.queue("--state=held")) == 23
    assert "23 messages released" in daemon.pillarbox("release", "--all").stdout


def test_pause_is_for_all_workers_those_of_later_too(tmp_path: Path) -> None:
    with sink(tmp_path / "sink") as (port, _):
        relay = f"--relay=127.0.0.1:{port}"
        with Daemon(tmp_path, "--workers=2", relay) as daemon:
            daemon.pillarbox("pause")
            for number in range(12):
                send(daemon.port, f"r{number}@c.test")
            assert len(daemon.queue("--state=queued")) == 12
        with Daemon(tmp_path, "--workers=3", relay) as daemon:
            for number in range(12, 24):
                send(daemon.port, f"r{number}@c.test")
            assert len(daemon.queue("--state=queued")) == 24
            daemon.pillarbox("resume")
            wait_until(lambda: not daemon.queue(), 30)
            assert len(daemon.queue("--all", "--state=delivered")) == 24


def test_a_worker_that_dies_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--workers=2", "--paused") as daemon:
        for number in range(10):
            send(daemon.port, f"r{number}@c.test")
        before = workers_of(daemon.process.pid)
        os.kill(before[0], signal.SIGKILL)
        # Whoever connects meanwhile waits in the socket's queue.
        for number in range(10, 30):
            send(daemon.port, f"r{number}@c.test")
        after = wait_until(lambda: len(found := workers_of(daemon.process.pid)) == 2 and found)
        assert before[0] not in after
        assert before[1] in after
        assert {row["recipients"][0]["address"] for row in daemon.queue()} == {f"r{n}@c.test" for n in range(30)}
        assert any("was ended by signal SIGKILL" in event for event in log_events(daemon))


def test_workers_leave_when_their_supervisor_is_gone(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--workers=2", "--paused")
    send(daemon.port, "r@c.test")
    workers = workers_of(daemon.process.pid)
    daemon.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers), 20)
    assert len(daemon.queue()) == 1
    assert daemon.process.stdout is not None
    daemon.process.stdout.close()


def test_fewer_workers_take_over_the_mail_of_the_others(tmp_path: Path) -> None:
    large = 400_000
    with Daemon(tmp_path, "--workers=4", "--paused") as daemon:
        for number in range(40):
            send(daemon.port, f"r{number}@c.test", size=large if number % 4 == 0 else 0)
        uids = {row["uid"] for row in daemon.queue()}
        cancelled = daemon.queue()[7]["uid"]
        daemon.pillarbox("cancel", cancelled)
    assert (daemon.data / "queue-3.db").exists()
    with sink(tmp_path / "sink", "-d", "%M.") as (port, folder):
        with Daemon(tmp_path, "--workers=1", f"--relay=127.0.0.1:{port}") as daemon:
            wait_until(lambda: not list(daemon.data.glob("queue-[1-9].db")), 30)
            assert {row["uid"] for row in daemon.queue("--all")} == uids
            daemon.pillarbox("resume")
            wait_until(lambda: not daemon.queue(), 30)
            states = {row["uid"]: row["state"] for row in daemon.queue("--all")}
            assert states.pop(cancelled) == "cancelled"
            assert set(states.values()) == {"delivered"}
        assert not list(daemon.data.glob("spool*/*"))
        bodies = [path.read_text() for path in folder.iterdir()]
        found = [re.search(r"^X-Rcpt-Args: <(r\d+)@", body, re.M) for body in bodies]
        assert len({match[1] for match in found if match}) == len(bodies) == 39
        assert sum(len(body) > large * 0.9 for body in bodies) == 10


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rolling_restart_refuses_nobody_and_loses_nothing(tmp_path: Path, workers: int) -> None:
    count = 1500 if os.environ.get("CI") else 5000
    with Daemon(tmp_path, f"--workers={workers}", "--paused", "--log-level=info") as daemon:
        pids = [daemon.process.pid] if workers == 1 else workers_of(daemon.process.pid)
        done: list[subprocess.CompletedProcess[bytes]] = []
        source = threading.Thread(
            target=lambda: done.append(smtp_source(daemon.port, count, "-s", "20", "-l", "4096", "-N"))
        )
        source.start()
        wait_until(lambda: len(daemon.queue("--limit=100")) == 100)
        daemon.process.send_signal(signal.SIGUSR2)
        source.join()
        assert done[0].returncode == 0, done[0].stderr
        if workers > 1:
            wait_until(lambda: len(new := workers_of(daemon.process.pid)) == workers and not set(new) & set(pids))
        wait_until(lambda: any("restarting" in event for event in log_events(daemon)))
        assert daemon.process.stdout is not None
        assert "ready on" in daemon.process.stdout.readline()
        addresses = [row["recipients"][0]["address"] for row in daemon.queue()]
        assert len(addresses) == len(set(addresses)) == count
        send(daemon.port, "last@c.test")


def test_a_restart_that_could_not_start_is_not_begun(tmp_path: Path, certificate: dict[str, str]) -> None:
    key = tmp_path / "key.pem"
    key.write_text(Path(certificate["key"]).read_text())
    tls = (f"--tls-cert={certificate['cert']}", f"--tls-key={key}")
    with Daemon(tmp_path, "--workers=2", "--paused", *tls) as daemon:
        pids = workers_of(daemon.process.pid)
        key.write_text("this is no key")
        daemon.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: any("no restart" in event and str(key) in event for event in log_events(daemon)))
        assert workers_of(daemon.process.pid) == pids
        send(daemon.port, "r@c.test")


def test_what_is_in_the_way_at_the_start_is_said_in_one_line(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--workers=2", "--paused") as daemon:
        where = f"--data-dir={daemon.data}"
        second = pillarbox("serve", "--listen=127.0.0.1:0", "--workers=2", where, ok=False)
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1].startswith("pillarbox: a server (pid ")
        taken = pillarbox(
            "serve", f"--listen={daemon.address}", "--workers=2", f"--data-dir={tmp_path / 'other'}", ok=False
        )
        assert taken.returncode == 1
        assert f"cannot listen on {daemon.address}: Address already in use" in taken.stderr
    for wrong in ("0", "x", "-1", "65", ""):
        refused = pillarbox("serve", f"--workers={wrong}", where, ok=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith("pillarbox: --workers: option 'workers': ")
    memory = pillarbox("serve", "--workers=2", "--store=memory", where, ok=False)
    assert memory.returncode == 2
    assert "of one process" in memory.stderr


def test_several_sockets_share_a_port_among_themselves_alone() -> None:
    port = free_port()
    options = parse_options({"listen": [f"127.0.0.1:{port}"]})
    rows = bind_all(options, 3)
    try:
        assert {sock.getsockname() for row in rows for _, sock in row} == {("127.0.0.1", port)}
        rows[0][0][1].listen()
        with pytest.raises(ListenError, match="Address already in use"):
            bind_all(options, 3)
    finally:
        close_all(rows)


def test_many_clients_at_a_worker_that_is_restarted_are_all_answered(tmp_path: Path) -> None:
    """Sessions between greeting and MAIL, and in the middle of content, get their time."""
    with Daemon(tmp_path, "--workers=1", "--paused", "--log-level=info") as daemon:
        clients = [smtplib.SMTP("127.0.0.1", daemon.port) for _ in range(5)]
        for client in clients[:2]:
            client.ehlo()
            assert client.mail("a@b.test")[0] == 250
        daemon.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: any("restarting" in event for event in log_events(daemon)))
        for client in clients[:2]:
            assert client.rcpt("c@d.test")[0] == 250
            assert client.data(CONTENT)[0] == 250
        # Those that say nothing are sent away, with a reason.
        assert clients[4].sock is not None
        clients[4].sock.settimeout(10)
        assert clients[4].getreply()[0] == 421
        begun = time.monotonic()
        send(daemon.port, "r@c.test")
        assert time.monotonic() - begun < 20
        assert len(daemon.queue()) == 3
        for client in clients:
            client.close()


# ---------------------------------------------------------------- what a review found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("pause_s", [0.0, 0.3, 0.8])
def test_sigterm_during_a_restart_ends_it(tmp_path: Path, workers: int, pause_s: float) -> None:
    """Wherever it comes: during the trial, at exec, before the new image has its handlers."""
    with Daemon(tmp_path, f"--workers={workers}", "--paused", "--grace=1") as daemon:
        send(daemon.port, "r@c.test")
        daemon.process.send_signal(signal.SIGUSR2)
        time.sleep(pause_s)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_several_restarts_asked_for_at_once(tmp_path: Path, workers: int) -> None:
    with Daemon(tmp_path, f"--workers={workers}", "--paused", "--grace=1") as daemon:
        for _ in range(12):
            daemon.process.send_signal(signal.SIGUSR2)
            time.sleep(0.15)
        wait_until(lambda: any("restarting" in event for event in log_events(daemon)))
        for number in range(3):
            send(daemon.port, f"r{number}@c.test")
        assert daemon.process.poll() is None
        assert len(daemon.queue()) == 3


def test_sigterm_in_the_middle_of_a_start(tmp_path: Path) -> None:
    """No worker forgets it, and what was half made is in nobody's way."""
    for number in range(4):
        folder = tmp_path / "data"
        command = [sys.executable, "-m", "pillarbox", "serve", "--listen=127.0.0.1:0", f"--data-dir={folder}"]
        child = subprocess.Popen(
            [*command, "--workers=4", "--grace=1", "--admin=off"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(0.5 + 0.12 * number)
        child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        child.communicate(timeout=30)
        assert time.monotonic() - began < 8
    (tmp_path / "data").mkdir(exist_ok=True)
    with sqlite3.connect(tmp_path / "data" / "queue-2.db") as half:
        half.execute("PRAGMA journal_mode = WAL")
    half.close()
    with Daemon(tmp_path, "--workers=4", "--paused") as daemon:
        send(daemon.port, "r@c.test")
        assert len(daemon.queue()) == 1


def test_a_resumed_queue_stays_so_when_a_worker_dies(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--workers=2", "--paused") as daemon:
        daemon.pillarbox("resume")
        [first, second] = workers_of(daemon.process.pid)
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: len(found := workers_of(daemon.process.pid)) == 2 and second not in found)
        wait_until(lambda: json.loads(ask_status(daemon))["running"])
        assert json.loads(ask_status(daemon))["paused"] is False
        daemon.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: first not in workers_of(daemon.process.pid) and len(workers_of(daemon.process.pid)) == 2)
        assert json.loads(ask_status(daemon))["paused"] is False


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_push_nobody_off_a_processor(tmp_path: Path, workers: int) -> None:
    """Where nobody filters system calls. One alone has nothing of it, and the supervisor is there at once."""
    before = os.sched_getscheduler(0)
    filtered = [
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line[:8] == "Seccomp:"
    ]
    is_free = before == os.SCHED_OTHER and filtered in ([], ["0"])
    wanted = os.SCHED_BATCH if workers > 1 and is_free else before
    with Daemon(tmp_path, f"--workers={workers}", "--paused") as daemon:
        assert os.sched_getscheduler(daemon.process.pid) == before
        pids = workers_of(daemon.process.pid) or [daemon.process.pid]
        assert len(pids) == workers
        for pid in pids:
            # The threads of the queue, too.
            threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
            assert len(threads) > 1 and {os.sched_getscheduler(thread) for thread in threads} == {wanted}


def test_what_somebody_else_decided_about_processors_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, policy, param: calls.append(policy))
    status = tmp_path / "status"
    monkeypatch.setattr(giveway, "_STATUS", status)
    assert not giveway.give_way(), "nothing is known"
    status.write_text("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    assert not giveway.give_way(), "whoever tries might be killed"
    status.write_text("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n")
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_IDLE)
    assert not giveway.give_way()
    assert not calls
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_OTHER)
    assert giveway.give_way() and calls == [os.SCHED_BATCH]
    status.write_text("Name:\tx\n")
    assert giveway.give_way(), "a kernel that cannot filter"

    def refuse(pid: int, policy: int, param: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert not giveway.give_way()
    monkeypatch.delattr(os, "SCHED_BATCH")
    assert not giveway.give_way(), "no Linux"


def ask_status(daemon: Daemon) -> str:
    return json.dumps(ask_all(str(daemon.data), {"verb": "status"}))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket_over_restarts(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "s"
    with Daemon(tmp_path, f"--workers={workers}", "--paused", f"--listen=unix:{path}", "--grace=1") as daemon:
        taken = pillarbox("serve", f"--listen=unix:{path}", f"--data-dir={tmp_path / 'other'}", "--admin=off", ok=False)
        assert taken.returncode == 1
        assert "in use" in taken.stderr
        daemon.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: any("restarting" in event for event in log_events(daemon)))
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                assert client.recv(100).startswith(b"220 ")
    assert not path.exists()


def test_after_sigterm_clients_are_refused_at_once(tmp_path: Path) -> None:
    for workers in (1, 2):
        with Daemon(tmp_path / str(workers), f"--workers={workers}", "--paused", "--grace=5") as daemon:
            busy = smtplib.SMTP("127.0.0.1", daemon.port)
            busy.ehlo()
            busy.mail("a@b.test")
            daemon.process.send_signal(signal.SIGTERM)
            wait_until(lambda port=daemon.port: not is_open(port), 3)
            assert busy.rcpt("c@d.test")[0] == 250
            assert busy.data(CONTENT)[0] == 250
            busy.close()


def test_the_queue_is_whole_while_it_is_taken_over(tmp_path: Path) -> None:
    """Whenever it is asked, from before the first batch to after the last."""
    with Daemon(tmp_path, "--workers=3", "--paused") as daemon:
        smtp_source(daemon.port, 1500, "-s", "20", "-l", "500", "-N")
        uids = {row["uid"] for row in daemon.queue()}
        assert len(uids) == 1500
    with Daemon(tmp_path, "--workers=1", "--paused") as daemon:
        for _ in range(5):
            assert {row["uid"] for row in daemon.queue()} == uids
        wait_until(lambda: not list(daemon.data.glob("queue-[1-9].db")))
        assert {row["uid"] for row in daemon.queue()} == uids
        assert not list(daemon.data.glob("queue-[1-9].db"))
