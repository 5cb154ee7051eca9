"""Who is let in, and how often one may guess: counts of sessions per peer, failures of AUTH per net and account.

Must not know SMTP; times come from the caller.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from functools import lru_cache


@lru_cache(maxsize=4096)
def network_key(host: str) -> str:
    """What counts as one peer: an IPv4 address, or an IPv6 /64, for who has one has them all."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


class Admission:
    """Sessions at once, in all and per peer."""

    def __init__(self, max_sessions: int, max_per_peer: int) -> None:
        self.max_sessions = max_sessions
        self._max_per_peer = max_per_peer
        self._per_peer: dict[str, int] = {}
        self.sessions = 0

    def change(self, max_sessions: int, max_per_peer: int) -> None:
        """Other bounds, for who comes from now on."""
        self.max_sessions, self._max_per_peer = max_sessions, max_per_peer

    def enter(self, key: str, *, is_trusted: bool) -> str | None:
        """Counts a session in; a text when it should be sent away (it has to `leave` all the same)."""
        self.sessions += 1
        # The last tenth is for those we know: a flood of strangers does not lock them out.
        limit = self.max_sessions if is_trusted else self.max_sessions - self.max_sessions // 10
        count = self._per_peer[key] = self._per_peer.get(key, 0) + 1
        if self.sessions > limit:
            return "Too many sessions: try again later"
        if count > self._max_per_peer and not is_trusted:
            return "Too many sessions from your address: try again later"
        return None

    def leave(self, key: str) -> None:
        """Counts it out."""
        self.sessions -= 1
        count = self._per_peer[key] - 1
        if count:
            self._per_peer[key] = count
        else:
            del self._per_peer[key]


class GuessLimit:
    """Failures per key (a peer's network, an account) within a window; bounded in memory, oldest forgotten first."""

    WINDOW_S = 900.0
    MAX_KEYS = 10_000

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def is_blocked(self, key: str, now: float) -> bool:
        """True once there were too many."""
        count, until = self._failures.get(key, (0, 0.0))
        return count >= self._max_failures and now < until

    def fail(self, key: str, now: float) -> int:
        """Counts a failure; how many there are in the window."""
        count, until = self._failures.pop(key, (0, 0.0))
        count = count + 1 if now < until else 1
        self._failures[key] = (count, now + self.WINDOW_S)
        while len(self._failures) > self.MAX_KEYS:
            self._failures.popitem(last=False)
        return count

    def succeed(self, key: str) -> None:
        """Forgets the failures."""
        self._failures.pop(key, None)
