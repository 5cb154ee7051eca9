"""The short ways of commands: alone in their segment, without error, and nobody but the built-in behaviour hears of them.

What these do not know they leave alone: then the session's long way is asked, which knows everything.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from ..smtp.command import Command
from ..smtp.reply import Reply
from ..smtp.state import TRANSITIONS, State
from .commands import EVENT_NAMES, JUNK
from .effects import AT_ONCE, EFFECTS
from .owed import Owed

if TYPE_CHECKING:
    from ..events.dispatch import Dispatcher
    from ..events.session import Session
    from ..smtp.server import ServerProtocol
    from .connection import SmtpConnection
    from .context import ServerContext
    from .intake import Intake

# Stands for the end of content where a reply's command is asked for.
END = Command(".", "")


class AtOnce(Owed):
    """The part of a session that answers within one call."""

    __slots__ = (
        "_connection", "_context", "_dispatcher", "_is_between", "_is_content", "_junk", "_known", "_pumping", "_waiting",
        "content_bytes", "facts", "intake", "protocol", "reason",
    )  # fmt: skip
    _connection: SmtpConnection
    _context: ServerContext
    _dispatcher: Dispatcher
    # Greeted, between two commands, and nothing waits on either side: known lines may go the shortest way.
    _is_between: bool
    _is_content: bool
    _junk: int
    # Rules.known, of the rules that this session has.
    _known: dict[bytes, Command]
    _pumping: bool
    # Parked: nothing is taken from the protocol until whoever parked it goes on.
    _waiting: bool
    content_bytes: int
    facts: Session
    intake: Intake
    protocol: ServerProtocol
    reason: str

    @abstractmethod
    def _pump(self) -> None: ...

    @abstractmethod
    def _receive(self, data: bytes) -> None: ...

    def receive(self, data: bytes) -> None:
        """Octets from the wire. A line that was read before is answered here, when `_answer_at_once` has answered its verb.

        No clock here: the sweep looks once a second whether `commands` or `arrivals` have moved.
        """
        if self._is_between:
            command = self._known.get(data)
            if command is not None:
                verb, protocol = command.verb, self.protocol
                following = TRANSITIONS[protocol.state].get(verb)
                known = self._dispatcher.known.get(verb)
                if following is not None and known is not None:
                    answer, effect, is_junk = known
                    reply = answer if answer.__class__ is Reply else answer(self.facts, command)
                    if reply.code < 400 and not (is_junk and self._is_too_much_junk()):
                        self.commands += 1
                        self._connection.write(protocol.pass_to(following, reply))
                        effect(self, command, reply)
                        return
            self._is_between = False
        self._receive(data)

    def _is_too_much_junk(self) -> bool:
        """Counts one more, if it is not."""
        if self._junk >= self._context.options.max_junk:
            return True
        self._junk += 1
        return False

    def _answer_at_once(self, command: Command) -> bool:
        """The short way of a command that was read just now.

        False, and nothing has happened, for any that it does not know. (A wiretap hears everything: then there are no
        direct answers.)
        """
        verb = command.verb
        direct, is_junk = self._dispatcher.direct[EVENT_NAMES[verb]], verb in JUNK
        if direct is None:
            return False
        reply = direct if direct.__class__ is Reply else direct(self.facts, command)  # type: ignore[operator]
        if reply.code >= 400 or (is_junk and self._junk >= self._context.options.max_junk):
            return False
        self._junk += is_junk
        self.commands += 1
        self._connection.write(self.protocol.answer(reply))
        effect: Any = EFFECTS.get(verb)
        if effect is not None:
            effect(self, command, reply)
            if self.protocol.state is State.CLOSED:
                self._connection.close_when_written()
        self._is_between = self.protocol.is_between
        if (at_once := AT_ONCE.get(verb)) is not None and (verb != "DATA" or reply.code == 354):
            self._dispatcher.known[verb] = (direct, at_once, is_junk)
        return True

    def hang_up(self) -> None:
        """The client has said all it wants: closes once 221 has left."""
        self.reason = "QUIT"
        self._connection.close_when_written()

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
