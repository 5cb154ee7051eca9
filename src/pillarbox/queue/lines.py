"""The `queued` line of a message, however it came."""

from __future__ import annotations

import re

from ..log.kinds import QUEUED
from ..log.record import short_tls
from .model import Message

# Recipients that one line names.
MOST_RECIPIENTS = 10
_MESSAGE_ID = re.compile(rb"(?:\A|\n)message-id[ \t]*:[ \t\r\n]*<?([^\s<>]{1,250})", re.I)
# Of the header section, so much is searched.
_SEARCHED_BYTES = 16_384


def log_queued(message: Message) -> None:
    """One line for a message that was stored."""
    if not QUEUED.is_enabled:
        return
    facts, envelope, content = message.facts, message.envelope, message.content
    get, recipients = facts.get, message.recipients
    found = _MESSAGE_ID.search(content.prefix, 0, _SEARCHED_BYTES)
    session = get("session")
    original = get("for")
    QUEUED.write(
        {
            "queue_id": message.uid,
            "source": "smtp" if session is not None else "dsn" if original is not None else "enqueue",
            "original": original,
            "session": session,
            "peer": get("peer"),
            "size": content.size_bytes,
            "recipients": len(recipients),
            "tls": short_tls(get("tls") or ""),
            "user": get("user"),
            "helo": get("helo"),
            "from": envelope.reverse_path or "",
            "to": [r.address for r in recipients[:MOST_RECIPIENTS]],
            "message_id": found[1].decode("utf-8", "replace") if found is not None else None,
        }
    )
