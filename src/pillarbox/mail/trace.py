"""Trace fields and what a submission lacks: Received, Message-ID, Date (RFC 5321 section 4.4, RFC 6409 section 8)."""

from __future__ import annotations

import itertools
import re
from email.utils import formatdate
from functools import lru_cache

from ..smtp.address import ascii_mailbox, ascii_name
from . import headers
from .content import Content
from .fieldtext import format_field

# RFC 5321 section 6.3: count Received fields; "at least 100" is the limit that it suggests.
MAX_RECEIVED = 100


# What would change the structure of the field, or end one of its words.
_UNSAFE = re.compile(r"[\x00-\x20\x7f()<>;,@\"\\]")
_date_cache: tuple[int, str] = (-1, "")


def format_date(unix_s: float) -> str:
    """A date of RFC 5322 section 3.3, in UTC. The last second is remembered: thousands of messages share it."""
    global _date_cache
    second = int(unix_s)
    if _date_cache[0] != second:
        _date_cache = (second, formatdate(second, localtime=False))
    return _date_cache[1]


def _protocol_name(is_esmtp: bool, is_utf8: bool, is_tls: bool, is_authenticated: bool) -> str:
    if not is_esmtp:
        return "SMTP"
    return ("UTF8SMTP" if is_utf8 else "ESMTP") + ("S" if is_tls else "") + ("A" if is_authenticated else "")


# RFC 3848, and RFC 6531 section 4.3 for UTF8SMTP: by (EHLO was said, SMTPUTF8, TLS, authenticated).
PROTOCOLS = {facts: _protocol_name(*facts) for facts in itertools.product((False, True), repeat=4)}


@lru_cache(maxsize=256)
def received_from(helo: str, peer_host: str, by: str, protocol: str, tls: str = "") -> str:
    """What the Received fields of one session have in common: the clauses from, by, with, and the beginning of id.

    `protocol` is a name of RFC 3848 (ESMTP, ESMTPSA, ...), `tls` version and cipher.
    """
    peer = f"IPv6:{peer_host}" if ":" in peer_host else peer_host
    # In ASCII: a field in UTF-8 would keep the message from every server without SMTPUTF8.
    helo = _UNSAFE.sub("?", ascii_name(helo)) or "unknown"
    source = f"{helo} ([{peer}])" if peer else helo
    using = f"\r\n\t(using {tls})" if tls else ""
    return f"Received: from {source}{using}\r\n\tby {by} with {protocol} id "


def format_received(common: str, uid: str, recipient: str | None, unix_s: float) -> bytes:
    """The Received field, folded, with CRLF (RFC 5321 section 4.4), from `received_from`. Nothing the peer said can break out.

    The recipient is named only where there is one, so that no blind copy is given away.
    """
    to = f"\r\n\tfor <{ascii_mailbox(recipient)}>" if recipient else ""
    return f"{common}{uid}{to};\r\n\t{format_date(unix_s)}\r\n".encode()


def message_id(uid: str, hostname: str) -> str:
    """A Message-ID made from the queue id (RFC 5322 section 3.6.4)."""
    return f"<{uid}@{hostname.strip('[]').replace(':', '.')}>"


def complete(content: Content, scan: headers.Scan, uid: str, hostname: str, now: float) -> bytes:
    """What a submission lacks, as fields to put on top (RFC 6409 section 8.2 and 8.3); takes Bcc out (section 8 too)."""
    added = b""
    if b"message-id" not in scan.names:
        added += format_field("Message-ID", message_id(uid, hostname))
    if b"date" not in scan.names:
        added += format_field("Date", format_date(now))
    if b"bcc" in scan.names:
        content.remove_header("Bcc")
    return added
