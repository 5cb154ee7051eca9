"""Subscribers: they learn what happened, decide nothing, and never hold a session.

Each has a bounded buffer and is served from the loop, outside the session's own turn; what does not fit is dropped,
counted, and said once per burst.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from ..errors import contained

_log = logging.getLogger("pillarbox.events")
BUFFER = 10_000
ALL = "all"


class _Subscriber:
    """One callback or iterator, the events that wait for it, and what was dropped."""

    __slots__ = ("buffer", "callback", "dropped", "has_ended", "is_serving", "names", "ready")

    def __init__(self, callback: Callable[[Any], Any] | None) -> None:
        self.callback = callback
        self.names: set[str] = set()
        self.buffer: deque[Any] = deque()
        self.dropped = 0
        self.is_serving = self.has_ended = False
        self.ready: asyncio.Event | None = None

    def put(self, event: Any) -> None:
        if len(self.buffer) >= BUFFER:
            if self.dropped % BUFFER == 0:
                _log.warning("subscriber %r is too slow: events are dropped", self.callback or "events()")
            self.dropped += 1
            return
        self.buffer.append(event)
        if self.ready is not None:
            self.ready.set()
        elif not self.is_serving:
            self.is_serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Up to 100 events a turn; an async callback gets a task that goes through the buffer in order."""
        for _ in range(100):
            if not self.buffer:
                break
            result = self._call(self.buffer.popleft())
            if inspect.isawaitable(result):
                task = asyncio.ensure_future(self._serve_async(result))
                _RUNNING.add(task)
                task.add_done_callback(_RUNNING.discard)
                return
        if self.buffer:
            asyncio.get_running_loop().call_soon(self._serve)
        else:
            self.is_serving = False

    def _call(self, event: Any) -> Any:
        assert self.callback is not None
        try:
            return self.callback(event)
        except BaseException:
            # sys.exit() in a subscriber does not end the server.
            _log.exception("subscriber %r failed on %s", self.callback, event.name)
            return None

    async def _serve_async(self, first: Any) -> None:
        result = first
        while True:
            if inspect.isawaitable(result):
                try:
                    await contained(result)
                except asyncio.CancelledError:
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise
                    _log.warning("subscriber %r cancelled itself", self.callback)
                except Exception:
                    _log.exception("subscriber %r failed", self.callback)
            if not self.buffer:
                self.is_serving = False
                return
            result = self._call(self.buffer.popleft())


_RUNNING: set[asyncio.Future[Any]] = set()


class Subscribers:
    """Who wants to know what."""

    def __init__(self, changed: Callable[[], None] | None = None) -> None:
        self._changed = changed or (lambda: None)
        self._subscribers: list[_Subscriber] = []
        self.by_name: dict[str, tuple[_Subscriber, ...]] = {}

    def register(self, callback: Callable[[Any], Any], names: Iterable[str]) -> None:
        """Adds names to what the callback hears; `all` for everything."""
        subscriber = next((s for s in self._subscribers if s.callback == callback), None)
        if subscriber is None:
            subscriber = _Subscriber(callback)
            self._subscribers.append(subscriber)
        subscriber.names.update(names)
        self._compile()

    def unregister(self, callback: Callable[[Any], Any], names: Iterable[str]) -> bool:
        """Takes names away (`all`: every one); False when the callback was not known."""
        subscriber = next((s for s in self._subscribers if s.callback == callback), None)
        if subscriber is None:
            return False
        names = set(names)
        subscriber.names = set() if ALL in names else subscriber.names - names
        if not subscriber.names:
            self._subscribers.remove(subscriber)
        self._compile()
        return True

    def _compile(self) -> None:
        names = {name for s in self._subscribers for name in s.names}
        self.by_name = {
            name: tuple(s for s in self._subscribers if name in s.names or ALL in s.names) for name in names
        }
        self._changed()

    def listens(self, name: str) -> bool:
        """True when somebody would hear of this event."""
        return bool(self.by_name) and (name in self.by_name or ALL in self.by_name)

    def notify(self, event: Any) -> None:
        """Puts the event into the buffers of those who listen."""
        by_name = self.by_name
        if by_name:
            for subscriber in by_name.get(event.name) or by_name.get(ALL, ()):
                subscriber.put(event)

    def callbacks(self, name: str) -> list[Callable[[Any], Any]]:
        """The callbacks registered for this very event, to be called directly."""
        return [s.callback for s in self._subscribers if name in s.names and s.callback is not None]

    @property
    def dropped(self) -> int:
        """Events that did not fit, of all subscribers that are registered now."""
        return sum(s.dropped for s in self._subscribers)

    def events(self, names: Iterable[str]) -> EventIterator[Any]:
        """The events as they come, from now on; the subscription ends with the iterator, or with the server."""
        subscriber = _Subscriber(None)
        subscriber.ready = asyncio.Event()
        subscriber.names.update(names)
        self._subscribers.append(subscriber)
        self._compile()
        return EventIterator(self, subscriber)

    def drop(self, subscriber: _Subscriber) -> None:
        """It hears no more."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
            self._compile()

    def end(self) -> None:
        """The server is down: iterators end when they have given what waits."""
        for subscriber in list(self._subscribers):
            if subscriber.ready is not None:
                subscriber.is_serving = False
                subscriber.has_ended = True
                subscriber.ready.set()


E = TypeVar("E")


class EventIterator(Generic[E]):
    """`async for event in server.events(...)`."""

    def __init__(self, subscribers: Subscribers, subscriber: _Subscriber) -> None:
        self._subscribers = subscribers
        self._subscriber = subscriber

    def __aiter__(self) -> EventIterator[E]:
        return self

    async def __anext__(self) -> E:
        subscriber = self._subscriber
        assert subscriber.ready is not None
        while not subscriber.buffer:
            if subscriber.has_ended:
                self._subscribers.drop(subscriber)
                raise StopAsyncIteration
            subscriber.ready.clear()
            await subscriber.ready.wait()
        event: E = subscriber.buffer.popleft()
        return event

    async def aclose(self) -> None:
        """Ends the subscription."""
        self._subscriber.has_ended = True
        self._subscribers.drop(self._subscriber)

    def __del__(self) -> None:
        # A loop that is left by `break` leaves the iterator, too.
        self._subscribers.drop(self._subscriber)
