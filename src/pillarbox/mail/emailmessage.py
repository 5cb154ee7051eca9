"""A message as the standard library's `EmailMessage`, made from the tolerant reader's parts. Never raises.

A message that follows the rules is what `email.message_from_bytes` makes of it. What is wrong is mended in the object, so
that `get_body()`, `get_content()` and fields can be read: type, charset, transfer encoding, boundary, encoded words.
"""

from __future__ import annotations

import base64
import codecs
import email.policy
import re
from email.contentmanager import ContentManager
from email.headerregistry import HeaderRegistry
from email.message import EmailMessage, Message
from typing import Any

from .charset import choose_codec, codec_of, decode_octets
from .mime import Part, read_message
from .readable import body_of
from .words import mend_words

_STRUCTURED = HeaderRegistry()
_UNSTRUCTURED = HeaderRegistry(use_default_map=False)


class _Headers:
    """Makes header objects, as `HeaderRegistry`; a value that breaks the grammar is plain text."""

    def __getitem__(self, name: str) -> Any:
        # The library asks for the class when a program sets a field.
        return _STRUCTURED[name]

    def __call__(self, name: str, value: str) -> Any:
        # Octets beyond ASCII are kept as they came, for `as_bytes()`, and decoded for people.
        value = decode_octets(value.encode("utf-8", "surrogateescape")) if not value.isascii() else value
        try:
            made = _STRUCTURED(name, value)
            str(made)
            return made
        except Exception:
            # The library's parser has faults with values that break the grammar.
            return _UNSTRUCTURED(name, value.encode("ascii", "replace").decode())


def _get_any(message: EmailMessage) -> bytes:
    """`get_content()` of a type that the library does not know: the octets."""
    if message.get_content_maintype() == "multipart":
        raise KeyError("a multipart has no content of its own: see get_body() and iter_parts()")
    payload = message.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _make_policy() -> email.policy.EmailPolicy[EmailMessage]:
    manager = ContentManager()
    manager.get_handlers = {**email.policy.default.content_manager.get_handlers}  # type: ignore[attr-defined]
    manager.set_handlers = {**email.policy.default.content_manager.set_handlers}  # type: ignore[attr-defined]
    manager.add_get_handler("", _get_any)
    return email.policy.default.clone(header_factory=_Headers(), content_manager=manager)


POLICY = _make_policy()


def read_email(octets: bytes) -> EmailMessage:
    """Reads a message as the standard library's class."""
    message = read_message(octets)
    chosen = {id(body_of(message, kind)) for kind in ("text/plain", "text/html")}
    return _made(message, chosen)


def _made(part: Part, bodies: set[int]) -> EmailMessage:
    made = EmailMessage(policy=POLICY)
    for name, value in part.fields:
        made.set_raw(name.decode("ascii"), _value(value))
    if part.kind.startswith("multipart/"):
        _mend_type(made, part)
        for start, end, edge in ((*part.preamble, "preamble"), (*part.epilogue, "epilogue")):
            if end > start:
                setattr(made, edge, part.source[start:end].decode("ascii", "surrogateescape"))
        made.set_payload([_made(one, bodies) for one in part.parts])
        return made
    if part.kind.startswith("message/"):
        _set_message(made, part)
        return made
    _mend_type(made, part)
    made.set_payload(part.body.decode("ascii", "surrogateescape"))
    _mend_encoding(made, part)
    if part.is_repaired and id(part) not in bodies:
        # It stays within reach of `iter_attachments()`, and out of the way of `get_body()`.
        _replace(made, "Content-Disposition", "attachment")
    return made


def _set_message(made: EmailMessage, part: Part) -> None:
    if part.parts:
        if part.encoding in ("base64", "quoted-printable", "uuencode"):
            _replace(made, "Content-Transfer-Encoding", "8bit")
        _mend_type(made, part)
        inner = part.parts[0]
        made.set_payload([_made(inner, {id(body_of(inner, kind)) for kind in ("text/plain", "text/html")})])
    elif part.kind == "message/delivery-status":
        # RFC 3464 section 2.1: blocks of fields, with an empty line between them.
        blocks = [block for block in re.split(rb"\r?\n\r?\n", part.decoded().octets) if block.strip()]
        made.set_payload([_block(block) for block in blocks[:1000]])
    else:
        made.set_payload([_block(part.decoded().octets)])


def _block(octets: bytes) -> Message:
    inner = read_message(octets.lstrip(b"\r\n"))
    made = EmailMessage(policy=POLICY)
    for name, value in inner.fields:
        made.set_raw(name.decode("ascii"), _value(value))
    made.set_payload(inner.body.decode("ascii", "surrogateescape"))
    return made


def _value(value: bytes) -> str:
    return mend_words(value.decode("ascii", "surrogateescape").strip(" \t\r\n"))


def _replace(made: EmailMessage, name: str, value: str) -> None:
    del made[name]
    made.set_raw(name, value.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape"))


def _mend_type(made: EmailMessage, part: Part) -> None:
    """Replaces a Content-Type that the library would read otherwise than the tolerant reader does."""
    charset, is_charset_right = None, True
    if part.kind.startswith("text/"):
        octets = part.decoded().octets
        charset = choose_codec(octets, part.charset, is_html=part.kind == "text/html")
        is_charset_right = _is_right(octets, part.charset, charset)
    try:
        if (
            is_charset_right
            and made.get_param("charset", part.charset) == part.charset
            and made.get_content_type() == part.kind
            and made.get_boundary() == part.boundary
            and made.get_filename() == part.filename
        ):
            return
    except Exception:
        pass
    named = dict(part.declared.named)
    if charset is not None:
        named["charset"] = charset
    named.pop("boundary", None)
    if part.boundary is not None:
        named["boundary"] = part.boundary
    if part.filename is not None:
        named["name"] = part.filename
    value = part.kind + "".join(
        f'; {name}="{_quoted(text)}"' for name, text in named.items() if re.fullmatch(r"[a-z0-9-]{1,60}", name)
    )
    _replace(made, "Content-Type", value)
    if part.filename is not None and part.disposition.value:
        _replace(made, "Content-Disposition", f'{part.disposition.value}; filename="{_quoted(part.filename)}"')


def _quoted(text: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", re.sub(r"[\x00-\x1f\x7f]", " ", text))


def _is_right(octets: bytes, label: str | None, codec: str) -> bool:
    """True where the library decodes the text as the tolerant reader does."""
    if label is None:
        return octets.isascii() and codec == "utf-8"
    if octets.isascii() and codec_of(label) == codec and codec in ("utf-8", "cp1252"):
        return _is_known(label)
    return codec_of(label) == codec and _is_known(label) and codec in (label.lower(), "utf-8")


def _is_known(label: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", label):
        return False
    try:
        codecs.lookup(label)
    except (LookupError, ValueError):
        return False
    return True


def _mend_encoding(made: EmailMessage, part: Part) -> None:
    """Replaces a transfer encoding, or its octets, that the library would decode otherwise."""
    decoded = part.decoded()
    field = made.get("Content-Transfer-Encoding")
    canonical = part.encoding or "8bit"
    if field is None and canonical == "7bit":
        return
    if (decoded.note and part.encoding is not None) or canonical == "uuencode":
        canonical = "base64"
        made.set_payload(base64.encodebytes(decoded.octets).decode())
    elif canonical == "base64" and made.get_payload(decode=True) != decoded.octets:
        made.set_payload(base64.encodebytes(decoded.octets).decode())
    if str(field).strip().lower() != canonical:
        _replace(made, "Content-Transfer-Encoding", canonical)
