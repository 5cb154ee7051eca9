"""HandlerLane: one handler's work, what waits and what runs, within its concurrency. Beside `delivery.lane.Lane`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from ..clock import Clock
from ..errors import ExitError, contained
from ..queue.work import Result, Work, give_back
from ..smtp.reply import Reply
from .answers import Defer, NoSubscriberError, Reject
from .handlers import Handler, Item
from .waiting import WaitingLine

_log = logging.getLogger("pillarbox.handlers")
WAITING = 200
WAITING_BYTES = 8 << 20
# Seconds until mail is offered again to a handler whose event has no subscriber: a quarter of its age within these bounds.
UNSUBSCRIBED_S = (10.0, 60.0)
_NO_SUBSCRIBER = Reply(451, "4.3.5", "No callback is registered for the handler's event: waits for one")
_DONE = Reply(250, "2.0.0", "Taken by the handler")


def _in_thread(callback: Callable[[Item], Any], item: Item) -> asyncio.Future[Any]:
    """Runs it in a thread of its own, that no shutdown has to wait for; what it raises comes back, whatever it is."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def hand_back(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if isinstance(error, StopIteration):
            error = RuntimeError("the handler raised StopIteration")
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def work() -> None:
        value, error = None, None
        try:
            value = callback(item)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(hand_back, value, error)

    threading.Thread(target=work, name="pillarbox-handler", daemon=True).start()
    return future


def _inline(callback: Callable[[Item], Any], item: Item) -> Any:
    """Calls it here; sys.exit and its like fail the message and not the server."""
    try:
        return callback(item)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise ExitError(error) from error


def _verdict(answer: Any) -> tuple[Reply, bool]:
    """What a handler's return value means: (reply, is delivered). TypeError for what has no meaning."""
    if answer is None:
        return _DONE, True
    if isinstance(answer, Reply) and not 300 <= answer.code <= 399:
        return answer, answer.is_positive
    raise TypeError(f"returned {answer!r}: expected None or a Reply of 2yz, 4yz or 5yz")


