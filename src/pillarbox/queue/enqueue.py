"""Mail that a program hands over, without SMTP: judged like any other, made into a message of the queue.

Addresses by the same grammar as on the wire, so that nothing can break out of a command line later. Must not know the
server's sessions.
"""

from __future__ import annotations

import asyncio
import email.policy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.errors import MessageError
from email.message import Message as EmailMessageBase
from email.utils import getaddresses
from typing import IO, Any

from ..errors import OptionError
from ..mail import headers, trace
from ..mail.compose import compose
from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from ..mail.fieldtext import format_field
from ..smtp.address import ascii_mailbox, comparable_domain, parse_mailbox
from ..smtp.framing import normalise_lines
from .model import Message
from .spool import Spool

# The original's keys, and what they are called here.
_ALIASES = {"from": "reverse_path", "rcpt": "recipients", "msg": "content"}
_KEYS = ("reverse_path", "recipients", "content", "uid", "ts", "hold")
_MAX_UID = 64
_ADDRESS_FIELDS = (
    "From", "Sender", "To", "Cc", "Bcc", "Reply-To", "Resent-From", "Resent-Sender", "Resent-To", "Resent-Cc", "Resent-Bcc",
)  # fmt: skip
# An "@" and a domain with a letter that is not ASCII.
_UTF8_DOMAIN = re.compile(r"@[A-Za-z0-9.-]*[^\x00-\x7f][^\x00-,/:-@\[-`{-\x7f]*")
_READ_BYTES = 256 * 1024


@dataclass(slots=True)
class Enqueued:
    """What was given, judged. `ts` in unix seconds, `uid` None: the server names it."""

    envelope: Envelope
    source: Any
    uid: str | None
    ts: float | None
    hold: str = ""


