"""The way of outcomes into the store: alone, or in one transaction with the DSNs that report them.

Must not know how a DSN is made: that is a `Reporter`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ..errors import DuplicateUidError
from ..log.kinds import DSN_QUEUED
from .commit import GroupCommit
from .judged import Judged, Reporter, calls_for_report
from .lines import log_queued
from .model import Message, Settlement
from .store import Store
from .work import Work

_log = logging.getLogger("pillarbox.queue")
# An outcome that could not be written (disk, lock) is tried again after this.
FAULT_PAUSE_S = 5.0


class _LateError(Exception):
    """Recipients, by number, that somebody else of a shared queue has taken over."""

    def __init__(self, numbers: set[int]) -> None:
        super().__init__(f"{len(numbers)} outcomes came too late")
        self.numbers = numbers


class Taker(Protocol):
    """Who takes the DSNs: the scheduler."""

    @property
    def is_running(self) -> bool:
        """False at the end: what could not be written stays leased, and the next start takes it up."""

    def prepare(self, message: Message) -> Message:
        """Before it is accepted."""

    def accepted(self, message: Message) -> None:
        """It is durable."""


class Settling:
    """One scheduler's. `spawn` runs a coroutine in the background, and knows when all have ended."""

    def __init__(self, commit: GroupCommit, taker: Taker, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._commit = commit
        self._taker = taker
        self._spawn = spawn
        self.reporter: Reporter

    def settle(self, work: Work, judged: list[Judged], now: float) -> None:
        """Outcomes of one attempt, or of none; written soon, and again until that has worked."""
        message = work.message
        settlement = Settlement(message.key, [one.settled for one in judged], now)
        wants_report = not work.is_cancelled and calls_for_report(judged)
        try:
            reports = self.reporter(message, judged, now) if wants_report else []
        except Exception:
            # The outcome is a fact whether or not anybody can be told of it.
            _log.exception("no DSN could be made for %s", message.uid)
            reports = []
        if not reports:
            self._commit.settle(settlement)
            return
        for report in reports:
            self._taker.prepare(report)
        self._spawn(self._report(work, judged, settlement, reports))

    async def _report(self, work: Work, judged: list[Judged], settlement: Settlement, reports: list[Message]) -> None:
        def both(store: Store) -> None:
            # The DSN and the state that it reports are one transaction: never one without the other.
            store.accept(reports)
            if late := store.settle([settlement]):
                raise _LateError({number for _, number in late})

        write: Callable[[Store], object] = both
        while True:
            try:
                await self._commit.run(write)
                break
            except _LateError as error:
                # Whoever has taken them over finds out what becomes of them: nobody is told that they failed. Ours is
                # history, and the rest stands.
                self._commit.settle(settlement.only(error.numbers))
                if rest := [one for one in judged if one.settled.number not in error.numbers]:
                    self.settle(work, rest, settlement.at)
                return
            except DuplicateUidError:
                # It was written, and the answer lost: these reports are nobody else's, and will be claimed like any mail.
                # What was settled with them is not in hand any more, either.
                reports, write = [], lambda store: store.lost({settlement.key})
            except Exception as error:
                _log.error("an outcome could not be written: %s", error)
                if not self._taker.is_running:
                    # Its lease stays, and the next start takes it up again.
                    return
                await asyncio.sleep(FAULT_PAUSE_S)
        for report in reports:
            _log_report(report)
            self._taker.accepted(report)


def _log_report(report: Message) -> None:
    """Two lines: the original names its DSN, and the DSN is a message like any other."""
    facts, original = report.facts, report.facts.get("for")
    to = report.recipients[0].address if report.recipients else None
    DSN_QUEUED.write({"queue_id": original, "dsn_id": report.uid, "action": facts.get("dsn"), "to": to})
    log_queued(report)
