"""A network of byte streams between simulated machines: late, cut in pieces, broken off, or silent for ever."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .loop import Machine, SimLoop, current_machine

_EOF, _RESET = object(), object()


@dataclass
class Weather:
    """How connections fare, as chances of each."""

    refused: float = 0.0
    unanswered: float = 0.0
    cut: float = 0.0
    silent: float = 0.0
    latency_s: float = 0.001


class _Name:
    """What a bound socket tells."""

    def __init__(self, host: str, port: int) -> None:
        self._name = (host, port)

    def getsockname(self) -> tuple[str, int]:
        return self._name


class _Server:
    def __init__(self, net: Net, key: tuple[str, int]) -> None:
        self._net, self._key = net, key
        self.sockets = [_Name(*key)]

    def close(self) -> None:
        self._net.listening.pop(self._key, None)

    async def wait_closed(self) -> None:
        pass


class Pipe:
    """One direction of a connection: what was written and has not arrived."""

    def __init__(self, net: Net, to: Transport, rng: random.Random, latency_s: float) -> None:
        self._net, self._to, self._rng, self._latency_s = net, to, rng, latency_s
        self.pieces: deque[Any] = deque()
        self.size = 0
        self._is_armed = False
        # So many octets arrive; then the connection breaks, or falls silent.
        self.left: int | None = None
        self.ends_silently = False
        self._is_silent = False

    def put(self, piece: Any) -> None:
        if isinstance(piece, bytes):
            self.size += len(piece)
        self.pieces.append(piece)
        self.arm()

    def arm(self) -> None:
        if self._is_armed or not self.pieces or self._is_silent:
            return
        self._is_armed = True
        delay = self._latency_s * (0.5 + self._rng.random())
        self._net.loop.call_later(delay, self._arrive, context=self._net.context)

    def _arrive(self) -> None:
        self._is_armed = False
        to = self._to
        if to.is_gone or not self.pieces or (to.is_paused and self.pieces[0] is not _RESET):
            return
        piece = self.pieces.popleft()
        if isinstance(piece, bytes):
            if len(piece) > 1 and self._rng.random() < 0.3:
                at = self._rng.randrange(1, len(piece))
                self.pieces.appendleft(piece[at:])
                piece = piece[:at]
            if self.left is not None:
                if len(piece) > self.left:
                    if self.ends_silently:
                        self._is_silent = True
                        self.pieces.clear()
                    else:
                        to.broken()
                    return
                self.left -= len(piece)
            self.size -= len(piece)
            to.run(to.receive, piece)
            to.peer.drained()
        elif piece is _EOF:
            to.run(to.got_eof)
        else:
            to.run(to.lost, ConnectionResetError("Connection reset by peer"))
        self.arm()


class Transport(asyncio.Transport):
    """One end of a connection."""

    peer: Transport
    out: Pipe
    protocol: Any

    def __init__(self, net: Net, machine: Machine | None, local: tuple[str, int], remote: tuple[str, int]) -> None:
        super().__init__()
        self._net = net
        self.machine = machine
        self._names = {"sockname": local, "peername": remote}
        self.is_gone = False
        self.is_paused = False
        self._is_closing = False
        self._has_eof = False
        self._is_full = False
        self._high = 65536

    def run(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """In the machine's turn, if it has one."""
        context = self.machine.context if self.machine else self._net.context
        self._net.loop.call_soon(callback, *arguments, context=context)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._names.get(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self._is_closing or self.is_gone

    def is_reading(self) -> bool:
        return not self.is_paused

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
        self.peer.out.arm()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.out.size

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        if self.is_gone or self._has_eof or self._is_closing or not data:
            return
        self.out.put(bytes(data))
        if self.out.size > self._high and not self._is_full:
            self._is_full = True
            self.run(self.protocol.pause_writing)

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def drained(self) -> None:
        if self._is_full and self.out.size <= self._high // 4 and not self.is_gone:
            self._is_full = False
            self.run(self.protocol.resume_writing)

    def write_eof(self) -> None:
        if not self._has_eof and not self.is_gone:
            self._has_eof = True
            self.out.put(_EOF)

    def close(self) -> None:
        if self._is_closing or self.is_gone:
            return
        self.write_eof()
        self._is_closing = True
        self.run(self.lost, None)

    def abort(self) -> None:
        if not self.is_gone:
            self._is_closing = True
            self.out.pieces.clear()
            self.out.put(_RESET)
            self.run(self.lost, None)

    def receive(self, piece: bytes) -> None:
        """Octets have arrived."""
        if self.is_gone or (self._is_closing and not self.is_paused):
            return
        if self.is_paused:
            self.peer.out.pieces.appendleft(piece)
        else:
            self.protocol.data_received(piece)

    def got_eof(self) -> None:
        """The other side has ended its half."""
        if self.is_paused:
            self.peer.out.pieces.appendleft(_EOF)
        elif not self.is_gone and not self._is_closing and not self.protocol.eof_received():
            self.close()

    def begin(self, protocol: Any) -> None:
        """An accepted connection gets its protocol, and what it brought meanwhile."""
        self.protocol = protocol
        self.is_paused = False
        protocol.connection_made(self)
        if not self.is_paused:
            self.peer.out.arm()

    def lost(self, error: Exception | None) -> None:
        """The end."""
        if not self.is_gone:
            self.is_gone = True
            self._is_closing = True
            self._net.open.pop(self, None)
            if self.protocol is not None:
                self.protocol.connection_lost(error)

    def broken(self) -> None:
        """For both sides."""
        for end in (self, self.peer):
            if not end.is_gone:
                end.run(end.lost, ConnectionResetError("Connection reset by peer"))

    def __hash__(self) -> int:
        return id(self)


class Listener:
    """A listening socket, as the server's acceptor uses it. The loop calls `ready` when a connection waits."""

    def __init__(self, net: Net, key: tuple[str, int]) -> None:
        self._net, self._key = net, key
        self._waiting: deque[Accepted] = deque()
        self.ready: Callable[[], None] | None = None

    def setblocking(self, flag: bool) -> None:
        """Never blocks."""

    def getsockname(self) -> tuple[str, int]:
        return self._key

    def listen(self, backlog: int) -> None:
        self._net.listening[self._key] = (self, current_machine())

    def arrives(self, far: Transport) -> None:
        """A connection waits to be accepted; what it brings waits with it."""
        far.is_paused = True
        self._waiting.append(Accepted(far))
        if self.ready is not None:
            far.run(self.ready)

    def accept(self) -> tuple[Accepted, tuple[str, int]]:
        while self._waiting:
            accepted = self._waiting.popleft()
            if not accepted.far.is_gone:
                return accepted, accepted.far.get_extra_info("peername")
        raise BlockingIOError

    def close(self) -> None:
        if self._net.listening.get(self._key, (None,))[0] is self:
            del self._net.listening[self._key]
        for accepted in self._waiting:
            accepted.far.abort()
        self._waiting.clear()


class Accepted:
    """The socket of an accepted connection that has no protocol yet."""

    def __init__(self, far: Transport) -> None:
        self.far = far

    def setblocking(self, flag: bool) -> None:
        """Never blocks."""

    def getsockname(self) -> tuple[str, int]:
        name: tuple[str, int] = self.far.get_extra_info("sockname")
        return name

    def send(self, data: bytes) -> int:
        self.far.write(data)
        return len(data)

    def close(self) -> None:
        self.far.close()


class Net:
    """All connections. `weather(machine, host)` tells how one that begins now will fare."""

    def __init__(self, loop: SimLoop, rng: random.Random, weather: Callable[[Machine | None, str], Weather]) -> None:
        self.loop = loop
        self.context = contextvars.copy_context()
        self.listening: dict[tuple[str, int], tuple[Callable[[], Any] | Listener, Machine | None]] = {}
        self.open: dict[Transport, None] = {}
        self._rng = rng
        self._weather = weather
        self._port = 20000

    def listen(self, factory: Callable[[], Any], host: str, port: int) -> _Server:
        """Whoever connects there has a protocol of that factory."""
        self.listening[(host, port)] = (factory, current_machine())
        return _Server(self, (host, port))

    def kill(self, machine: Machine) -> None:
        """The other sides hear of it: the system closes what a process had."""
        for key, (_, owner) in list(self.listening.items()):
            if owner is machine:
                del self.listening[key]
        for end in list(self.open):
            if end.machine is machine and not end.is_gone:
                end.is_gone = True
                self.open.pop(end, None)
                end.out.put(_RESET)

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Transport, Any]:
        """As loop.create_connection."""
        machine, rng = current_machine(), self._rng
        weather = self._weather(machine, host)
        await asyncio.sleep(weather.latency_s * (0.5 + rng.random()))
        chance = rng.random()
        if chance < weather.unanswered:
            await self.loop.create_future()
        there = self.listening.get((host, port))
        if there is None or chance < weather.unanswered + weather.refused:
            raise ConnectionRefusedError(111, "Connection refused")
        make, owner = there
        self._port += 1
        mine = (f"198.51.100.{self._port % 250 + 1}", self._port)
        near, far = Transport(self, machine, mine, (host, port)), Transport(self, owner, (host, port), mine)
        near.peer, far.peer = far, near
        near.out = Pipe(self, far, rng, weather.latency_s)
        far.out = Pipe(self, near, rng, weather.latency_s)
        fate = rng.random()
        if fate < weather.cut + weather.silent:
            pipe = rng.choice((near.out, far.out))
            pipe.left = int(rng.expovariate(1 / 600))
            pipe.ends_silently = fate >= weather.cut
        near.protocol, far.protocol = factory(), None
        self.open[near] = self.open[far] = None
        if isinstance(make, Listener):
            near.protocol.connection_made(near)
            make.arrives(far)
            return near, near.protocol

        def accepted() -> None:
            far.protocol = make()
            far.protocol.connection_made(far)

        near.protocol.connection_made(near)
        far.run(accepted)
        return near, near.protocol
