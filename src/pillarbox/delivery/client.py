"""One outgoing connection: asyncio around smtp.client. Connects, TLS, AUTH, then one transaction after the other.

Must not know lanes' policy, retries or the queue: it tells its owner what happened, per transaction.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ..clock import Clock
from ..places import address_literal, is_fully_qualified
from ..smtp.client import ClientProtocol, Happened, Stage, Transaction
from ..smtp.reply import Reply
from ..smtp.sasl import Credentials, choose_mechanism, may_try_another
from ..smtp.state import ClientState
from .pool import Place
from .route import Target
from .tlspolicy import ResumingContext, TlsPolicy
from .width import STALLED_S

_log = logging.getLogger("pillarbox.delivery")
CONNECT_S = 30.0
# RFC 5321 section 4.5.3.2, seconds.
STEP_S: dict[Stage, float] = {
    Stage.GREETING: 300.0,
    Stage.HELLO: 300.0,
    Stage.TLS: 120.0,
    Stage.AUTH: 300.0,
    Stage.MAIL: 300.0,
    Stage.RCPT: 300.0,
    Stage.DATA: 120.0,
    Stage.CONTENT: 180.0,
    Stage.FINAL: 600.0,
}
# A server that takes a little all the time is given up as well: so long for a transaction, and more for large content.
TRANSACTION_S = 3600.0
TRANSACTION_BYTES_S = 1000.0
_HIGH_WATER = 1 << 20


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How connections are made. `time_out_s` is a ceiling for every step; None leaves the RFC's."""

    hello_name: str
    policy: TlsPolicy
    context: ssl.SSLContext | None
    credentials: Credentials | None = None
    may_auth_in_clear: bool = False
    mechanism: str | None = None
    time_out_s: float | None = None


