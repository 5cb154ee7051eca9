"""The short ways of a session: commands alone in their segment, content that comes whole, and their positive replies.

Where only the built-in behaviour hears of a command there is no event; where others do, its event goes round. What these
ways do not know they leave alone: then the session's long way is asked, which knows everything.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from ..events.catalogue import Response
from ..events.dispatch import Parked, Verdict
from ..smtp.command import JUNK, Command
from ..smtp.reply import Reply
from ..smtp.rules import MAX_KNOWN
from ..smtp.state import MOVES, State
from .commands import EVENT_NAMES, EVENTS, JUNK_OF
from .effects import AT_ONCE, EFFECTS
from .owed import Owed
from .response import settle

if TYPE_CHECKING:
    from ..events.dispatch import Dispatcher
    from ..events.session import Session
    from ..smtp.server import ServerProtocol
    from .connection import SmtpConnection
    from .context import ServerContext
    from .intake import Intake

_CLOSED, _CONTENT = State.CLOSED, State.CONTENT
Way = tuple[Command, dict[State, State], Any, Any, int, Any]
# Stands for the end of content where a reply's command is asked for.
END = Command(".", "")


class AtOnce(Owed):
    """The part of a session that answers within one call."""

    __slots__ = (
        "_connection", "_context", "_dispatcher", "_event", "_is_between", "_is_content", "_junk", "_pumping", "_waiting",
        "_ways", "content_bytes", "facts", "intake", "protocol", "reason",
    )  # fmt: skip
    _connection: SmtpConnection
    _context: ServerContext
    _dispatcher: Dispatcher
    _event: Any
    # Greeted, between two commands, and nothing waits on either side: known lines may go the shortest way.
    _is_between: bool
    _is_content: bool
    _junk: int
    _pumping: bool
    # Parked: nothing is taken from the protocol until whoever parked it goes on.
    _waiting: bool
    # Dispatcher.ways: by whole lines, the command, what it moves, its answer, effect, its junk, and its event.
    _ways: dict[bytes, Way]
    content_bytes: int
    facts: Session
    intake: Intake
    protocol: ServerProtocol
    reason: str

    @abstractmethod
    def _pump(self) -> None: ...

    @abstractmethod
    def _end_pump(self) -> None: ...

    @abstractmethod
    def _command_decided(self, verdict: Verdict) -> None: ...

    @abstractmethod
    def _send(self, reply: Reply, *, is_sent: bool) -> None: ...

    @abstractmethod
    def _receive(self, data: bytes) -> None: ...

    def receive(self, data: bytes) -> None:
        """Octets from the wire. A line that was answered before is answered here.

        No clock here: the sweep looks once a second whether `commands` or `arrivals` have moved.
        """
        if self._is_between:
            way = self._ways.get(data)
            if way is not None:
                command, moves, answer, effect, junk, event_of = way
                protocol = self.protocol
                following = moves.get(protocol.state)
                if following is not None:
                    if answer is None:
                        self._is_between = False
                        if junk and self._is_too_much_junk(junk):
                            self._receive(data)
                        else:
                            self._offer(command, following, event_of(self.facts, command), effect)
                        return
                    reply = answer if answer.__class__ is Reply else answer(self.facts, command)
                    if reply.code < 400 and not (junk and self._is_too_much_junk(junk)):
                        self.commands += 1
                        self._connection.write(protocol.pass_to(following, reply))
                        effect(self, command, reply)
                        return
            self._is_between = False
        self._receive(data)

    def _offer(self, command: Command, following: State, event: Any, effect: Any) -> None:
        """A known line of which somebody else hears, too: its event goes round. What is not simple goes on the long way."""
        self.commands += 1
        protocol, dispatcher = self.protocol, self._dispatcher
        self._waiting = self._may_answer = True
        reply = dispatcher.dispatch(event, self._command_decided)
        shown = seen = None
        if reply.__class__ is Reply and reply.code < 400 and not self.is_lost:
            self._may_answer = False
            if dispatcher.heard["response"]:
                facts = self.facts
                shown = Response(facts.client_id, facts, reply, command.verb)
                seen = dispatcher.dispatch(shown)
            if (
                (shown is None or (seen is None and shown.reply is reply and not self.is_lost))
                and protocol.state is not _CLOSED
                and (following is not _CONTENT or reply.code == 354)
            ):
                # In the call that began with a line alone: nothing is before it, and nothing behind.
                self._connection.write(protocol.pass_to(following, reply))
                self._early = None
                self._waiting = False
                # It was so before, and nothing has come since. (DATA's effect says otherwise; behind QUIT nothing is known.)
                self._is_between = True
                effect(self, event, reply)
                return
        # As the long way has it when an event is back.
        self._command, self._event = command, event
        protocol.owe(command, following)
        self._pumping = True
        if isinstance(reply, Parked):
            pass
        elif shown is None:
            self._command_decided(reply)
        else:
            settle(self, shown, reply, self._send, seen)  # type: ignore[arg-type]
        self._end_pump()

    def _is_too_much_junk(self, junk: int) -> bool:
        """Adds a command's junk, if it does not pass the bound."""
        if self._junk + junk > self._context.options.max_junk * JUNK:
            return True
        self._junk += junk
        return False

    def _answer_at_once(self, command: Command) -> bool:
        """The short way of a command that was read just now.

        False, and nothing has happened, for any that it does not know. (A wiretap hears everything: then there are no
        direct answers.)
        """
        verb = command.verb
        direct, junk = self._dispatcher.direct[EVENT_NAMES[verb]], JUNK_OF[verb]
        if direct is None:
            return False
        reply = direct if direct.__class__ is Reply else direct(self.facts, command)  # type: ignore[operator]
        if reply.code >= 400 or (junk and self._is_too_much_junk(junk)):
            return False
        self.commands += 1
        self._connection.write(self.protocol.answer(reply))
        effect: Any = EFFECTS.get(verb)
        if effect is not None:
            effect(self, command, reply)
            if self.protocol.state is State.CLOSED:
                self._connection.close_when_written()
        self._is_between = self.protocol.is_between
        if verb != "DATA" or reply.code == 354:
            self._get_to_know(command)
        return True

    def _get_to_know(self, command: Command) -> None:
        """From now on `receive` answers this line, if it is one that is remembered."""
        verb, ways, dispatcher = command.verb, self._ways, self._dispatcher
        effect = AT_ONCE.get(verb)
        # Who began by other rules has other ways, which stay empty.
        if command.line and effect is not None and ways is dispatcher.ways and self._context.wiretap is None:
            if len(ways) >= MAX_KNOWN:
                ways.clear()
            ways[command.line] = (
                command, MOVES[verb], dispatcher.direct[EVENT_NAMES[verb]], effect, JUNK_OF[verb], EVENTS[verb]
            )  # fmt: skip

    def hang_up(self) -> None:
        """The client has said all it wants: closes once 221 has left."""
        self.reason = "QUIT"
        self._connection.close_when_written()

    def _part(self) -> None:
        """The connection is lost: without a circle all of it goes now, and the next session finds its memory warm.

        Where anything is still under way somebody comes back to it. That goes later, with the collector.
        """
        if self._command is None and not self._waiting:
            del self._connection
            self.intake.part()

    def _take_whole(self, octets: bytes) -> None:
        """The shortest way of content: all of it is here, and nothing is said against it."""
        self._command = END
        self._is_content = False
        self.content_bytes = len(octets)
        self._waiting = self._pumping = True
        self.intake.take_whole(self.facts.envelope, octets)  # type: ignore[arg-type]
        self._pumping = False
        if not self._waiting:
            self._pump()

    def _send_taken(self, reply: Reply, *, is_sent: bool) -> None:
        """`_send` and `_resume`, where the client waits for this 250, and for nothing else."""
        protocol = self.protocol
        is_quiet = protocol.is_quiet and not self._pumping and not self._connection.has_eof
        if not is_quiet or not is_sent or reply.code >= 400 or self._command is not END or protocol.state is _CLOSED:
            self._send(reply, is_sent=is_sent)
            return
        self._connection.write(protocol.answer(reply))
        self._command = self._event = self._early = self.facts.envelope = None
        self._waiting = self._may_answer = False
        self._is_between = True
        self._junk = 0
        self.commands += 1
