"""A message as a reader sees it: headers, texts, attachments. What is broken is replaced, never an error.

HTML is shown in a document of its own that may load nothing: no script, nothing remote; pictures within the message are
put into it. Messages are made by strangers, and parsers have bad days: `reading.py` runs this in a process of its own.
"""

from __future__ import annotations

import base64
import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage, Message
from typing import Any

MOST_PARSED_BYTES = 8 << 20
MOST_INLINE_BYTES = 2 << 20
# For the HTML of a message: it may have its own style and pictures of its own, and nothing else.
HTML_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; sandbox; frame-ancestors 'self'"
)
_CID = re.compile(r"""cid:([^"'\s>)]{1,200})""", re.I)
# What the policy would block anyway is taken out of the way, so that no browser complains of it one by one.
_QUIET = (
    (re.compile(r"<(script|link|iframe|frame|object|embed|base|meta)\b", re.I), r"<x-\1 hidden"),
    (re.compile(r"""\b(src|srcset|background|poster)(\s{0,9}=\s{0,9})(?!["']?data:)""", re.I), r"data-remote-\1\2"),
    (re.compile(r"""url\(\s{0,9}["']?\s{0,9}(?:https?:|//)[^)<>]{0,2000}\)""", re.I), "none"),
    (re.compile(r"""@import\b[^;<>]{0,2000};?""", re.I), ""),
    (re.compile(r"""([\s"'/])(on[a-z]{1,40}\s{0,9}=)""", re.I), r"\1data-\2"),
)
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif")


def up_to(pieces: Any, limit: int = MOST_PARSED_BYTES) -> bytes:
    """The first octets of a content's pieces."""
    found = bytearray()
    for piece in pieces:
        found += piece[: limit - len(found)]
        if len(found) >= limit:
            break
    return bytes(found)


def _message(octets: bytes) -> EmailMessage:
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def parsed_view(octets: bytes) -> dict[str, Any]:
    """{headers: [[name, value]], text, html, attachments: [{number, name, type, bytes}]}"""
    message = _message(octets)
    view: dict[str, Any] = {"headers": [], "text": None, "html": None, "attachments": []}
    for name, value in message.raw_items():
        try:
            shown = str(message.policy.header_fetch_parse(name, value))
        except Exception:
            shown = str(value)
        view["headers"].append([_clean(name), _clean(shown)])
    for kind, key in (("plain", "text"), ("html", "html")):
        try:
            part = message.get_body((kind,))
            if part is not None:
                view[key] = _clean(str(part.get_content()))
        except Exception as error:
            view[key] = f"(cannot be read: {type(error).__name__})"
    for number, part in enumerate(_attachments(message)):
        file, kind, payload = _described(part)
        view["attachments"].append({"number": number, "name": file, "type": kind, "bytes": len(payload)})
    return view


def _attachments(message: EmailMessage) -> Iterator[Any]:
    """Every part that is neither a container nor one of the bodies."""
    try:
        bodies = [id(message.get_body((kind,))) for kind in ("plain", "html")]
        parts = list(message.walk())
    except Exception:
        return
    for part in parts:
        try:
            if not part.is_multipart() and id(part) not in bodies:
                yield part
        except Exception:
            continue


def _described(part: Message) -> tuple[str | None, str, bytes]:
    try:
        payload = part.get_payload(decode=True)
        name = part.get_filename()
        return (
            _clean(name) if name else None,
            _clean(part.get_content_type()),
            payload if isinstance(payload, bytes) else b"",
        )
    except Exception as error:
        return f"(cannot be read: {type(error).__name__})", "", b""


def attachment(octets: bytes, number: int) -> tuple[str, bytes] | None:
    """(file name, octets) of one attachment; the name is plain ASCII, fit for a header."""
    for found, part in enumerate(_attachments(_message(octets))):
        if found == number:
            name, _, payload = _described(part)
            return re.sub(r"[^A-Za-z0-9._-]", "_", name or "")[:100] or f"attachment-{number}", payload
    return None


def html_page(octets: bytes) -> str | None:
    """The HTML body, its own pictures put into it; None without one."""
    message = _message(octets)
    try:
        part = message.get_body(("html",))
        html = None if part is None else str(part.get_content())
    except Exception as error:
        return f"<p>This HTML cannot be read: {type(error).__name__}</p>"
    if html is None:
        return None
    pictures: dict[str, str] = {}
    room = MOST_INLINE_BYTES
    for one in _attachments(message):
        name = str(one.get("Content-ID") or "").strip().strip("<>")
        _, kind, payload = _described(one)
        if name and kind in _PICTURES and len(payload) <= room:
            room -= len(payload)
            pictures[name] = f"data:{kind};base64,{base64.b64encode(payload).decode()}"
    room = MOST_INLINE_BYTES

    def picture(found: re.Match[str]) -> str:
        nonlocal room
        data = pictures.get(found[1], found[0])
        room -= len(data)
        return data if room >= 0 else found[0]

    html = _CID.sub(picture, _clean(html))
    for pattern, instead in _QUIET:
        html = pattern.sub(instead, html)
    return html
