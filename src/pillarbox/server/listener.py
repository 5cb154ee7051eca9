"""Listeners: binds addresses, accepts, sweeps deadlines, closes with grace. Must not know SMTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..clock import Timer, accepts_one_by_one
from ..errors import ListenError
from ..events.catalogue import Endpoint
from ..options import parse_networks
from ..places import DEVICE_SCHEMES, LOGIN_SCHEMES, TLS_SCHEMES
from ..smtp.reply import Reply
from .connection import SmtpConnection, TappedConnection
from .context import ServerContext
from .proxyproto import HANDSHAKE_S, Proxied, ProxyAcceptor
from .session import SmtpSession

_log = logging.getLogger("pillarbox.listener")
SWEEP_S = 1.0
# A server that closes waits so long for a client's next command, and so long for its last messages.
SILENT_S = 0.25
LAST_MESSAGES_S = 2.0
BACKLOG = 1024
# So many connections are taken in one turn of the loop, where others wait behind the first: sessions that begin together
# stay together, and share turns and commits. More of them cost more questions in vain than they save.
ACCEPTED_A_TURN = 4
_LEAVING = Reply(421, "4.3.2", "Shutting down: try again later")


class _Place:
    """Where a listener listens, once it is bound; None where only the kernel knows which address was called."""

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None

    def learn(self, server: asyncio.Server | ProxyAcceptor) -> None:
        """Takes it from the listening socket."""
        names = [sock.getsockname() for sock in server.sockets]
        if len(names) == 1 and isinstance(names[0], str):
            self.endpoint = Endpoint(names[0], 0)
        elif len(names) == 1 and names[0][0] not in ("0.0.0.0", "::"):
            self.endpoint = Endpoint(str(names[0][0]), int(names[0][1]))


class Listeners:
    """All listeners of one server, and the sweep over their sessions."""

    def __init__(
        self,
        context: ServerContext,
        failed: Callable[[OSError, str], None],
        sockets: Sequence[tuple[str, socket.socket]] | None = None,
    ) -> None:
        self._context = context
        self._sockets = sockets
        self._failed = failed
        self._servers: list[asyncio.Server | ProxyAcceptor] = []
        # Further handles on their sockets.
        self._beside: list[asyncio.Server] = []
        # Closed, with connections whose session has not begun.
        self._acceptors: list[ProxyAcceptor] = []
        self._timer: Timer | None = None
        self._is_over = False
        # Accepted, and in the handshake that comes before the session; whoever fails there is forgotten by itself.
        self._arriving: weakref.WeakSet[SmtpConnection] = weakref.WeakSet()

    @property
    def is_listening(self) -> bool:
        """True once bound."""
        return bool(self._servers)

    async def start(self) -> None:
        """Binds every address, or none: ListenError names the one that could not be had, and why."""
        context = self._context
        if self._sockets is not None:
            for scheme, sock in self._sockets:
                await self._listen(scheme, sock=sock)
        for scheme, host, port in context.options.listeners if self._sockets is None else ():
            try:
                await self._listen(scheme, host, port)
            except OSError as error:
                await self._undo()
                where = host if scheme == "unix" else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                self._failed(error, where)
                raise ListenError(error.errno or 0, listen_fault(error, where, port)) from None
        context.room.look()
        self._timer = context.clock.call_later(SWEEP_S, self._sweep)

    async def _listen(self, scheme: str, host: str = "", port: int = 0, *, sock: socket.socket | None = None) -> None:
        """One listener, on a socket that is bound already, or on one of its own."""
        loop, context, place = asyncio.get_running_loop(), self._context, _Place()

        wants_login, is_device = scheme in LOGIN_SCHEMES, scheme in DEVICE_SCHEMES
        kind = SmtpConnection if context.wiretap is None else TappedConnection

        def make(proxied: Proxied | None = None) -> SmtpConnection:
            connection = kind(context, place.endpoint, proxied=proxied, wants_login=wants_login, is_device=is_device)
            if tls is not None:
                self._arriving.add(connection)
            return connection

        tls = (context.device_tls if is_device else context.tls) if scheme in TLS_SCHEMES else None
        handshake_s = HANDSHAKE_S if tls is not None else None
        if context.options.proxy_from and scheme != "unix":
            for own in [sock.dup()] if sock is not None else await _bound(host, port):
                own.listen(BACKLOG)
                self._add(ProxyAcceptor(own, make, tls, self._is_balancer), place)
            return
        listen: Callable[..., Awaitable[asyncio.Server]] = loop.create_server
        how: dict[str, Any] = {"backlog": BACKLOG, "ssl": tls, "ssl_handshake_timeout": handshake_s}
        if scheme == "unix":
            # The path is whoever's who bound it: since Python 3.13 closing a handle on it would remove it.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            listen, how = loop.create_unix_server, {"backlog": BACKLOG, **keep}
        if sock is not None:
            # A copy: closing ours leaves the other one, and what waits in the socket's queue.
            server = await listen(make, sock=sock.dup(), **how)
        elif scheme == "unix":
            server = await _listen_unix(make, host)
        else:
            server = await listen(make, host, port, reuse_address=True, **how)
        self._add(server, place)
        if accepts_one_by_one(loop):
            # More handles on the same sockets, for the loop takes one connection a turn from each.
            for bound in list(server.sockets) * (ACCEPTED_A_TURN - 1):
                own = socket.socket(fileno=os.dup(bound.fileno()))
                self._beside.append(await listen(make, sock=own, **how))

    def _add(self, server: asyncio.Server | ProxyAcceptor, place: _Place) -> None:
        self._servers.append(server)
        place.learn(server)

    def _is_balancer(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in parse_networks(self._context.options.proxy_from))

    def is_ours(self, host: str, port: int) -> bool:
        """True when a connection to that address and port would reach this very server."""
        for name, own_port in self.names():
            if own_port == port and (name == host or (name in ("0.0.0.0", "::") and _is_local(host))):
                return True
        return False

    def cut_off(self) -> None:
        """Nobody is waited for any more."""
        self._is_over = True

    async def _undo(self) -> None:
        for server in (*self._servers, *self._beside):
            server.close()
        self._servers.clear()
        self._beside.clear()

    def names(self) -> list[tuple[str, int]]:
        """(host, port) of every socket that is bound."""
        names = []
        for server in self._servers:
            for sock in server.sockets:
                name = sock.getsockname()
                names.append((name, 0) if isinstance(name, str) else (str(name[0]), int(name[1])))
        return names

    def _sweep(self) -> None:
        context = self._context
        self._timer = context.clock.call_later(SWEEP_S, self._sweep)
        context.room.look()
        # On the clock that commits look at.
        context.commit.company.age(time.monotonic())
        now = context.clock.monotonic()
        for session in list(context.sessions.values()):
            session.sweep(now)

    async def stop(self, grace_s: float) -> None:
        """No new sessions; 421 4.3.2 to idle ones; running transactions may finish within the grace.

        A client that has just connected, or is between two commands, is not idle: it may bring what it came for.
        """
        context = self._context
        context.is_closing = True
        for server in (*self._servers, *self._beside):
            server.close()
            if isinstance(server, ProxyAcceptor):
                self._acceptors.append(server)
        self._servers.clear()
        self._beside.clear()
        if grace_s > 0:
            # Who was accepted in this turn of the loop has its session in the next.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        deadline = context.clock.monotonic() + grace_s
        idle = _IdleWatch()
        while context.sessions or self._are_arriving():
            is_over = self._is_over or context.clock.monotonic() >= deadline
            for session in list(context.sessions.values()):
                if is_over or idle.may_leave(session):
                    session.leave(_LEAVING, "shutdown", at_once=True)
            if is_over:
                break
            await _turn(context)
        await self._abort_rest()
        if self._timer is not None:
            self._timer.cancel()

    def _are_arriving(self) -> bool:
        is_waiting = any(acceptor.is_arriving for acceptor in self._acceptors)
        return is_waiting or any(not connection.has_begun for connection in self._arriving)

    async def _abort_rest(self) -> None:
        """Who does not read our 421 is cut off."""
        for acceptor in self._acceptors:
            acceptor.abort()
        for _ in range(20):
            if not self._context.sessions:
                return
            await _turn(self._context)
        for session in list(self._context.sessions.values()):
            session.cut_off()
        await asyncio.sleep(0)


class _IdleWatch:
    """Which sessions of a server that closes may be sent away: those that are outside a transaction, and silent.

    In real time, whatever clock the server has: so is the client's.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seen: dict[str, tuple[int, float]] = {}

    def may_leave(self, session: SmtpSession) -> bool:
        """Asked again and again."""
        now = time.monotonic()
        seen, since = self._seen.get(session.facts.client_id, (-1, now))
        arrivals = session.arrivals + session.commands
        if seen != arrivals:
            since = now
            self._seen[session.facts.client_id] = (arrivals, now)
        # Who brings one message after the other has had its time.
        return not session.is_busy and (now - since >= SILENT_S or now - self._began >= LAST_MESSAGES_S)