def parse_enqueue(given: Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Enqueued:
    """Judges `enqueue`'s arguments. OptionError names the key and what is allowed."""
    fields: dict[str, Any] = {}
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(
            f"enqueue: {given!r} is no dict: give {{'from': ..., 'rcpt': [...], 'msg': ...}}, or keywords"
        )
    for key, value in [*(given or {}).items(), *keywords.items()]:
        name = _ALIASES.get(key, key)
        if name not in _KEYS:
            raise OptionError(f"enqueue: key {key!r} is not known: there are {', '.join(_KEYS)} (and from, rcpt, msg)")
        if name in fields:
            raise OptionError(f"enqueue: key {key!r} is given twice")
        fields[name] = value
    for key in ("reverse_path", "recipients", "content"):
        if key not in fields:
            raise OptionError(f"enqueue: key {key!r} is missing")
    reverse_path = _reverse_path(fields["reverse_path"])
    recipients = _recipients(fields["recipients"])
    # A domain has an ASCII form; a local-part has none.
    is_utf8 = not all(ascii_mailbox(address).isascii() for address in [reverse_path or "", *recipients])
    envelope = Envelope(reverse_path, [EnvelopeRecipient(address) for address in recipients], is_smtputf8=is_utf8)
    content = fields["content"]
    source = _source(content, is_utf8=is_utf8)
    if isinstance(content, (str, EmailMessageBase)) and not source[: headers.section_end(source)].isascii():
        # RFC 6532: what could be ASCII is; a local-part in a field has no ASCII form. Octets stay what they are.
        envelope.is_smtputf8 = True
    return Enqueued(
        envelope,
        source,
        _uid(fields.get("uid")),
        _ts(fields.get("ts")),
        str(fields.get("hold") or ""),
    )


def _reverse_path(value: Any) -> str | None:
    if value is None or value in ("", "<>"):
        return None
    return _mailbox("reverse_path", value)


def _mailbox(key: str, value: Any) -> str:
    if isinstance(value, str):
        text = value[1:-1] if value.startswith("<") and value.endswith(">") else value
        if parse_mailbox(text) is not None or text.lower() == "postmaster":
            return text
    raise OptionError(f"enqueue: key {key!r}: {value!r} is no mailbox: give local-part@domain (RFC 5321 section 4.1.2)")


def _recipients(value: Any) -> list[str]:
    addresses = [value] if isinstance(value, str) else value
    if not isinstance(addresses, (list, tuple, set, frozenset)) or not addresses:
        raise OptionError(
            f"enqueue: key 'recipients': {value!r} is not allowed: give a list of addresses, one at least"
        )
    return list(dict.fromkeys(_mailbox("recipients", address) for address in addresses))


def message_octets(message: EmailMessageBase) -> bytes:
    """Returns a message as it is sent.

    Domains in its address fields become A-labels. Fields stand in UTF-8 (RFC 6532) if a local-part is not ASCII; else text
    that is not ASCII is encoded (RFC 2047).
    """
    try:
        texts = [str(text) for name in _ADDRESS_FIELDS for text in message.get_all(name, [])]
        is_utf8 = any(not ascii_mailbox(address).isascii() for _, address in getaddresses(texts))
        return message.as_bytes(policy=_OutgoingPolicy(utf8=is_utf8, linesep="\r\n"))
    except (IndexError, AttributeError, TypeError, LookupError, ValueError, MessageError, RecursionError) as error:
        # The package email fails in many ways on fields that it cannot read.
        raise OptionError(
            f"enqueue: key 'content': invalid message: expected one that the package email can write: {error!r}"
        ) from error


class _OutgoingPolicy(email.policy.EmailPolicy):
    """Writes the domains of address fields in A-labels: encoded words (RFC 2047) may not stand within an address."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        """See email.policy."""
        if name.title() in _ADDRESS_FIELDS and not str(value).isascii():
            value = self.header_factory(name, _UTF8_DOMAIN.sub(lambda found: _a_labels(found[0]), str(value)))
        return super().fold_binary(name, value)


def _a_labels(domain: str) -> str:
    return "@" + comparable_domain(domain[1:])


def text_octets(text: str, *, is_utf8: bool) -> bytes:
    """Returns a message that is given as text. OptionError says what is not valid in it."""
    try:
        return compose(text, is_utf8=is_utf8)
    except UnicodeEncodeError as error:
        raise OptionError(f"enqueue: key 'content': the text cannot be written as UTF-8: {error}") from None
    except ValueError as error:
        raise OptionError(f"enqueue: key 'content': {error}") from None


def _source(value: Any, *, is_utf8: bool = False) -> Any:
    if isinstance(value, EmailMessageBase):
        return message_octets(value)
    if isinstance(value, str):
        return text_octets(value, is_utf8=is_utf8)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if callable(getattr(value, "read", None)) and not hasattr(value, "encoding"):
        return value
    raise OptionError(
        f"enqueue: key 'content': {type(value).__name__} is not allowed: give str, bytes, an EmailMessage or a binary file"
    )


def _uid(value: Any) -> str | None:
    if value is None:
        return None
    is_word = isinstance(value, str) and value.isascii() and all(c.isalnum() or c in "-_." for c in value)
    # It becomes the left part of a Message-ID: a dot-atom (RFC 5322 section 3.6.4).
    is_word = is_word and all(value.split("."))
    if not is_word or not 0 < len(value) <= _MAX_UID:
        raise OptionError(
            f"enqueue: key 'uid': {value!r} is not allowed: up to {_MAX_UID} letters, digits, '-', '_', '.'"
        )
    return str(value)


def _ts(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        raise OptionError(f"enqueue: key 'ts': {value!r} is not allowed: give unix seconds")
    return float(value)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a message gets from the server that takes it. `spool_name`: a name that no spool file has."""

    hostname: str
    uid: str
    spool_name: str
    now: float
    expire_s: float
    is_origin: bool = False


async def build_message(enqueued: Enqueued, stamp: Stamp, spool: Spool | None, spool_above_bytes: int) -> Message:
    """The message, its large content on the disk already. Raises StoreError where that cannot be written."""
    content = await _content(enqueued.source, stamp.spool_name, spool, spool_above_bytes)
    scan = headers.Scan(content.prefix if content.path is None else content.start())
    added = trace.complete(content, scan, stamp.uid, stamp.hostname, stamp.now)
    if b"from" not in scan.names:
        # RFC 5322 section 3.6: one From field is required. Many servers refuse mail without.
        author = ascii_mailbox(enqueued.envelope.reverse_path or f"MAILER-DAEMON@{stamp.hostname}")
        added += format_field("From", author, is_utf8=True)
    if b"return-path" in scan.names:
        content.remove_header("Return-Path")
    if stamp.is_origin:
        content.remove_header("Received")
    if not scan.end and content.size_bytes and content.start(2) != b"\r\n":
        added += b"\r\n"
    if added:
        content.prepend(added)
    if not (content.start().isascii() and content.path is None):
        enqueued.envelope.body = "8BITMIME"
    received_at = enqueued.ts if enqueued.ts is not None else stamp.now
    return Message(
        stamp.uid,
        enqueued.envelope,
        content,
        received_at,
        received_at + stamp.expire_s,
        scan.subject,
        {"enqueued": True},
    )


async def spooled_content(source: Any, name: str, spool: Spool | None, spool_above_bytes: int) -> Content:
    """Content from octets or a binary file, CRLF line ends; a large one is on the disk when it returns (StoreError: not)."""
    return await _content(source, name, spool, spool_above_bytes)


async def _content(source: Any, name: str, spool: Spool | None, spool_above_bytes: int) -> Content:
    if isinstance(source, bytes):
        octets = normalise_lines(source)
        if spool is None or len(octets) <= spool_above_bytes:
            return Content(_ended(octets))
        pieces = (octets[i : i + _READ_BYTES] for i in range(0, len(octets), _READ_BYTES))
        return await _spooled(lambda: next(pieces, b""), name, spool)
    head = await asyncio.to_thread(_read_some, source)
    if len(head) < _READ_BYTES or spool is None:
        rest = b"" if len(head) < _READ_BYTES else await asyncio.to_thread(_read, source)
        return await _content(head + rest, name, spool, spool_above_bytes)
    waiting = [head]
    held = b""

    def read() -> bytes:
        nonlocal held
        piece = waiting.pop() if waiting else _read(source, _READ_BYTES)
        octets, held = held + piece, b""
        if piece and octets.endswith(b"\r"):
            # Half of a line end, perhaps.
            octets, held = octets[:-1], b"\r"
        return normalise_lines(octets) or (read() if piece else b"")

    return await _spooled(read, name, spool)


def _read_some(source: IO[bytes]) -> bytes:
    pieces, size = [], 0
    while size < _READ_BYTES and (piece := _read(source, _READ_BYTES - size)):
        if not isinstance(piece, bytes):
            raise OptionError("enqueue: key 'content': the file gives text: open it in binary mode")
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _read(source: IO[bytes], count: int = -1) -> bytes:
    try:
        return source.read(count)
    except (OSError, ValueError) as error:
        raise OptionError(f"enqueue: key 'content': the file cannot be read: {error}") from error


def _ended(octets: bytes) -> bytes:
    return octets if not octets or octets.endswith(b"\r\n") else octets + b"\r\n"


async def _spooled(read: Callable[[], bytes], name: str, spool: Spool) -> Content:
    loop = asyncio.get_running_loop()
    flow = asyncio.Event()
    flow.set()
    writer = spool.create(name, lambda wants: flow.set() if wants else flow.clear())
    done: asyncio.Future[None] = loop.create_future()
    last = b""
    try:
        while piece := await asyncio.to_thread(read):
            last = piece
            writer.write(piece)
            await flow.wait()
    except BaseException:
        writer.abort()
        raise
    if not last.endswith(b"\r\n"):
        writer.write(b"\r\n")
    writer.finish(lambda error: done.set_exception(error) if error is not None else done.set_result(None))
    await done
    return writer.content()
