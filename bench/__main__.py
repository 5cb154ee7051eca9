"""`make bench`: Pillarbox beside Postfix and others, alternating, in one run; a table of medians and ratios, and JSON.

Every server listens on loopback, keeps its mail in a scratch folder, and is ended by its pid. Loads are bounded in count
and time. `--rounds N` and `--quick` make it longer or shorter, `--only WORD` picks workloads and `--peers NAMES` peers,
`--page` makes docs/benchmarks.md of what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .load import Meter, Sample, Sink, accept_run, idle_run, latency_run, relay_run, tls_run
from .million import million_run
from .others import Exim, Haraka
from .peers import SINK_PORT, Aiosmtpd, Peer, Postfix
from .report import table, write_page
from .talker import allow_many_files
from .workloads import WORKLOADS, Make, Workload, quick

# Given a quarter of the messages.
SLOW = (Aiosmtpd, Exim, Haraka)
# So many times a server is started that is compared closely, and so many pieces of the load it has each time.
LIVES = 4
TURNS = 4
RESULTS = Path(__file__).parent / "results"


def peers(workload: Workload) -> list[Make]:
    """Those that can take part: Postfix wants root for its own users."""
    return [make for make in workload.peers if os.geteuid() == 0 or not isinstance(make(), Postfix)]


def run_one(make: Make, workload: Workload, scratch: Path) -> Sample:
    """One peer, one workload, once."""
    peer = make()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o755)
    try:
        if workload.kind == "million":
            return million_run(folder, workload.sessions, workload.count)
        return _run(peer, workload, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_in_turns(makes: list[Make], workload: Workload, scratch: Path) -> dict[str, Sample]:
    """All peers at once, one after the other with a piece of the load: what a few percent are lies within a machine's moods.

    And within those of a process: the very same server, started twice, takes 3 or 4 % more time for a message here than
    there. So each of them lives several times, in one order and in the other.
    """
    piece = workload.count // (LIVES * TURNS)
    lives: dict[str, list[Life]] = {}
    for life in range(LIVES):
        folder = Path(tempfile.mkdtemp(dir=scratch))
        folder.chmod(0o755)
        try:
            _live(makes[:: -1 if life % 2 else 1], replace(workload, count=piece), folder, lives)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for name, all_ in lives.items():
        seconds, cpu, peak = zip(*all_, strict=True)
        sent = piece * TURNS * LIVES
        found[name] = Sample(sent / sum(seconds), sum(cpu) / sent * 1000, max(peak))
    return found


# Seconds of load, seconds of processor time, MB at most.
Life = tuple[float, float, float]


def _live(makes: list[Make], workload: Workload, folder: Path, lives: dict[str, list[Life]]) -> None:
    """One life of each peer; `workload` is that of one piece."""
    standing: list[Peer] = []
    try:
        for make in makes:
            peer = make()
            where = folder / peer.name
            where.mkdir(mode=0o755)
            standing.append(peer)
            peer.start(where, relay_to=None)
        meters = {peer.name: Meter(peer) for peer in standing}
        seconds = dict.fromkeys(meters, 0.0)
        for _ in range(TURNS):
            # Always in this order: whoever had two pieces running would be warm for the second.
            for peer in standing:
                sessions, count = workload.sessions, workload.count
                run = accept_run(peer, sessions=sessions, count=count, is_reused=workload.is_reused, size=workload.size)
                seconds[peer.name] += count / run.rate
        for name, meter in meters.items():
            lives.setdefault(name, []).append((seconds[name], meter.cpu_s(), meter.peak_mb()))
    finally:
        for peer in standing:
            peer.stop()


def _run(peer: Peer, workload: Workload, folder: Path) -> Sample:
    count = workload.count // 4 if isinstance(peer, SLOW) else workload.count
    sessions, is_reused = workload.sessions, workload.is_reused
    sink = Sink(SINK_PORT, folder) if workload.kind in ("relay", "fanout") else None
    if sink is not None:
        sink.start()
    try:
        peer.start(folder, relay_to=SINK_PORT if sink is not None else None)
        if sink is not None:
            recipients = 50 if workload.kind == "fanout" else 1
            return relay_run(peer, sink, sessions=sessions, count=count, is_reused=is_reused, recipients=recipients)
        if workload.kind == "latency":
            return latency_run(peer, sessions=sessions, count=count, is_reused=is_reused)
        if workload.kind.startswith("tls"):
            resumes = workload.kind == "tls-resumed"
            return tls_run(peer, sessions=sessions, count=count, is_reused=is_reused, resumes=resumes)
        if workload.kind == "idle":
            return idle_run(peer, sessions=sessions, count=count)
        return accept_run(peer, sessions=sessions, count=count, is_reused=is_reused, size=workload.size)
    finally:
        peer.stop()
        if sink is not None:
            sink.stop()


Found = dict[str, dict[str, list[Sample]]]


def measure(rounds: int, workloads: list[Workload], keep: Callable[[int, Found], None]) -> Found:
    """workload -> peer -> samples; within a round the peers alternate. `keep` gets what there is after each round."""
    found: Found = {}
    scratch = Path(tempfile.mkdtemp(prefix="pillarbox-bench-"))
    scratch.chmod(0o755)
    try:
        for number in range(rounds):
            for workload in workloads:
                here = f"round {number + 1}/{rounds}  {workload.name:58}"
                if workload.kind == "turns":
                    for name, sample in run_in_turns(peers(workload), workload, scratch).items():
                        found.setdefault(workload.name, {}).setdefault(name, []).append(sample)
                        print(f"{here} {name:16} {sample.rate:8.0f} msg/s", flush=True)
                    continue
                for make in peers(workload):
                    name = make().name
                    head = f"{here} {name:16}"
                    try:
                        sample = run_one(make, workload, scratch)
                    except (OSError, RuntimeError, LookupError, subprocess.SubprocessError) as error:
                        if name.startswith(("pillarbox", "postfix")):
                            raise
                        # Another server's trouble with this machine is no reason to measure nothing.
                        print(f"{head} left out: {error}", flush=True)
                        continue
                    found.setdefault(workload.name, {}).setdefault(name, []).append(sample)
                    print(f"{head} {sample.rate:8.0f} msg/s", flush=True)
            keep(number + 1, found)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _system() -> str:
    release = ".".join(platform.release().split(".")[:2])
    return f"{platform.system()} {release}, {platform.machine()}"


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of what says most, under two minutes")
    parser.add_argument("--only", default="", help="workloads whose name has this word, or one of several: a|b")
    parser.add_argument("--peers", default="", help="only these peers, by name: postfix|pillarbox")
    parser.add_argument("--page", action="store_true", help="make docs/benchmarks.md of this run")
    given = parser.parse_args()
    words = given.only.split("|")
    workloads = [w for w in (quick() if given.quick else WORKLOADS) if any(word in w.name for word in words)]
    if given.peers:
        named = given.peers.split("|")
        workloads = [replace(w, peers=tuple(make for make in w.peers if make().name in named)) for w in workloads]
    if not workloads:
        sys.exit(f"no workload has {given.only!r} in its name: " + "; ".join(w.name for w in WORKLOADS))
    if os.geteuid() != 0:
        print("Postfix is left out: it can only be started by root")
    # Whoever ends the bench ends the servers with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    allow_many_files()
    began = time.time()
    rounds = 1 if given.quick else given.rounds
    path = RESULTS / "bench.json"
    report: dict[str, Any] = {}

    def keep(done: int, found: Found) -> None:
        """Who ends the bench early has the rounds that are done."""
        report.update(
            {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
                "seconds": round(time.time() - began),
                "rounds": done,
                "python": sys.version.split()[0],
                "machine": {"processors": os.cpu_count(), "system": _system()},
                "promises": {p.name: p.promise for w in workloads for p in (make() for make in peers(w))},
                "samples": {w: {p: [asdict(s) for s in all_] for p, all_ in by.items()} for w, by in found.items()},
            }
        )
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        if given.page:
            write_page(report)

    measure(rounds, workloads, keep)
    print(table(report))
    print(f"\nwritten to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
