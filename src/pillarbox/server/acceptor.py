"""Accepts connections of one listening socket: counts each from `accept` on, then PROXY header, TLS handshake, session.

One path for every kind of listener. The loop's own servers count nothing before the handshake, and uvloop's closes
connections without a word when no file descriptor is left. Must not know SMTP, apart from the 421 of a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..events.session import Endpoint
from ..log.kinds import REFUSED
from ..log.reasons import label
from ..smtp.reply import Reply, format_reply
from . import proxyproto
from .connection import SmtpConnection, endpoint
from .limits import Refusal
from .proxyproto import Proxied, ProxyFault
from .tls import log_failed_handshake

if TYPE_CHECKING:
    from .context import ServerContext

_log = logging.getLogger("pillarbox.listener")
# Connections that are accepted in one loop iteration: sessions that begin together share iterations and commits. More of
# them cost more accepts in vain than they save.
ACCEPTED_A_TURN = 4
# Without a free descriptor: the pause before the next accept, and between two log lines about it.
NO_ROOM_S = 0.5
_NO_ROOM_LOG_S = 10.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# PROXY headers that are waited for: of all balancers, and of one.
MAX_HEADERS = 400
MAX_HEADERS_PER_BALANCER = 100


class Arrivals:
    """Connections that are not yet sessions. Beyond a bound the oldest one gives way: a true client is quick."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self.most, self.most_per_address = most, most_per_address
        # By address, oldest first (a dict keeps its order).
        self._tasks: dict[str, dict[asyncio.Task[None], None]] = {}
        self._count = 0

    def add(self, address: str, task: asyncio.Task[None]) -> str | None:
        """Adds a connection. Returns the address of an older one that was cancelled for it, or None."""
        tasks = self._tasks.setdefault(address, {})
        tasks[task] = None
        self._count += 1
        task.add_done_callback(lambda task: self._discard(address, task))
        if len(tasks) > self.most_per_address:
            return self._shed(address)
        if self._count > self.most:
            return self._shed(max(self._tasks, key=lambda address: len(self._tasks[address])))
        return None

    def _shed(self, address: str) -> str:
        task = next(iter(self._tasks[address]))
        self._discard(address, task)
        task.cancel()
        return address

    def _discard(self, address: str, task: asyncio.Task[None]) -> None:
        tasks = self._tasks.get(address, {})
        if task in tasks:
            del tasks[task]
            self._count -= 1
            if not tasks:
                del self._tasks[address]


@dataclass(frozen=True, slots=True)
class Profile:
    """What the connections of one listener have in common. `local` is None where only the kernel knows the address."""

    make: Callable[..., SmtpConnection]
    tls: ssl.SSLContext | None = None
    local: Endpoint | None = None
    wants_login: bool = False
    is_device: bool = False
    is_balancer: Callable[[str], bool] | None = None


