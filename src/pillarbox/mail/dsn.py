"""Delivery status notifications: failure, delay, relayed (RFC 3464, RFC 3461 section 6, RFC 6522, RFC 6533)."""

from __future__ import annotations

import binascii
import ipaddress
import re
from dataclasses import dataclass, field
from enum import Enum

from ..smtp.address import ascii_mailbox, comparable_domain, is_domain
from ..smtp.extension import format_utf8_xtext
from ..smtp.framing import is_clean, normalise_lines
from ..smtp.reply import Reply, cut_reply
from .headers import section_end
from .trace import format_date

# RET=FULL gives the content back up to here; beyond, the header section has to do.
MAX_RETURNED_BYTES = 256 * 1024
# Characters of one remote reply in each part of the report, and its lines in the text for people.
MAX_REPLY = 900
MAX_REPLY_LINES = 20
# Characters of all replies together in each part. A report on many recipients cuts each reply shorter, but keeps this much.
MAX_REPLIES = 100_000
MIN_REPLY = 80


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


def _typed_address(address: str, *, is_global: bool) -> str:
    """address-type; address. RFC 6533 section 3: a report in ASCII has utf-8-addr-xtext, one in UTF-8 the address itself."""
    address = address if is_global else ascii_mailbox(address)
    if address.isascii():
        return f"rfc822; {_ascii(address)}"
    return f"utf-8; {_one_line(address) if is_global else format_utf8_xtext(address, '+=' + chr(92))}"


def _original_recipient(orcpt: str, *, is_global: bool) -> str:
    kind, _, address = orcpt.partition(";")
    if kind.lower() == "utf-8":
        return f"utf-8; {_one_line(address) if is_global else format_utf8_xtext(address)}"
    return f"{_ascii(kind)}; {_ascii(address)}"


def remote_mta(remote: str) -> str | None:
    """The name for Remote-MTA (RFC 3464 section 2.3.5): a domain or an address literal, without port; None without one."""
    found = _REMOTE.match(remote)
    if found is None:
        return None
    host, literal, address = found.groups()
    for text in (literal or host, address):
        if not text:
            continue
        try:
            ip = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            name = comparable_domain(text)
            if is_domain(name) and name.isascii():
                return name
        else:
            return f"[{ip}]" if ip.version == 4 else f"[IPv6:{ip}]"
    return None


# host:port, host[address]:port, [address]:port; what Target.name gives.
_REMOTE = re.compile(r"(?:\[(?:IPv6:)?([^\[\]]*)\]|([^\[\]]*?))(?:\[([^\[\]]*)\])?(?::[0-9]+)?\Z", re.IGNORECASE)


