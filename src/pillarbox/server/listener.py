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
import time
from collections.abc import Callable, Sequence

from ..clock import Timer
from ..errors import ListenError
from ..events.catalogue import Endpoint
from ..options import parse_networks
from ..places import DEVICE_SCHEMES, LOGIN_SCHEMES, TLS_SCHEMES
from ..smtp.reply import Reply
from .acceptor import MAX_HEADERS, MAX_HEADERS_PER_BALANCER, Acceptor, Arrivals, Profile
from .connection import SmtpConnection, TappedConnection
from .context import ServerContext
from .session import SmtpSession

SWEEP_S = 1.0
# A server that closes waits so long for a client's next command, and so long for its last messages.
SILENT_S = 0.25
LAST_MESSAGES_S = 2.0
BACKLOG = 1024
_LEAVING = Reply(421, "4.3.2", "Shutting down: try again later", reason="shutdown")


def _place(sock: socket.socket) -> Endpoint | None:
    """Returns where a socket listens; None where only the kernel knows which address a client called."""
    name = sock.getsockname()
    if isinstance(name, str):
        return Endpoint(name, 0)
    return None if name[0] in ("0.0.0.0", "::") else Endpoint(str(name[0]), int(name[1]))


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
        self._acceptors: list[Acceptor] = []
        # Closed, with connections whose session may not have begun.
        self._closed: list[Acceptor] = []
        # Of the whole server: connections that wait for a PROXY header, and those in the TLS handshake before a session.
        self._headers = Arrivals(MAX_HEADERS, MAX_HEADERS_PER_BALANCER)
        self._handshakes = Arrivals(1, 1)
        # Unix sockets that were bound here.
        self._paths: list[str] = []
        self._timer: Timer | None = None
        self._is_over = False

    @property
    def is_listening(self) -> bool:
        """True once bound."""
        return bool(self._acceptors)

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
                self._close()
                where = host if scheme == "unix" else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                self._failed(error, where)
                raise ListenError(error.errno or 0, listen_fault(error, where, port)) from None
        is_told = self._sockets is not None or "max_sessions" in context.options.model_fields_set
        context.admission.log_places(logging.WARNING if is_told else logging.INFO)
        context.room.look()
        self._bound_handshakes()
        self._timer = context.clock.call_later(SWEEP_S, self._sweep)

    async def _listen(self, scheme: str, host: str = "", port: int = 0, *, sock: socket.socket | None = None) -> None:
        """Opens one listener, on a socket that is bound already, or on its own."""
        context = self._context
        is_device = scheme in DEVICE_SCHEMES
        tls = (context.device_tls if is_device else context.tls) if scheme in TLS_SCHEMES else None
        make = SmtpConnection if context.wiretap is None else TappedConnection
        # No balancer speaks on a unix socket.
        is_balancer = self._is_balancer if context.options.proxy_from and scheme != "unix" else None
        if sock is not None:
            # A copy: closing ours leaves the other one, and the connections that wait in the socket's queue.
            sockets = [sock.dup()]
        else:
            sockets = [_bound_unix(host)] if scheme == "unix" else await _bound(host, port)
            self._paths += [host] if scheme == "unix" else []
        for own in sockets:
            own.listen(BACKLOG)
            profile = Profile(make, tls, _place(own), scheme in LOGIN_SCHEMES, is_device, is_balancer)
            self._acceptors.append(Acceptor(own, context, profile, self._headers, self._handshakes))

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

    def _close(self) -> None:
        """Accepts no more; what has been accepted goes on."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._closed, self._acceptors = self._acceptors, []
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._paths.clear()

    def names(self) -> list[tuple[str, int]]:
        """(host, port) of every socket that is bound."""
        names = []
        for acceptor in self._acceptors:
            for sock in acceptor.sockets:
                name = sock.getsockname()
                names.append((name, 0) if isinstance(name, str) else (str(name[0]), int(name[1])))
        return names

    def _bound_handshakes(self) -> None:
        """Clients that connect and are silent never take more than half of the places."""
        most = max(1, self._context.admission.max_sessions // 2)
        self._handshakes.most = self._handshakes.most_per_address = most

    def _sweep(self) -> None:
        context = self._context
        self._timer = context.clock.call_later(SWEEP_S, self._sweep)
        context.room.look()
        self._bound_handshakes()
        # On the clock that commits look at.
        context.commit.company.age(time.monotonic())
        now = context.clock.monotonic()
        context.admission.sweep(now)
        for session in list(context.sessions.values()):
            session.sweep(now)

    async def stop(self, grace_s: float) -> None:
        """No new sessions; 421 4.3.2 to idle ones; running transactions may finish within the grace.

        A client that has just connected, or is between two commands, is not idle: it may bring what it came for.
        """
        context = self._context
        context.is_closing = True
        self._close()
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
        return any(acceptor.is_arriving for acceptor in self._closed)

    async def _abort_rest(self) -> None:
        """Who does not read our 421 is cut off."""
        for acceptor in self._closed:
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


def _bound_unix(path: str) -> socket.socket:
    """Binds a unix socket for its owner alone; one that a dead server left behind is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "a file is in the way")
        if answers(path):
            raise OSError(errno.EADDRINUSE, "in use")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


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
