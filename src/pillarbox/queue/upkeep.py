"""Forgets what is finished: history beyond its bounds, and spool files that nothing needs any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from ..clock import Clock, Timer
from .commit import GroupCommit

_log = logging.getLogger("pillarbox.queue")
PURGE_EVERY = 2000
PURGE_EVERY_S = 300.0


@dataclass(frozen=True, slots=True)
class History:
    """How much of what is finished stays visible."""

    keep_s: float = 7 * 86400.0
    keep_messages: int = 10_000


class Upkeep:
    """One queue's. `spawn` runs a coroutine in the background, and knows when all have ended."""

    def __init__(
        self,
        commit: GroupCommit,
        clock: Clock,
        history: History,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.history = history
        self.remove_spool: Callable[[list[str]], None] = lambda names: None
        self._commit = commit
        self._clock = clock
        self._spawn = spawn
        self._finished = 0
        self._timer: Timer | None = None
        self._soon: Timer | None = None

    def start(self) -> None:
        """Looks now and then."""
        self._timer = self._clock.call_later(PURGE_EVERY_S, self._by_time)

    def stop(self) -> None:
        """No more."""
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()

    def finished(self, *, has_spool: bool) -> None:
        """An attempt has ended."""
        self._finished += 1
        if self._finished >= PURGE_EVERY:
            self.purge()
        elif has_spool and self._soon is None:
            # A spool file may be large: its room is given back soon.
            self._soon = self._clock.call_later(1.0, self.purge)

    def _by_time(self) -> None:
        self._timer = self._clock.call_later(PURGE_EVERY_S, self._by_time)
        self.purge()

    def purge(self) -> None:
        """In the background."""
        self._finished = 0
        self._soon = None
        self._spawn(self._purge(self._clock.time() - self.history.keep_s))

    async def last(self) -> None:
        """At the end, once everything is settled."""
        await self._purge(self._clock.time() - self.history.keep_s)

    async def _purge(self, before: float) -> None:
        try:
            # The files go only when the commit that no longer needs them is durable.
            names = await self._commit.run(lambda s: s.purge(before, self.history.keep_messages, PURGE_EVERY))
        except Exception as error:
            _log.error("upkeep of the queue failed: %s", error)
        else:
            self.remove_spool(names)