def _one_line(text: str) -> str:
    """The text without what cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _ascii(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)


def _reply_room(report: Report) -> int:
    """Characters that each recipient's reply may have."""
    return max(MIN_REPLY, min(MAX_REPLY, MAX_REPLIES // max(1, len(report.recipients))))


def _cut(text: str, most: int) -> str:
    """At most so many characters, cut between two words."""
    if len(text) <= most:
        return text
    return (text[:most].rpartition(" ")[0] or text[:most]) + " ..."


def _folded(field: str, width: int = 76) -> list[str]:
    """A field in lines of at most `width` where blanks allow it (RFC 5322 section 2.2.3), and of 900 in any case."""
    lines: list[str] = []
    for line in _wrap(field, width):
        lines += [line[i : i + 900] for i in range(0, len(line), 900)] or [line]
    return [lines[0], *(f" {line}" for line in lines[1:])]


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
    room = _reply_room(report)
    for one in report.recipients:
        lines.append(f"<{_one_line(one.address)}>:" + (f" (server {_one_line(one.remote)})" if one.remote else ""))
        if one.is_expired:
            lines.append("    gave up: the time for retries is over; the last reply was")
        code = f"{one.reply.code} {one.reply.enhanced or ''}".strip()
        for text in cut_reply(one.reply, room).lines[:MAX_REPLY_LINES]:
            lines += [f"    {piece}" for piece in _wrap(_one_line(f"{code} {text}"))]
        if one.will_retry_until is not None:
            lines.append(f"    will be retried until {format_date(one.will_retry_until)}")
        lines.append("")
    return lines


def _status_part(report: Report, *, is_global: bool) -> list[str]:
    lines = [f"Reporting-MTA: dns; {_ascii(report.hostname)}"]
    if report.envid:
        lines.insert(0, f"Original-Envelope-Id: {_ascii(report.envid)}")
    room = _reply_room(report)
    lines += [f"X-Pillarbox-Queue-Id: {report.uid}", f"Arrival-Date: {format_date(report.arrived_at)}"]
    for one in report.recipients:
        lines.append("")
        original = _original_recipient(one.orcpt, is_global=is_global) if one.orcpt else ""
        # Escaped it may be longer than a line of a report can be.
        if 0 < len(original.encode()) <= MAX_REPLY:
            lines.append(f"Original-Recipient: {original}")
        lines.append(f"Final-Recipient: {_typed_address(one.address, is_global=is_global)}")
        lines.append(f"Action: {report.action.value}")
        lines.append(f"Status: {status_code(one, report.action)}")
        name = remote_mta(one.remote) if one.remote else None
        if name:
            lines.append(f"Remote-MTA: dns; {name}")
        kind = "smtp" if one.remote else "x-pillarbox"
        # RFC 6533 section 4: in UTF-8 where the report is.
        said = _one_line(str(one.reply)) if is_global else _ascii(str(one.reply))
        lines += _folded(f"Diagnostic-Code: {kind}; {_cut(said, room)}")
        if one.last_attempt_at is not None:
            lines.append(f"Last-Attempt-Date: {format_date(one.last_attempt_at)}")
        if one.will_retry_until is not None:
            lines.append(f"Will-Retry-Until: {format_date(one.will_retry_until)}")
    return lines


def _quoted(octets: bytes) -> bytes:
    return normalise_lines(binascii.b2a_qp(octets, istext=True))


def _part(kind: str, description: str, octets: bytes, *, is_8bit: bool = False) -> bytes:
    """A part of the report; text that 7 bits or lines of 998 octets cannot hold is in quoted-printable (RFC 2045)."""
    encoding = "7bit"
    if not is_plain_7bit(octets):
        encoding = "8bit" if is_8bit and _has_short_lines(octets) else "quoted-printable"
    if encoding == "quoted-printable":
        octets = _quoted(octets)
    head = (
        f"Content-Type: {kind}\r\nContent-Description: {description}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + octets


def _has_short_lines(octets: bytes) -> bool:
    # RFC 5322 section 2.1.1
    return b"\0" not in octets and all(len(line) <= 998 for line in octets.split(b"\r\n"))


def is_plain_7bit(octets: bytes) -> bool:
    """True for 7bit data: ASCII without NUL, in lines of at most 998 octets (RFC 2045 section 2.7)."""
    return octets.isascii() and _has_short_lines(octets)


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _original_part(report: Report, *, is_global: bool) -> bytes:
    """The original, whole where it may stand as it is; else its header section, encoded where that needs it.

    RFC 2046 section 5.2.1 forbids to encode message/rfc822; RFC 6533 section 6 allows it for message/global-headers.
    """
    original = normalise_lines(report.original)
    what = "Undelivered message" if report.action is Action.FAILED else "Original message"
    head = original[: section_end(original)]
    is_whole = is_plain_7bit(original) or (is_global and _has_short_lines(original) and _is_utf8(head))
    if report.is_full and is_whole:
        kind = "message/rfc822" if head.isascii() else "message/global"
        return _part(kind, what, original, is_8bit=True)
    if head.isascii() or not _is_utf8(head):
        return _part("text/rfc822-headers", what, head)
    return _part("message/global-headers", what, head, is_8bit=is_global)


def is_global_report(to: str) -> bool:
    """True if the report's recipient has a local-part in UTF-8: only then the way there is known to take 8 bits."""
    return not ascii_mailbox(to).isascii()


def format_dsn(report: Report, dsn_uid: str, now: float) -> bytes:
    """The content of a DSN, CRLF line ends, multipart/report (RFC 6522). Its envelope has the null reverse-path.

    It is 7bit, so that every server takes it. To an address with UTF-8 in its local-part, which needs SMTPUTF8 and with it
    8BITMIME on its whole way, it goes in the 8-bit form of RFC 6533.
    """
    is_global = is_global_report(report.to)
    to = report.to if is_global else ascii_mailbox(report.to)
    text = _lines(_text_part(report))
    status_kind = "message/global-delivery-status" if is_global else "message/delivery-status"
    parts = [
        _part(
            f"text/plain; charset={'us-ascii' if text.isascii() else 'utf-8'}", "Notification", text, is_8bit=is_global
        ),
        _part(status_kind, "Delivery report", _lines(_status_part(report, is_global=is_global)), is_8bit=is_global),
        _original_part(report, is_global=is_global),
    ]
    boundary = f"=_{dsn_uid}_{sum(map(len, parts))}"
    while any(boundary.encode() in part for part in parts):
        boundary += "x"
    hostname = _ascii(report.hostname)
    head = [
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: <{to}>",
        f"Subject: {SUBJECTS[report.action]}",
        f"Date: {format_date(now)}",
        f"Message-ID: <{dsn_uid}@{hostname.strip('[]').replace(':', '.')}>",
        # RFC 3834 section 5: machines should not answer this.
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        f"Content-Transfer-Encoding: {'7bit' if all(part.isascii() for part in parts) else '8bit'}",
        "",
        "This is a MIME-encapsulated message.",
        "",
    ]
    line = f"--{boundary}\r\n".encode()
    octets = _lines(head) + b"".join(line + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    assert is_clean(octets)
    return octets


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "replace")
