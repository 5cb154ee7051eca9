"""The queue on PostgreSQL, measured: beside SQLite in the same run, over one, two and three nodes, and as it grows.

`python -m bench.shared` needs a PostgreSQL (tools/install-test-programs.sh); it makes a cluster of its own, with fsync.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from pillarbox.queue.model import Settled, Settlement
from pillarbox.queue.postgres import PostgresStore
from tests.conftest import tool
from tests.daemon import Daemon
from tests.postgres import Postgres

WORKLOADS = {
    "20 sessions, new": ("-s", "20"),
    "20 sessions, reused": ("-s", "20", "-d"),
    "100 sessions, reused": ("-s", "100", "-d"),
}
KINDS = {"SQLite": 1, "1 node": 1, "2 nodes": 2, "3 nodes": 3}
CLAIM = 200


def load(ports: list[int], count: int, *arguments: str) -> float:
    """Messages a second that smtp-source brings in, one for each port, at once."""
    command = [
        tool("smtp-source"),
        "-l",
        "4096",
        "-f",
        "a@b.test",
        "-t",
        "c@d.test",
        "-m",
        str(count // len(ports)),
        *arguments,
    ]
    began = time.monotonic()
    sources = [subprocess.Popen([*command, f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL) for port in ports]
    codes = [source.wait(300) for source in sources]
    assert not any(codes), codes
    return count / (time.monotonic() - began)


def accept(server: Postgres, folder: Path, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Accepted messages a second: SQLite, then one, two and three nodes, in turn; medians."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for kind, nodes in KINDS.items():
            with server.database() as url, ExitStack() as stack:
                options = ["--paused"] + ([] if kind == "SQLite" else [f"--queue={url}"])
                daemons = [stack.enter_context(Daemon(folder / f"{kind}-{number}-{n}", *options)) for n in range(nodes)]
                ports = [daemon.port for daemon in daemons]
                load(ports, 300, "-s", "5")
                for name, arguments in WORKLOADS.items():
                    found.setdefault(name, {}).setdefault(kind, []).append(load(ports, count, *arguments))
    return {name: {kind: statistics.median(rates) for kind, rates in row.items()} for name, row in found.items()}


def fill(url: str, first: int, count: int) -> None:
    """So many messages more, each with one recipient that is due."""
    with psycopg.connect(url, autocommit=True) as connection:
        given = {"first": first, "last": first + count - 1}
        for sql in (
            "INSERT INTO message SELECT n, 'u' || n, 'a@b.test', '7BIT', FALSE, NULL, NULL, 's', 1000, 1, n, n + 1e9, '{}' "
            "FROM generate_series(%(first)s::bigint, %(last)s) n",
            "INSERT INTO content SELECT n, 0, decode(repeat('78', 1000), 'hex') "
            "FROM generate_series(%(first)s::bigint, %(last)s) n",
            "INSERT INTO recipient SELECT n, 0, 'c' || n || '@d.test', 'queued', 0, 'mx:d' || n %% 1000 "
            "FROM generate_series(%(first)s::bigint, %(last)s) n",
            "INSERT INTO due (message_id, number, next_hop, due_at, expires_at) SELECT n, 0, 'mx:d' || n %% 1000, n, n + 1e9 "
            "FROM generate_series(%(first)s::bigint, %(last)s) n",
        ):
            connection.execute(sql.encode(), given)
        connection.execute("ANALYZE")


def turn(store: PostgresStore) -> tuple[float, float]:
    """A claim of 200 and the settle of all of them as deferred: seconds of each."""
    now = time.time()
    began = time.monotonic()
    with store.transaction():
        claimed = store.claim(CLAIM, now, now + 600, 1 << 30)
    between = time.monotonic()
    settles = [
        Settlement(
            m.key,
            [Settled(r.number, "deferred", "deferred", now + 3600, "451 x", "connect") for r in m.recipients],
            now,
        )
        for m in claimed
    ]
    store.commit([], settles)
    return between - began, time.monotonic() - between


def turns(store: PostgresStore, seconds: float) -> Iterator[tuple[float, float]]:
    """Turn after turn, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield turn(store)


@contextmanager
def snapshot(url: str) -> Iterator[None]:
    """A transaction that somebody has left open: nothing that dies meanwhile can be cleaned up."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM flag")
        yield


def growth(server: Postgres, folder: Path, most: int, seconds: float) -> list[dict[str, Any]]:
    """Claim times as the queue grows, and with a snapshot held open."""
    rows: list[dict[str, Any]] = []

    def row(name: str, found: list[tuple[float, float]]) -> None:
        claims, settles = zip(*found, strict=True)
        part = max(1, len(claims) // 5)
        rows.append(
            {
                "queue": name,
                "turns": len(claims),
                "claim_ms": statistics.median(claims) * 1000,
                "settle_ms": statistics.median(settles) * 1000,
                "first_claims_ms": statistics.median(claims[:part]) * 1000,
                "last_claims_ms": statistics.median(claims[-part:]) * 1000,
            }
        )

    with server.database() as url:
        store = PostgresStore(url, str(folder / "growth"))
        store.open()
        there = 0
        for size in (5_000, 100_000, most):
            fill(url, there + 1, size - there)
            there = size
            row(f"{size:,}", [turn(store) for _ in range(20)])
        row(f"{most:,}, busy for {seconds:.0f} s", list(turns(store, seconds)))
        with snapshot(url):
            row(f"{most:,}, busy for {seconds:.0f} s, a snapshot open", list(turns(store, seconds)))
        row(f"{most:,}, behind it", list(turns(store, 5.0)))
        store.close()
    return rows


def main() -> None:
    """Prints tables, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    server = Postgres("-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB")
    try:
        with tempfile.TemporaryDirectory() as folder:
            rates = accept(server, Path(folder), given.rounds, given.count)
            grown = growth(server, Path(folder), given.most, given.seconds)
    finally:
        server.remove()
    if given.json:
        print(json.dumps({"accept": rates, "growth": grown}, indent=2))
        return
    heads = "".join(f"{kind:>10}" for kind in KINDS)
    print(f"{'accepted, messages/s':28}{heads}   1 node / SQLite")
    for name, row in rates.items():
        rates_of = "".join(f"{rate:10.0f}" for rate in row.values())
        print(f"{name:28}{rates_of}   {row['1 node'] / row['SQLite']:.2f}")
    print(f"\n{'queue':44}{'claim of 200':>14}{'first fifth':>13}{'last fifth':>12}{'settle':>10}   (ms)")
    for one in grown:
        print(
            f"{one['queue']:44}{one['claim_ms']:14.1f}{one['first_claims_ms']:13.1f}{one['last_claims_ms']:12.1f}{one['settle_ms']:10.1f}"
        )


if __name__ == "__main__":
    main()