async def _turn(context: ServerContext) -> None:
    """A twentieth of a second of real time: closing sockets is the kernel's work, whatever clock the server has."""
    await asyncio.sleep(0.05)


async def _bound(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of a host, as the loop's own server makes them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def _listen_unix(make: Callable[[], SmtpConnection], path: str) -> asyncio.Server:
    """A unix socket for its owner alone; one that a dead server left behind is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "a file is in the way")
        if answers(path):
            # The loop would put its own socket in place of that one.
            raise OSError(errno.EADDRINUSE, "in use")
        os.unlink(path)
    server = await asyncio.get_running_loop().create_unix_server(make, path, backlog=BACKLOG)
    os.chmod(path, 0o600)
    return server


def answers(path: str) -> bool:
    """True when somebody listens on that unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True


def _is_local(host: str) -> bool:
    """True for an address of this machine: only such a one can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
        return True


def listen_fault(error: OSError, where: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {where}: {error.strerror}; give an IP address or a name of this machine"
    text = f"cannot listen on {where}: {os.strerror(error.errno) if error.errno else error}"
    with contextlib.suppress(AttributeError):
        if isinstance(error, PermissionError) and port < 1024 and os.geteuid() != 0:
            return f"{text}; ports below 1024 want root or CAP_NET_BIND_SERVICE: use --listen HOST:2525"
    if error.errno in (98, 48):
        return f"{text}; another server has it: stop that one, or use another port (0 takes any free one)"
    return text
