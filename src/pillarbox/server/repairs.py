"""Counts what the device profile mended in a session, and logs it in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..events.session import Session
from ..log.kinds import REPAIRED
from ..smtp.server import ServerProtocol

if TYPE_CHECKING:
    from .context import ServerContext


def report_repairs(context: ServerContext, session: Session, protocol: ServerProtocol) -> None:
    """At the end of a session of the profile. Nothing, where the client made no mistake."""
    repairs = protocol.repairs
    if not repairs:
        return
    context.counters.device_repairs += sum(repairs.values())
    if REPAIRED.is_enabled:
        words = "; ".join(f"{words} ({count})" for words, count in repairs.items())
        REPAIRED.write(
            {
                "session": session.client_id,
                "peer": session.peer.host,
                "count": sum(repairs.values()),
                "repairs": words,
                "user": session.username,
                "helo": session.helo or None,
            }
        )