class Acceptor:
    """Accepts on one socket. `headers` and `handshakes` are those of the whole server."""

    def __init__(
        self, sock: socket.socket, context: ServerContext, profile: Profile, headers: Arrivals, handshakes: Arrivals
    ) -> None:
        sock.setblocking(False)
        self.sockets = (sock,)
        self._sock = sock
        self._context = context
        self._profile = profile
        self._headers, self._handshakes = headers, handshakes
        self._pending: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._logged_at = -_NO_ROOM_LOG_S
        self._loop.add_reader(sock, self._accept)

    @property
    def is_arriving(self) -> bool:
        """True while a connection was accepted and has no session yet."""
        return bool(self._pending)

    def close(self) -> None:
        """Accepts no more; what has been accepted goes on."""
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._sock)
        self._sock.close()

    def abort(self) -> None:
        """Ends the connections that are not yet sessions."""
        for task in list(self._pending):
            task.cancel()

    # ------------------------------------------------------------------- accept

    def _accept(self) -> None:
        for _ in range(ACCEPTED_A_TURN):
            try:
                connection, name = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(error)
                return
            connection.setblocking(False)
            peer = endpoint(name)
            is_balancer = self._profile.is_balancer
            if is_balancer is not None and is_balancer(peer.host):
                shed = self._headers.add(peer.host, self._start(self._receive_header(connection, peer)))
                if shed is not None:
                    self._count_shed(shed)
            else:
                self._admit(connection, peer, None)

    def _rest(self, error: OSError) -> None:
        """Pauses: a connection that cannot be accepted stays readable, and would keep the loop busy."""
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(NO_ROOM_S, self._go_on)
        now = time.monotonic()
        if now - self._logged_at >= _NO_ROOM_LOG_S:
            self._logged_at = now
            level = logging.ERROR if error.errno in _NO_ROOM else logging.WARNING
            _log.log(level, "listener: cannot accept: %s; trying again every %g s", error.strerror, NO_ROOM_S)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    # -------------------------------------------------------------------- admit

    def _admit(self, sock: socket.socket, peer: Endpoint, proxied: Proxied | None) -> None:
        """Counts the connection, and begins its session or its handshake; or refuses it."""
        context, profile = self._context, self._profile
        local = profile.local or endpoint(sock.getsockname())
        is_unknown = proxied is not None
        if proxied is not None and proxied.peer is not None:
            # A balancer speaks for a client, and for the address that the client connected to.
            peer, local = proxied.peer, proxied.local or local
            is_unknown = False
        # Unix-socket peers are trusted: file permissions already restrict who can connect. A balancer that speaks for
        # itself is not: it may have our own address.
        is_trusted = not is_unknown and (local.host.startswith("/") or context.is_trusted(peer.host))
        refusal = context.admission.enter(peer.host, is_trusted=is_trusted)
        if refusal is not None:
            self._refuse(sock, peer, refusal)
            return
        connection = profile.make(
            context, peer, local, is_trusted=is_trusted, wants_login=profile.wants_login, is_device=profile.is_device
        )
        task = self._start(self._begin(sock, connection))
        if profile.tls is not None:
            self._handshakes.add(peer.host, task)

    def _refuse(self, sock: socket.socket, peer: Endpoint, refusal: Refusal) -> None:
        """Writes 421 where the greeting would be in clear, and closes. The connection has cost one accept."""
        admission = self._context.admission
        self._context.counters.count_refusal(label(refusal.reason))
        count = admission.count_refusal(peer.host)
        if self._profile.tls is None and admission.may_speak(count):
            with contextlib.suppress(OSError):
                sock.send(format_reply(Reply(421, "4.7.0", refusal.text)))
        sock.close()
        if count == 1:
            # One line for each address and second: a flood must not fill the log.
            fields = {"reason": refusal.reason, "stage": "connect", "peer": peer.host, "code": 421, "dsn": "4.7.0"}
            REFUSED.write({**fields, "reply": refusal.text})

    async def _begin(self, sock: socket.socket, connection: SmtpConnection) -> None:
        """Makes the transport, after the TLS handshake where the listener begins with one."""
        tls, admission = self._profile.tls, self._context.admission
        handshake_s = None if tls is None else admission.handshake_s
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, sock, ssl=tls, ssl_handshake_timeout=handshake_s
            )
        except (OSError, asyncio.CancelledError) as error:
            if not connection.has_begun:
                admission.leave(connection.peer.host)
                if tls is not None and not self._context.is_closing:
                    self._context.counters.count_refusal("tls-failed")
                    log_failed_handshake(connection.peer.host, error)
            with contextlib.suppress(OSError):
                sock.close()

    # ------------------------------------------------------------- PROXY header

    def _count_shed(self, balancer: str) -> None:
        """A connection without its header gave way to a newer one. One line for each balancer and second."""
        self._context.counters.count_refusal("proxy-failed")
        if self._context.admission.count_refusal(balancer) == 1:
            fields = {"reason": "proxy-failed", "stage": "connect", "peer": balancer}
            REFUSED.write({**fields, "reply": "balancer: too many connections without a PROXY header"})

    async def _receive_header(self, sock: socket.socket, balancer: Endpoint) -> None:
        """Waits for the header of a balancer's connection (hostile row 64: the deadline is for the whole of it)."""
        try:
            async with asyncio.timeout(proxyproto.HEADER_S):
                proxied = await proxyproto.receive(sock)
        except (ProxyFault, TimeoutError) as error:
            reason = error or f"no PROXY header within {proxyproto.HEADER_S:g} s"
            self._context.counters.count_refusal("proxy-failed")
            fields = {"reason": "proxy-failed", "stage": "connect", "peer": balancer.host}
            REFUSED.write({**fields, "reply": f"balancer: {reason}"[:200]})
            sock.close()
        except (OSError, asyncio.CancelledError):
            sock.close()
        else:
            self._admit(sock, balancer, proxied)
