"""Scans and changes header sections as octets (RFC 5322 section 2.1 and 2.2). Content outside stays untouched.

The header section ends at the first empty line, or before the first line that is neither a field nor a folded part of
one: text that has no header section at all is left as it is, and a search never leaves the header section.
"""

from __future__ import annotations

import re
from email.errors import MessageError
from email.header import decode_header, make_header

_SECTION = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)*")
# Goes from field to field, for a section is nothing else.
_FIELDS = re.compile(rb"([!-9;-~]+)[^\n]*\n(?:[ \t][^\n]*\n)*")
_NAME = re.compile(r"[!-9;-~]+\Z")


def section_end(content: bytes) -> int:
    """How many octets the header section has, without the empty line behind it."""
    found = _SECTION.match(content)
    return found.end() if found else 0


class Scan:
    """What one look at a header section tells: where it ends, the names of its fields in lower case, its subject."""

    __slots__ = ("end", "names", "received", "section")

    def __init__(self, start: bytes) -> None:
        found = _SECTION.match(start)
        self.end = found.end() if found else 0
        self.section = section = found[0] if found else b""
        # A list: there are few, and most are asked for once.
        self.names = names = _FIELDS.findall(section.lower())
        self.received = names.count(b"received")

    @property
    def subject(self) -> str:
        """The subject for people, 200 characters at most."""
        if b"subject" not in self.names:
            return ""
        # Cut before it is decoded, too: some encodings take their time with what is long.
        return decode_value((get_raw(self.section, "Subject") or b"")[:1000]).replace("\0", "")[:200]


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


_PATTERNS: dict[str, re.Pattern[bytes]] = {}


def get_raw(section: bytes, name: str) -> bytes | None:
    """The value of the first field of that name, unfolded, or None."""
    found = _pattern(name).search(section)
    return re.sub(rb"\r?\n(?=[ \t])", b"", found.group(1)).strip() if found else None


def decode_value(raw: bytes) -> str:
    """A field's value for people: encoded words decoded (RFC 2047), what is broken replaced, never an exception."""
    text = raw.decode("utf-8", "replace")
    if "=?" not in text:
        return text
    try:
        # Some charsets can spell a lone surrogate, which nothing can write: not a queue, not a log.
        return str(make_header(decode_header(text))).encode("utf-8", "replace").decode("utf-8")
    except (ValueError, LookupError, MessageError):
        return text


def format_field(name: str, value: str) -> bytes:
    """`Name: value` with CRLF. Raises ValueError where the value has CR, LF or NUL: header injection ends here."""
    _pattern(name)
    if any(c in value for c in "\r\n\0"):
        raise ValueError(f"value of {name} has CR, LF or NUL: a field is one line here")
    return f"{name}: {value}\r\n".encode()


def remove(section: bytes, name: str) -> bytes:
    """The section without any field of that name, folded parts included."""
    return _pattern(name).sub(b"", section)


def remove_claims(section: bytes, name: str, first_word: str) -> bytes:
    """The section without the fields of that name whose value begins with this word, in any case, behind comments too."""
    wanted = first_word.lower().encode()

    def judge(found: re.Match[bytes]) -> bytes:
        value = re.sub(rb"\([^()]*\)|\r?\n", b"", found.group(1)).strip().lower()
        return b"" if re.split(rb"[\s;/]", value, maxsplit=1)[0].strip(b'"') == wanted else found.group(0)

    return _pattern(name).sub(judge, section)


def replace(section: bytes, name: str, value: str) -> bytes:
    """The first field of that name gets the value, further ones go; where there is none it is added at the end."""
    line = format_field(name, value)
    found = _pattern(name).search(section)
    if found is None:
        return section + line
    return section[: found.start()] + line + remove(section[found.end() :], name)
