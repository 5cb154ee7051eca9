"""Trace fields and what a submission lacks: Received, Message-ID, Date (RFC 5321 section 4.4, RFC 6409 section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate

# RFC 5321 section 6.3: count Received fields; "at least 100" is the limit that it suggests.
MAX_RECEIVED = 100


@dataclass(slots=True)
class ReceivedFacts:
    """What a Received field tells. `protocol` is a name of RFC 3848 (ESMTP, ESMTPSA, ...), `tls` version and cipher."""

    helo: str
    peer_host: str
    by: str
    protocol: str
    uid: str
    tls: str = ""
    recipient: str | None = None


_date_cache: tuple[int, str] = (-1, "")


def format_date(unix_s: float) -> str:
    """A date of RFC 5322 section 3.3, in UTC. The last second is remembered: thousands of messages share it."""
    global _date_cache
    second = int(unix_s)
    if _date_cache[0] != second:
        _date_cache = (second, formatdate(second, localtime=False))
    return _date_cache[1]


def protocol_name(*, is_esmtp: bool, is_utf8: bool, is_tls: bool, is_authenticated: bool) -> str:
    """RFC 3848, and RFC 6531 section 4.3 for UTF8SMTP."""
    if not is_esmtp:
        return "SMTP"
    return ("UTF8SMTP" if is_utf8 else "ESMTP") + ("S" if is_tls else "") + ("A" if is_authenticated else "")


def format_received(facts: ReceivedFacts, unix_s: float) -> bytes:
    """The Received field, folded, with CRLF (RFC 5321 section 4.4). Nothing the peer said can break out of it."""
    peer = f"IPv6:{facts.peer_host}" if ":" in facts.peer_host else facts.peer_host
    source = f"{_printable(facts.helo)} ([{peer}])" if facts.peer_host else _printable(facts.helo)
    tls = f"\r\n\t(using {facts.tls})" if facts.tls else ""
    # The recipient is named only where there is one, so that no blind copy is given away.
    to = f"\r\n\tfor <{facts.recipient}>" if facts.recipient else ""
    return (
        f"Received: from {source}{tls}\r\n\tby {facts.by} with {facts.protocol} id {facts.uid}{to};"
        f"\r\n\t{format_date(unix_s)}\r\n"
    ).encode()


def _printable(text: str) -> str:
    return text if text.isprintable() and not any(c in text for c in "();") else "unknown"


def message_id(uid: str, hostname: str) -> str:
    """A Message-ID made from the queue id (RFC 5322 section 3.6.4)."""
    return f"<{uid}@{hostname.strip('[]').replace(':', '.')}>"
