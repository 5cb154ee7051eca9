"""An event loop in which time is a number: nothing waits, everything happens in an order that the seed decides.

A machine is whatever was begun in its context. It can be killed, and nothing of it runs any more; or be stopped, and what
it would have done meanwhile comes at once when it goes on, as with SIGSTOP.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import socket
from asyncio import events
from collections.abc import Callable
from typing import Any

# Where the machine's time begins.
EPOCH = 1_800_000_000.0
# More than any world needs between two moments.
_MOST_TURNS = 20_000


class Machine:
    """One incarnation of a server, from its start to its end."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.skew_s = 0.0
        self.context = contextvars.copy_context()
        self._loop = loop
        self._is_stopped = False
        self._held: list[tuple[Callable[..., Any], tuple[Any, ...], contextvars.Context | None]] = []
        self.context.run(_machine.set, self)

    def kill(self) -> None:
        """Nothing of it happens any more."""
        self.is_dead = True
        self._held.clear()

    def stop(self) -> None:
        """SIGSTOP."""
        self._is_stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self._is_stopped = False
        held, self._held = self._held, []
        for callback, arguments, context in held:
            self._loop.call_soon(callback, *arguments, context=context)

    def holds(self, callback: Callable[..., Any], arguments: tuple[Any, ...], context: Any) -> bool:
        """True when it is not to run now."""
        if self._is_stopped and not self.is_dead:
            self._held.append((callback, arguments, context))
        return self.is_dead or self._is_stopped


_machine: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("machine", default=None)


def current_machine() -> Machine | None:
    """Whose code runs now; None: the world's."""
    return _machine.get()


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        machine = self._context.get(_machine)  # type: ignore[attr-defined]
        if machine is None or not machine.holds(self._callback, self._args, self._context):  # type: ignore[attr-defined]
            super()._run()  # type: ignore[misc]


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        machine = self._context.get(_machine)  # type: ignore[attr-defined]
        if machine is None or not machine.holds(self._callback, self._args, self._context):  # type: ignore[attr-defined]
            super()._run()  # type: ignore[misc]


class _NoSelector:
    """Where a real loop would wait, time moves on."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation stands still: nothing will ever happen again")
        if timeout > 0:
            self._loop.now += timeout
            self._turns = 0
        self._turns += 1
        if self._turns > _MOST_TURNS:
            callbacks = [str(handle) for handle in list(self._loop._ready)[:3]]  # type: ignore[attr-defined]
            raise RuntimeError(f"somebody runs in circles, and time stands still: {callbacks}")
        return []


class SimLoop(asyncio.BaseEventLoop):
    """See the module's text. `net` makes the connections."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.faults: list[str] = []
        self.net: Any = None
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def wall(self) -> float:
        """Unix seconds, as the machine that asks takes them to be."""
        machine = _machine.get()
        return EPOCH + self.now + (machine.skew_s if machine else 0.0)

    def _failed(self, loop: Any, context: dict[str, Any]) -> None:
        machine = _machine.get()
        if machine is not None and machine.is_dead:
            return
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {error!r}")

    # ------------------------------------------------------------ what a loop is asked for

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        return self._call_soon(callback, args, context)

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """At once: a thread would bring an order of its own."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return await self.net.connect(protocol_factory, str(host), int(port))

    def add_reader(self, sock: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        sock.ready = callback

    def remove_reader(self, sock: Any) -> bool:  # type: ignore[override]
        sock.ready = None
        return True

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **options: Any) -> Any:
        protocol = protocol_factory()
        if sock.far.is_gone:
            raise ConnectionResetError("the client has left")
        sock.far.begin(protocol)
        return sock.far, protocol

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return self.net.listen(protocol_factory, str(host), int(port))


assert events.Handle is asyncio.Handle
