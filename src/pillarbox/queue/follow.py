"""What other nodes of a shared queue did, followed here: pauses, and work that is not this node's any more.

Must not know the database: a `Pulse` tells what it found, from a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from .commit import GroupCommit
from .paused import parse_hops
from .scheduler import Scheduler

_log = logging.getLogger("pillarbox.queue")


class Pulse(Protocol):
    """A node's heart-beat (queue.pgnode.Heart), as it is heard."""

    tell: Callable[[Any], None]
    on_away: Callable[[bool], None]
    on_unfit: Callable[[str], None]
    counters: dict[str, int]

    @property
    def is_alive(self) -> bool:
        """False when others may hold this node for dead."""


class Follower:
    """One node's. `start` in the loop; `on_unfit(why)` there, when this version cannot go on with the queue."""

    def __init__(self, scheduler: Scheduler, commit: GroupCommit) -> None:
        self._scheduler = scheduler
        self._commit = commit
        self._checking: asyncio.Task[None] | None = None
        self._checks_again = False
        self.on_unfit: Callable[[str], None] = lambda why: None

    def start(self, pulse: Pulse, set_away: Callable[[bool], None]) -> None:
        """Begins to listen."""
        loop = asyncio.get_running_loop()

        def post(callback: Callable[..., None], *arguments: Any) -> None:
            try:
                loop.call_soon_threadsafe(callback, *arguments)
            except RuntimeError:
                _log.debug("the loop was closed before it could be told")

        pulse.tell = lambda news: post(self._hear, news)
        pulse.on_away = lambda is_away: post(set_away, is_away)
        pulse.on_unfit = lambda why: post(self.on_unfit, why)

    async def stop(self) -> None:
        """What is being looked at is looked at to its end."""
        if self._checking is not None:
            await asyncio.wait([self._checking])

    def _hear(self, news: Any) -> None:
        scheduler = self._scheduler
        if not scheduler.is_running:
            return
        if news is not None:
            scheduler.follow(is_paused=news.is_paused, next_hops=parse_hops(news.paused_next_hops))
            if news.has_lost or self._is_in_doubt():
                self._check()
        scheduler.wake()

    def _check(self) -> None:
        if self._checking is not None:
            self._checks_again = True
            return
        self._checking = asyncio.get_running_loop().create_task(self._drop_lost())
        self._checking.add_done_callback(self._checked)

    def _checked(self, task: asyncio.Task[None]) -> None:
        self._checking = None
        if self._checks_again and self._scheduler.is_running:
            self._checks_again = False
            self._check()

    def _is_in_doubt(self) -> bool:
        """What commits took that nobody could tell of is freed with the next transaction, whatever that is about."""
        return bool(self._commit.store.is_in_doubt)  # type: ignore[attr-defined]

    async def _drop_lost(self) -> None:
        """What has not begun here, and is somebody else's or nobody's by now, is let go."""
        works = self._scheduler.unbegun()
        keys = {work.message.key for work in works}
        if not keys and not self._is_in_doubt():
            return
        try:
            lost, steered = await self._commit.run(lambda store: store.lost(keys))
        except Exception as error:
            _log.error("whether work was lost cannot be told: %s", error)
            return
        gone = lost | steered
        hit = [work for work in works if any((work.message.key, r.number) in gone for r in work.recipients)]
        if hit:
            count = self._scheduler.let_go(hit, lost)
            _log.info("%d messages that had not begun are not in hand here any more", count)
