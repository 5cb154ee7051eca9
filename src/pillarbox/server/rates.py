"""Rates of accepted mail: messages and recipients per client and per account in a window of time. Must not know SMTP commands.

A message is judged as a whole, at its end: a client that is over its rate hears 450 and tries again later.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ..config.units import parse_rate
from ..smtp.reply import Reply
from .limits import network_key

if TYPE_CHECKING:
    from ..events.session import Session
    from ..options import Options

MAX_KEYS = 10_000
_OVER_MESSAGES = Reply(450, "4.7.1", "Too many messages: try again later", reason="over-limit")
_OVER_RECIPIENTS = Reply(450, "4.7.1", "Too many recipients: try again later", reason="over-limit")


class Window:
    """One bound: so many in so many seconds, for each key. Windows begin at multiples of their length."""

    def __init__(self, rate: str, workers: int) -> None:
        count, self._seconds = parse_rate(rate)
        self._most = -(-count // workers)
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def has_room(self, key: str, count: int, now: float) -> bool:
        """True when so many more are allowed. More than the whole bound at once is allowed to a key that has used nothing."""
        used = self._used(key, now)
        return used == 0 or used + count <= self._most

    def add(self, key: str, count: int, now: float) -> None:
        """Counts them; the key that was used longest ago is forgotten first."""
        used = self._used(key, now)
        self._counts.pop(key, None)
        self._counts[key] = (int(now // self._seconds), used + count)
        while len(self._counts) > MAX_KEYS:
            self._counts.popitem(last=False)

    def _used(self, key: str, now: float) -> int:
        window, used = self._counts.get(key, (-1, 0))
        return used if window == int(now // self._seconds) else 0


class Rates:
    """The bounds of one server, or of one of its workers, which has its part of each."""

    def __init__(self, options: Options, workers: int = 1) -> None:
        self._workers = workers
        self._texts: tuple[str | None, ...] = ()
        self._windows: list[Window | None] = []
        self.change(options)

    def change(self, options: Options) -> None:
        """Sets other bounds; counts of bounds that stay are kept."""
        texts = (
            options.messages_per_client, options.recipients_per_client,
            options.messages_per_account, options.recipients_per_account,
        )  # fmt: skip
        old = dict(zip(enumerate(self._texts), self._windows, strict=True))
        self._windows = [
            None if text is None else old.get((n, text)) or Window(text, self._workers) for n, text in enumerate(texts)
        ]
        self._texts = texts

    def take(self, session: Session, recipients: int, now: float) -> Reply | None:
        """Counts a message of a session, or returns the refusal. Trusted networks have no bound, accounts always."""
        if session.username is not None:
            key, (messages, receivers) = session.username.lower(), self._windows[2:]
        elif session.is_trusted:
            return None
        else:
            key, (messages, receivers) = network_key(session.peer.host), self._windows[:2]
        if messages is not None and not messages.has_room(key, 1, now):
            return _OVER_MESSAGES
        if receivers is not None:
            if not receivers.has_room(key, recipients, now):
                return _OVER_RECIPIENTS
            receivers.add(key, recipients, now)
        if messages is not None:
            messages.add(key, 1, now)
        return None
