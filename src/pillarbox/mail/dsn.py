"""Delivery status notifications: failure, delay, relayed (RFC 3464, RFC 3461 section 6, RFC 6522, RFC 6533)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from ..smtp.framing import is_clean, normalise_lines
from ..smtp.reply import Reply
from .trace import format_date

# RET=FULL gives the content back up to here; beyond, the header section has to do.
MAX_RETURNED_BYTES = 256 * 1024


class Action(Enum):
    """RFC 3464 section 2.3.3"""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"


@dataclass(slots=True)
class RecipientReport:
    """One recipient's fate. `reply` is the remote server's, whole; `remote` its name; times in unix seconds."""

    address: str
    reply: Reply
    orcpt: str | None = None
    remote: str | None = None
    last_attempt_at: float | None = None
    will_retry_until: float | None = None
    is_expired: bool = False


@dataclass(slots=True)
class Report:
    """What a DSN is made of. `original` is the content to give back (a header section when `is_full` is False)."""

    action: Action
    uid: str
    hostname: str
    to: str
    arrived_at: float
    original: bytes
    is_full: bool = False
    envid: str | None = None
    recipients: list[RecipientReport] = field(default_factory=list)


SUBJECTS = {
    Action.FAILED: "Undelivered mail returned to sender",
    Action.DELAYED: "Delayed mail (still being retried)",
    Action.RELAYED: "Successful mail delivery report (relayed)",
}

_LEAD = {
    Action.FAILED: (
        "Your message could not be delivered to the recipients below. It will not be tried again.",
        "The reply of the mail server that refused it, or the last one that was tried, follows each address.",
    ),
    Action.DELAYED: (
        "Your message has not been delivered to the recipients below yet. This is a warning only:",
        "you do not need to send it again, delivery will be tried further.",
    ),
    Action.RELAYED: (
        "Your message was handed on to the mail server of the recipients below, which does not report on delivery.",
        "You may receive no further report.",
    ),
}


def status_code(report: RecipientReport, action: Action) -> str:
    """RFC 3463 code for the Status field: the reply's own, or what follows from its class."""
    if action is Action.RELAYED:
        return report.reply.enhanced or "2.0.0"
    if report.is_expired:
        # RFC 3463 section 3.5: delivery time expired
        return "5.4.7" if action is Action.FAILED else "4.4.7"
    if report.reply.enhanced:
        return report.reply.enhanced
    return f"{str(report.reply.code)[0]}.0.0"


def _typed_address(address: str) -> str:
    if address.isascii():
        return f"rfc822;{address}"
    # RFC 6533 section 3: utf-8-addr-xtext, for a header that stays ASCII.
    return "utf-8;" + "".join(c if "!" <= c <= "~" and c not in "+=\\" else f"\\x{{{ord(c):X}}}" for c in address)


def _ascii(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)


def _wrap(text: str, width: int = 72) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _text_part(report: Report) -> list[str]:
    lines = [f"This is the mail system at {report.hostname}.", "", *_LEAD[report.action], ""]
    for one in report.recipients:
        address = one.address if one.address.isascii() else _typed_address(one.address)
        lines.append(f"<{address}>:" + (f" (server {_ascii(one.remote)})" if one.remote else ""))
        if one.is_expired:
            lines.append("    gave up: the time for retries is over; the last reply was")
        for text in one.reply.lines:
            code = f"{one.reply.code} {one.reply.enhanced or ''}".strip()
            lines += [f"    {piece}" for piece in _wrap(_ascii(f"{code} {text}"))]
        if one.will_retry_until is not None:
            lines.append(f"    will be retried until {format_date(one.will_retry_until)}")
        lines.append("")
    return lines


def _status_part(report: Report) -> list[str]:
    lines = [f"Reporting-MTA: dns; {report.hostname}"]
    if report.envid:
        lines.insert(0, f"Original-Envelope-Id: {_ascii(report.envid)}")
    lines += [f"X-Pillarbox-Queue-Id: {report.uid}", f"Arrival-Date: {format_date(report.arrived_at)}"]
    for one in report.recipients:
        lines.append("")
        if one.orcpt:
            lines.append(f"Original-Recipient: {_ascii(one.orcpt.replace(';', '; ', 1))}")
        lines.append(f"Final-Recipient: {_typed_address(one.address).replace(';', '; ', 1)}")
        lines.append(f"Action: {report.action.value}")
        lines.append(f"Status: {status_code(one, report.action)}")
        if one.remote:
            lines.append(f"Remote-MTA: dns; {_ascii(one.remote)}")
            lines.append(f"Diagnostic-Code: smtp; {_ascii(str(one.reply))[:900]}")
        else:
            lines.append(f"Diagnostic-Code: x-pillarbox; {_ascii(str(one.reply))[:900]}")
        if one.last_attempt_at is not None:
            lines.append(f"Last-Attempt-Date: {format_date(one.last_attempt_at)}")
        if one.will_retry_until is not None:
            lines.append(f"Will-Retry-Until: {format_date(one.will_retry_until)}")
    return lines


def format_dsn(report: Report, dsn_uid: str, now: float) -> bytes:
    """The content of a DSN, CRLF line ends, multipart/report (RFC 6522). Its envelope has the null reverse-path."""
    original = normalise_lines(report.original)
    boundary = f"=_{dsn_uid}_{len(original)}"
    while boundary.encode() in original:
        boundary += "x"
    kind = "message/rfc822" if report.is_full else "text/rfc822-headers"
    encoding = "7bit" if original.isascii() else "8bit"
    to = report.to if report.to.isascii() else _typed_address(report.to).partition(";")[2]
    head = [
        f"From: Mail Delivery System <MAILER-DAEMON@{report.hostname}>",
        f"To: <{to}>",
        f"Subject: {SUBJECTS[report.action]}",
        f"Date: {format_date(now)}",
        f"Message-ID: <{dsn_uid}@{report.hostname.strip('[]').replace(':', '.')}>",
        # RFC 3834 section 5: nobody should answer this by machine.
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        f"Content-Transfer-Encoding: {encoding}",
        "",
        "This is a MIME-encapsulated message.",
    ]
    text = ["Content-Type: text/plain; charset=us-ascii", "Content-Description: Notification", "", *_text_part(report)]
    status = [
        "Content-Type: message/delivery-status",
        "Content-Description: Delivery report",
        "",
        *_status_part(report),
        "",
    ]
    back = [f"Content-Type: {kind}", "Content-Description: Undelivered message"]
    if report.action is not Action.FAILED:
        back[1] = "Content-Description: Original message"
    back += [f"Content-Transfer-Encoding: {encoding}", "", ""]
    lines = [*head, "", f"--{boundary}", *text, f"--{boundary}", *status, f"--{boundary}", *back]
    octets = "\r\n".join(lines).encode("ascii", "replace") + original
    assert is_clean(octets)
    return octets + f"\r\n--{boundary}--\r\n".encode()