class ConnectFault(Exception):
    """The connection did not come to where it could take a message; `reply` and `stage` say how far it came.

    `is_handshake`: TLS is at fault. `takes_no_mail`: the greeting of a host that never accepts mail (RFC 7504).
    """

    def __init__(self, reply: Reply, stage: Stage, *, is_handshake: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.stage = stage
        self.is_handshake = is_handshake
        self.takes_no_mail: Reply | None = None


# Asking an enum for a member costs as much as a call.
_WANTS_CONTENT, _DONE, _IDLE = Happened.WANTS_CONTENT, Happened.DONE, ClientState.IDLE


class Owner(Protocol):
    """Who gave the work: a lane."""

    def transaction_done(self, connection: ClientConnection, transaction: Transaction) -> None:
        """All outcomes are there."""

    def may_send_more(self, connection: ClientConnection) -> None:
        """It can take a transaction (ahead of the last one's final reply, or because it is idle)."""

    def connection_closed(self, connection: ClientConnection) -> None:
        """It is of no further use."""


class ClientConnection(asyncio.Protocol):
    """See the module's text."""

    def __init__(self, owner: Owner, target: Target, settings: ClientSettings, clock: Clock) -> None:
        self.target = target
        self.smtp = ClientProtocol(settings.hello_name)
        self.remote = target.name
        # For log lines: version and cipher, and the time that opening took, until a message has told of it.
        self.tls: str | None = None
        self.connect_s = 0.0
        self.is_open = False
        self.idle_since = 0.0
        # Transactions that were begun, and messages that the server has taken.
        self.messages = self.taken = 0
        # In clear, because TLS has failed.
        self.is_fallback = False
        # Servers that were to be avoided when it was opened: its own is among them where no other could be reached.
        self.avoided: frozenset[Target] = frozenset()
        # Another lane had its place.
        self.gave_way = False
        # What the pool knows it by; set once it is open.
        self.place: Place | None = None
        self._owner = owner
        self._settings = settings
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._step: asyncio.Future[Happened] | None = None
        self.progress = clock.monotonic()
        self._give_up_at: float | None = None
        self._is_full = False
        self._is_sending = False
        self._is_reported = False

    # ---------------------------------------------------------------- opening

    async def open(self, *, with_tls: bool = True) -> None:
        """Connects up to where transactions may begin. Raises ConnectFault."""
        loop, began = asyncio.get_running_loop(), self._clock.monotonic()
        target, settings = self.target, self._settings
        self.is_fallback = not with_tls
        limit = min(CONNECT_S, settings.time_out_s or CONNECT_S)
        self._step = loop.create_future()
        try:
            tls: dict[str, Any] = {}
            if target.is_tls:
                tls = {"ssl": settings.context, "server_hostname": target.host, "ssl_handshake_timeout": limit}
            async with asyncio.timeout(limit):
                await loop.create_connection(lambda: self, target.address or target.host, target.port, **tls)
        except TimeoutError:
            raise ConnectFault(Reply(451, "4.4.1", f"Connection to {target.name} timed out"), Stage.CONNECT) from None
        except ssl.SSLError as error:
            raise self._tls_fault(error) from None
        except OSError as error:
            text = error.strerror or str(error) or type(error).__name__
            raise ConnectFault(
                Reply(451, "4.4.1", _printable(f"Connection to {target.name}: {text}")), Stage.CONNECT
            ) from None
        try:
            await self._greet(with_tls=with_tls)
        except BaseException:
            self._leave()
            raise
        self._step = None
        self._remember_tls()
        self.connect_s = self._clock.monotonic() - began
        if self.smtp.state is not ClientState.IDLE:
            # The server hung up right behind its last reply.
            self.abort()
            raise ConnectFault(Reply(451, "4.4.2", "Connection lost"), self.smtp.stage)
        self.is_open = True
        self.idle_since = self._clock.monotonic()

    @property
    def may_go_in_clear(self) -> bool:
        """True when mail may go without TLS where TLS has failed. RFC 7435: under "may" only, and never with AUTH."""
        settings = self._settings
        is_optional = settings.policy is TlsPolicy.MAY and settings.credentials is None
        return is_optional and not self.target.is_tls and not self.is_fallback

    def _remember_tls(self) -> None:
        context, transport = self._settings.context, self._transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        if tls is not None:
            cipher = tls.cipher()
            self.tls = f"{tls.version()}/{cipher[0] if cipher else 'unknown'}"
        if tls is not None and isinstance(context, ResumingContext):
            context.remember(self.target.host, tls)

    async def _greet(self, *, with_tls: bool) -> None:
        settings, smtp = self._settings, self.smtp
        if self.target.is_tls:
            smtp.is_tls = True
        await self._await(Happened.READY)
        if with_tls and not smtp.is_tls and settings.policy is not TlsPolicy.NONE:
            await self._start_tls()
        if settings.policy.is_required and not smtp.is_tls:
            raise ConnectFault(
                Reply(451, "4.7.10", f"{self.target.name} does not offer STARTTLS, which is required here"), Stage.TLS
            )
        if settings.credentials is not None:
            await self._authenticate(settings.credentials)

    async def _start_tls(self) -> None:
        smtp, settings = self.smtp, self._settings
        if not smtp.has("STARTTLS"):
            return
        smtp.start_tls()
        self._flush()
        if await self._await(Happened.WANTS_HANDSHAKE, Happened.TLS_REFUSED) is Happened.TLS_REFUSED:
            return
        transport = self._transport
        assert transport is not None and settings.context is not None
        try:
            upgraded = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                settings.context,
                server_hostname=self.target.host,
                ssl_handshake_timeout=min(30.0, settings.time_out_s or 30.0),
            )
        except (OSError, ssl.SSLError) as error:
            raise self._tls_fault(error) from None
        self._transport = cast(asyncio.Transport, upgraded)
        smtp.tls_started()
        self._flush()
        try:
            await self._await(Happened.READY)
        except ConnectFault as fault:
            # RFC 7435: a TLS session in which no mail can go is worth no more than a failed handshake.
            fault.is_handshake = True
            raise

    def _tls_fault(self, error: Exception) -> ConnectFault:
        text = _printable(f"TLS with {self.target.name} failed: {error}")
        return ConnectFault(Reply(451, "4.7.5", text), Stage.TLS, is_handshake=True)

    async def _authenticate(self, credentials: Credentials) -> None:
        smtp, name = self.smtp, self.target.name
        if not smtp.is_tls and not self._settings.may_auth_in_clear:
            raise ConnectFault(Reply(451, "4.7.11", f"No AUTH with {name} in clear: TLS is not there"), Stage.AUTH)
        offered = frozenset(smtp.extensions.get("AUTH", "").upper().split())
        wanted = self._settings.mechanism
        refused: Reply | None = None
        while (mechanism := choose_mechanism(offered, credentials, wanted)) is not None:
            smtp.start_auth(mechanism)
            self._flush()
            if await self._await(Happened.AUTHENTICATED, Happened.AUTH_REFUSED) is Happened.AUTHENTICATED:
                return
            refused = smtp.last_reply or Reply(451, "4.7.8", "AUTH refused")
            if smtp.has_broken_auth or not may_try_another(mechanism, refused.code):
                break
            offered -= {mechanism.name}
        if refused is not None:
            # The operator mends a wrong password: the mail waits for that, whatever class the reply has.
            raise ConnectFault(_deferring(refused), Stage.AUTH)
        text = (
            f"{name} does not offer AUTH {wanted}" if wanted else f"{name} offers no AUTH mechanism that is known here"
        )
        raise ConnectFault(Reply(451, "4.7.0", text), Stage.AUTH)

    async def _await(self, *wanted: Happened) -> Happened:
        """The next thing that happens, if it is one of these; ConnectFault for any other, and for a time-out."""
        loop = asyncio.get_running_loop()
        happened: Happened | None
        if self._step is not None and self._step.done():
            # It came before anybody waited for it: some loops read in the turn that connects.
            happened = self._step.result()
        else:
            happened = self.smtp.next_event()
        if happened is None:
            self._step = loop.create_future()
            limit = STEP_S[self.smtp.stage]
            try:
                async with asyncio.timeout(min(limit, self._settings.time_out_s or limit)):
                    happened = await self._step
            except TimeoutError:
                raise ConnectFault(
                    Reply(451, "4.4.2", f"No reply from {self.target.name} in time"), self.smtp.stage
                ) from None
        # For what comes before the next thing is waited for.
        self._step = loop.create_future()
        if happened in wanted:
            return happened
        reply = self.smtp.last_reply or Reply(451, "4.4.2", "Connection lost")
        fault = ConnectFault(_deferring(reply), self.smtp.stage)
        # RFC 7504 section 4: 521 in the greeting, and 556, mean that the host never accepts mail.
        if self.smtp.stage is Stage.GREETING and reply.code in (521, 556):
            fault.takes_no_mail = reply
        raise fault

    # ---------------------------------------------------------- from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected (and, after STARTTLS, connected anew)."""
        self._transport = cast(asyncio.Transport, transport)
        name, target = transport.get_extra_info("peername"), self.target
        if not target.address and isinstance(name, tuple) and name[0] != target.host:
            # A name that the system resolved: history and log have the address, too.
            self.remote = Target(target.host, target.port, address=str(name[0])).name
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        if not is_fully_qualified(self.smtp.hello_name):
            # RFC 5321 section 4.1.4: a client without a meaningful name gives its address as a literal.
            self.smtp.hello_name = address_literal(transport.get_extra_info("sockname")) or self.smtp.hello_name

    def data_received(self, data: bytes) -> None:
        """Octets from the server."""
        before = self.smtp.replies
        self.smtp.receive_data(data)
        if self.smtp.replies != before:
            self.progress = self._clock.monotonic()
        self._pump()

    def eof_received(self) -> bool:
        """The server closed."""
        self.smtp.receive_eof()
        self._pump()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None
        self.smtp.receive_eof()
        self._pump()
        self._report_closed()

    def pause_writing(self) -> None:
        """The server reads slowly."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It has read."""
        self._is_full = False
        self.progress = self._clock.monotonic()
        if self.is_open:
            self._send_content()

    # --------------------------------------------------------------- sending

    def send(self, transaction: Transaction) -> None:
        """Begins a transaction; `smtp.can_start` was true. ClientFault when an address would break the command line."""
        if self.smtp.is_idle:
            self.progress = self._clock.monotonic()
        self.smtp.start_transaction(transaction)
        self.messages += 1
        if self._give_up_at is None:
            self._give_up_at = self._clock.monotonic() + TRANSACTION_S + transaction.size_bytes / TRANSACTION_BYTES_S
        if not self._is_sending:
            self._flush()

    def _pump(self) -> None:
        smtp = self.smtp
        if self._step is not None:
            # While it opens, somebody waits for one thing at a time; what comes behind it stays in line.
            if not self._step.done() and (happened := smtp.next_event()) is not None:
                self._step.set_result(happened)
            self._flush()
            return
        events = smtp.events
        while events:
            happened = events.popleft()
            if happened is _WANTS_CONTENT:
                self._send_content()
            elif happened is _DONE:
                self._give_up_at = None if smtp.is_idle else self._clock.monotonic() + TRANSACTION_S
                self._owner.transaction_done(self, smtp.pop_done())
            elif happened is Happened.CLOSED:
                self._report_closed()
        if smtp.state is _IDLE and self.is_open:
            self.idle_since = self._clock.monotonic()
            self._owner.may_send_more(self)
        self._flush()

    def _send_content(self) -> None:
        """Content as far as the transport takes it, then the next transaction's commands behind its end, in one write."""
        smtp = self.smtp
        if self._is_sending or not smtp.is_content_wanted:
            return
        self._is_sending = True
        try:
            parts = [smtp.data_to_send()]
            while not self._is_full:
                piece = smtp.content_to_send()
                if piece is None:
                    break
                parts.append(piece)
                if not smtp.is_content_wanted:
                    break
                if len(piece) >= 65536:
                    self._write(b"".join(parts))
                    parts.clear()
            if not smtp.is_content_wanted and smtp.can_start:
                self._owner.may_send_more(self)
                parts.append(smtp.data_to_send())
            self._write(b"".join(parts))
        except OSError as error:
            # Our own spool file cannot be read: nothing half may look complete.
            _log.error("content of a message cannot be read: %s", error)
            self.smtp.fail(Reply(451, "4.3.0", _printable(f"The content cannot be read: {error}")))
            self.abort()
        finally:
            self._is_sending = False

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _flush(self) -> None:
        if data := self.smtp.data_to_send():
            self._write(data)

    # ------------------------------------------------------------------- end

    def sweep(self, now: float) -> None:
        """Gives a step up that takes too long. Only whole replies count as progress, and content that moves."""
        if not self.is_open or self.smtp.is_idle:
            return
        stage = Stage.CONTENT if self.smtp.is_content_wanted else self.smtp.expected_stage
        limit = STEP_S[stage]
        is_late = self._give_up_at is not None and now > self._give_up_at
        if is_late or now - self.progress > min(limit, self._settings.time_out_s or limit):
            self.smtp.fail(Reply(451, "4.4.2", f"No reply from {self.target.name} in time"))
            self._pump()
            # Never used again: a late reply must not be taken for another command's (hostile row 98).
            self.abort()

    def give_way(self) -> bool:
        """See pool.Place: ends it unless content has begun, which would leave a message in doubt."""
        if any(transaction.is_content_begun for transaction in self.smtp.open_transactions):
            return False
        self.gave_way = True
        self.smtp.fail(Reply(451, "4.4.2", "The connection gave way to other mail"))
        self._pump()
        self.abort()
        return True

    def is_stalled(self, now: float) -> bool:
        """True when the server has been silent for longer than a quick one is. `now` monotonic."""
        return self.is_open and not self.smtp.is_idle and now - self.progress > STALLED_S

    def quit(self) -> None:
        """Says QUIT and closes; 221 is not waited for."""
        self.smtp.quit()
        self._flush()
        self._report_closed()
        if self._transport is not None:
            self._transport.close()

    def quit_when_idle(self) -> None:
        """The same, unless a transaction is open."""
        if self.smtp.state is ClientState.IDLE:
            self.quit()

    def _leave(self) -> None:
        """Ends a session that did not come to mail: with QUIT where the server waits for a command, else at once."""
        self.smtp.quit()
        said = self.smtp.data_to_send()
        self._write(said)
        if not said:
            self.abort()
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def _report_closed(self) -> None:
        if self.is_open and not self._is_reported:
            self._is_reported = True
            self._owner.connection_closed(self)
            if self._transport is not None:
                self._transport.close()


async def open_optional_tls(new: Callable[[], ClientConnection], *, with_tls: bool = True) -> ClientConnection:
    """Opens a connection of `new`; in clear when TLS fails and is optional (`is_fallback`). Raises ConnectFault."""
    connection = new()
    try:
        await connection.open(with_tls=with_tls)
    except ConnectFault as fault:
        if not (fault.is_handshake and with_tls and connection.may_go_in_clear):
            raise
        # RFC 7435: opportunistic means that a broken TLS is no worse than none. Logged, and never with AUTH.
        _log.warning("%s: TLS failed, sending in clear: %s", connection.target.name, fault)
        connection = new()
        await connection.open(with_tls=False)
    return connection


def _deferring(reply: Reply) -> Reply:
    """A refusal of the connection as a whole is no verdict on a message: it waits, the reply is told as it was."""
    if reply.is_transient:
        return reply
    return Reply(451, "4.4.0", f"The next hop refused: {reply}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:400]
