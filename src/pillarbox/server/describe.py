"""A session as JSON, for people who watch a server. Must not change anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .session import SmtpSession


def describe(session: SmtpSession, monotonic: float) -> dict[str, Any]:
    """Who it is and what it does; times in seconds."""
    facts = session.facts
    envelope = facts.envelope
    return {
        "session": facts.client_id,
        "peer": facts.peer.host,
        "local": f"{facts.local.host}:{facts.local.port}" if facts.local.port else facts.local.host,
        "helo": facts.helo,
        "tls": facts.tls,
        "user": facts.username,
        "state": "waits for us" if session.is_parked else session.protocol.state.name.lower(),
        "seconds": round(monotonic - session.began, 1),
        "reverse_path": envelope.reverse_path if envelope is not None else None,
        "recipients": len(envelope.recipients) if envelope is not None else 0,
        "content_bytes": session.content_bytes,
    }
