"""A message as a reader sees it: fields, text, HTML, attachments, and notes on what is left out. Never raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .charset import choose_codec, decode_as
from .mime import Part, read_message, shown
from .words import decode_words

_PREAMBLE = re.compile(rb"MIME|multi-?part", re.I)
_UNSAFE_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is neither a container nor one of the two bodies."""

    number: int
    part: Part

    @property
    def kind(self) -> str:
        """Its type, such as `image/png`."""
        return self.part.kind

    @property
    def octets(self) -> bytes:
        """What it holds, decoded."""
        return self.part.decoded().octets

    @property
    def name(self) -> str | None:
        """Its file name as it was sent; one made from the subject for an attached message; else None."""
        if (named := self.part.filename) is not None:
            return named
        if self.part.kind.startswith("message/") and self.part.parts:
            subject = decode_words(self.part.parts[0].text_of("Subject") or "")
            return (" ".join(_UNSAFE_NAME.sub(" ", subject).split())[:100] or "message") + ".eml"
        if self.part.encoding == "uuencode":
            return self.part.decoded().name or None
        return None


@dataclass(slots=True)
class Readable:
    """See the module's text. `text` and `html` are None where the message has none."""

    fields: list[tuple[str, str]]
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(octets: bytes) -> Readable:
    """Reads a message."""
    return readable(read_message(octets))


def readable(message: Part) -> Readable:
    """Finds the bodies and the attachments of a message that was taken apart."""
    found = Readable([(shown(name), shown(value)) for name, value in message.fields])
    bodies = {kind: part for kind in ("text/plain", "text/html") if (part := body_of(message, kind)) is not None}
    if not bodies and (other := body_of(message, "text/")) is not None:
        # RFC 2046 section 4.1.4: a subtype of text that is not known is shown as plain text.
        bodies["text/plain"] = other
    found.text = _text(bodies.get("text/plain"), found)
    found.html = _text(bodies.get("text/html"), found)
    chosen = {id(part) for part in bodies.values()}
    for part in message.walk():
        found.notes += [note for note in part.notes if note not in found.notes]
        if part.kind.startswith("multipart/"):
            _note_edges(part, found)
        elif id(part) not in chosen and not (part.is_repaired and not part.body.strip()):
            found.attachments.append(Attachment(len(found.attachments), part))
    return found


def _text(part: Part | None, found: Readable) -> str | None:
    if part is None:
        return None
    decoded = part.decoded()
    if decoded.note and decoded.note not in found.notes:
        found.notes.append(decoded.note)
    is_html = part.kind == "text/html"
    return decode_as(decoded.octets, choose_codec(decoded.octets, part.charset, is_html=is_html))


def _note_edges(part: Part, found: Readable) -> None:
    start, end = part.preamble
    before = part.source[start : min(end, start + 2000)].strip()
    if before and not _PREAMBLE.search(before):
        found.notes.append("text before the first part is left out: the raw message has it")
    start, end = part.epilogue
    if part.source[start : min(end, start + 2000)].strip():
        found.notes.append("text behind the last part is left out: the raw message has it")


def body_of(message: Part, kind: str) -> Part | None:
    """Returns the part that is the body of this type; a type that ends with `/` stands for all of its subtypes.

    A part that had to be repaired, and one that only belongs to another (RFC 2387), is taken where there is no better one.
    """
    ranked = [
        (part.is_repaired, is_related, number, part)
        for number, (part, is_related) in enumerate(_leaves(message, False))
        if (part.kind == kind or (kind.endswith("/") and part.kind.startswith(kind)))
        and part.disposition.value != "attachment"
    ]
    return min(ranked, key=lambda one: one[:3])[3] if ranked else None


def _leaves(part: Part, is_related: bool) -> Iterator[tuple[Part, bool]]:
    """(part, True where it is not the root of a multipart/related)."""
    if part.disposition.value == "attachment" and part.parts:
        return
    if not part.kind.startswith("multipart/"):
        yield part, is_related
        return
    root = part.parts[0] if part.parts else None
    if part.kind == "multipart/related" and (start := part.declared.named.get("start")):
        root = next((one for one in part.parts if one.text_of("Content-ID") == start), root)
    for one in part.parts:
        yield from _leaves(one, is_related or (part.kind == "multipart/related" and one is not root))
