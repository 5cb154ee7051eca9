"""Decodes encoded words (RFC 2047) word by word: a word that is wrong never takes the others with it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from .charset import codec_of, decode_text

# The text goes up to `?=` and holds no further `=?`, so a word without an end is found to be one in a single pass.
_WORD = re.compile(r"=\?([^?\s]{1,100})\?([bBqQ])\?((?:[^?=]|\?(?!=)|=(?!\?(?!=)))*)\?=")


def _octets_of(encoding: str, text: str) -> bytes:
    octets = text.encode("utf-8", "replace")
    if encoding in "qQ":
        return binascii.a2b_qp(octets.replace(b" ", b"_"), header=True)
    # A text that carries no octet is shown as it stands.
    found = re.sub(rb"[^A-Za-z0-9+/]", b"", octets)
    # One letter more than a multiple of four carries no octet.
    found = found[: len(found) - (len(found) % 4 == 1)]
    return base64.b64decode(found + b"=" * (-len(found) % 4)) or octets


def _runs(text: str) -> Iterator[tuple[str, str, bytes, str]]:
    """(text before, charset, octets, source) of each run of words; the last has no charset.

    RFC 2047 section 6.2: white space between two words is not shown. Words of one charset are joined before they are
    decoded, because many programs cut a character in two.
    """
    before, position = "", 0
    charset, octets, source = "", b"", ""
    for word in _WORD.finditer(text):
        between = text[position : word.start()]
        label = word[1].partition("*")[0].lower()
        is_next = bool(source) and (not between or between.isspace())
        if is_next and label == charset:
            octets += _octets_of(word[2], word[3])
            source += between + word[0]
        else:
            if source:
                yield before, charset, octets, source
            before = "" if is_next else between
            charset, octets, source = label, _octets_of(word[2], word[3]), word[0]
        position = word.end()
    if source:
        yield before, charset, octets, source
    yield text[position:], "", b"", ""


def decode_words(text: str) -> str:
    """Decodes the encoded words of a field's value; the rest of the text stays as it is. Never raises."""
    if "=?" not in text:
        return text
    return "".join(before + decode_text(octets, charset) for before, charset, octets, _ in _runs(text))


def mend_words(text: str) -> str:
    """Writes words that the standard library cannot read, or reads wrong, anew in UTF-8; keeps all others as they are."""
    if "=?" not in text:
        return text
    made = ""
    is_behind_word = False
    for before, charset, octets, source in _runs(text):
        # White space between words is not shown, and keeps two words apart.
        made += before or (" " if is_behind_word and source else "")
        made += source if not source or _is_plain(charset, octets) else _as_utf8(decode_text(octets, charset))
        is_behind_word = bool(source)
    return made


def _is_plain(charset: str, octets: bytes) -> bool:
    if charset not in ("utf-8", "us-ascii", "iso-8859-1", "windows-1252") and codec_of(charset) != charset:
        return False
    try:
        return octets.decode(charset) == decode_text(octets, charset)
    except (ValueError, LookupError):
        return False


def _as_utf8(text: str) -> str:
    # RFC 2047 section 2: a word has 75 characters at most; 10 characters of text are 40 octets at most.
    pieces = [text[n : n + 10] for n in range(0, len(text), 10)]
    return " ".join(f"=?utf-8?b?{base64.b64encode(piece.encode()).decode()}?=" for piece in pieces)
