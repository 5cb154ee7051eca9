"""Replies that a session's program owes: who ate an event, or stands in for the built-in behaviour, answers it later."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING

from ..smtp.command import Command
from ..smtp.reply import Reply

if TYPE_CHECKING:
    from ..events.catalogue import Session
    from ..events.dispatch import Dispatcher

_log = logging.getLogger("pillarbox.session")
_NO_ANSWER = Reply(451, "4.3.0", "No answer in time", reason="plugin-failed")
_NO_GREETING = Reply(421, "4.3.0", "No answer in time", reason="plugin-failed")


class Owed:
    """The part of a session that waits for MailServer.send_to_client. The rest of it is SmtpSession."""

    __slots__ = (
        "_command",
        "_early",
        "_eaten_by",
        "_greeted",
        "_may_answer",
        "arrivals",
        "awaits_program",
        "commands",
        "is_lost",
    )
    _command: Command | None
    _greeted: bool
    # While an event goes round, whoever will eat it may answer it already.
    _may_answer: bool
    _early: Reply | None
    awaits_program: bool
    _dispatcher: Dispatcher
    facts: Session
    # The plugin that ate the event whose reply is owed; None if no plugin has.
    _eaten_by: str | None
    is_lost: bool
    # Of what the client sent, commands, and segments that were no whole command that is known: when they move, the
    # client's time begins anew.
    arrivals: int
    commands: int

    @abstractmethod
    def _answer(self, reply: Reply) -> None: ...

    @abstractmethod
    def _greeting_decided(self, verdict: Reply) -> None: ...

    @abstractmethod
    def _take_chunk(self) -> None: ...

    def await_program(self) -> None:
        """From now on the program owes the reply, if it has not given it already."""
        self.awaits_program = True
        self.commands += 1
        self._eaten_by = self._dispatcher.take_eater()
        early, self._early = self._early, None
        if early is not None:
            self.reply_from_program(early)

    def expect_program(self) -> None:
        """An event goes round that the program may answer."""
        self._may_answer = True

    def reply_from_program(self, reply: Reply) -> bool:
        """A reply by MailServer.send_to_client; False when none is owed."""
        if self.is_lost:
            return False
        if not self.awaits_program:
            if self._may_answer and self._early is None:
                self._early = reply
                return True
            return False
        self.awaits_program = False
        if not self._greeted:
            self._greeting_decided(reply)
        elif reply.is_positive and self._command is not None and self._command.verb == "BDAT":
            # It may come; the reply that the client gets follows its octets (RFC 3030 section 2).
            self._take_chunk()
        else:
            self._answer(reply)
        return True

    def answer_for_program(self) -> None:
        """Answers in place of the plugin or program that owes the reply."""
        command = self._command
        verb = command.verb if self._greeted and command is not None else "the connection"
        if self._eaten_by is not None:
            culprit = f"plugin {self._eaten_by!r} ate the event and sent no reply"
        else:
            name = f"cmd_{verb.lower()}" if self._greeted else "connection"
            plugins = ", ".join(repr(step.alias) for step in self._dispatcher.pipeline.steps(name)) or "none"
            culprit = f"no plugin answered, and the program did not (plugins that get {name}: {plugins})"
        words = "session %s: %s is unanswered: %s; answering 4yz"
        _log.warning(words, self.facts.client_id, verb, culprit, extra={"session": self.facts.client_id})
        self.reply_from_program(_NO_ANSWER if self._greeted else _NO_GREETING)

    @property
    def owes_program(self) -> bool:
        """True while send_to_client would be heard."""
        return not self.is_lost and (self.awaits_program or (self._may_answer and self._early is None))
