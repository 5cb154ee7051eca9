"""What a positive reply to a command does to the session: one row for each verb that changes something.

By the event, as plugins left it; where nobody but the built-in behaviour listened there was none, and it is the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..events import catalogue as e
from ..mail.envelope import Envelope
from ..smtp.command import Command
from ..smtp.reply import Reply

if TYPE_CHECKING:
    from .session import SmtpSession


def _reset(session: SmtpSession, event: Any, reply: Reply) -> None:
    session.reset()


def _greet(session: SmtpSession, event: Any, reply: Reply) -> None:
    if session.facts.envelope is not None or session.intake.has_any():
        session.reset()
    session.intake.expect()
    session.facts.helo = event.address or ""
    session.facts.is_esmtp = False


def _greet_extended(session: SmtpSession, event: Any, reply: Reply) -> None:
    _greet(session, event, reply)
    session.facts.is_esmtp = True


def _open_transaction(session: SmtpSession, event: e.CmdMail | Command, reply: Reply) -> None:
    parameters = event.parameters
    if parameters:
        get = parameters.get
        is_utf8 = "SMTPUTF8" in parameters
        session.facts.envelope = Envelope(event.address, [], get("BODY", "7BIT"), is_utf8, get("RET"), get("ENVID"))
    else:
        session.facts.envelope = Envelope(event.address, [])
    session.intake.expect()


def _add_recipient(session: SmtpSession, event: e.CmdRcpt | Command, reply: Reply) -> None:
    envelope = session.facts.envelope
    if envelope is not None:
        parameters = event.parameters
        if parameters:
            envelope.add(event.address or "", parameters.get("NOTIFY", ()), parameters.get("ORCPT"))
        else:
            envelope.add(event.address or "")


def _begin_content(session: SmtpSession, event: Any, reply: Reply) -> None:
    session.begin_content()


def _quit(session: SmtpSession, event: Any, reply: Reply) -> None:
    session.reason = "QUIT"


def _nothing(session: SmtpSession, event: Any, reply: Reply) -> None:
    pass


def _hang_up(session: SmtpSession, event: Any, reply: Reply) -> None:
    session.hang_up()


def _start_tls(session: SmtpSession, event: Any, reply: Reply) -> None:
    if reply.code == 220:
        session.start_tls()


EFFECTS: dict[str, Callable[[SmtpSession, Any, Reply], None]] = {
    "EHLO": _greet_extended,
    "HELO": _greet,
    "MAIL": _open_transaction,
    "RCPT": _add_recipient,
    "DATA": _begin_content,
    "RSET": _reset,
    "QUIT": _quit,
    "STARTTLS": _start_tls,
}

# Where a known line is answered at once: what nobody looks at afterwards is done here.
AT_ONCE = {verb: EFFECTS[verb] for verb in ("EHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET")}
AT_ONCE |= {"NOOP": _nothing, "QUIT": _hang_up}
