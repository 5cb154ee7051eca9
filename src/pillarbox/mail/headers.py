"""Scans and changes header sections as octets (RFC 5322 section 2.1 and 2.2). Content outside stays untouched.

The header section ends at the first empty line, or before the first line that is neither a field nor a folded part of
one: there the server puts an empty line, so that every reader of the message sees the same section. A search never
leaves the header section.
"""

from __future__ import annotations

import re

from ..smtp.address import comparable_domain
from .cfws import CfwsFault, read_dotted, read_value, skip_cfws
from .charset import decode_octets
from .fieldtext import format_field
from .words import decode_words

_SECTION = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)*")
# Goes from field to field, for a section is nothing else.
_FIELDS = re.compile(rb"([!-9;-~]+)[^\n]*\n(?:[ \t][^\n]*\n)*")
_NAME = re.compile(r"[!-9;-~]+\Z")


def section_end(content: bytes) -> int:
    """How many octets the header section has, without the empty line behind it."""
    found = _SECTION.match(content)
    return found.end() if found else 0


# What stands behind a header section: nothing, or an empty line.
_ENDS = (b"\r\n", b"")


class Scan:
    """What one look at a header section tells: where it ends, the names of its fields in lower case, its subject.

    `lacks_end`: a line follows that is neither empty nor a field.
    """

    __slots__ = ("end", "lacks_end", "names", "received", "section")

    def __init__(self, start: bytes) -> None:
        found = _SECTION.match(start)
        self.end = end = found.end() if found else 0
        self.lacks_end = start[end : end + 2] not in _ENDS
        self.section = section = found[0] if found else b""
        # A list: there are few, and most are asked for once.
        self.names = names = _FIELDS.findall(section.lower())
        self.received = names.count(b"received")

    @property
    def subject(self) -> str:
        """The subject for people, 200 characters at most."""
        if b"subject" not in self.names:
            return ""
        raw = get_raw(self.section, "Subject") or b""
        if len(raw) > 1000:
            # Cut before it is decoded, too: some encodings take their time. Cut at a blank, so that no character is halved.
            raw = (
                raw[: raw.rfind(b" ", 0, 1000)]
                if b" " in raw[500:1000]
                else raw[:1000].decode("utf-8", "ignore").encode()
            )
        return decode_value(raw).replace("\0", "")[:200]


def raw_fields(section: bytes) -> list[tuple[str, str]]:
    """(name, unfolded value) of each field, in order; UTF-8 as it stands (RFC 6532), other octets replaced."""
    found = _NAMED.findall(section)
    return [(name.decode("ascii"), " ".join(value.decode("utf-8", "replace").split())) for name, value in found]


_NAMED = re.compile(rb"([!-9;-~]+)[ \t]*:([^\n]*\n(?:[ \t][^\n]*\n)*)")
_FIELD_BEGINS = re.compile(rb"[!-9;-~]+[ \t]*(?::|\Z)|[ \t]")


def goes_on(start: bytes, end: int) -> bool:
    """True when a header section that was found up to `end` goes on beyond `start`, which is only a part of the content."""
    rest = start[end:]
    return b"\n" not in rest and (not rest or _FIELD_BEGINS.match(rest) is not None)


def _pattern(name: str) -> re.Pattern[bytes]:
    if not _NAME.match(name):
        raise ValueError(f"field name {name!r}: printable ASCII without a colon, RFC 5322 section 2.2")
    found = _PATTERNS.get(name)
    if found is None:
        if len(_PATTERNS) > 200:
            _PATTERNS.clear()
        source = rb"^" + re.escape(name.encode()) + rb"[ \t]*:([^\n]*\n(?:[ \t][^\n]*\n)*)"
        found = _PATTERNS[name] = re.compile(source, re.M | re.I)
    return found


_UNFOLD = re.compile(rb"\r?\n(?=[ \t])")
_PATTERNS: dict[str, re.Pattern[bytes]] = {}


def get_raw(section: bytes, name: str) -> bytes | None:
    """The value of the first field of that name, unfolded, or None."""
    found = _pattern(name).search(section)
    return _UNFOLD.sub(b"", found.group(1)).strip() if found else None


def decode_value(raw: bytes) -> str:
    """Returns a field's value for people: encoded words decoded one by one (RFC 2047), octets guessed at. Never raises."""
    return decode_words(decode_octets(raw))


def remove(section: bytes, name: str) -> bytes:
    """The section without any field of that name, folded parts included."""
    return _pattern(name).sub(b"", section)


def remove_claims(section: bytes, name: str, authserv_id: str) -> bytes:
    """The section without the fields of that name that `authserv_id` seems to have made, however its name is spelt."""

    def judge(found: re.Match[bytes]) -> bytes:
        return b"" if is_claim(found.group(1), authserv_id) else found.group(0)

    return _pattern(name).sub(judge, section)


def is_claim(value: bytes, authserv_id: str) -> bool:
    """True when an Authentication-Results value (RFC 8601 section 2.2) begins with that name for any of its readers.

    Some readers join words around dots, some stop at the first word, some decode encoded words (RFC 2047). A value that
    breaks the grammar counts as ours where our name stands anywhere in it.
    """
    wanted = comparable_domain(authserv_id)
    try:
        at = skip_cfws(value)
        names = {read_value(value, at)[0], read_dotted(value, at)[0]}
    except CfwsFault:
        text = re.sub(r'[\s\\"]', "", decode_value(_UNFOLD.sub(b"", value))).lower()
        return wanted in text or authserv_id.lower() in text
    return any(comparable_domain(decode_value(name).strip()) == wanted for name in names)


def replace(section: bytes, name: str, value: str, *, is_utf8: bool = False) -> bytes:
    """The first field of that name gets the value, further ones go; where there is none it is added at the end."""
    line = format_field(name, value, is_utf8=is_utf8)
    found = _pattern(name).search(section)
    if found is None:
        return section + line
    return section[: found.start()] + line + remove(section[found.end() :], name)
