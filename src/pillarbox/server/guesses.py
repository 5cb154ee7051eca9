"""Password guesses: how many a network may make, and how long an account's next one waits. Must not know SMTP.

A try is counted before its password is verified: tries at the same time cannot pass a limit together, and those too many
wait for the verdicts of the others. No stranger can lock an account: its failures only delay tries from networks from
which it has not logged in lately. Names that do not exist are treated alike.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from .limits import FACTORS, network_keys

WINDOW_S = 900.0
MAX_KEYS = 10_000
# Failures within the window: of one network (an IPv4 address or IPv6 /64) over all accounts, and of one account from a
# network that it knows.
MAX_OF_NETWORK = 10
MAX_OF_PAIR = 10
# An account's failures from networks that it does not know: so many are free, then the delay doubles with each further five.
FREE_FAILURES = 5
MAX_DELAY_S = 16.0
# Tries of one account from unknown networks that are delayed at the same time.
MAX_WAITING = 8
# Networks from which an account has logged in: kept for so long, and so many.
KNOWN_S = 30 * 86400.0
MAX_KNOWN = 16


class Failures:
    """Failures per key within a window; bounded in memory, the oldest forgotten first."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, key: str, now: float) -> int:
        """Returns the failures of a key within the window."""
        count, until = self._counts.get(key, (0, 0.0))
        return count if now < until else 0

    def add(self, key: str, now: float) -> None:
        """Counts one more; the window begins anew."""
        count = self.count(key, now) + 1
        self._counts.pop(key, None)
        self._counts[key] = (count, now + WINDOW_S)
        while len(self._counts) > self._max_keys:
            self._counts.popitem(last=False)

    def forget(self, key: str) -> None:
        """Counts none any more."""
        self._counts.pop(key, None)


class Wait(Enum):
    """BLOCKED: too many failures, for a while. BUSY: as many tries are being verified as may still fail: ask again soon."""

    BLOCKED = "blocked"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Try:
    """One guess that may be made. `delay_s` passes before the password is verified."""

    name: str
    networks: tuple[str, ...]
    is_known: bool
    delay_s: float


class Guesses:
    """Decides about each guess. With several workers each has its own counts: `workers` divides the bounds."""

    def __init__(self, workers: int = 1) -> None:
        self._max_of_network = max(3, -(-MAX_OF_NETWORK // workers))
        self._max_of_pair = max(3, -(-MAX_OF_PAIR // workers))
        self._of_network = Failures()
        self._of_pair = Failures()
        self._of_account = Failures()
        # Tries without a verdict, by network, by pair and by account.
        self._open: dict[tuple[str, ...], int] = {}
        # Account -> network -> when it logged in last; an account's oldest network makes room, and the oldest account.
        self._known: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()

    def begin(self, name: str, host: str, now: float) -> Try | Wait:
        """Counts a try of the account `name` from an address, which the caller ends by `fail`, `succeed` or `take_back`."""
        networks = network_keys(host)
        if self._is_known(name, networks[0], now):
            # Other failures from there, of a colleague's device say, do not matter: only those with this account.
            wait = self._wait(self._of_pair, (networks[0], name), 1, self._max_of_pair, now)
            if wait is not None:
                return wait
            attempt = Try(name, networks, True, 0.0)
        else:
            waits = [
                self._wait(self._of_network, (network,), factor, self._max_of_network, now)
                for network, factor in zip(networks, FACTORS, strict=False)
            ]
            if Wait.BLOCKED in waits or Wait.BUSY in waits:
                return Wait.BLOCKED if Wait.BLOCKED in waits else Wait.BUSY
            opened = self._open.get(("account", name), 0)
            delay_s = _delay_s(self._of_account.count(name, now) + opened)
            if delay_s and opened >= MAX_WAITING:
                return Wait.BUSY
            attempt = Try(name, networks, False, delay_s)
        for key in _keys(attempt):
            self._open[key] = self._open.get(key, 0) + 1
        return attempt

    def _wait(self, failures: Failures, key: tuple[str, ...], factor: int, most: int, now: float) -> Wait | None:
        failed = failures.count(" ".join(key), now)
        if failed >= most * factor:
            return Wait.BLOCKED
        return Wait.BUSY if failed + self._open.get(key, 0) >= most * factor else None

    def fail(self, attempt: Try, now: float) -> None:
        """Counts a wrong password."""
        self.take_back(attempt)
        if attempt.is_known:
            self._of_pair.add(f"{attempt.networks[0]} {attempt.name}", now)
            return
        for network in attempt.networks:
            self._of_network.add(network, now)
        self._of_account.add(attempt.name, now)

    def take_back(self, attempt: Try) -> None:
        """Ends a try without a verdict."""
        for key in _keys(attempt):
            left = self._open.get(key, 0) - 1
            if left > 0:
                self._open[key] = left
            else:
                self._open.pop(key, None)

    def succeed(self, attempt: Try, now: float) -> None:
        """Ends a try with the right password: the account knows this network from now on."""
        self.take_back(attempt)
        name, network = attempt.name, attempt.networks[0]
        self._of_pair.forget(f"{network} {name}")
        known = self._known.pop(name, None) or OrderedDict()
        known.pop(network, None)
        known[network] = now
        self._known[name] = known
        while len(known) > MAX_KNOWN:
            known.popitem(last=False)
        while len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)

    def _is_known(self, name: str, network: str, now: float) -> bool:
        known = self._known.get(name)
        at = None if known is None else known.get(network)
        return at is not None and now - at < KNOWN_S


def _delay_s(failures: int) -> float:
    if failures < FREE_FAILURES:
        return 0.0
    return min(MAX_DELAY_S, 2.0 ** ((failures - FREE_FAILURES) // 5))


def _keys(attempt: Try) -> list[tuple[str, ...]]:
    if attempt.is_known:
        return [(attempt.networks[0], attempt.name)]
    return [*((network,) for network in attempt.networks), ("account", attempt.name)]
