"""Reads the addresses of a header field or argument: address-list of RFC 5322 section 3.4, obsolete forms included.

Python's getaddresses gives up on a comma within a comment and on empty members, and takes some words for addresses. Here an
address is what stands there, or an error: no recipient is left out in silence.
"""

from __future__ import annotations

from typing import NamedTuple

_PAIRS = {'"': '"', "[": "]"}
_ENDS = ',;:<>"[](\t '


class _Token(NamedTuple):
    """`kind`: word, angle, or a special. `is_apart`: white space or a comment stands before it."""

    kind: str
    text: str
    is_apart: bool


def parse_addresses(text: str) -> list[str]:
    """The addresses, without names and comments, in order. ValueError where a member cannot be read."""
    found: list[str] = []
    member: list[_Token] = []
    for token in [*_tokens(" ".join(text.split())), _Token(",", ",", False)]:
        if token.kind == ":":
            # The name of a group; its members follow, up to ";".
            member = []
        elif token.kind in ",;":
            # RFC 5322 section 4.4: empty members are ignored.
            if member:
                found.append(_address(member))
            member = []
        else:
            member.append(token)
    return found


def _address(member: list[_Token]) -> str:
    angles = [token for token in member if token.kind == "angle"]
    if angles:
        if len(angles) > 1 or member[-1].kind != "angle":
            raise ValueError(f"invalid address near {angles[0].text!r}: expected name <local-part@domain>")
        inner = angles[0].text
        # RFC 5322 section 4.4: a source route is ignored.
        if inner.lstrip().startswith("@") and ":" in inner:
            inner = inner.partition(":")[2]
        member = _tokens(inner)
    address = ""
    for token in member:
        # White space may stand around "@" and "." only: two words are not an address.
        if token.kind != "word" or (
            address and token.is_apart and address[-1] not in "@." and token.text[0] not in "@."
        ):
            raise ValueError(f"invalid address {' '.join(t.text for t in member)!r}: expected local-part@domain")
        address += token.text
    # RFC 5321 section 4.1.2: a second "@" stands in a quoted string only.
    ats = sum(token.text.count("@") for token in member if token.text[0] not in _PAIRS)
    if not address or address[0] == "@" or address[-1] == "@" or ats > 1:
        raise ValueError(f"invalid address {address!r}: expected local-part@domain")
    return address


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place, is_apart = 0, False
    while place < len(text):
        char = text[place]
        if char in " \t":
            place, is_apart = place + 1, True
            continue
        if char == "(":
            place, is_apart = _comment_end(text, place), True
            continue
        if char == "<":
            end = _angle_end(text, place)
            found.append(_Token("angle", text[place + 1 : end - 1], is_apart))
        elif char in _PAIRS:
            end = _quoted_end(text, place)
            found.append(_Token("word", text[place:end], is_apart))
        elif char in ",;:":
            end = place + 1
            found.append(_Token(char, char, is_apart))
        else:
            end = place + 1
            while end < len(text) and text[end] not in _ENDS:
                end += 1
            found.append(_Token("word", text[place:end], is_apart))
        place, is_apart = end, False
    return found


def _quoted_end(text: str, start: int) -> int:
    """Behind a quoted string or a domain literal."""
    closing, place = _PAIRS[text[start]], start + 1
    while place < len(text):
        if text[place] == closing:
            return place + 1
        place += 2 if text[place] == "\\" else 1
    raise ValueError(f"invalid address list: {text[start]!r} is not closed")


def _comment_end(text: str, start: int) -> int:
    """Behind a comment; comments may hold comments."""
    depth, place = 0, start
    while place < len(text):
        char = text[place]
        depth += (char == "(") - (char == ")")
        place += 2 if char == "\\" else 1
        if depth == 0:
            return place
    raise ValueError("invalid address list: '(' is not closed")


def _angle_end(text: str, start: int) -> int:
    place = start + 1
    while place < len(text):
        char = text[place]
        if char == ">":
            return place + 1
        if char == "(":
            place = _comment_end(text, place)
        elif char in _PAIRS:
            place = _quoted_end(text, place)
        else:
            place += 1
    raise ValueError("invalid address list: '<' is not closed")
