"""A connection: moves bytes between a transport and a session, knows no SMTP. Back-pressure, half-close, STARTTLS."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, cast

from ..events.catalogue import Endpoint, Session
from ..log.kinds import CONNECTED
from ..queue.company import Company
from ..smtp.server import ServerProtocol
from .context import DEVICE
from .refusals import note_connected
from .repairs import report_repairs
from .session import SmtpSession
from .tls import describe, log_failed_handshake

if TYPE_CHECKING:
    from .context import ServerContext

LINGER_BYTES = 1 << 20
LINGER_SWEEPS = 3


def endpoint(name: Any) -> Endpoint:
    """Returns a socket's name as an Endpoint; an IPv4 client of a socket for both families keeps its IPv4 address."""
    if isinstance(name, tuple) and len(name) >= 2:
        host = str(name[0])
        return Endpoint(host[7:] if host.startswith("::ffff:") and "." in host else host, int(name[1]))
    return Endpoint(str(name or ""), 0)


class Outbox:
    """Writes of one turn of the loop, done at its end, one behind the other.

    A reply that leaves in the middle of a turn wakes its client at once, which then waits for a processor, answers, and
    sleeps again, for each session anew. Measured on two processors with 20 sessions: a third of the server's time.
    """

    __slots__ = ("_company", "_loop", "writes")

    def __init__(self, company: Company) -> None:
        self._company = company
        # Octets to write; b"" to end our half, None to close. Who puts the first one calls `begin`. Always the same list.
        self.writes: list[tuple[asyncio.Transport, bytes | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> None:
        """There will be something at the end of this turn."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        loop.call_soon(self.flush)

    def put(self, transport: asyncio.Transport, data: bytes | None) -> None:
        """One more."""
        if not self.writes:
            self.begin()
        self.writes.append((transport, data))

    def flush(self) -> None:
        """Everything that waits."""
        self._company.moved += 1
        writes = self.writes.copy()
        self.writes.clear()
        for transport, data in writes:
            if data:
                if not transport.is_closing():
                    transport.write(data)
            elif data is None:
                transport.close()
            elif not transport.is_closing():
                transport.write_eof()


class SmtpConnection(asyncio.Protocol):
    """One connection, admitted before. The loop calls it; it calls its session."""

    __slots__ = (
        "__weakref__",
        "_context",
        "_is_device",
        "_is_trusted",
        "_linger_sweeps",
        "_lingers",
        "_local",
        "_outbox",
        "_stops",
        "_tls_task",
        "_transport",
        "_wants_login",
        "_writes",
        "has_eof",
        "peer",
        "session",
    )

    def __init__(
        self,
        context: ServerContext,
        peer: Endpoint,
        local: Endpoint,
        *,
        is_trusted: bool,
        wants_login: bool = False,
        is_device: bool = False,
    ) -> None:
        self._is_device = is_device
        self.peer = peer
        self._local = local
        self._is_trusted = is_trusted
        self._wants_login = wants_login
        self._context = context
        self._outbox: Outbox = context.outbox
        self._writes = context.outbox.writes
        self._transport: asyncio.Transport | None = None
        self._stops: set[str] = set()
        self._tls_task: asyncio.Task[None] | None = None
        self.has_eof = False
        self._lingers = self._linger_sweeps = 0
        self.session: SmtpSession

    @property
    def has_begun(self) -> bool:
        """True once it has a session: with TLS from the first octet, after the handshake."""
        return hasattr(self, "session")

    # ------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; with TLS from the first octet its handshake is done."""
        context = self._context
        self._transport = cast(asyncio.Transport, transport)
        facts = Session(context.new_client_id(), self.peer, self._local)
        facts.wants_login = self._wants_login
        if context.tls is not None:
            facts.tls = describe(transport.get_extra_info("ssl_object"))
        facts.is_trusted = self._is_trusted
        rules = context.rules
        if self._is_device or (context.device_networks and context.is_device(self.peer.host)):
            facts.profile, rules = DEVICE, context.device_rules
        self.session = SmtpSession(context, self, facts, ServerProtocol(context.protocol_facts(facts), rules))
        context.sessions[facts.client_id] = self.session
        context.counters.sessions += 1
        if CONNECTED.is_enabled:
            note_connected(self.session)
        self.session.begin()

    def data_received(self, data: bytes) -> None:
        """Octets."""
        if self._lingers:
            self._lingers -= len(data)
            if self._lingers <= 0:
                self.abort()
            return
        self.session.receive(data)

    def eof_received(self) -> bool:
        """The client's half is closed: what it asked before is still answered (the original threw that away)."""
        self.has_eof = True
        if self._lingers:
            return False
        self.session.receive_eof()
        # A TLS connection cannot be half closed; True would be ignored with a warning.
        return self._transport is not None and self._transport.get_extra_info("ssl_object") is None

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        context, session = self._context, self.session
        if context.sessions.pop(session.facts.client_id, None) is not None:
            context.admission.leave(self.peer.host)
        if exc is not None and session.reason.startswith("client"):
            session.reason = f"connection lost: {exc}"
        self._transport = None
        if session.facts.profile:
            report_repairs(context, session.facts, session.protocol)
        session.lost()

    def pause_writing(self) -> None:
        """The client does not read our replies: then we do not read its commands."""
        self.stop_reading("writing")

    def resume_writing(self) -> None:
        """It reads again."""
        self.go_on_reading("writing")

    # --------------------------------------------------------- from the session

    def write(self, data: bytes) -> None:
        """Octets to the client, at the end of this turn."""
        transport = self._transport
        if transport is not None:
            # `put`, once for each reply.
            writes = self._writes
            if not writes:
                self._outbox.begin()
            writes.append((transport, data))

    def stop_reading(self, why: str) -> None:
        """No more octets until every reason for stopping is gone."""
        if not self._stops and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._stops.add(why)

    def slow_down(self) -> None:
        """Reads the next command after a pause: a client whose commands are refused one after the other."""
        delay_s = self._context.options.error_delay_s
        if delay_s and not self._lingers:
            self.stop_reading("errors")
            self._context.clock.call_later(delay_s, lambda: self.go_on_reading("errors"))

    def go_on_reading(self, why: str) -> None:
        """One reason less."""
        if why not in self._stops:
            return
        self._stops.discard(why)
        if not self._stops and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close_when_written(self) -> None:
        """Closes once what was written has left."""
        if self._transport is not None and not self._lingers:
            self._outbox.put(self._transport, None)

    def linger(self) -> None:
        """Ends our half, and reads on for a moment before closing.

        A socket that is closed with octets unread is reset, and the client never sees the reply that says why.
        """
        transport = self._transport
        if transport is None or self._lingers:
            return
        if self.has_eof or not transport.can_write_eof():
            self._outbox.put(transport, None)
            return
        self.session.intake.forget_expected()
        self._lingers = LINGER_BYTES
        self._linger_sweeps = LINGER_SWEEPS
        self._outbox.put(transport, b"")
        for why in list(self._stops):
            self.go_on_reading(why)

    def sweep(self) -> None:
        """Once a second: whoever does not hang up by itself is hung up on."""
        if self._lingers:
            self._linger_sweeps -= 1
            if self._linger_sweeps <= 0:
                self.abort()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def start_tls(self) -> None:
        """Begins the handshake behind the 220; plaintext that comes meanwhile fails it, and is never a command."""
        assert self._transport is not None
        self._outbox.flush()
        # Nothing may reach the session between the 220 and the switch of protocols.
        self._transport.pause_reading()
        self._tls_task = asyncio.get_running_loop().create_task(self._handshake(self._transport))

    async def _handshake(self, transport: asyncio.Transport) -> None:
        context = self._context.tls_of(self.session.facts)
        assert context is not None
        session = self.session
        try:
            upgraded = await asyncio.get_running_loop().start_tls(
                transport, self, context, server_side=True, ssl_handshake_timeout=self._context.admission.handshake_s
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            session.reason = f"TLS handshake failed: {error}"
            log_failed_handshake(self.peer.host, error, session.facts.client_id)
            self._context.counters.count_refusal("tls-failed")
            transport.abort()
            # Some loops do not tell the protocol of a connection that ends within the handshake.
            self.connection_lost(None)
            return
        if upgraded is None or session.is_lost or session.protocol.is_closed:
            # Sent away meanwhile, say: nothing opens it again.
            return
        self._transport = upgraded
        session.tls_started(describe(upgraded.get_extra_info("ssl_object")))


class TappedConnection(SmtpConnection):
    """The same, where the flag `trace` wants to know what is said."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Octets to the client, told before they leave."""
        if self._context.wiretap is not None:
            self._context.wiretap(self.session, data)
        super().write(data)
