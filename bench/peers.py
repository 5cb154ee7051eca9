"""Peers of the bench: each a server on loopback in a scratch folder, started and stopped here, with what it promises at 250."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trustme

SINK_PORT = 2610


class Peer(Protocol):
    """A server under test. `port` takes mail; `promise` says what its 250 means."""

    name: str
    promise: str
    port: int

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """Starts it with an empty queue; with `relay_to` it passes everything on to that port, else it only keeps."""

    def stop(self) -> None:
        """Ends it."""

    def pids(self) -> list[int]:
        """All its processes now."""


def wait_for_port(port: int, seconds: float = 20.0) -> None:
    """Returns when something greets on that port; TimeoutError if nothing does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as sock:
                if sock.recv(4).startswith(b"220"):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"nothing greets on port {port}")


def wait_for_word(path: Path, word: bytes, seconds: float = 20.0) -> None:
    """Returns when it stands in the file; TimeoutError if it does not."""
    deadline = time.monotonic() + seconds
    while word not in path.read_bytes():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not say {word.decode()!r}: {path.read_text(errors='replace')[-500:]}")
        time.sleep(0.02)


def tool(name: str) -> str:
    """A program's path; Debian keeps Postfix's tools in sbin."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/lib/postfix/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} is missing: install postfix (as root, `make bench` does)")
    return found


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate (P-256) and its key, as PEM files."""
    made = trustme.CA().issue_cert("bench.test")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return cert, key


def children_of(pid: int) -> list[int]:
    """The process and all below it."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                text = Path(f"/proc/{one}/task/{task}/children").read_text()
                todo += [int(word) for word in text.split()]
        except OSError:
            continue
    return found


@dataclass
class Process:
    """A child of ours that is ended by its pid."""

    child: subprocess.Popen[bytes] | None = None

    def run(self, arguments: list[str], folder: Path, log: str) -> None:
        """Starts it."""
        with open(folder / log, "wb") as file:
            self.child = subprocess.Popen(arguments, stdout=file, stderr=file, cwd=folder)

    def end(self) -> None:
        """SIGTERM, then waits."""
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
            self.child = None


class Pillarbox:
    """This project, as `pillarbox serve` runs it."""

    promise = "fsync'd (SQLite WAL, synchronous=FULL; its journal, RWF_DSYNC)"

    def __init__(
        self, name: str = "pillarbox", port: int = 2601, extra: tuple[str, ...] = (), *, has_tls: bool = False
    ) -> None:
        self.name = name
        self.port = port
        self._extra = extra
        self._has_tls = has_tls
        self._program = ["-m", "pillarbox"]
        self._process = Process()

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        where = [f"--relay=127.0.0.1:{relay_to}"] if relay_to else ["--paused"]
        command = [
            sys.executable,
            *self._program,
            "serve",
            f"--listen=127.0.0.1:{self.port}",
            "--hostname=bench.test",
        ]
        options = [f"--data-dir={folder / 'data'}", "--grace=5", "--max-sessions=20000"]
        if self._has_tls:
            cert, key = make_certificate(folder)
            options += [f"--tls-cert={cert}", f"--tls-key={key}"]
        self._process.run([*command, *options, *where, *self._extra], folder, "pillarbox.log")
        wait_for_port(self.port)
        # One worker greets while another is still being started: its part of the load would wait for that.
        wait_for_word(folder / "pillarbox.log", b"ready on")

    def stop(self) -> None:
        """See Peer."""
        self._process.end()

    def pids(self) -> list[int]:
        """See Peer."""
        return children_of(self._process.child.pid) if self._process.child else []


class WithoutSlots(Pillarbox):
    """The same with the places cut out where plugins might stand: what an empty pipeline costs."""

    def __init__(self) -> None:
        super().__init__("pillarbox-slots", 2608)
        self._program = [str(Path(__file__).with_name("bare_server.py"))]


class Watched(Pillarbox):
    """The same with somebody who looks: /metrics once a second, and an open event stream; their own time is not counted."""

    def __init__(self) -> None:
        super().__init__("pillarbox+watched", 2609, ("--admin=127.0.0.1:2619",))
        self._watcher = Process()

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        super().start(folder, relay_to=relay_to)
        self._watcher.run(
            [sys.executable, "-m", "bench.watcher", str(folder / "data")], Path.cwd(), str(folder / "watcher.log")
        )
        time.sleep(0.5)

    def stop(self) -> None:
        """See Peer."""
        self._watcher.end()
        super().stop()


class WithPlugin(Pillarbox):
    """The same with one plugin on every event, plain ("sync") or "async"."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"pillarbox+{kind}", 2604 if kind == "sync" else 2614)
        self._kind = kind

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        script = str(Path(__file__).with_name("plugin_server.py"))
        data = str(folder / "data")
        self._process.run([sys.executable, script, self._kind, str(self.port), data], folder, "plugin.log")
        wait_for_port(self.port)


