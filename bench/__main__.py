"""`make bench`: Pillarbox beside Postfix and aiosmtpd, alternating, in one run; a table of medians and ratios, and JSON.

Every server listens on loopback, keeps its mail in a scratch folder, and is ended by its pid. Loads are bounded in count
and time. `--rounds N` and `--quick` make it longer or shorter, `--only WORD` picks workloads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .load import Sample, Sink, accept_run, relay_run
from .peers import SINK_PORT, Aiosmtpd, Peer, Pillarbox, Postfix, WithPlugin

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Workload:
    """A row of the table. `count` messages a run, for the slow peer `slow_count`. `is_own`: Pillarbox beside itself."""

    name: str
    sessions: int
    is_reused: bool
    is_relay: bool
    count: int
    slow_count: int
    is_own: bool = False


WORKLOADS = [
    *(
        Workload(
            f"accept, {s} session{'s' * (s > 1)}, {'reused' if reused else 'new'} connections",
            s,
            reused,
            False,
            n,
            n // 4,
        )
        for s, n in ((1, 1000), (20, 4000), (100, 4000))
        for reused in (False, True)
    ),
    *(
        Workload(f"relay-through, 20 sessions, {'reused' if reused else 'new'} connections", 20, reused, True, 3000, 0)
        for reused in (False, True)
    ),
    Workload("plugins on every event, 20 sessions, reused connections", 20, True, False, 8000, 0, is_own=True),
]


def peers(workload: Workload | None = None) -> list[Callable[[], Peer]]:
    """Fresh peers; Postfix wants root for its own users."""
    if workload is not None and workload.is_own:
        return [Pillarbox, lambda: WithPlugin("sync"), lambda: WithPlugin("async")]
    found: list[Callable[[], Peer]] = [Pillarbox, Aiosmtpd]
    if os.geteuid() == 0:
        found.insert(0, Postfix)
    else:
        print("Postfix is left out: it can only be started by root")
    return found


def run_one(make: Callable[[], Peer], workload: Workload, scratch: Path) -> Sample:
    """One peer, one workload, once."""
    peer = make()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o755)
    count = workload.slow_count if isinstance(peer, Aiosmtpd) else workload.count
    sink = Sink(SINK_PORT, folder) if workload.is_relay else None
    if sink is not None:
        sink.start()
    try:
        peer.start(folder, relay_to=SINK_PORT if workload.is_relay else None)
        if sink is not None:
            return relay_run(peer, sink, sessions=workload.sessions, count=count, is_reused=workload.is_reused)
        return accept_run(peer, sessions=workload.sessions, count=count, is_reused=workload.is_reused)
    finally:
        peer.stop()
        if sink is not None:
            sink.stop()
        shutil.rmtree(folder, ignore_errors=True)


def median(samples: list[Sample], name: str) -> float:
    """Of one figure."""
    return float(statistics.median(getattr(sample, name) for sample in samples))


def measure(rounds: int, workloads: list[Workload]) -> dict[str, dict[str, list[Sample]]]:
    """workload -> peer -> samples; within a round the peers alternate."""
    found: dict[str, dict[str, list[Sample]]] = {}
    scratch = Path(tempfile.mkdtemp(prefix="pillarbox-bench-"))
    scratch.chmod(0o755)
    try:
        for number in range(rounds):
            for workload in workloads:
                for make in peers(workload):
                    name = make().name
                    if workload.is_relay and make is Aiosmtpd:
                        continue
                    sample = run_one(make, workload, scratch)
                    found.setdefault(workload.name, {}).setdefault(name, []).append(sample)
                    print(
                        f"round {number + 1}/{rounds}  {workload.name:48} {name:16} {sample.rate:8.0f} msg/s",
                        flush=True,
                    )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def table(found: dict[str, dict[str, list[Sample]]]) -> str:
    """Medians, and the ratio to Postfix (where there is none, to Pillarbox without a plugin)."""
    lines = ["", f"{'4 KB messages':56} {'peer':16} {'msg/s':>8} {'ratio':>7} {'CPU s/1000':>11} {'peak MB':>8}"]
    for workload, by_peer in found.items():
        first = "postfix" if "postfix" in by_peer else "pillarbox"
        base = median(by_peer[first], "rate") if first in by_peer else None
        for name, samples in by_peer.items():
            rate = median(samples, "rate")
            ratio = f"{rate / base:.2f}x" if base else "-"
            cpu, peak = median(samples, "cpu_s_per_1000"), median(samples, "peak_mb")
            lines.append(f"{workload:56} {name:16} {rate:8.0f} {ratio:>7} {cpu:11.2f} {peak:8.0f}")
    lines += ["", "What a peer promises when it says 250:"]
    lines += [f"  {peer.name:16} {peer.promise}" for peer in (make() for make in peers())]
    return "\n".join(lines)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, 20 sessions only")
    parser.add_argument("--only", default="", help="workloads whose name has this word")
    given = parser.parse_args()
    workloads = [w for w in WORKLOADS if given.only in w.name and (not given.quick or w.sessions == 20)]
    began = time.time()
    found = measure(1 if given.quick else given.rounds, workloads)
    print(table(found))
    RESULTS.mkdir(exist_ok=True)
    report: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "python": sys.version.split()[0],
        "machine": {"processors": os.cpu_count(), "system": platform.platform()},
        "samples": {w: {p: [asdict(s) for s in samples] for p, samples in by.items()} for w, by in found.items()},
    }
    path = RESULTS / "bench.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
