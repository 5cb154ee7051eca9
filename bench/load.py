"""Load for the bench: smtp-source and smtp-sink of Postfix, bounded in count and time; CPU and memory from /proc."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .peers import Peer, tool, wait_for_port
from .talker import IdleSessions, Tls, talk

_TICKS = os.sysconf("SC_CLK_TCK")
LIMIT_S = 180


@dataclass
class Sample:
    """One run: rates in messages per second, CPU in seconds per 1,000 messages, memory in MB (peak, all processes).

    Latencies in milliseconds, from MAIL to the final reply; `notes` are further figures by name.
    """

    rate: float
    cpu_s_per_1000: float
    peak_mb: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    notes: dict[str, float] = field(default_factory=dict)


class Meter:
    """CPU time of a peer's processes between two looks; processes that ended meanwhile count through their parent."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._before = self._cpu()

    def _cpu(self) -> float:
        total = 0.0
        for pid in self._peer.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # utime, stime, and cutime, cstime for children that were waited for
            total += sum(int(fields[i]) for i in (11, 12, 13, 14)) / _TICKS
        return total

    def cpu_s(self) -> float:
        """Seconds since this meter was made."""
        return self._cpu() - self._before

    def peak_mb(self) -> float:
        """The sum of the highest resident memory of each process (shared pages count for each)."""
        total = 0
        for pid in self._peer.pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        return total / 1024


def accept_run(peer: Peer, *, sessions: int, count: int, is_reused: bool, size: int = 4096) -> Sample:
    """How fast the peer takes `count` messages."""
    meter = Meter(peer)
    seconds = _source(peer.port, sessions=sessions, count=count, is_reused=is_reused, size=size)
    return Sample(count / seconds, meter.cpu_s() / count * 1000, meter.peak_mb())


def _source(port: int, *, sessions: int, count: int, is_reused: bool, size: int, recipients: int = 1) -> float:
    command = [
        tool("smtp-source"),
        "-s",
        str(sessions),
        "-m",
        str(count),
        "-l",
        str(size),
        "-f",
        "a@b.test",
        "-t",
        "c@d.test",
    ]
    if is_reused:
        command.append("-d")
    if recipients > 1:
        command += ["-r", str(recipients)]
    began = time.monotonic()
    subprocess.run([*command, f"127.0.0.1:{port}"], check=True, timeout=LIMIT_S, capture_output=True)
    return time.monotonic() - began


class Sink:
    """smtp-sink, counting by the size of its dump: one line per message to a file."""

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Listens."""
        self._log = open(self._folder / "sink.log", "wb")  # noqa: SIM115
        command = [tool("smtp-sink"), "-c", "-u", "nobody", f"127.0.0.1:{self._port}", "1024"]
        if os.geteuid() != 0:
            del command[2:4]
        self._child = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        wait_for_port(self._port)

    def count(self) -> int:
        """Messages so far: smtp-sink -c writes a running counter."""
        text = (self._folder / "sink.log").read_bytes()
        for part in reversed(text.split(b"\r")):
            for word in part.split():
                if word.startswith(b"mesg="):
                    return int(word[5:])
        return 0

    def stop(self) -> None:
        """Ends it."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
            self._log.close()


def relay_run(peer: Peer, sink: Sink, *, sessions: int, count: int, is_reused: bool, recipients: int = 1) -> Sample:
    """How fast `count` messages go through the peer to the sink, to the last one; more than that is a fault."""
    meter = Meter(peer)
    before = sink.count()
    began = time.monotonic()
    _source(peer.port, sessions=sessions, count=count, is_reused=is_reused, size=4096, recipients=recipients)
    _until(peer, sink, before + count, began)
    seconds = time.monotonic() - began
    time.sleep(0.5)
    if sink.count() != before + count:
        raise RuntimeError(f"{peer.name}: {sink.count() - before} messages came through, {count} were sent")
    return Sample(count / seconds, meter.cpu_s() / count * 1000, meter.peak_mb())


def _until(peer: Peer, sink: Sink, wanted: int, began: float) -> None:
    while sink.count() < wanted:
        if time.monotonic() - began > LIMIT_S:
            raise TimeoutError(f"{peer.name}: {wanted - sink.count()} messages did not come through")
        time.sleep(0.01)


def latency_run(peer: Peer, *, sessions: int, count: int, is_reused: bool) -> Sample:
    """How long a transaction takes, from MAIL to the reply to its content."""
    meter = Meter(peer)
    began = time.monotonic()
    times = talk(peer.port, sessions=sessions, count=count, is_reused=is_reused)
    seconds = time.monotonic() - began
    p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    return Sample(count / seconds, meter.cpu_s() / count * 1000, meter.peak_mb(), p50, p99)


def tls_run(peer: Peer, *, sessions: int, count: int, is_reused: bool, resumes: bool) -> Sample:
    """As latency_run, with STARTTLS at the beginning of each connection."""
    meter, tls = Meter(peer), Tls(resumes)
    began = time.monotonic()
    times = talk(peer.port, sessions=sessions, count=count, is_reused=is_reused, tls=tls)
    seconds = time.monotonic() - began
    p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    sample = Sample(count / seconds, meter.cpu_s() / count * 1000, meter.peak_mb(), p50, p99)
    sample.notes = {"handshakes": tls.handshakes, "of those resumed": tls.resumed}
    return sample


def _resident_kb(peer: Peer) -> float:
    total = 0
    for pid in peer.pids():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("VmRSS:") else 0
    return total


def idle_run(peer: Peer, *, sessions: int, count: int, idle: int = 5000) -> Sample:
    """The rate beside `idle` sessions that have said EHLO and are silent, and what each of them weighs."""
    alone = accept_run(peer, sessions=sessions, count=count, is_reused=False)
    before = _resident_kb(peer)
    with IdleSessions(peer.port, idle):
        after = _resident_kb(peer)
        sample = accept_run(peer, sessions=sessions, count=count, is_reused=False)
    sample.notes = {"KB per idle session": (after - before) / idle, "rate without them": alone.rate}
    return sample
