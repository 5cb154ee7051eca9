"""What the pages and the API show of a message, as JSON. `reading.py` runs this in a process of its own."""

from __future__ import annotations

from typing import Any

from ..mail.mime import read_message
from ..mail.readable import Attachment, readable
from .htmlview import html_document

# Larger messages are not taken apart; the raw message can be downloaded.
MOST_PARSED_BYTES = 128 << 20
MOST_TEXT_CHARACTERS = 8 << 20


def parsed_view(octets: bytes) -> dict[str, Any]:
    """{headers: [[name, value]], text, html, attachments: [{number, name, type, bytes}], notes: [what is left out]}"""
    found = readable(read_message(octets))
    texts: dict[str, str | None] = {}
    for key, text in (("text", found.text), ("html", found.html)):
        texts[key] = text if text is None else text[:MOST_TEXT_CHARACTERS]
        if text is not None and len(text) > MOST_TEXT_CHARACTERS:
            found.notes.append(f"the {key} is cut at {MOST_TEXT_CHARACTERS} characters: the raw message has it all")
    attachments = [_described(one, found.notes) for one in found.attachments]
    return {"headers": [list(one) for one in found.fields], **texts, "attachments": attachments, "notes": found.notes}


def _described(one: Attachment, notes: list[str]) -> dict[str, Any]:
    decoded = one.part.decoded()
    if decoded.note and one.part.encoding is not None:
        notes.append(f"attachment {one.name or one.number}: {decoded.note}")
    return {"number": one.number, "name": one.name, "type": one.kind, "bytes": len(decoded.octets)}


def attachment(octets: bytes, number: int) -> tuple[str, str, bytes] | None:
    """(file name, type, octets) of one attachment, or None without it."""
    attachments = readable(read_message(octets)).attachments
    if not 0 <= number < len(attachments):
        return None
    one = attachments[number]
    return one.name or f"attachment-{number}", one.kind, one.octets


def html_page(octets: bytes) -> str | None:
    """The document of the HTML body, or None without one."""
    message = read_message(octets)
    html = readable(message).html
    return None if html is None else html_document(html, message)
