"""Adoption: the mail of a shard whose worker is no more moves to a shard that has one (fewer workers than before).

A batch at a time: first it is durable here, then it is forgotten there. A crash between leaves it in both; then its uid is
found here, and it is only forgotten there. The orphan's lock is held meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from ..clock import Clock, Timer
from ..errors import PillarboxError, StoreLockedError
from .commit import GroupCommit
from .shards import find_shards
from .spool import sync_folder
from .sqlite import SqliteStore
from .store import Store

_log = logging.getLogger("pillarbox.queue")
BATCH = 200
# A worker of a larger number may still be finishing: its shard is looked at again.
AGAIN_S = 30.0
_UID, _FINISHED, _SPOOL = 1, 11, 13
Row = tuple[Any, ...]


class Adopter:
    """Looks for shards without a worker, numbers from `count` on, and takes what they hold. One worker does this."""

    def __init__(self, commit: GroupCommit, wake: Callable[[], None], clock: Clock, folder: str, count: int) -> None:
        self._commit = commit
        self._wake = wake
        self._clock = clock
        self._folder = folder
        self._count = count
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    def start(self) -> None:
        """Begins, if there is anything to do."""
        if self._orphans():
            self._task = asyncio.get_running_loop().create_task(self._adopt_all())

    async def stop(self) -> None:
        """What is on its way arrives; the rest stays where it is."""
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    def _orphans(self) -> list[int]:
        return [shard for shard in find_shards(self._folder) if shard >= self._count]

    async def _adopt_all(self) -> None:
        for shard in self._orphans():
            if self._is_stopping:
                return
            orphan = SqliteStore(self._folder, shard)
            try:
                await asyncio.to_thread(orphan.open, is_new_allowed=False)
            except (StoreLockedError, FileNotFoundError):
                continue
            except (PillarboxError, OSError) as error:
                _log.error("the mail in %s waits: %s", orphan.path, error)
                continue
            try:
                await self._adopt(orphan)
            except Exception:
                _log.exception(
                    "the mail in %s could not be taken over: it stays there, and is tried again", orphan.path
                )
                await asyncio.to_thread(orphan.close)
        if self._orphans() and not self._is_stopping:
            self._timer = self._clock.call_later(AGAIN_S, self.start)

    async def _adopt(self, orphan: SqliteStore) -> None:
        now = self._clock.time()
        await asyncio.to_thread(_recover, orphan, now)
        moved = 0
        while not self._is_stopping:
            rows = await asyncio.to_thread(orphan.rows, "export_messages", (BATCH,))
            if not rows:
                await asyncio.to_thread(_remove, orphan)
                _log.info("took over %d messages of a worker that is no more (shard %s)", moved, orphan.path)
                return
            batch = await asyncio.to_thread(Batch, orphan, rows)
            moved += await self._commit.run(batch.take_over)
            await asyncio.to_thread(batch.forget)
            await asyncio.to_thread(orphan.maintain)
            self._wake()
        await asyncio.to_thread(orphan.close)


def _recover(orphan: SqliteStore, now: float) -> None:
    with orphan.transaction():
        orphan.recover(now)


def _remove(orphan: SqliteStore) -> None:
    """The orphan is empty: its files go, so that nobody looks at it again."""
    with contextlib.suppress(OSError):
        for name in os.listdir(orphan.spool):
            os.unlink(os.path.join(orphan.spool, name))
        os.rmdir(orphan.spool)
    orphan.destroy()


class Batch:
    """Some messages of an orphan, with all that belongs to them."""

    def __init__(self, orphan: SqliteStore, messages: list[Row]) -> None:
        self._orphan = orphan
        self._messages = messages
        self._span = span = (messages[0][0], messages[-1][0])
        self._contents = orphan.rows("export_contents", span)
        self._recipients = orphan.rows("export_recipients", span)
        self._attempts = orphan.rows("export_attempts", span)

    def take_over(self, own: Store) -> int:
        """Into the own store, within a transaction of it. How many were new to it."""
        assert isinstance(own, SqliteStore)
        known = set()
        for start in range(0, len(self._messages), 32):
            uids = [(row[_UID],) for row in self._messages[start : start + 32]]
            known |= {uid for (uid,) in own.write("known_uids", uids)[1]}
        new = [row for row in self._messages if row[_UID] not in known]
        first = own.take_ids(len(new))
        ids = {row[0]: first + place for place, row in enumerate(new)}
        self._link_spool(own, new)
        own.write("import_messages", [(ids[row[0]], *row[1:]) for row in new])
        for name, rows in (
            ("insert_contents", self._contents),
            ("import_recipients", self._recipients),
            ("insert_attempts", self._attempts),
        ):
            own.write(name, [(ids[row[0]], *row[1:]) for row in rows if row[0] in ids])
        return len(new)

    def _link_spool(self, own: SqliteStore, new: list[Row]) -> None:
        """Both shards have the file until the orphan has forgotten it; a link needs no copy, and is there or not."""
        names = [row[_SPOOL] for row in new if row[_SPOOL] is not None and row[_FINISHED] is None]
        for name in names:
            with contextlib.suppress(FileExistsError):
                os.link(os.path.join(self._orphan.spool, name), os.path.join(own.spool, name))
        if names:
            sync_folder(own.spool)

    def forget(self) -> None:
        """Out of the orphan; what is linked here stays."""
        with self._orphan.transaction():
            for name in ("forget_span_of_attempts", "forget_span_of_recipients", "forget_span_of_contents"):
                self._orphan.rows(name, self._span)
            self._orphan.rows("forget_span", self._span)
        for row in self._messages:
            if row[_SPOOL] is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._orphan.spool, row[_SPOOL]))
