"""Makes header fields of text: encoded words (RFC 2047), addresses (RFC 5322 section 3.4), folding (section 2.2.3)."""

from __future__ import annotations

import base64
import email.policy
import re
import unicodedata
from email.errors import MessageError, NonASCIILocalPartDefect, ObsoleteHeaderDefect, UndecodableBytesDefect
from email.headerregistry import Address
from typing import Any

from ..smtp.address import ascii_mailbox, comparable_domain, parse_mailbox

_NAME = re.compile(r"[!-9;-~]+\Z")
# RFC 5322 section 2.1.1, without CRLF.
_USUAL, _LONGEST = 78, 998
# RFC 2047 section 2: an encoded word has 75 characters at most.
_WORD = 75
_FRAME = len("=?utf-8?q?") + len("?=")
ADDRESS_FIELDS = frozenset((
    "from", "sender", "reply-to", "to", "cc", "bcc", "resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc",
))  # fmt: skip
# RFC 2047 section 5: encoded words stand in text, comments and phrases only; these fields have none that a program writes.
_ASCII_FIELDS = frozenset((
    "date", "message-id", "in-reply-to", "references", "received", "return-path", "resent-date", "resent-message-id",
    "mime-version", "content-type", "content-transfer-encoding", "content-disposition", "content-id", "dkim-signature",
    "authentication-results", "list-id", "list-unsubscribe", "list-unsubscribe-post", "list-post", "auto-submitted",
))  # fmt: skip
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+(?: [A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+)*\Z")
# RFC 2047 section 5 (3): what may stand as it is in the encoded word of a phrase.
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\n]*\n(?:[ \t][^\n]*\n)*)")
_UNFOLD = re.compile(r"\r?\n(?=[ \t])")


def format_field(name: str, value: str, *, is_utf8: bool = False) -> bytes:
    """Returns `Name: value` with CRLF, encoded and folded. ASCII, unless the message `is_utf8` (RFC 6532).

    ValueError for a name or a value that a field cannot have: control characters, addresses that are not valid, a word of
    more than 998 octets, and text in a field that has ASCII only.
    """
    if not _NAME.match(name):
        raise ValueError(f"field name {name!r}: printable ASCII without a colon, RFC 5322 section 2.2")
    if not isinstance(value, str):
        raise ValueError(f"field {name}: invalid value {value!r}: expected text")
    if value.isascii():
        # Nearly all; of control characters only the tab is printable enough.
        if not value.replace("\t", "").isprintable():
            raise _control(name, value)
        text = value
    else:
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\t" for c in value):
            raise _control(name, value)
        text = value if is_utf8 else _in_ascii(name, value)
    return _fold(f"{name}: {text}", name).encode("utf-8")


def encode_section(section: bytes, *, is_utf8: bool) -> bytes:
    """Returns a header section in which each field is valid; fields of ASCII in short lines stay as they are."""

    def encode(found: re.Match[bytes]) -> bytes:
        whole = found.group(0)
        if whole.isascii() and max(map(len, whole.split(b"\r\n"))) <= _LONGEST:
            return whole
        value = _UNFOLD.sub("", found.group(2).decode("utf-8")).strip()
        return format_field(found.group(1).decode("ascii"), value, is_utf8=is_utf8)

    return _FIELD.sub(encode, section)


def _control(name: str, value: str) -> ValueError:
    return ValueError(
        f"field {name}: invalid value {value!r}: expected one line without control characters (CR, LF or NUL)"
    )


def _in_ascii(name: str, value: str) -> str:
    if name.lower() in ADDRESS_FIELDS:
        return _addresses(name, value)
    if name.lower() in _ASCII_FIELDS:
        raise ValueError(f"field {name}: invalid value {value!r}: expected ASCII")
    # The words that need it, from the first to the last; all of it where other words look like encoded ones.
    spans = [found.span() for found in re.finditer(r"\S+", value) if not found[0].isascii()]
    start, end = spans[0][0], spans[-1][1]
    if "=?" in value[:start] + value[end:]:
        start, end = 0, len(value)
    first = _WORD if value[:start].strip() else _WORD - len(name) - 2
    return value[:start] + " ".join(_words(value[start:end], first)) + value[end:]


