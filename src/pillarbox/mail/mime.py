"""Takes a message apart into its parts (RFC 2045, 2046), also a message that breaks the rules. Never raises.

A part holds offsets into the octets, so nothing is copied until a part is decoded. Depth and number of parts are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .charset import decode_octets
from .encoding import Decoded, decode_transfer, encoding_name
from .parameters import Parameters, parse_disposition, parse_type
from .words import decode_words

MAX_DEPTH = 50
MAX_PARTS = 10_000
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:((?:[^\n]*)(?:\n[ \t][^\n]*)*)(?:\n|\Z)")
_EMPTY_LINE = re.compile(rb"\r?\n")
# A line that looks like the delimiter of a multipart whose boundary is not named: a field of a part follows it.
_GUESSED = re.compile(rb"(?:^|\n)--([^\s][^\r\n]{0,198})\r?\n(?=content-[a-z-]+[ \t]*:)", re.I)
_DELIMITER_END = re.compile(rb"(--)?[ \t]*(?:\r?\n|\r?\Z)")
_TOO_DEEP = f"parts are nested more than {MAX_DEPTH} deep: the rest is one attachment"
_TOO_MANY = f"there are more than {MAX_PARTS} parts: the rest is one attachment"


@dataclass(slots=True)
class Part:
    """One part, or the message itself. `kind` is its type as it is read, `declared` what its fields say."""

    source: bytes
    # Names and values as octets; a value is folded as it was sent.
    fields: list[tuple[bytes, bytes]]
    start: int
    end: int
    declared: Parameters
    kind: str
    disposition: Parameters
    depth: int
    parts: list[Part] = field(default_factory=list)
    preamble: tuple[int, int] = (0, 0)
    epilogue: tuple[int, int] = (0, 0)
    boundary: str | None = None
    # The type could not be kept: a multipart without its boundary is a text.
    is_repaired: bool = False
    notes: list[str] = field(default_factory=list)

    def text_of(self, name: str) -> str | None:
        """Returns the first field of that name, unfolded, without white space around it; encoded words stay."""
        wanted = name.lower().encode()
        for own, value in self.fields:
            if own.lower() == wanted:
                return unfold(value)
        return None

    @property
    def body(self) -> bytes:
        """The octets as they were sent."""
        return self.source[self.start : self.end]

    @property
    def encoding(self) -> str | None:
        """The transfer encoding by its canonical name, or None if it is unknown."""
        found = self.text_of("Content-Transfer-Encoding")
        return "7bit" if found is None else encoding_name(found)

    def decoded(self) -> Decoded:
        """The octets behind the transfer encoding."""
        return decode_transfer(self.body, self.encoding, is_text=self.kind.startswith("text/"))

    @property
    def charset(self) -> str | None:
        """The label that the part names."""
        return self.declared.named.get("charset")

    @property
    def filename(self) -> str | None:
        """The name that the part has as a file, decoded."""
        named = self.disposition.named.get("filename") or self.declared.named.get("name")
        return named.strip() or None if named else None

    def walk(self) -> Iterator[Part]:
        """This part and those within it; an attached message is one part."""
        yield self
        if not self.kind.startswith("message/"):
            for part in self.parts:
                yield from part.walk()


def unfold(value: bytes) -> str:
    """Returns a field's value on one line, decoded by its octets; encoded words stay."""
    return decode_octets(re.sub(rb"\r?\n(?=[ \t])", b"", value).strip())


def shown(value: bytes) -> str:
    """Returns a field's value for people: unfolded, encoded words decoded."""
    return decode_words(unfold(value))


def read_message(octets: bytes) -> Part:
    """Takes a message apart."""
    return _Reader().read(octets, 0, len(octets), 0, "text/plain", is_top=True)