class Postfix:
    """Postfix with its defaults, but: loopback only, no chroot, no look-ups of peers; kept mail goes on hold."""

    promise = "fsync'd (queue file)"

    def __init__(
        self, name: str = "postfix", port: int = 2602, *, is_tuned: bool = False, has_tls: bool = False
    ) -> None:
        self.name = name
        self.port = port
        self._is_tuned = is_tuned
        self._has_tls = has_tls
        self._config = Path()
        self._queue = Path()

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        self._config, self._queue = folder / "config", folder / "queue"
        data = folder / "lib"
        for one in (self._config, self._queue, data):
            one.mkdir(parents=True)
        # Postfix's own users must be able to walk to the queue.
        for one in (folder, *folder.parents[:3]):
            if one not in (Path("/"), Path("/tmp")):
                one.chmod(0o755)
        shutil.chown(data, "postfix")
        shutil.copy("/etc/postfix/postfix-files", self._config)
        if Path("/etc/postfix/dynamicmaps.cf").exists():
            shutil.copy("/etc/postfix/dynamicmaps.cf", self._config)
        text = self._main(data, relay_to)
        if self._has_tls:
            cert, key = make_certificate(folder)
            text += f"smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {cert}\nsmtpd_tls_key_file = {key}\n"
        (self._config / "main.cf").write_text(text)
        (self._config / "master.cf").write_text(self._master())
        subprocess.run([tool("postfix"), "-c", str(self._config), "start"], check=True, capture_output=True)
        wait_for_port(self.port)

    def _main(self, data: Path, relay_to: int | None) -> str:
        lines = [
            "compatibility_level = 3.6",
            f"queue_directory = {self._queue}",
            f"data_directory = {data}",
            "myhostname = bench.test",
            "mydestination =",
            # Beside our own log: in a file, at the level that is shipped.
            f"maillog_file = {self._queue.parent / 'maillog'}",
            f"maillog_file_prefixes = {self._queue.parent}",
            "mynetworks = 127.0.0.0/8",
            "inet_interfaces = 127.0.0.1",
            "inet_protocols = ipv4",
            "smtpd_peername_lookup = no",
            "disable_dns_lookups = yes",
            "smtp_dns_support_level = disabled",
            "local_recipient_maps =",
            "alias_maps =",
            "alias_database =",
            "default_process_limit = 200",
            "smtpd_client_connection_count_limit = 0",
            "message_size_limit = 0",
            "queue_minfree = 0",
            f"relayhost = [127.0.0.1]:{relay_to or SINK_PORT}",
        ]
        if self._is_tuned:
            # No pause for the queue manager, longer lives of processes, more connections out.
            lines += [
                "in_flow_delay = 0s",
                "max_use = 100000",
                "smtpd_client_event_limit_exceptions = 127.0.0.0/8",
                "qmgr_message_active_limit = 40000",
                "default_destination_concurrency_limit = 40",
                "initial_destination_concurrency = 20",
            ]
        if relay_to is None:
            lines.append("smtpd_recipient_restrictions = check_client_access static:HOLD")
        return "\n".join(lines) + "\n"

    def _master(self) -> str:
        rows = [
            (f"127.0.0.1:{self.port}", "inet", "n", "smtpd"),
            ("pickup", "unix", "n", "pickup"),
            ("cleanup", "unix", "n", "cleanup"),
            ("qmgr", "unix", "n", "qmgr"),
            ("rewrite", "unix", "-", "trivial-rewrite"),
            ("bounce", "unix", "-", "bounce"),
            ("defer", "unix", "-", "bounce"),
            ("trace", "unix", "-", "bounce"),
            ("verify", "unix", "-", "verify"),
            ("flush", "unix", "n", "flush"),
            ("proxymap", "unix", "-", "proxymap"),
            ("smtp", "unix", "-", "smtp"),
            ("relay", "unix", "-", "smtp"),
            ("error", "unix", "-", "error"),
            ("retry", "unix", "-", "error"),
            ("discard", "unix", "-", "discard"),
            ("anvil", "unix", "-", "anvil"),
            ("scache", "unix", "-", "scache"),
            # Writes `maillog_file`.
            ("postlog", "unix-dgram", "n", "postlogd"),
            # Keeps the keys of session tickets.
            ("tlsmgr", "unix", "-", "tlsmgr"),
        ]
        limits = {
            "pickup": ("60", "1"),
            "cleanup": ("-", "0"),
            "qmgr": ("300", "1"),
            "anvil": ("-", "1"),
            "scache": ("-", "1"),
            "tlsmgr": ("1000?", "1"),
            "postlog": ("-", "1"),
        }
        limits |= {
            "verify": ("-", "1"),
            "flush": ("1000?", "0"),
            "bounce": ("-", "0"),
            "defer": ("-", "0"),
            "trace": ("-", "0"),
        }
        lines = []
        for name, kind, private, command in rows:
            wake, most = limits.get(name, ("-", "-"))
            lines.append(f"{name} {kind} {private if kind != 'inet' else 'n'} - n {wake} {most} {command}")
        return "\n".join(lines) + "\n"

    def stop(self) -> None:
        """See Peer."""
        subprocess.run([tool("postfix"), "-c", str(self._config), "stop"], check=False, capture_output=True)
        deadline = time.monotonic() + 20
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.1)

    def pids(self) -> list[int]:
        """See Peer."""
        try:
            return children_of(int((self._queue / "pid" / "master.pid").read_text().strip()))
        except (OSError, ValueError):
            return []


