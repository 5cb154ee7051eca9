"""A session: a synchronous state machine between the protocol, the pipeline and the queue.

What the protocol gives (a command, content, its end) goes to the pipeline; what comes back becomes the reply; what a
command does to the envelope happens when its final reply is positive. Nothing here waits: when a plugin or the disk
takes its time the session is parked, its input stays in the protocol's buffer, and `_resume` goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..events import catalogue as e
from ..events.dispatch import Parked, Verdict
from ..events.plugin import Eat
from ..smtp.command import Command
from ..smtp.reply import Reply, format_reply
from ..smtp.rules import LASTING
from ..smtp.server import AuthLine, EndOfContent, ServerProtocol
from ..smtp.state import State
from .accounts import Account
from .atonce import END, AtOnce
from .authentication import Authentication, log_in
from .commands import EVENT_NAMES, EVENTS, JUNK_OF
from .deadlines import Deadlines
from .effects import EFFECTS
from .intake import Intake
from .refusals import note_closed, note_disconnected, note_error, note_refusal
from .response import is_left, last_word

if TYPE_CHECKING:
    from .connection import SmtpConnection
    from .context import ServerContext

_TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors: closing", reason="too-many-errors")
_TOO_MUCH_JUNK = Reply(421, "4.7.0", "Too many commands without a message: closing", reason="too-many-commands")
_CHUNK_OK = Reply(250, "2.0.0", "Chunk received")
_FREE_ERRORS = 10  # refused commands before a client that is not trusted is slowed down
_MAX_BUFFERED = 64 * 1024  # of input that waits while the session is parked; beyond, reading stops


class SmtpSession(AtOnce):
    """One session. The connection feeds it, `facts` is its public side, `protocol` its SMTP."""

    __slots__ = ("_authentication", "_deadlines", "account", "began", "context", "errors", "fault", "login")

    def __init__(
        self, context: ServerContext, connection: SmtpConnection, facts: e.Session, protocol: ServerProtocol
    ) -> None:
        self._context = self.context = context
        self._dispatcher = context.dispatcher
        self._connection = connection
        self.facts = facts
        self.protocol = protocol
        self.intake = Intake(context, self)
        self._authentication: Authentication | None = None
        self._command: Command | None = None
        self._event: Any = None
        # Parked: nothing is taken from the protocol until whoever parked it goes on.
        self._waiting = True
        self._pumping = False
        self._greeted = False
        self._is_content = False
        # Between two commands, greeted, and nothing waits on either side: known lines may go the short way.
        self._is_between = False
        self._ways = {} if facts.profile else context.dispatcher.ways
        self.errors = 0
        self._junk = 0
        self.account: Account | None = None
        self.login = ""  # the mechanism of an exchange whose reply is about to leave
        self.fault: Reply | None = None  # the protocol's own reply to what it did not take
        self.is_lost = False
        self.awaits_program = False
        # While an event goes round, whoever will eat it may answer it already.
        self._may_answer = False
        self._early: Reply | None = None
        self.reason = "client closed the connection"
        self.arrivals = self.commands = 0
        # Most sessions have ended before the first sweep, which makes it.
        self._deadlines: Deadlines | None = None
        self.began = context.clock.monotonic()
        self.content_bytes = 0

    # ------------------------------------------------------------------ greeting

    def begin(self) -> None:
        """Greets: the connection stands, and its TLS where it begins with TLS."""
        facts = self.facts
        greeting = self._dispatcher.direct["connection"]
        if greeting is not None:
            # Only the 220 is built in; nothing of the client can be here yet.
            self._greeted = self._is_between = True
            self._waiting = False
            self._connection.write(format_reply(greeting))  # type: ignore[arg-type]
            return
        self._event = e.Connection(facts.client_id, facts, facts.peer, facts.local, facts.tls)
        self._may_answer = True
        verdict = self._dispatcher.dispatch(self._event, self._greeting_decided)
        if not isinstance(verdict, Parked):
            self._greeting_decided(verdict)

    def _greeting_decided(self, verdict: Verdict) -> None:
        self._may_answer = False
        if self.is_lost:
            return
        if not isinstance(verdict, Reply):
            # The plugin that ate the event owes the greeting, or the program does: MailServer.send_to_client.
            self.await_program()
            return
        dispatcher = self._dispatcher
        if not dispatcher.heard["response"] or is_left(dispatcher, self, verdict, "", self._send_greeting):
            self._send_greeting(verdict, is_sent=True)

    def _send_greeting(self, reply: Reply, *, is_sent: bool) -> None:
        self._greeted = True
        self.awaits_program = False
        if is_sent and reply.code < 400 and self.protocol.is_between and not self._connection.has_eof:
            # Nothing of the client is here yet.
            self._connection.write(format_reply(reply))
            self._waiting = False
            self._is_between = True
            self.commands += 1
            return
        if is_sent:
            # RFC 5321 section 3.1: 554 in place of 220, or 421, and the connection is closed.
            self.protocol.say(reply)
        if self.protocol.is_closed or reply.code >= 400:
            self.reason = f"refused with {reply.code}"
            note_refusal(self, None, reply)
            self.protocol.close()
        self._is_between = self.protocol.is_between
        self._resume()

    # --------------------------------------------------------------------- input

    def _receive(self, data: bytes) -> None:
        self.arrivals += 1
        protocol = self.protocol
        if self._waiting:
            if not self._greeted:
                self.facts.talked_early = True
            protocol.receive_data(data)
            if protocol.buffered_bytes > _MAX_BUFFERED:
                self._connection.stop_reading("parked")
            return
        if self._is_content:
            if self.facts.envelope is not None and self.intake.takes_whole(len(data)):
                whole = protocol.take_whole(data)
                if whole is not None:
                    self._take_whole(whole)
                    return
            content = protocol.take_content(data)
            if content is not None:
                self._take_content(*content)
                return
        command = protocol.take_command(data)
        if command is None:
            protocol.receive_data(data)
            self._pump()
        elif command.error is not None or not self._dispatcher.has_direct or not self._answer_at_once(command):
            self._pumping = True
            self._on_command(command)
            self._end_pump()

    def _take_content(self, piece: bytes, end: EndOfContent | None) -> None:
        """The short way of content, and of its end where nothing is said to that yet."""
        if piece:
            self.content_bytes += len(piece)
            self.intake.piece(piece)
        if end is None:
            return
        self._pumping = True
        self._on_end(end)
        self._pumping = False
        if not self._waiting:
            self._pump()

    def receive_eof(self) -> None:
        """The client sends no more; what it sent is answered (RFC 5321 section 4.1.1.10 has QUIT for this)."""
        if not self._waiting:
            self._connection.close_when_written()

    def _pump(self) -> None:
        self._pumping = True
        protocol = self.protocol
        while not self._waiting:
            event = protocol.next_event()
            if event is None:
                break
            kind = event.__class__
            if kind is bytes:
                self.content_bytes += len(event)  # type: ignore[arg-type]
                self.intake.piece(event)  # type: ignore[arg-type]
            elif kind is Command:
                self._on_command(event)  # type: ignore[arg-type]
            elif kind is EndOfContent:
                self._on_end(event)  # type: ignore[arg-type]
            else:
                self._on_auth_line(event)  # type: ignore[arg-type]
        self._end_pump()

    def _end_pump(self) -> None:
        """What this turn has produced leaves in one write."""
        self._pumping = False
        protocol = self.protocol
        data = protocol.data_to_send()
        if data:
            self._connection.write(data)
        if protocol.state is State.CLOSED and not self._waiting:
            if self.reason == "QUIT":
                self._connection.close_when_written()
            else:
                self._connection.linger()

    def _resume(self) -> None:
        """Goes on after a park; harmless inside a pump."""
        self._waiting = False
        if self.is_lost:
            return
        if not self._pumping:
            self._connection.go_on_reading("parked")
            # The client's time begins anew: whatever it waited for is over.
            self.commands += 1
            self._pump()
            if self._connection.has_eof and not self._waiting:
                self._connection.close_when_written()

    # ------------------------------------------------------------------ commands

    def _on_command(self, command: Command) -> None:
        self._command = command
        self.commands += 1
        if self._context.wiretap is not None:
            self._context.wiretap(self, command)
        if command.error is not None:
            self._event, self.fault = None, command.error
            if command.is_abuse:
                self.reason = f"closed after {command.error.code} {command.error.text}"
            self._answer(command.error)
            return
        junk = JUNK_OF[command.verb]
        if junk and self._is_too_much_junk(junk):
            self._event = None
            self._answer(_TOO_MUCH_JUNK)
            return
        direct = self._dispatcher.direct[EVENT_NAMES[command.verb]]
        if direct is not None:
            # Nobody but the built-in behaviour listens: no event, no walk.
            self._answer_directly(command, direct if direct.__class__ is Reply else direct(self.facts, command))  # type: ignore
            return
        event = self._event = EVENTS[command.verb](self.facts, command)
        self._waiting = self._may_answer = True
        verdict = self._dispatcher.dispatch(event, self._command_decided)
        if not isinstance(verdict, Parked):
            self._command_decided(verdict)

    def _command_decided(self, verdict: Verdict) -> None:
        self._may_answer = False
        command = self._command
        if self.is_lost or command is None:
            return
        if verdict.__class__ is Reply:
            self._answer(verdict)
            return
        if verdict is Eat.CLIENT and command.verb in ("BDAT", "AUTH"):
            # Only subscribers were kept from it; what these two do is built in, beside the plugin `simple`.
            verdict = None
        if verdict is None and command.verb == "BDAT" and not self._is_programs("cmd_bdat"):
            self._take_chunk()
        elif verdict is None and command.verb == "AUTH" and self._early is None:
            self._authentication = Authentication(self._context, self, command.mechanism)
            self._authentication.begin(command.initial)
        else:
            # Eaten: whoever ate it owes the reply, and the sweep answers 451 when it does not come.
            self.await_program()

    def _is_programs(self, name: str) -> bool:
        """Without built-in behaviour, what the program listens to is the program's to answer."""
        return self._early is not None or (not self._context.options.simple and self._dispatcher.heard[name])

    def _take_chunk(self) -> None:
        self.protocol.accept_chunk()
        self.begin_content()
        self._resume()

    def _answer(self, reply: Reply) -> None:
        dispatcher = self._dispatcher
        if dispatcher.heard["response"]:
            self._waiting = True
            command = self._command
            if not is_left(dispatcher, self, reply, command.verb if command is not None else "", self._send):
                return
        self._send(reply, is_sent=True)

    def _send(self, reply: Reply, *, is_sent: bool) -> None:
        """The reply leaves (with the rest of this turn); then what the command does, and what too many errors do."""
        command, event, protocol = self._command, self._event, self.protocol
        if protocol.state is State.CLOSED:
            # Whoever had to decide has taken too long: the client has heard 421 meanwhile.
            self._waiting = self._may_answer = False
            return
        is_known = command is not None and event is not None and command.verb in LASTING
        if is_known and is_sent and reply.code < 400 and protocol.is_quiet:
            # At once, for nothing is before it, and nothing behind.
            self._connection.write(protocol.answer(reply))
        else:
            protocol.respond(reply, is_sent=is_sent)
        self._waiting = self._may_answer = False
        self._command = self._event = self._early = None
        if command is END and not self._is_content:
            if reply.code < 400:
                self._junk = 0
            else:
                note_refusal(self, command, reply)
            # RFC 5321 section 4.1.1.4: the transaction is over, accepted or refused.
            self.facts.envelope = None
        if reply.code == 235 and self.account is not None:
            log_in(self, self.account)
        if reply.code >= 400:
            self._count_error(reply, command)
            if command is not None and command.verb in ("BDAT", END.verb) and protocol.state is State.READY:
                self.reset()
        elif command is not None and event is not None:
            effect = EFFECTS.get(command.verb)
            if effect is not None:
                effect(self, event, reply)
            if is_known:
                self._get_to_know(command)
        if not self._waiting:
            self._is_between = protocol.is_between
            if not self._pumping:
                self._resume()

    def _answer_directly(self, command: Command, reply: Reply) -> None:
        """`_send`, for a command that nobody else has seen: no event, nobody waits, no authentication, no BDAT."""
        self.protocol.respond(reply)
        self._command = None
        if reply.code < 400:
            effect = EFFECTS.get(command.verb)
            if effect is not None:
                effect(self, command, reply)
        else:
            self._count_error(reply, command)

    def _count_error(self, reply: Reply, command: Command | None) -> None:
        note_error(self, command, reply)
        if self.protocol.is_closed:
            if self.reason.startswith("client"):
                self.reason = f"closed after {reply.code} {reply.text}"
        elif self.errors >= self._context.options.max_errors:
            self.leave(_TOO_MANY_ERRORS, "too many errors")
        elif self.errors > _FREE_ERRORS and not self.facts.is_submission:
            self._connection.slow_down()

    # -------------------------------------------------- what positive replies do

    def reset(self) -> None:
        """No transaction is open."""
        self.facts.envelope = None
        self.intake.reset()
        self._is_content = False

    def begin_content(self) -> None:
        """Content follows."""
        self._is_between = False
        if not self._is_content:
            self._is_content = True
            self.content_bytes = 0
            if not self._context.options.simple:
                # Nobody but the program knows what to do with it.
                self.intake.divert_unless_asked()

    def start_tls(self) -> None:
        """The handshake follows the 220."""
        self._waiting = True
        if data := self.protocol.data_to_send():
            self._connection.write(data)
        self._connection.start_tls()

    def tls_started(self, description: str) -> None:
        """The handshake is done: everything from before is forgotten (RFC 3207 section 4.2)."""
        self.reset()
        self.protocol.tls_started()
        facts = self.facts
        facts.tls, facts.helo, facts.is_esmtp = description, "", False
        facts.username, facts.senders = None, ()
        self._resume()

    # ---------------------------------------------------------------------- AUTH

    def _on_auth_line(self, event: AuthLine) -> None:
        assert self._authentication is not None
        if self._context.wiretap is not None:
            self._context.wiretap(self, event)
        self._waiting = True
        self._authentication.line(event.line)

    def auth_decided(self, reply: Reply, account: Account | None = None) -> None:
        """A step of the exchange has its reply; `account` is who gets in, if the reply stays as it is."""
        if not self.is_lost:
            if reply.code != 334 and self._authentication is not None:
                self.login, self._authentication = self._authentication.mechanism, None
            self.account = account
            self._answer(reply)

    # ------------------------------------------------------------------- content

    def _on_end(self, end: EndOfContent) -> None:
        self._command = END
        if self._context.wiretap is not None:
            self._context.wiretap(self, end)
        if not end.is_last:
            self._answer(_CHUNK_OK)
            return
        self._is_content = False
        envelope = self.facts.envelope
        if end.fault is not None or envelope is None:
            if end.fault is not None:
                self.intake.tell_fault(end.fault)
            self.intake.reset()
            if end.is_abuse:
                self.reason = "content with bare CR or LF"
            self.fault = end.fault or Reply(503, "5.5.1", "No transaction is open")
            self._answer(self.fault)
            return
        self._waiting = True
        self.intake.finish(envelope, is_plain=end.is_plain)

    def intake_decided(self, reply: Reply) -> None:
        """The message is queued, or refused."""
        if self.is_lost or self.protocol.state is State.CLOSED:
            # Nobody is there any more, or has heard 421 meanwhile.
            self._waiting = False
            return
        self._may_answer = False
        dispatcher = self._dispatcher
        if dispatcher.heard["response"]:
            self._waiting = True
            if not is_left(dispatcher, self, reply, END.verb, self._send_taken):
                return
        self._send_taken(reply, is_sent=True)

    def wants_reading(self, wants: bool) -> None:
        """The spool's back-pressure."""
        (self._connection.go_on_reading if wants else self._connection.stop_reading)("spool")

    # ----------------------------------------------------------------------- end

    @property
    def is_busy(self) -> bool:
        """True within a transaction, or while an answer is being made: a graceful shutdown lets it finish."""
        return self._waiting or self.facts.envelope is not None or self._is_content

    def leave(self, reply: Reply, reason: str, *, at_once: bool = False) -> None:
        """421 (RFC 5321 section 3.8), then the connection is closed."""
        if self.is_lost or self.protocol.is_closed:
            return
        self.reason = reason
        note_closed(self, reply, reason)
        if self._dispatcher.heard["response"]:
            reply = last_word(self._dispatcher, self.facts, reply)
        self.protocol.say(reply)
        self.protocol.close()
        self._waiting = False
        self._connection.write(self.protocol.data_to_send())
        if at_once:
            self._connection.close_when_written()
        else:
            self._connection.linger()

    def cut_off(self) -> None:
        """Ends the connection without another word."""
        self._connection.abort()

    def sweep(self, now: float) -> None:
        """Once a second: deadlines."""
        if self.protocol.is_closed:
            self._connection.sweep()
        else:
            self._deadlines = self._deadlines or Deadlines(self._context.options, self.began)
            self._deadlines.sweep(self, now)

    @property
    def is_parked(self) -> bool:
        """True while a plugin, the disk or an authenticator takes its time: the client's own does not run."""
        return self._waiting

    def lost(self) -> None:
        """The connection is gone: an open transaction goes with it."""
        if self.is_lost:
            return
        self.is_lost = True
        self.intake.reset()
        facts = self.facts
        note_disconnected(self)
        if self._dispatcher.listens("disconnected"):
            self._dispatcher.post(e.Disconnected(facts.client_id, facts, self.reason))
        self._part()
