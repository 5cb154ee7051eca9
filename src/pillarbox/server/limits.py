"""Admission: decides at `accept` whether a connection may become a session, by counts per address and in all.

Must not know SMTP; times come from the caller.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
from functools import lru_cache
from typing import NamedTuple

from ..options import Options

_log = logging.getLogger("pillarbox.listener")

# Descriptors that sessions may not use: the admin side, the control socket, the queue's files, DNS, PROXY headers to come.
OTHER_DESCRIPTORS = 512
# The bound of one IPv6 /64 holds four times in its /56, and sixteen times in its /48: one customer may have a whole one.
_NETWORKS_V6 = ((64, 1), (56, 4), (48, 16))
_MINUTE_S = 60.0
HANDSHAKE_S = 30.0


@lru_cache(maxsize=4096)
def network_keys(host: str) -> tuple[str, ...]:
    """Returns what an address counts for: itself, or the IPv6 /64, /56 and /48 around it. The first is "one peer"."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return (host,)
    if isinstance(address, ipaddress.IPv4Address):
        return (host,)
    if address.ipv4_mapped is not None:
        return (str(address.ipv4_mapped),)
    return tuple(str(ipaddress.ip_network((address, length), strict=False)) for length, _ in _NETWORKS_V6)


def network_key(host: str) -> str:
    """Returns what counts as one peer: an IPv4 address, or an IPv6 /64."""
    return network_keys(host)[0]


# By position in what network_keys returns.
FACTORS = tuple(factor for _, factor in _NETWORKS_V6)


class Refusal(NamedTuple):
    """Why a connection gets no session: the text of its 421, and the reason word for the log."""

    text: str
    reason: str


TOO_MANY = Refusal("Too many sessions: try again later", "too-many-sessions")
TOO_MANY_OF_PEER = Refusal("Too many sessions from your address: try again later", "too-many-sessions-of-peer")
TOO_OFTEN = Refusal("Too many connections from your address: try again later", "over-limit")


class Admission:
    """Sessions at the same time, in all and per address, and new sessions per address and minute.

    A connection counts from `enter` on, before its TLS handshake; a refused one does not count at all.
    """

    def __init__(self, options: Options, workers: int = 1) -> None:
        self._workers = workers
        self.change(options)
        self._per_network: dict[str, int] = {}
        self.sessions = 0
        # Of this minute, and of this second: emptied by `sweep`.
        self._arrived: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._minute_ends_at = 0.0

    def change(self, options: Options) -> None:
        """Sets other bounds, for connections from now on. A worker has its part of what is bounded for the whole server."""
        self._wanted = -(-options.max_sessions // self._workers)
        self.max_sessions = most = session_places(self._wanted, -(-options.maxrelay // self._workers))
        # The last tenth is for trusted networks: a flood of strangers does not lock them out.
        self._max_strangers = most - max(most // 10, 1 if most > 1 else 0)
        self._max_per_peer, self._max_per_minute = options.max_sessions_per_peer, options.max_connections_per_minute

    def log_places(self, level: int) -> None:
        """Says when there are fewer places than the option wants."""
        if self.max_sessions < self._wanted:
            text = "admission: max_sessions reduced from %d to %d: RLIMIT_NOFILE is too low for more; raise it (LimitNOFILE=)"
            _log.log(level, text, self._wanted, self.max_sessions)

    @property
    def handshake_s(self) -> float:
        """Seconds for a TLS handshake; half of them when more than half of the places are taken."""
        return HANDSHAKE_S / 2 if self.sessions * 2 > self.max_sessions else HANDSHAKE_S

    def enter(self, host: str, *, is_trusted: bool) -> Refusal | None:
        """Counts a session in, or returns why there is none."""
        if is_trusted:
            if self.sessions >= self.max_sessions:
                return TOO_MANY
            keys = network_keys(host)
        else:
            if self.sessions >= self._max_strangers:
                return TOO_MANY
            keys = network_keys(host)
            per_network, most = self._per_network, self._max_per_peer
            for key, factor in zip(keys, FACTORS, strict=False):
                if per_network.get(key, 0) >= most * factor:
                    return TOO_MANY_OF_PEER
            if self._max_per_minute and self._is_too_often(keys):
                return TOO_OFTEN
        self.sessions += 1
        for key in keys:
            self._per_network[key] = self._per_network.get(key, 0) + 1
        return None

    def _is_too_often(self, keys: tuple[str, ...]) -> bool:
        arrived = self._arrived
        for key, factor in zip(keys, FACTORS, strict=False):
            if arrived.get(key, 0) >= self._max_per_minute * factor:
                return True
        for key in keys:
            arrived[key] = arrived.get(key, 0) + 1
        return False

    def leave(self, host: str) -> None:
        """Counts a session out."""
        self.sessions -= 1
        for key in network_keys(host):
            count = self._per_network[key] - 1
            if count:
                self._per_network[key] = count
            else:
                del self._per_network[key]

    def count_refusal(self, host: str) -> int:
        """Counts a refused connection; returns how many its address has had in this second."""
        key = network_key(host)
        count = self._refused[key] = self._refused.get(key, 0) + 1
        return count

    def may_speak(self, refusals: int) -> bool:
        """True while the refusals of an address in this second are within twice its bound: beyond, no 421 is written."""
        return refusals <= 2 * self._max_per_peer

    def sweep(self, now: float) -> None:
        """Once a second."""
        self._refused.clear()
        if now >= self._minute_ends_at:
            self._minute_ends_at = now + _MINUTE_S
            self._arrived.clear()


def session_places(wanted: int, others: int) -> int:
    """Returns how many sessions the process has file descriptors for, `wanted` at most.

    `others` is the number of outgoing connections that it may need besides.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, max(limit - OTHER_DESCRIPTORS - others, limit // 4)))


def raise_descriptor_limit(wanted: int, others: int) -> None:
    """Raises the soft limit of file descriptors to what `wanted` sessions need, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + others + OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
