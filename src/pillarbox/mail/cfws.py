"""Reads structured field values as octets: comments, folding white space, quoted strings, tokens.

RFC 5322 section 3.2.1 to 3.2.4, RFC 2045 section 5.1. Positions go in and come out; a value that ends within a comment or
a quoted string raises CfwsFault. Time and memory are linear in the value, however deep comments are nested.
"""

from __future__ import annotations

import re


class CfwsFault(ValueError):
    """The value breaks the grammar at `at`."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(f"{text} at octet {at}")
        self.at = at


_DOT = ord(".")
_SPACE = re.compile(rb"[ \t\r\n]*")
# RFC 5322 section 3.2.2: what matters within a comment. A quoted pair hides the parenthesis behind it.
_IN_COMMENT = re.compile(rb"\\.|[()]", re.S)
# RFC 2045 section 5.1: any octet but space, controls and tspecials. Octets beyond ASCII are taken, for they are sent.
_TOKEN = re.compile(rb"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~\x80-\xff]+")
# RFC 5322 section 3.2.4
_QUOTED = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.S)
_PAIR = re.compile(rb"\\(.)", re.S)
_OUTSIDE = re.compile(rb'"|\(|\\.', re.S)
_FOLD = re.compile(rb"\r?\n(?=[ \t])|[\r\n]")


def skip_cfws(value: bytes, at: int = 0) -> int:
    """The position behind white space, folds and comments (RFC 5322 section 3.2.2: CFWS), which may be `at` itself."""
    while True:
        at = _SPACE.match(value, at).end()  # type: ignore[union-attr]
        if value[at : at + 1] != b"(":
            return at
        at = _skip_comment(value, at)


def _skip_comment(value: bytes, at: int) -> int:
    depth, start = 0, at
    for found in _IN_COMMENT.finditer(value, at):
        mark = found.group()
        if mark == b"(":
            depth += 1
        elif mark == b")":
            depth -= 1
            if depth == 0:
                return found.end()
    raise CfwsFault("comment without end", start)


def read_token(value: bytes, at: int = 0) -> tuple[bytes, int]:
    """The token (RFC 2045 section 5.1) that begins at `at`, and the position behind it."""
    found = _TOKEN.match(value, at)
    if found is None:
        raise CfwsFault("no token", at)
    return found.group(), found.end()


def read_quoted_string(value: bytes, at: int = 0) -> tuple[bytes, int]:
    """What the quoted string at `at` means: without quotes, folds and backslashes; and the position behind it."""
    found = _QUOTED.match(value, at)
    if found is None:
        raise CfwsFault("no quoted string, or one without end", at)
    return _PAIR.sub(rb"\1", _FOLD.sub(b"", found.group(1))), found.end()


def read_value(value: bytes, at: int = 0) -> tuple[bytes, int]:
    """A token or a quoted string (RFC 2045 section 5.1: value), and the position behind it."""
    if value[at : at + 1] == b'"':
        return read_quoted_string(value, at)
    return read_token(value, at)


def read_dotted(value: bytes, at: int = 0) -> tuple[bytes, int]:
    """Values that dots join, with CFWS between them (RFC 5322 section 4.4: obs-domain), and the position behind them."""
    part, end = read_value(value, at)
    parts = [part]
    while True:
        following = skip_cfws(value, end)
        if following >= len(value) or not (part.endswith(b".") or value[following] == _DOT):
            break
        try:
            part, end = read_value(value, following)
        except CfwsFault:
            break
        parts.append(part)
    return b"".join(parts), end


def remove_comments(value: bytes) -> bytes:
    """The value with each comment replaced by a space; comment marks within quoted strings stay."""
    pieces, at = [], 0
    for found in _OUTSIDE.finditer(value):
        if found.start() < at:
            continue
        if found.group() == b'"':
            at_quote = _QUOTED.match(value, found.start())
            if at_quote is None:
                raise CfwsFault("quoted string without end", found.start())
            pieces.append(value[at : at_quote.end()])
            at = at_quote.end()
        elif found.group() == b"(":
            pieces += (value[at : found.start()], b" ")
            at = _skip_comment(value, found.start())
    return b"".join((*pieces, value[at:]))