class SinkPeer:
    """Postfix's smtp-sink, written in C: the ceiling, for it stores nothing."""

    promise = "nothing: it throws the message away"

    def __init__(self, name: str = "smtp-sink", port: int = 2606) -> None:
        self.name = name
        self.port = port
        self._process = Process()

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer; it cannot relay."""
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process.run([tool("smtp-sink"), *user, f"127.0.0.1:{self.port}", "1024"], folder, "sink.log")
        wait_for_port(self.port)

    def stop(self) -> None:
        """See Peer."""
        self._process.end()

    def pids(self) -> list[int]:
        """See Peer."""
        return children_of(self._process.child.pid) if self._process.child else []


class Aiosmtpd:
    """What a Python user has today: aiosmtpd, each message stored in a file with fsync."""

    promise = "fsync'd (a file a message, and its folder)"

    def __init__(self, name: str = "aiosmtpd+fsync", port: int = 2603) -> None:
        self.name = name
        self.port = port
        self._process = Process()

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer; it cannot relay."""
        (folder / "mail").mkdir()
        script = str(Path(__file__).with_name("aiosmtpd_server.py"))
        self._process.run([sys.executable, script, str(self.port), str(folder / "mail")], folder, "aiosmtpd.log")
        wait_for_port(self.port)

    def stop(self) -> None:
        """See Peer."""
        self._process.end()

    def pids(self) -> list[int]:
        """See Peer."""
        return children_of(self._process.child.pid) if self._process.child else []
