"""What a session logs and counts: refusals with their reason word, its end, log-ins. No call for accepted commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..log.kinds import CLOSED, CONNECTED, DISCONNECTED, LOGGED_IN, LOGIN_FAILED, REFUSED
from ..log.reasons import label, reason_of_fault
from ..log.record import short_tls
from ..smtp.command import Command
from ..smtp.reply import Reply
from .atonce import END

if TYPE_CHECKING:
    from .session import SmtpSession

# Recipients that one line names.
MOST_RECIPIENTS = 10


def note_error(session: SmtpSession, command: Command | None, reply: Reply) -> None:
    """A command has had a negative reply: its line is that of a refusal, or of a log-in."""
    if session.login:
        if session.account is not None:
            # The authenticator let it in, and a plugin changed the reply.
            note_login(session, session.login, session.account.name, failure="plugin")
            session.account = None
    elif command is not END:
        # The end of content has had its line, while the envelope was known.
        note_refusal(session, command, reply)
    session.fault, session.login = None, ""
    session.errors += 1


def note_refusal(session: SmtpSession, command: Command | None, reply: Reply) -> None:
    """Counts a refusal and writes its line. `command` None: the session itself was refused."""
    reason = _reason(command, reply, session.fault)
    session.context.counters.count_refusal(label(reason))
    if not REFUSED.is_enabled:
        return
    facts, envelope = session.facts, session.facts.envelope
    sender: Any = envelope.reverse_path or "" if envelope is not None else None
    recipients: Any = None
    size = None
    stage = "connect"
    if command is END:
        stage, size = "content", session.content_bytes
        recipients = [r.address for r in envelope.recipients[:MOST_RECIPIENTS]] if envelope is not None else None
    elif command is not None:
        stage = command.verb.lower()
        if command.verb == "MAIL" and command.error is None:
            sender = command.address or ""
        elif command.verb == "RCPT":
            recipients = command.address
    REFUSED.write(
        {
            "reason": reason,
            "stage": stage,
            "session": facts.client_id,
            "peer": facts.peer.host,
            "code": reply.code,
            "dsn": reply.enhanced,
            "tls": short_tls(facts.tls),
            "size": size,
            "user": facts.username,
            "helo": facts.helo or None,
            "from": sender,
            "to": recipients,
            "reply": reply.text[:200],
        }
    )


def _reason(command: Command | None, reply: Reply, fault: Reply | None) -> str:
    if reply.reason:
        return reply.reason
    if command is not None and command.is_abuse:
        return "protocol-abuse"
    if fault is not None and reply is fault:
        return reason_of_fault(reply)
    return "content-refused" if command is END else "plugin"


def note_closed(session: SmtpSession, reply: Reply, error: str) -> None:
    """The server ends a session with 421."""
    session.context.counters.count_refusal(label(reply.reason or "other"))
    if CLOSED.is_enabled:
        facts = session.facts
        CLOSED.write(
            {
                "reason": reply.reason or "other",
                "session": facts.client_id,
                "peer": facts.peer.host,
                "code": reply.code,
                "user": facts.username,
                "helo": facts.helo or None,
                "error": error,
            }
        )


def note_connected(session: SmtpSession) -> None:
    """A session begins; for level debug."""
    facts = session.facts
    local = f"{facts.local.host}:{facts.local.port}" if facts.local.port else facts.local.host
    CONNECTED.write(
        {
            "session": facts.client_id,
            "peer": facts.peer.host,
            "port": facts.peer.port,
            "listener": local,
            "tls": short_tls(facts.tls),
        }
    )


def note_disconnected(session: SmtpSession) -> None:
    """A session has ended."""
    if not DISCONNECTED.is_enabled:
        return
    facts, now = session.facts, session.context.clock.monotonic()
    DISCONNECTED.write(
        {
            "session": facts.client_id,
            "peer": facts.peer.host,
            "seconds": round(now - session.began, 3),
            "commands": session.commands,
            "errors": session.errors,
            "user": facts.username,
            "helo": facts.helo or None,
            "error": session.reason,
        }
    )


def note_login(session: SmtpSession, mechanism: str, username: str | None, *, failure: str = "") -> None:
    """A log-in that worked, or `failure`, a reason word."""
    counters = session.context.counters
    if failure:
        counters.count_login(label(failure))
    else:
        counters.count_login("ok")
    kind = LOGIN_FAILED if failure else LOGGED_IN
    if not kind.is_enabled:
        return
    facts = session.facts
    fields: dict[str, Any] = {"reason": failure} if failure else {}
    kind.write(
        fields
        | {
            "session": facts.client_id,
            "peer": facts.peer.host,
            "mechanism": mechanism,
            "tls": short_tls(facts.tls),
            "user": username,
            "helo": facts.helo or None,
        }
    )
