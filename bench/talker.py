"""An SMTP client that looks at the clock: transactions one behind the other in several sessions, in clear or under TLS; and
sessions that idle.
"""

from __future__ import annotations

import asyncio
import resource
import selectors
import socket
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import uvloop

_CONTENT = b"Subject: bench\r\n\r\n" + (b"X" * 78 + b"\r\n") * 51 + b".\r\n"
LIMIT_S = 180


_EHLO = b"EHLO bench.test\r\n"
_STARTTLS = b"STARTTLS\r\n"


@dataclass
class Tls:
    """STARTTLS before the first message. `resumes`: with what the last session to have ended left (RFC 8446 section 2.2)."""

    resumes: bool = False
    handshakes: int = 0
    resumed: int = 0

    def __post_init__(self) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._session: ssl.SSLSession | None = None

    def begin(self) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
        """A client's side, what it reads from, and what it writes to."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = self._session if self.resumes else None
        return self._context.wrap_bio(incoming, outgoing, session=session), incoming, outgoing

    def ended(self, tls: ssl.SSLObject) -> None:
        """A session with it is over."""
        self.handshakes += 1
        self.resumed += bool(tls.session_reused)
        self._session = tls.session


class _Talker(asyncio.Protocol):
    """One session; begins anew behind each message unless it is reused."""

    _SAYS = (b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n", _CONTENT)

    def __init__(
        self, todo: list[int], times: list[float], done: asyncio.Future[None], tls: Tls | None, *, is_reused: bool
    ) -> None:
        self._todo, self._times, self._done = todo, times, done
        self._is_reused = is_reused
        # What is said before the first message.
        self._opening = [_EHLO] if tls is None else [_EHLO, _STARTTLS, _EHLO]
        self._tls = tls
        self._secure: ssl.SSLObject | None = None
        self._is_shaking = False
        self._step = -1
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the greeting."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A reply's last line takes the conversation a step further."""
        if self._secure is not None:
            self._incoming.write(data)
            if self._is_shaking and not self._shake():
                return
            data = self._decrypted()
        self._held += data
        if not self._held.endswith(b"\r\n") or self._held[self._held.rfind(b"\n", 0, -1) + 4 :][:1] == b"-":
            return
        reply, self._held = self._held, b""
        if reply[:1] not in b"23":
            self._done.set_exception(RuntimeError(f"the bench was refused: {reply!r}"))
            self._transport.abort()
            return
        if self._opening:
            if self._opening[0] is _EHLO and self._is_behind_starttls():
                self._handshake()
            else:
                self._write(self._opening.pop(0))
            return
        self._step += 1
        if self._step == 4:
            self._times.append(time.perf_counter() - self._began)
            self._end_message()
        else:
            self._say()

    def _is_behind_starttls(self) -> bool:
        return self._tls is not None and self._secure is None and len(self._opening) == 1

    def _handshake(self) -> None:
        assert self._tls is not None
        self._secure, self._incoming, self._outgoing = self._tls.begin()
        self._is_shaking = True
        self._shake()

    def _shake(self) -> bool:
        """A step of the handshake; True once it is done, and EHLO said."""
        assert self._secure is not None
        try:
            self._secure.do_handshake()
        except ssl.SSLWantReadError:
            self._transport.write(self._outgoing.read())
            return False
        self._is_shaking = False
        self._write(self._opening.pop(0))
        return True

    def _decrypted(self) -> bytes:
        assert self._secure is not None
        try:
            return self._secure.read(1 << 16)
        except ssl.SSLWantReadError:
            return b""

    def _write(self, data: bytes) -> None:
        if self._secure is not None:
            self._secure.write(data)
            data = self._outgoing.read()
        self._transport.write(data)

    def _say(self) -> None:
        if self._step == 0:
            if not self._todo:
                self._quit()
                return
            self._todo.pop()
            self._began = time.perf_counter()
        self._write(self._SAYS[self._step])

    def _end_message(self) -> None:
        if self._is_reused:
            self._step = 0
            self._say()
        else:
            self._quit()

    def _quit(self) -> None:
        if self._tls is not None and self._secure is not None:
            self._tls.ended(self._secure)
        self._write(b"QUIT\r\n")
        self._transport.close()
        if not self._done.done():
            self._done.set_result(None)


async def _one(port: int, todo: list[int], times: list[float], tls: Tls | None, *, is_reused: bool) -> None:
    loop = asyncio.get_running_loop()
    while todo:
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(lambda: _Talker(todo, times, done, tls, is_reused=is_reused), "127.0.0.1", port)  # noqa: B023
        await done


def talk(port: int, *, sessions: int, count: int, is_reused: bool, tls: Tls | None = None) -> list[float]:
    """Seconds of each of `count` transactions, sorted."""
    todo, times = list(range(count)), list[float]()

    async def main() -> None:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(_one(port, todo, times, tls, is_reused=is_reused) for _ in range(sessions)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    return sorted(times)


def allow_many_files() -> None:
    """Thousands of sockets, here and in what is started from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class IdleSessions:
    """`count` sessions that have said EHLO; held open within a `with`."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self._socks: list[socket.socket] = []

    def __enter__(self) -> IdleSessions:
        for _ in range(self._count):
            sock = socket.create_connection(("127.0.0.1", self._port), 30)
            self._socks.append(sock)
            self._read(sock)
            sock.sendall(b"EHLO idle.test\r\n")
        for sock in self._socks:
            self._read(sock)
        return self

    @staticmethod
    def _read(sock: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            if not selector.select(30) or not sock.recv(4096):
                raise TimeoutError("an idle session was not answered")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in self._socks:
            sock.close()
