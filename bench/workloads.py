"""The rows of the bench: what is sent to whom, how much of it, and which peers take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .others import Exim, OpenSmtpd, all_there
from .peers import Aiosmtpd, Peer, Pillarbox, Postfix, SinkPeer, Watched, WithoutSlots, WithPlugin

Make = Callable[[], Peer]
KB, MB = 1024, 1024 * 1024


def tuned() -> Peer:
    """Postfix as somebody would set it who wants speed and keeps the promise."""
    return Postfix("postfix-tuned", 2605, is_tuned=True)


ALL: tuple[Make, ...] = (Postfix, tuned, Pillarbox, *all_there(), Aiosmtpd, SinkPeer)
# One connection a message stalls these two.
ALL_NEW = tuple(make for make in ALL if make not in (OpenSmtpd, Exim))


def two_workers() -> Peer:
    """This project with two processes."""
    return Pillarbox("pillarbox-2", 2607, ("--workers=2",))


SERVERS: tuple[Make, ...] = (Postfix, tuned, Pillarbox, *(make for make in all_there() if make is not OpenSmtpd))
RELAYS = (*SERVERS, two_workers)
BOTH: tuple[Make, ...] = (Postfix, Pillarbox)
OWN: tuple[Make, ...] = (Pillarbox, WithoutSlots, lambda: WithPlugin("sync"), lambda: WithPlugin("async"))
SECURE: tuple[Make, ...] = (lambda: Postfix(has_tls=True), lambda: Pillarbox(has_tls=True))


@dataclass(frozen=True)
class Workload:
    """`count` messages a run, a quarter of that for aiosmtpd. `kind` names the runner; sizes in octets.

    `is_quick`: also a row of `make bench-quick`, with fewer messages and peers.
    """

    name: str
    kind: str
    peers: tuple[Make, ...]
    sessions: int
    count: int
    is_reused: bool = False
    size: int = 4 * KB
    is_quick: bool = False


def quick() -> list[Workload]:
    """The rows that say most: Postfix, Pillarbox and the ceiling."""
    return [
        replace(w, count=w.count // 2, peers=tuple(p for p in w.peers if p in (Postfix, Pillarbox, SinkPeer)))
        for w in WORKLOADS
        if w.is_quick
    ]


def _accept(sessions: int, count: int, peers: tuple[Make, ...] | None = None, size: int = 4 * KB) -> list[Workload]:
    many = f"{sessions} session" + "s" * (sessions > 1)
    what = "" if size == 4 * KB else f"{size // MB} MB, " if size >= MB else f"{size // KB} KB, "
    rows = []
    for is_reused in (False, True):
        name = f"accept, {what}{many}, {'reused' if is_reused else 'new'} connections"
        quick = sessions == 20 and size == 4 * KB
        who = peers or (ALL if is_reused else ALL_NEW)
        rows.append(Workload(name, "accept", who, sessions, count * (1 + is_reused), is_reused, size, quick))
    return rows


WORKLOADS = [
    *_accept(1, 1000),
    *_accept(20, 4000),
    *_accept(100, 4000),
    Workload("workers: accept, 20 sessions, new connections", "accept", (Pillarbox, two_workers), 20, 6000),
    Workload("workers: accept, 20 sessions, reused connections", "accept", (Pillarbox, two_workers), 20, 10000, True),
    Workload("workers: accept, 100 sessions, new connections", "accept", (Pillarbox, two_workers), 100, 6000),
    *_accept(500, 4000, BOTH),
    *_accept(20, 800, (Postfix, Pillarbox, SinkPeer), 100 * KB)[1:],
    *_accept(20, 150, (Postfix, Pillarbox, SinkPeer), MB)[1:],
    *_accept(20, 20, (Postfix, Pillarbox, SinkPeer), 25 * MB)[1:],
    Workload("latency, 20 sessions, new connections", "latency", BOTH, 20, 3000),
    Workload("latency, 20 sessions, reused connections", "latency", BOTH, 20, 5000, is_reused=True),
    Workload("STARTTLS, 20 sessions, a handshake a message", "tls", SECURE, 20, 2000),
    Workload("STARTTLS, 20 sessions, resumed for each message", "tls-resumed", SECURE, 20, 2000),
    Workload("STARTTLS, 20 sessions, reused connections", "tls", SECURE, 20, 5000, is_reused=True),
    Workload("relay-through, 20 sessions, new connections", "relay", RELAYS, 20, 6000),
    Workload("relay-through, 20 sessions, reused connections", "relay", RELAYS, 20, 8000, True, is_quick=True),
    Workload("fan-out, 200 messages to 50 recipients each", "fanout", SERVERS, 10, 200, is_reused=True),
    Workload("20 sessions, new connections, beside 5,000 idle ones", "idle", (Pillarbox,), 20, 4000),
    Workload("a million queued: relay", "million", (Pillarbox,), 20, 4000),
    Workload("plugins on every event, 20 sessions, reused connections", "turns", OWN, 20, 20000, is_reused=True),
    Workload("watched, 20 sessions, new connections", "accept", (Pillarbox, Watched), 20, 6000),
    Workload("watched, 20 sessions, reused connections", "accept", (Pillarbox, Watched), 20, 10000, is_reused=True),
]