class _Reader:
    """Counts the parts of one message."""

    def __init__(self) -> None:
        self._count = 0

    def read(self, source: bytes, start: int, end: int, depth: int, default: str, *, is_top: bool = False) -> Part:
        """One part: its fields and what it holds."""
        self._count += 1
        fields, body = _fields(source, start, end, is_top)
        part = _typed(source, fields, body, end, depth, default)
        if part.kind.startswith("multipart/"):
            self._read_multipart(part)
        elif part.kind in ("message/rfc822", "message/global", "message/news"):
            self._read_message(part)
        return part

    def _read_message(self, part: Part) -> None:
        if part.depth >= MAX_DEPTH:
            part.notes.append(_TOO_DEEP)
            return
        if part.encoding in ("base64", "quoted-printable", "uuencode"):
            # deviates: RFC 2046 section 5.2.1 forbids it, and Outlook does it.
            inner = part.decoded().octets
            part.parts = [self.read(inner, 0, len(inner), part.depth + 1, "text/plain", is_top=True)]
        else:
            part.parts = [self.read(part.source, part.start, part.end, part.depth + 1, "text/plain", is_top=True)]

    def _read_multipart(self, part: Part) -> None:
        if part.depth >= MAX_DEPTH:
            part.kind, part.is_repaired = "application/octet-stream", True
            part.notes.append(_TOO_DEEP)
            return
        for boundary in self._boundaries(part):
            spans = list(_split(part, boundary.encode("utf-8", "surrogateescape"), MAX_PARTS - self._count))
            if spans:
                part.boundary = boundary
                break
        else:
            # RFC 2045 section 5.2: what is not the multipart that it says it is, is shown as text.
            part.kind, part.is_repaired = "text/plain", True
            part.notes.append("a multipart without its boundary is shown as text")
            return
        default = "message/rfc822" if part.kind == "multipart/digest" else "text/plain"
        for start, end in spans:
            if self._count >= MAX_PARTS:
                rest = _typed(part.source, [], start, spans[-1][1], part.depth + 1, "application/octet-stream")
                part.parts.append(rest)
                part.notes.append(_TOO_MANY)
                break
            part.parts.append(self.read(part.source, start, end, part.depth + 1, default))

    @staticmethod
    def _boundaries(part: Part) -> Iterator[str]:
        yield from part.declared.boundaries
        if named := part.declared.named.get("boundary"):
            yield named
        if guessed := _GUESSED.search(part.source, part.start, part.end):
            part.notes.append("the boundary is not the one that the message names")
            yield guessed[1].decode("utf-8", "surrogateescape")


def _fields(source: bytes, start: int, end: int, is_top: bool) -> tuple[list[tuple[bytes, bytes]], int]:
    """(fields, where the body starts)."""
    at = start
    if is_top and source.startswith((b"From ", b">From "), at):
        # The line of an mbox file that a program did not take off.
        line = source.find(b"\n", at, end)
        at = line + 1 if line >= 0 else at
    fields = []
    while found := _FIELD.match(source, at, end):
        fields.append((found[1], found[2].rstrip(b"\r")))
        at = found.end()
    if not fields:
        at = start
    empty = _EMPTY_LINE.match(source, at, end)
    return fields, empty.end() if empty else at


def _typed(source: bytes, fields: list[tuple[bytes, bytes]], start: int, end: int, depth: int, default: str) -> Part:
    types, disposition = [], Parameters("")
    for name, value in fields:
        lower = name.lower()
        if lower == b"content-type":
            types.append(parse_type(unfold(value)))
        elif lower == b"content-disposition" and not disposition.value:
            disposition = parse_disposition(unfold(value))
    # Of several fields the first that can be read counts; each may name the boundary.
    declared = next((one for one in types if one.is_exact), types[0] if types else Parameters(default))
    if len(types) > 1:
        boundaries = tuple(dict.fromkeys(b for one in (declared, *types) for b in one.boundaries))
        declared = Parameters(declared.value, declared.named, boundaries, is_exact=False)
    return Part(source, fields, start, end, declared, declared.value, disposition, depth)


def _split(part: Part, boundary: bytes, most: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each part between the delimiters. Sets the preamble and the epilogue of `part`."""
    source, needle = part.source, b"--" + boundary
    at = part.start
    begin: int | None = None
    closed_at: int | None = None
    while (found := source.find(needle, at, part.end)) >= 0:
        at = found + len(needle)
        if found != part.start and source[found - 1] != 0x0A:
            continue
        line = _DELIMITER_END.match(source, at, part.end)
        if line is None:
            continue
        # RFC 2046 section 5.1.1: the line end before a delimiter belongs to the delimiter.
        before = found - (2 if source[found - 2 : found] == b"\r\n" else 1) if found > part.start else found
        if begin is not None:
            yield begin, max(begin, before)
        elif closed_at is None:
            part.preamble = (part.start, max(part.start, before))
        closed_at = line.end() if line[1] else None
        begin = None if line[1] else line.end()
        at = line.end()
        most -= 1
        if most < 0 and begin is not None:
            break
    if begin is not None:
        # The close delimiter is missing: the last part goes to the end, and is none where nothing follows.
        if source[begin : part.end].strip():
            yield begin, part.end
    elif closed_at is not None:
        part.epilogue = (closed_at, part.end)
