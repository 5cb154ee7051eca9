"""Group commit: what finished meanwhile shares one transaction and one fsync (docs/explanation/group-commit.md).

One commit is in flight at a time; what comes meanwhile is the next batch. A lone message is committed at once; where
others are about to bring theirs they share it (company.py). Messages and outcomes are committed in the loop's own
thread: measured with 20 sessions, the two threads' fight for the interpreter's lock cost more than the wait for the
disk. What takes longer, or is more than a batch, goes to the writer thread. Where the store has a journal the database is
that thread's, and whatever else there is to do with it (claims, the operator's, history that goes) is done beside the
commits: behind what was asked for before it, and holding up nothing that is asked for later. Outcomes of deliveries alone
wait a few milliseconds for a message to ride with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import CommitInDoubtError, DuplicateUidError, StoreError
from .ahead import BEHIND_S
from .company import LOOK_S, Company
from .model import Message, Settlement
from .store import Store

T = TypeVar("T")
Done = Callable[[BaseException | None], None]

_log = logging.getLogger("pillarbox.queue")
# Outcomes may wait this long for a message's commit; a crash meanwhile sends such a message again.
SETTLE_WAIT_S = 0.01
SETTLE_BATCH = 64
FAULT_PAUSE_S = 5.0


class _Batch:
    """What one transaction holds, and what came of it."""

    __slots__ = ("accepts", "accepts_done", "runs", "settles")

    def __init__(self) -> None:
        self.accepts: list[Message] = []
        self.accepts_done: list[Done] = []
        self.settles: list[Settlement] = []
        self.runs: list[tuple[Callable[[Any], Any], asyncio.Future[Any]]] = []

    def __len__(self) -> int:
        return len(self.accepts) + len(self.settles) + len(self.runs)


_Result = list[tuple[Any, BaseException | None]]


class GroupCommit:
    """The way to the store for everybody in the loop. Call `start` in the loop, `stop` before the store is closed."""

    def __init__(self, store: Store, company: Company | None = None) -> None:
        self.store = store
        self._is_inline = store.is_inline
        self.company = company or Company()
        self._pending = _Batch()
        self._again: list[Settlement] = []
        self._busy = False
        # Batches of other work that the writer thread has in line, beside the loop's commits; and the last of them, while
        # more may join it.
        self._beside = 0
        self._joinable: _Batch | None = None
        self._kicked = False
        self._gather_timer: asyncio.TimerHandle | None = None
        self._settle_timer: asyncio.TimerHandle | None = None
        self._behind_timer: asyncio.TimerHandle | None = None
        self._is_looked_after = False
        # While the store is being prepared, which is none of its disk's fault.
        self._is_preparing = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # The store is used by one thread at a time; `_mutex` guards `_pending` and `_busy`, for a moment only.
        self._lock = threading.Lock()
        self._mutex = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._reader: Any = None
        self._idle: list[asyncio.Future[None]] = []
        self.commits = 0
        self.committed = 0
        self.last_error: StoreError | None = None

    def start(self) -> None:
        """Begins to work in the running loop; the store is open."""
        self._loop = asyncio.get_running_loop()
        self._reader = self.store.reader()
        if not self._is_inline:
            for jobs, name in ((self._jobs, "writer"), (self._reads, "reader")):
                thread = threading.Thread(target=_work, args=(jobs,), name=f"pillarbox-{name}", daemon=True)
                thread.start()
                self._threads.append(thread)
            self._look_after()

    async def stop(self) -> None:
        """Everything that was asked for is committed first."""
        self._settle_again()
        while self._busy or self._beside or len(self._pending):
            waiter = self._loop.create_future()
            self._idle.append(waiter)
            self._kick()
            await waiter
        if self._behind_timer is not None:
            self._behind_timer.cancel()
        for jobs in (self._jobs, self._reads):
            jobs.put(None)
        for thread in self._threads:
            await self._loop.run_in_executor(None, thread.join)
        if self._reader is not self.store:
            self._reader.close()

    # -------------------------------------------------------------------- asking

    def accept(self, message: Message, done: Done) -> None:
        """`done(None)` once the message is durable, `done(error)` when it is not, and will not be."""
        with self._mutex:
            self._pending.accepts.append(message)
            self._pending.accepts_done.append(done)
        self._kick()

    def settle(self, settlement: Settlement) -> None:
        """Outcomes; committed soon, with whatever else there is, and again until it succeeds."""
        with self._mutex:
            self._pending.settles.append(settlement)
            count = len(self._pending.settles)
        if count >= SETTLE_BATCH:
            self._kick()
        elif self._settle_timer is None and not self._busy:
            self._settle_timer = self._loop.call_later(SETTLE_WAIT_S, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_timer = None
        self._kick()

    def _settle_again(self) -> None:
        again, self._again = self._again, []
        for settlement in again:
            self.settle(settlement)

    async def run(self, work: Callable[[Store], T]) -> T:
        """Anything else that writes: `work(store)` in a transaction, behind all that was asked for before."""
        future: asyncio.Future[T] = self._loop.create_future()
        with self._mutex:
            self._pending.runs.append((work, future))
        self._kick()
        return await future

    async def read(self, look: Callable[[Any], T]) -> T:
        """`look(reader)` in the reader's thread, on what is committed."""
        if self._is_inline:
            return look(self._reader)
        if self.store.is_behind:
            # Any transaction brings what readers do not see yet. A queue that cannot be written can be looked at all the same.
            with contextlib.suppress(StoreError):
                await self.run(lambda store: None)
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                value, error = look(self._reader), None
            except Exception as caught:
                self._post(_fail, future, caught)
            else:
                self._post(_give, future, value)
                del error

        self._reads.put(job)
        return await future

    # ------------------------------------------------------------------ committing

    def _kick(self) -> None:
        if self._busy:
            return
        if not self._kicked:
            self._kicked = True
            # Once per turn of the loop, so that everything that this turn brings shares the commit.
            self._loop.call_soon(self._gather)
        elif self._gather_timer is not None and not self._may_wait():
            self._gather_timer.cancel()
            self._gather_timer = None
            self._loop.call_soon(self._gather)

    def _may_wait(self) -> bool:
        pending = self._pending
        if not pending.accepts or pending.runs or self._is_inline:
            return False
        return not self.company.is_complete(len(pending.accepts))

    def _gather(self) -> None:
        """Look by look, until nobody else is about to come. Asleep between them: others want the processor."""
        self._gather_timer = None
        if self._may_wait() and self.company.is_worth_waiting(len(self._pending.accepts), time.monotonic()):
            self._gather_timer = self._loop.call_later(LOOK_S, self._gather)
        else:
            self._begin()

    def _begin(self) -> None:
        self._kicked = False
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None
        batch = self._take()
        if batch is None:
            return
        self.company.begin(len(batch.accepts))
        if self._is_inline:
            self._done_at_once(batch, self._execute(batch))
        elif not self._suits_loop(batch) or not self._lock.acquire(blocking=False):
            self._jobs.put(lambda: self._commit_in_thread(batch))
        else:
            self._commit_in_loop(batch)

    def _suits_loop(self, batch: _Batch) -> bool:
        """Anything else than messages and outcomes may take its time; so may much of those, or a slow disk."""
        if (batch.runs and not self.store.maintains_beside) or not self.store.suits_loop:
            return False
        size = rows = 0
        for message in batch.accepts:
            size += len(message.content.prefix)
            rows += len(message.recipients)
        for settlement in batch.settles:
            rows += len(settlement.recipients)
        return self.company.suits_loop(size, rows, time.monotonic())

    def _commit_in_loop(self, batch: _Batch) -> None:
        """With the store's lock held; gives it up."""
        runs, batch.runs = batch.runs, []
        began = time.monotonic()
        is_done = False
        try:
            is_done = not len(batch) or self.store.try_commit(batch.accepts, batch.settles)
        except Exception:
            # To find the culprit each is tried alone, and whatever made it fail may take its time: not in the loop.
            _log.debug("a commit failed, each of it is tried alone", exc_info=True)
        finally:
            self._lock.release()
            if len(batch) and not self._is_preparing:
                now = time.monotonic()
                self.company.took(now - began, now)
        if not is_done:
            batch.runs = runs
            self._jobs.put(lambda: self._commit_in_thread(batch))
            return
        if runs:
            self._put_beside(runs)
        self._done_at_once(batch, [(None, None)] * len(batch))

    def _put_beside(self, runs: list[tuple[Callable[[Any], Any], asyncio.Future[Any]]]) -> None:
        """One transaction for all that comes until the writer thread has time for it.

        While that thread has a commit in line nothing comes here, so what joins gets before nobody.
        """
        with self._mutex:
            if self._joinable is not None:
                self._joinable.runs += runs
                return
            self._beside += 1
            self._joinable = batch = _Batch()
            batch.runs = runs
        self._jobs.put(lambda: self._run_in_thread(batch))

    def _run_in_thread(self, batch: _Batch) -> None:
        """Anything but messages and outcomes, which are committed beside it: the journal's are in its transaction first."""
        with self._mutex:
            if self._joinable is batch:
                self._joinable = None
        with self._database():
            results = self._execute(batch)
        self._post(self._ran, batch, results)

    def _database(self) -> contextlib.AbstractContextManager[Any]:
        """For the writer thread: the loop keeps out, or leaves the database alone anyway."""
        return contextlib.nullcontext() if self.store.maintains_beside else self._lock

    def _ran(self, batch: _Batch, results: _Result) -> None:
        self._beside -= 1
        try:
            self._finish(batch, results)
        finally:
            self._rest()

    def _look_after(self) -> None:
        """Has the store looked after when it wants that, and soon when it is behind."""
        if self.store.wants_preparing and not self._is_preparing:
            # Commits may need the writer's thread meanwhile; whoever reads can wait.
            self._is_preparing = True
            self._reads.put(self._prepare)
        if self._is_looked_after:
            return
        if self.store.wants_maintenance:
            self._is_looked_after = True
            self._jobs.put(self._maintain)
        elif self._behind_timer is None and self.store.is_behind:
            self._behind_timer = self._loop.call_later(BEHIND_S + 0.01, self._catch_up)

    def _prepare(self) -> None:
        try:
            self.store.prepare()
        finally:
            self._post(self._prepared)

    def _prepared(self) -> None:
        self._is_preparing = False
        self._look_after()

    def _catch_up(self) -> None:
        self._behind_timer = None
        self._look_after()

    def _done_at_once(self, batch: _Batch, results: _Result) -> None:
        with self._mutex:
            self._busy = False
        try:
            if len(batch):
                self._finish(batch, results)
        finally:
            self._rest()

    def _take(self, *, is_thread: bool = False) -> _Batch | None:
        """What waits, for whoever is not busy; None when there is nothing, or somebody is at it.

        The writer thread takes nothing that would get before other work that it has in line.
        """
        with self._mutex:
            if self._busy or not len(self._pending) or (is_thread and self._beside):
                return None
            batch, self._pending, self._busy = self._pending, _Batch(), True
            return batch

    def _commit_in_thread(self, batch: _Batch) -> None:
        """Batch after batch, without a way through the loop between them, as long as there is one."""
        following: _Batch | None = batch
        while following is not None:
            with self._lock:
                results = self._execute(following)
            self._post(self._finish, following, results)
            if self.store.wants_maintenance:
                self._maintain()
            with self._mutex:
                self._busy = False
            following = self._take(is_thread=True)
        self._post(self._rest)

    def _maintain(self) -> None:
        self._is_looked_after = False
        try:
            with self._database():
                self.store.maintain()
        finally:
            # It may have come too early, or have failed.
            self._post(self._look_after)

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            _log.debug("the loop was closed before its commit was reported")

    def _execute(self, batch: _Batch) -> _Result:
        try:
            return self._apply(batch.accepts, batch.settles, [work for work, _ in batch.runs])
        except CommitInDoubtError as error:
            # Perhaps it is done: to do it again would do it twice.
            return [(None, error)] * len(batch)
        except Exception as error:
            if len(batch) == 1:
                return [(None, error)]
        # One of them spoils it for all: each alone, so that only the culprit fails.
        results: _Result = []
        for message in batch.accepts:
            results += self._alone([message], [], [])
        for settlement in batch.settles:
            results += self._alone([], [settlement], [])
        for work, _ in batch.runs:
            results += self._alone([], [], [work])
        return results

    def _alone(self, accepts: list[Message], settles: list[Settlement], runs: list[Callable[[Any], Any]]) -> _Result:
        try:
            return self._apply(accepts, settles, runs)
        except Exception as error:
            return [(None, error)]

    def _apply(self, accepts: list[Message], settles: list[Settlement], runs: list[Callable[[Any], Any]]) -> _Result:
        results: _Result = [(None, None)] * (len(accepts) + len(settles))
        if not runs:
            self.store.commit(accepts, settles)
            return results
        with self.store.transaction():
            self.store.accept(accepts)
            self.store.settle(settles)
            return results + [(work(self.store), None) for work in runs]

    def _finish(self, batch: _Batch, results: _Result) -> None:
        self.commits += 1
        self.committed += len(batch)
        errors = [error for _, error in results]
        self._note(errors)
        count = len(batch.accepts)
        for done, error in zip(batch.accepts_done, errors, strict=False):
            try:
                done(error)
            except Exception:
                # The others have to hear of theirs all the same.
                _log.exception("a message was committed, and telling of it failed")
        for settlement, error in zip(batch.settles, errors[count:], strict=False):
            if error is not None:
                # What was delivered is delivered: forgetting it would send it twice.
                if not self._again:
                    self._loop.call_later(FAULT_PAUSE_S, self._settle_again)
                self._again.append(settlement)
        for (_, future), (value, error) in zip(batch.runs, results[count + len(batch.settles) :], strict=True):
            if error is not None:
                _fail(future, error)
            else:
                _give(future, value)

    def _rest(self) -> None:
        """Nobody is at it any more: what came at the last moment is begun, and who waited for quiet is told."""
        self._look_after()
        if len(self._pending):
            self._kick()
        elif not self._busy and not self._beside:
            for waiter in self._idle:
                _give(waiter, None)
            self._idle.clear()

    def _note(self, errors: list[BaseException | None]) -> None:
        failed = None
        for error in errors if any(errors) else ():
            if isinstance(error, DuplicateUidError):
                # A caller of enqueue(uid=...) asks for this answer; the store is sound.
                _log.info("queue: %s", error)
            elif isinstance(error, StoreError):
                failed = failed or error
        if failed is not None and str(failed) != str(self.last_error):
            _log.error("%s", failed)
        self.last_error = failed


def _give(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """A thread's life: one job after the other until None."""
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception:
            _log.exception("a job of %s failed at %s", threading.current_thread().name, time.time())
