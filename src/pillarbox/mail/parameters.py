"""Reads Content-Type and Content-Disposition (RFC 2045 section 5, RFC 2183, RFC 2231) as they come, right or wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from .charset import decode_text
from .words import decode_words

_MOST_CHARACTERS = 64 * 1024
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_TYPE = re.compile(rf"[\s\"']*({_TOKEN})\s?/\s?({_TOKEN})")
_WORD = re.compile(r"[A-Za-z-]+")
# White space is collapsed before, so no alternative can be tried twice at one place.
_PARAMETER = re.compile(
    r"""([^\s=;:,<>"'()/]+)\s?=\s?(?:"((?:\\.|[^"\\])*)"|([^;]*?(?=\s?;|\s[\w*-]+=(?!\?)|\s?$)))""", re.S
)
_INDEXED = re.compile(r"(.+?)\*(\d{1,3})?(\*)?")
# RFC 2045 section 5.2: what cannot be understood is text/plain.
_BARE = {"multipart": "multipart/mixed", "html": "text/html", "message": "message/rfc822"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """A field's first word in lower case and its parameters. `is_exact` is False where the field had to be guessed at."""

    value: str
    named: dict[str, str] = field(default_factory=dict)
    # Values of a parameter that is given more than once.
    boundaries: tuple[str, ...] = ()
    is_exact: bool = True


def parse_type(text: str) -> Parameters:
    """Reads a Content-Type field."""
    text = re.sub(r"\s+", " ", text[:_MOST_CHARACTERS]).strip()
    found = _TYPE.match(text)
    if found is not None:
        value, rest = f"{found[1]}/{found[2]}".lower(), text[found.end() :]
        is_exact = bool(re.match(r"\s?(?:;|\(|\Z)", rest))
    else:
        word = _WORD.match(text)
        value = _BARE.get(word[0].lower() if word else "", "text/plain")
        rest, is_exact = text[word.end() if word and "=" not in text[: word.end() + 1] else 0 :], False
    named, boundaries = _parameters(rest)
    return Parameters(value, named, boundaries, is_exact)


def parse_disposition(text: str) -> Parameters:
    """Reads a Content-Disposition field."""
    text = re.sub(r"\s+", " ", text[:_MOST_CHARACTERS]).strip()
    word = re.match(rf"({_TOKEN})\s?(?:;|\Z|\s)", text)
    named, _ = _parameters(text[word.end(1) :] if word else text)
    return Parameters(word[1].lower() if word else "", named)


def _parameters(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    plain: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    boundaries: list[str] = []
    for number, found in enumerate(_PARAMETER.finditer(text)):
        if number >= 1000:
            break
        name = found[1].lower()
        # Only quotes and backslashes are unescaped: a path of Windows keeps its own.
        value = re.sub(r'\\(["\\])', r"\1", found[2]) if found[2] is not None else found[3].strip().lstrip('"')
        if name == "boundary":
            # RFC 2046 section 5.1.1: a boundary does not end with white space; unquoted, it has none at all.
            boundaries.append(value.rstrip() if found[2] is not None else value.partition(" ")[0])
        indexed = _INDEXED.fullmatch(name)
        if indexed is None:
            plain.setdefault(name, decode_words(value))
        else:
            at = int(indexed[2] or 0)
            pieces.setdefault(indexed[1], {}).setdefault(at, (value, bool(indexed[3]) or indexed[2] is None))
    for name, parts in pieces.items():
        joined = _joined([parts[at] for at in sorted(parts)])
        if joined:
            # RFC 6266 section 4.3: the extended form is preferred.
            plain[name] = joined
    return plain, tuple(dict.fromkeys(b for b in boundaries if b))


def _joined(pieces: list[tuple[str, bool]]) -> str:
    """RFC 2231 section 3 and 4: pieces in order; the first may begin with charset'language'."""
    charset = None
    octets = b""
    for number, (value, is_extended) in enumerate(pieces):
        if is_extended:
            if number == 0 and value.count("'") >= 2:
                charset, _, value = value.split("'", 2)
            octets += unquote_to_bytes(value)
        else:
            octets += value.encode()
    return decode_words(decode_text(octets, charset))
