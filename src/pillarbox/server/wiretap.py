"""The flag `trace`: every line of every session, and every event, to the log. For finding out; not for every day.

What is said within AUTH is left out, and content is counted, not shown.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .session import SmtpSession

_log = logging.getLogger("pillarbox.trace")


def tap(session: SmtpSession, octets: bytes, *, is_ours: bool) -> None:
    """A piece of what goes over the wire, before it is understood (or after it was said)."""
    name, who = session.facts.client_id, "S" if is_ours else "C"
    protocol = session.protocol
    if not is_ours and protocol.is_in_content:
        _log.info("%s C: (%d octets of content)", name, len(octets))
        return
    for line in octets.split(b"\r\n"):
        if not line:
            continue
        is_secret = not is_ours and (protocol.is_in_auth or line[:5].upper() == b"AUTH ")
        _log.info("%s %s: %s", name, who, "***" if is_secret else ascii(line.decode("latin-1"))[1:-1])


def log_event(event: Any) -> None:
    """A subscriber to everything."""
    _log.info("event %s: %.1000r", event.name, event)
