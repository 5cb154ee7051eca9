"""Further peers of the bench: Exim, OpenSMTPD and Haraka, as `tools/install-bench-peers.sh` has fetched them.

Each takes mail for anybody from loopback, asks no DNS, and keeps its mail or hands it to the one port it is told.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .peers import SINK_PORT, Peer, Process, children_of, wait_for_port

_PEERS = Path(__file__).parent.parent / ".peers"
_DEBIAN = _PEERS / "debian" / "usr" / "sbin"
_HARAKA = _PEERS / "haraka" / "node_modules" / "Haraka" / "bin" / "haraka"
# Where Debian's OpenSMTPD keeps its queue; the path is compiled in.
_SMTPD_SPOOL = Path("/var/spool/smtpd")
# A file in it, when it was made here.
_OURS = ".pillarbox-bench"
_SMTPD_EMPTY = Path("/var/lib/opensmtpd/empty")

_EXIM = """primary_hostname = bench.test
exim_path = {program}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
pid_file_path = {folder}/pid
host_lookup =
rfc1413_query_timeout = 0s
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
smtp_accept_max_per_connection = 0
smtp_accept_max_nonmail = 0
smtp_connect_backlog = 1024
message_size_limit = 0
remote_max_parallel = 20
queue_only = {keeps}
tls_advertise_hosts =
acl_smtp_mail = accept
acl_smtp_rcpt = accept
acl_smtp_data = accept
begin acl
begin routers
all:
  driver = manualroute
  domains = *
  transport = remote
  route_list = * 127.0.0.1::{sink} byname
  self = send
begin transports
remote:
  driver = smtp