class HandlerLane:
    """One handler's work: what waits, what runs, never more than its concurrency. Beside `delivery.lane.Lane`."""

    def __init__(
        self,
        key: str,
        find: Callable[[], Handler | None],
        clock: Clock,
        finished: Callable[[Work], None],
        wake: Callable[[], None],
        may_begin: Callable[[], bool] = lambda: True,
        match: Callable[[Handler, str], Any] = lambda handler, address: handler.search(address),
    ) -> None:
        self._search = match
        self._may_begin = may_begin
        self.key = key
        self._find = find
        self._clock = clock
        self._finished = finished
        self._waiting = WaitingLine(WAITING, WAITING_BYTES, wake)
        self._running: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        # Threads and tasks that went on when their time was over: they have their place until they end.
        self._left_behind = 0

    @property
    def waiting(self) -> int:
        """Messages that wait for their turn."""
        return len(self._waiting)

    def has_room(self) -> bool:
        """False while enough waits."""
        return self._waiting.has_room() and not self._is_stopping

    def describe(self) -> dict[str, Any]:
        """The lane as JSON, as delivery.lane.Lane does it."""
        return {
            "next_hop": self.key,
            "state": "busy" if self._running else "idle",
            "waiting": len(self._waiting),
            "busy": len(self._running),
            "connections": 0,
            "retry_at": None,
            "reason": None,
        }

    @property
    def is_idle(self) -> bool:
        """Nothing waits or runs."""
        return not (self._waiting or self._running or self._left_behind)

    def push(self, work: Work) -> None:
        """Takes work."""
        self._waiting.push(work)
        self._feed()

    def withdraw(self, uids: Collection[str] | None) -> list[Work]:
        """Work that has not begun."""
        return self._waiting.take(uids)

    def _feed(self) -> None:
        while self._waiting and not self._is_stopping:
            handler = self._find()
            if handler is not None and len(self._running) + self._left_behind >= handler.concurrency:
                return
            work = self._waiting.pop()
            if handler is None or not self._may_begin():
                # Without its handler the recipient is routed anew.
                give_back(work, self._clock.time())
                self._finished(work)
                continue
            task = asyncio.get_running_loop().create_task(self._run(handler, work))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._feed()

    async def _run(self, handler: Handler, work: Work) -> None:
        work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
        reply, is_delivered = await self._call(handler, work)
        if reply is _NO_SUBSCRIBER:
            self._return(work)
            return
        work.results = [
            Result(
                r, reply, "handler", is_delivered=is_delivered, is_permanent=reply.is_permanent, remote=work.next_hop
            )
            for r in work.recipients
        ]
        self._finished(work)

    def _return(self, work: Work) -> None:
        """No subscriber: the queue keeps it, and counts no attempt."""
        now, (least, most) = self._clock.time(), UNSUBSCRIBED_S
        retry_at = now + min(max((now - work.message.received_at) / 4, least), most)
        work.results = [
            Result(r, _NO_SUBSCRIBER, "lookup", is_attempt=False, retry_at=retry_at) for r in work.recipients
        ]
        self._finished(work)

    def _limit(self, handler: Handler, work: Work) -> float:
        """Its own bound, else what is left of the message's time: nothing is in hand for ever (hostile row 112)."""
        if handler.time_out_s is not None:
            return handler.time_out_s
        return max(60.0, work.message.expires_at - self._clock.time())

    async def _bounded(self, awaitable: Awaitable[Any], limit_s: float) -> Any:
        """Returns its result; TimeoutError after so long, also when it does not let itself be cancelled."""
        inner = awaitable if isinstance(awaitable, asyncio.Future) else asyncio.ensure_future(contained(awaitable))
        try:
            await asyncio.wait([inner], timeout=limit_s)
        except asyncio.CancelledError:
            self._leave_behind(inner)
            raise
        if not inner.done():
            self._leave_behind(inner)
            raise TimeoutError
        error = None if inner.cancelled() else inner.exception()
        if error is not None and not isinstance(error, (Exception, asyncio.CancelledError)):
            raise ExitError(error) from error
        answer = inner.result()
        return await self._bounded(answer, limit_s) if inspect.isawaitable(answer) else answer

    def _leave_behind(self, inner: asyncio.Future[Any]) -> None:
        self._left_behind += 1

        def ended(future: asyncio.Future[Any]) -> None:
            self._left_behind -= 1
            if not future.cancelled():
                future.exception()
            self._feed()

        # A thread's future ends with the thread, whatever is asked of it.
        if isinstance(inner, asyncio.Task):
            inner.cancel()
        inner.add_done_callback(ended)

    async def _call(self, handler: Handler, work: Work) -> tuple[Reply, bool]:
        try:
            item = Item(work, handler.event or "", lambda address: self._search(handler, address))
            answer = _in_thread(handler.callback, item) if handler.in_thread else _inline(handler.callback, item)
            if inspect.isawaitable(answer):
                answer = await self._bounded(answer, self._limit(handler, work))
            return _verdict(answer)
        except (Reject, Defer) as answered:
            return answered.reply, False
        except NoSubscriberError:
            return _NO_SUBSCRIBER, False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return Reply(451, "4.3.2", "The server stopped while the handler ran"), False
            return Reply(451, "4.3.0", "The handler cancelled itself"), False
        except TimeoutError:
            _log.error("handler %r took too long on %s", handler.match, work.message.uid)
            return Reply(451, "4.3.0", "The handler took too long"), False
        except Exception as error:
            _log.exception("handler %r failed on %s", handler.match, work.message.uid)
            # The text stays here: what a handler says may be nobody else's business.
            name = type(error.__cause__ if isinstance(error, ExitError) else error).__name__
            return Reply(451, "4.3.0", f"The handler failed: {name}"), False

    async def stop(self, grace_s: float) -> None:
        """What runs may finish within the grace; what is cut off is tried again."""
        self._is_stopping = True
        running = set(self._running)
        if running:
            _, late = await asyncio.wait(running, timeout=max(grace_s, 0.001))
            for task in late:
                task.cancel()
            if late:
                # A handler may refuse to be cancelled: the server goes down all the same.
                await asyncio.wait(late, timeout=1.0)