def _words(text: str, first: int = _WORD) -> list[str]:
    """Encoded words for a text, the first of them shorter where its line has something else; never half a character."""
    quoted = ["".join(chr(b) if b in _PLAIN else "_" if b == 32 else f"={b:02X}" for b in c.encode()) for c in text]
    is_base64 = sum(map(len, quoted)) > 4 * (len(text.encode()) + 2) // 3
    words: list[str] = []
    begin = size = 0
    room = max(first, 32) - _FRAME
    for place in range(len(text) + 1):
        more = 0 if place == len(text) else len(text[place].encode()) if is_base64 else len(quoted[place])
        most = room // 4 * 3 if is_base64 else room
        if place == len(text) or size + more > most:
            piece = text[begin:place].encode()
            body = base64.b64encode(piece).decode("ascii") if is_base64 else "".join(quoted[begin:place])
            words.append(f"=?utf-8?{'b' if is_base64 else 'q'}?{body}?=")
            begin, size, room = place, 0, _WORD - _FRAME
        size += more
    return words


def parse_addresses(name: str, value: Any) -> Any:
    """Returns an address field as Python's own class. ValueError for what is not a list of addresses.

    `value` is text, or such a field itself. Python reads what is not valid, and calls it a defect: an address that one
    reader takes for another one's (CVE-2023-27043) must not be used.
    """
    try:
        header: Any = value if hasattr(value, "addresses") else email.policy.SMTP.header_factory(name, str(value))
        bad = [one for one in header.defects if not isinstance(one, (NonASCIILocalPartDefect, ObsoleteHeaderDefect))]
        if bad and all(isinstance(one, UndecodableBytesDefect) for one in bad):
            # A field of UTF-8 in a message that was parsed (RFC 6532): its text is read, once.
            if hasattr(value, "addresses"):
                return parse_addresses(name, str(value))
            raise _refusal(name, value)
        if not bad and all(parse_mailbox(one.addr_spec) is not None for one in header.addresses):
            return header
    except (IndexError, AttributeError, TypeError, ValueError, LookupError, RecursionError, MessageError):
        # The parser of the package email has faults of its own.
        pass
    raise _refusal(name, value)


def _refusal(name: str, value: Any) -> ValueError:
    return ValueError(
        f"field {name}: invalid addresses {str(value)!r}: expected Name <local-part@domain>, with commas between several"
    )


def field_addresses(name: str, value: Any) -> list[str]:
    """The addresses in an address field, domains in A-labels. ValueError as in parse_addresses."""
    return [ascii_mailbox(one.addr_spec) for one in parse_addresses(name, value).addresses]


def _addresses(name: str, value: str) -> str:
    pieces = []
    for group in parse_addresses(name, value).groups:
        members = ", ".join(_mailbox(name, one) for one in group.addresses)
        pieces.append(members if group.display_name is None else f"{_phrase(group.display_name)}: {members};")
    return ", ".join(pieces)


def _mailbox(name: str, address: Address) -> str:
    if not address.username.isascii():
        raise ValueError(
            f"field {name}: invalid address {address.addr_spec!r}: expected an ASCII local-part in a message without SMTPUTF8"
        )
    spec = Address(username=address.username, domain=comparable_domain(address.domain)).addr_spec
    return f"{_phrase(address.display_name)} <{spec}>" if address.display_name else spec


def _phrase(text: str) -> str:
    if not text.isascii() or "=?" in text:
        return " ".join(_words(text))
    if _ATOMS.match(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _fold(line: str, name: str) -> str:
    """Folds at white space, never before the first word, so that lines have 78 characters where that is possible."""
    if len(line) <= _USUAL:
        return line + "\r\n"
    lines, current = [], ""
    for piece in re.findall(r"[ \t]*[^ \t]+|[ \t]+\Z", line):
        # The name and the first word stand together.
        if len(current) + len(piece) > _USUAL and len(current) > len(name) + 1 and piece.strip():
            lines.append(current)
            current = ""
        current += piece
    lines.append(current)
    longest = max(lines, key=lambda one: len(one.encode("utf-8")))
    if len(longest.encode("utf-8")) > _LONGEST:
        raise ValueError(
            f"field {name}: invalid value: expected no word of more than {_LONGEST} octets: {longest[:60]!r}..."
        )
    return "\r\n".join(lines) + "\r\n"