begin retry
* * F,2h,15m
"""

_HARAKA_PLUGIN = """exports.register = function () {
  this.register_hook('lookup_rdns', 'no_name')
  this.register_hook('connect', 'trust')
  this.register_hook('mail', 'yes')
  this.register_hook('rcpt', 'yes')
  this.register_hook('get_mx', 'sink')
}
exports.no_name = (next) => next(OK, 'localhost')
exports.trust = (next, connection) => { connection.relaying = true; next() }
exports.yes = (next) => next(OK)
exports.sink = (next) => next(OK, { exchange: '127.0.0.1', port: %d, priority: 0 })
"""


class _Other:
    """One process of ours with children of its own."""

    name = ""
    promise = ""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process = Process()

    def pids(self) -> list[int]:
        """See Peer."""
        return children_of(self._process.child.pid) if self._process.child else []

    def stop(self) -> None:
        """See Peer."""
        everyone = self.pids()
        self._process.end()
        deadline = time.monotonic() + 10
        while any(_lives(pid) for pid in everyone) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in everyone:
            if _lives(pid):
                os.kill(pid, 9)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Exim(_Other):
    """Exim 4: a process for each connection, three fsyncs a message."""

    name = "exim"
    promise = "fsync'd (files of header and content, and a journal)"

    def __init__(self) -> None:
        super().__init__(2611)

    @staticmethod
    def is_there() -> bool:
        """True when it can be started here."""
        return os.geteuid() == 0 and (_DEBIAN / "exim4").exists()

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        for one in ("spool", "log"):
            (folder / one).mkdir()
            shutil.chown(folder / one, "Debian-exim", "Debian-exim")
        keeps = "true" if relay_to is None else "false"
        config = folder / "exim.conf"
        config.write_text(
            _EXIM.format(
                program=_DEBIAN / "exim4", folder=folder, port=self.port, keeps=keeps, sink=relay_to or SINK_PORT
            )
        )
        self._process.run([str(_DEBIAN / "exim4"), "-C", str(config), "-bdf"], folder, "exim.log")
        wait_for_port(self.port)


class OpenSmtpd(_Other):
    """OpenSMTPD: several processes behind one that listens; no fsync. New connections stall it, so it is given reused ones."""

    name = "opensmtpd"
    promise = "written, not fsync'd"

    def __init__(self) -> None:
        super().__init__(2612)

    @staticmethod
    def is_there() -> bool:
        """True when it can be started here, and the machine has no OpenSMTPD of its own, running or left behind.

        Its queue and its control socket would be the same: what is there and not ours is somebody's mail.
        """
        others = (_SMTPD_SPOOL, Path("/var/run/smtpd.sock"), Path("/usr/sbin/smtpd"), Path("/usr/local/sbin/smtpd"))
        is_free = (_SMTPD_SPOOL / _OURS).exists() or not any(one.exists() for one in others)
        return os.geteuid() == 0 and (_DEBIAN / "smtpd").exists() and is_free

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        self._remove_queue()
        for one, mode in ((_SMTPD_SPOOL, 0o711), (_SMTPD_EMPTY, 0o755)):
            one.mkdir(parents=True, exist_ok=True)
            one.chmod(mode)
        (_SMTPD_SPOOL / _OURS).touch()
        config = folder / "smtpd.conf"
        config.write_text(
            f"smtp limit max-mails 1000000\nsmtp max-message-size 40M\nlisten on 127.0.0.1 port {self.port} hostname bench.test\n"
            f'action "out" relay host "smtp://127.0.0.1:{relay_to or SINK_PORT}"\nmatch from any for any action "out"\n'
        )
        self._process.run([str(_DEBIAN / "smtpd"), "-d", "-f", str(config)], folder, "smtpd.log")
        wait_for_port(self.port)
        if relay_to is None:
            subprocess.run([str(_DEBIAN / "smtpctl"), "pause", "mta"], check=True, capture_output=True)

    def stop(self) -> None:
        """See Peer."""
        super().stop()
        self._remove_queue()

    @staticmethod
    def _remove_queue() -> None:
        """The queue, if this bench made it."""
        if (_SMTPD_SPOOL / _OURS).exists():
            shutil.rmtree(_SMTPD_SPOOL)
        elif _SMTPD_SPOOL.exists():
            raise FileExistsError(f"{_SMTPD_SPOOL} is not this bench's: OpenSMTPD is left out")


class Haraka(_Other):
    """Haraka with two processes, which keeps mail in its outbound queue."""

    name = "haraka"
    promise = "fsync'd (queue file)"

    def __init__(self) -> None:
        super().__init__(2613)

    @staticmethod
    def is_there() -> bool:
        """True when it was fetched, and Node is there."""
        return _HARAKA.exists() and shutil.which("node") is not None

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        """See Peer."""
        home = folder / "haraka"
        subprocess.run(["node", str(_HARAKA), "-i", str(home)], check=True, capture_output=True)
        files = {
            "smtp.ini": f"listen=127.0.0.1:{self.port}\nnodes=2\n",
            "plugins": "bench\n",
            "me": "bench.test\n",
            "loglevel": "ERROR\n",
            "host_list": "bench.test\n",
            "outbound.ini": f"disabled={'true' if relay_to is None else 'false'}\nconcurrency_max=40\nlocal_mx_ok=true\n",
        }
        for name, text in files.items():
            (home / "config" / name).write_text(text)
        (home / "plugins").mkdir(exist_ok=True)
        (home / "plugins" / "bench.js").write_text(_HARAKA_PLUGIN % (relay_to or SINK_PORT))
        self._process.run(["node", str(_HARAKA), "-c", str(home)], folder, "haraka.log")
        wait_for_port(self.port)
        # Both of its processes want to be up.
        deadline = time.monotonic() + 10
        while len(self.pids()) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.recv(512)


def all_there() -> tuple[Callable[[], Peer], ...]:
    """Those that can be started on this machine."""
    found: list[Callable[[], Peer]] = []
    if Exim.is_there():
        found.append(Exim)
    if OpenSmtpd.is_there():
        found.append(OpenSmtpd)
    if Haraka.is_there():
        found.append(Haraka)
    return tuple(found)
