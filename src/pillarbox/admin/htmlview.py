"""The HTML of a message as a document of its own, for a frame: links lead to new tabs, pictures of the message are in it.

The document may load and run nothing: its Content-Security-Policy and the sandbox say so, not a change of the HTML. The
HTML is never rewritten; attributes are inserted in front of the own ones of a few kinds of tags. HTML takes the first of
several attributes with one name, so the inserted ones win.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from urllib.parse import unquote

from ..mail.mime import Part

MOST_INLINE_BYTES = 16 << 20
MOST_HTML_CHARACTERS = 8 << 20
# `sandbox` without allow-scripts, allow-forms and allow-same-origin: nothing runs, nothing is sent, no cookie is near.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"
HTML_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; form-action 'none'; "
    f"sandbox {SANDBOX}; frame-ancestors 'self'"
)
_NEW_TAB = ' target="_blank" rel="noopener noreferrer"'
# A link to a place within the message stays in the frame.
_SAME_FRAME = ' target="_self"'
# The policy blocks what these would load. Chromium connects to the host before it asks the policy, so no host may be named.
_CONNECTING = {"link": ' rel="blocked"', "iframe": ' srcdoc=""', "frame": ' src="about:blank"'}
_TAG_NAME = re.compile(r"/?[A-Za-z][^\s/>]*")
_ATTRIBUTE = re.compile(
    r"""[\s/]*+(?:(>)|([^\s/>][^\s/>=]*)(?:\s*+=\s*+(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*)?))?)"""
)
# WHATWG HTML section 13.2.5.1: within these elements there are no tags but their own end tag.
_RAW = ("script", "style", "xmp", "iframe", "noembed", "noframes", "textarea", "title")
_CID = re.compile(r"""cid:([^"'\s>)]{1,500})""", re.I)
_IN_IMG = re.compile(r"<(?:img|image)\b[^<>]*\Z", re.I)
_TYPES = {
    "image/jpg": "image/jpeg",
    "image/jpe": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "image/svg": "image/svg+xml",
    "image/vnd.microsoft.icon": "image/x-icon",
    "image/ico": "image/x-icon",
}
_ENDINGS = {
    "png": "image/png", "apng": "image/apng", "jpg": "image/jpeg", "jpeg": "image/jpeg", "jpe": "image/jpeg",
    "jfif": "image/jpeg", "gif": "image/gif", "webp": "image/webp", "avif": "image/avif", "bmp": "image/bmp",
    "ico": "image/x-icon", "svg": "image/svg+xml",
}  # fmt: skip
_MAGIC = (
    (re.compile(rb"\x89PNG\r\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.S), "image/webp"),
    (re.compile(rb"....ftypavi[fs]", re.S), "image/avif"),
    (re.compile(rb"BM.{4}\x00{4}", re.S), "image/bmp"),
    (re.compile(rb"\x00\x00\x01\x00"), "image/x-icon"),
)


def html_document(html: str, message: Part) -> str:
    """Returns the document for the frame."""
    is_cut = len(html) > MOST_HTML_CHARACTERS
    html = html[:MOST_HTML_CHARACTERS]
    end = _prolog_end(html)
    head = '<base target="_blank">'
    note = "<p>(The rest of this HTML is left out: the raw message has it.)</p>" if is_cut else ""
    return _with_pictures(html[:end] + head + "".join(_with_targets(html[end:])) + note, message)


def _prolog_end(html: str) -> int:
    """Where the doctype ends: whatever stands in front of it would make the browser ignore it."""
    at = 0
    while True:
        while at < len(html) and html[at] in " \t\r\n\f\ufeff":
            at += 1
        if html.startswith("<!--", at):
            close = html.find("-->", at + 2)
        elif html.startswith("<?", at):
            close = html.find(">", at)
        elif html[at : at + 9].lower() == "<!doctype":
            close = html.find(">", at)
            return close + 1 if close >= 0 else 0
        else:
            return 0
        if close < 0:
            return 0
        at = html.index(">", close) + 1


def _with_targets(html: str) -> Iterator[str]:
    """The HTML in pieces. Finds tags as the tokenizer of a browser does (WHATWG HTML section 13.2.5), in one pass."""
    copied = at = 0
    has_base = False
    while (at := html.find("<", at)) >= 0:
        if html.startswith("<!--", at):
            if html.startswith((">", "->"), at + 4):
                at += 5
                continue
            close = re.compile(r"--!?>").search(html, at + 4)
            if close is None:
                break
            at = close.end()
            continue
        name = _TAG_NAME.match(html, at + 1)
        if name is None:
            at += 1
            continue
        word = name[0].lower()
        attributes, end = _attributes(html, name.end())
        if end < 0:
            break
        inserted = ""
        if word in ("a", "area"):
            is_within = attributes.get("href", "").lstrip().startswith("#") and not has_base
            inserted = _SAME_FRAME if is_within else _NEW_TAB
        elif word in _CONNECTING:
            inserted = _CONNECTING[word]
        elif word == "base":
            has_base = has_base or "href" in attributes
        if inserted:
            yield html[copied : name.end()] + inserted
            copied = name.end()
        at = end
        if word == "plaintext":
            break
        if word in _RAW:
            close = re.compile(rf"</{word}(?=[\s/>])", re.I).search(html, at)
            if close is None:
                break
            at = close.start()
    yield html[copied:]


def _attributes(html: str, at: int) -> tuple[dict[str, str], int]:
    """(attributes of a tag, where it ends); -1 for a tag without an end, which a browser does not show."""
    found: dict[str, str] = {}
    while (one := _ATTRIBUTE.match(html, at)) is not None:
        at = one.end()
        if one[1]:
            return found, at
        found.setdefault(one[2].lower(), one[3] or one[4] or one[5] or "")
    return found, -1


def picture_type(part: Part, octets: bytes) -> str | None:
    """Returns the type by which a browser shows this picture, or None if it is not one: by octets, by type, by name."""
    for magic, kind in _MAGIC:
        if magic.match(octets):
            return kind
    if part.kind.startswith("image/"):
        return _TYPES.get(part.kind, part.kind) if re.fullmatch(r"image/[a-z0-9.+-]{1,60}", part.kind) else None
    named = _ENDINGS.get((part.filename or "").rpartition(".")[2].lower())
    return named if part.kind == "application/octet-stream" else None


def _with_pictures(html: str, message: Part) -> str:
    wanted = {unquote(found[1]) for found in _CID.finditer(html)} | {found[1] for found in _CID.finditer(html)}
    pictures: dict[str, str] = {}
    room = MOST_INLINE_BYTES
    for part in message.walk() if wanted else ():
        name = (part.text_of("Content-ID") or "").strip("<> ")
        if not name or name not in wanted or name in pictures or part.parts:
            continue
        octets = part.decoded().octets
        kind = picture_type(part, octets)
        if kind is not None and len(octets) <= room:
            room -= len(octets)
            pictures[name] = f"data:{kind};base64,{base64.b64encode(octets).decode()}"
    room = MOST_INLINE_BYTES

    def picture(found: re.Match[str]) -> str:
        nonlocal room
        data = pictures.get(found[1]) or pictures.get(unquote(found[1]))
        if data is None or len(data) > room:
            return found[0]
        if data.startswith("data:image/svg") and not _IN_IMG.search(html, max(0, found.start() - 2000), found.start()):
            # A browser runs nothing of an SVG that is shown as a picture; elsewhere it is a document.
            return found[0]
        room -= len(data)
        return data

    return _CID.sub(picture, html)
