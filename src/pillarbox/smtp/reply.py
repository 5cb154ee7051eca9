"""Replies: code, enhanced status code, lines (RFC 5321 section 4.2, RFC 2034, RFC 3463).

Must not know who sends them or why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})\Z")
# RFC 5321 section 4.2: textstring = HT / SP / printable ASCII; RFC 6531 section 3.7.4.1 adds UTF-8 after EHLO.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 5321 section 4.5.3.1.5: a reply line is at most 512 octets with code and CRLF; we split longer text.
_TEXT_LIMIT = 480


def enhanced_fits(code: int, enhanced: str) -> bool:
    """RFC 2034 section 4: the class digit of the enhanced status code follows from the reply code."""
    found = _ENHANCED.match(enhanced)
    return found is not None and int(found.group(1)) == code // 100


_SHAPED = re.compile(r"[\d.]*\Z")


def read_status(code: int, enhanced: str, lines: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Returns the enhanced status code and the lines, where the second argument of a reply may be text.

    `(550, "not you")` has no status code, `(550, "5.7.1 not you")` has one in front of its text. ValueError for what looks
    like a status code and does not fit the reply code.
    """
    if not isinstance(enhanced, str):
        raise ValueError(f'reply: invalid enhanced status code {enhanced!r}: expected text such as "5.7.1", or None')
    if enhanced_fits(code, enhanced):
        return enhanced, lines
    if _SHAPED.match(enhanced):
        raise ValueError(f"enhanced status code {enhanced!r} does not fit reply code {code}: RFC 2034 section 4")
    found = _WITH_STATUS.match(enhanced)
    if found is not None and enhanced_fits(code, found[1]):
        return found[1], (found[2], *lines)
    return None, (enhanced, *lines)


class Reply:
    """One SMTP reply: `Reply(550, "5.7.1", "not here", "and not there")`, or `Reply(550, "not here")`.

    `enhanced` is a string such as "5.7.1", or None; a string that is no status code is the first line of text. `lines`
    holds at least one line of text, without line ends. Raises ValueError for a code outside 200..599, a class digit that
    does not fit the code, what is not text, and for CR, LF or other control characters in it. Immutable.

    `reason` is a word for log lines and metrics, never sent: `Reply(450, "4.7.1", "Try later", reason="greylisted")`.
    """

    __slots__ = ("code", "enhanced", "lines", "reason", "wire")
    code: int
    enhanced: str | None
    lines: tuple[str, ...]
    reason: str
    # Its octets, once format_reply has made them.
    wire: bytes | None

    def __init__(self, code: int, enhanced: str | None = None, *lines: str, reason: str = "") -> None:
        if not isinstance(code, int) or not 200 <= code <= 599:
            raise ValueError(f"reply code {code!r}: give a number from 200 to 599")
        if enhanced is not None:
            enhanced, lines = read_status(code, enhanced, lines)
        for line in lines:
            if not isinstance(line, str):
                raise ValueError(f"reply: invalid line {line!r}: expected text")
            if _FORBIDDEN.search(line):
                raise ValueError(
                    f"reply text {line!r} has a control character; give each line as an argument of its own"
                )
        _set_code(self, code)
        _set_enhanced(self, enhanced)
        _set_lines(self, lines or (_DEFAULT_TEXT.get(code, "OK" if code < 400 else "Error"),))
        _set_reason(self, reason)
        _set_wire(self, None)

    @classmethod
    def accepted(cls, text: str) -> Reply:
        """250 2.0.0 with a line of ours, short and without control characters: made for each message, so not judged."""
        reply = object.__new__(cls)
        _set_code(reply, 250)
        _set_enhanced(reply, "2.0.0")
        _set_lines(reply, (text,))
        _set_reason(reply, "")
        _set_wire(reply, b"250 2.0.0 %b\r\n" % text.encode())
        return reply

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Reply does not change; make a new one instead of setting {name}")

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # Copies and pickles are made anew, by the constructor.
        return _remake, (self.reason, self.code, self.enhanced, *self.lines)

    @property
    def is_positive(self) -> bool:
        """True for 2yz and 3yz."""
        return self.code < 400

    @property
    def is_transient(self) -> bool:
        """True for 4yz."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """True for 5yz."""
        return self.code >= 500

    @property
    def text(self) -> str:
        """The lines, joined by a space."""
        return " ".join(self.lines)

    def __str__(self) -> str:
        lines = self.lines
        text = lines[0] if len(lines) == 1 else " ".join(lines)
        return f"{self.code} {self.enhanced} {text}" if self.enhanced else f"{self.code} {text}"

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.enhanced!r}, {', '.join(map(repr, self.lines))})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return (self.code, self.enhanced, self.lines) == (other.code, other.enhanced, other.lines)

    def __hash__(self) -> int:
        return hash((self.code, self.enhanced, self.lines))


# The slots themselves: a Reply lets nobody set an attribute.
_set_code, _set_enhanced, _set_lines, _set_reason, _set_wire = (
    vars(Reply)[name].__set__ for name in ("code", "enhanced", "lines", "reason", "wire")
)


def _remake(reason: str, code: int, enhanced: str | None, *lines: str) -> Reply:
    return Reply(code, enhanced, *lines, reason=reason)


_DEFAULT_TEXT = {250: "OK", 354: "End data with <CR><LF>.<CR><LF>", 221: "Bye", 451: "Try again later"}


_WRITTEN = re.compile(r"([2-5][0-9][0-9])(?: (.*))?\Z")
_WITH_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: |$)(.*)")


def parse_reply(line: str) -> Reply:
    """A reply as a person writes it: `452 4.2.2 Mailbox full`. ValueError for anything else."""
    found = _WRITTEN.match(line)
    if found is None:
        raise ValueError("a reply is one line that begins with a code, such as 250 OK")
    code, rest = int(found[1]), found[2] or ""
    enhanced = _WITH_STATUS.match(rest)
    if enhanced is not None and enhanced[1][0] == found[1][0]:
        return Reply(code, enhanced[1], *([enhanced[2]] if enhanced[2] else []))
    return Reply(code, None, *([rest] if rest else []))


def _fold(line: str) -> Iterable[str]:
    """Cuts text so that no reply line passes 512 octets (UTF-8: four octets a character at most)."""
    width = _TEXT_LIMIT if line.isascii() else _TEXT_LIMIT // 4
    return (line[i : i + width] for i in range(0, len(line), width)) if len(line) > width else (line,)


def format_reply(reply: Reply) -> bytes:
    """The octets of a reply, CRLF included; remembered, for most replies are sent again and again."""
    wire = reply.wire
    if wire is None:
        lines = [piece for line in reply.lines for piece in _fold(line)]
        # RFC 2034 section 4: the enhanced code stands on each line of a multi-line reply.
        extra = f"{reply.enhanced} " if reply.enhanced else ""
        text = "".join([f"{reply.code}-{extra}{line}\r\n" for line in lines[:-1]])
        wire = f"{text}{reply.code} {extra}{lines[-1]}\r\n".encode("utf-8", "replace")
        _set_wire(reply, wire)
    return wire


_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])([ -]|\Z)(?:([245]\.\d{1,3}\.\d{1,3})(?:[ ]|\Z))?(.*)\Z", re.S)
MAX_REPLY_LINE = 4096
_SHORT_SEGMENT = 256
MAX_REPLY_LINES = 128


class ReplyFault(ValueError):
    """The peer's reply breaks RFC 5321 section 4.2 or a bound; the connection is of no further use."""


class ReplyReader:
    """Collects a remote server's octets into replies, within bounds (RFC 5321 section 4.2.1).

    A bare LF ends a line too (be liberal in what a reply may end with: nothing can be smuggled in a reply, and old
    servers send it); a line over 4,096 octets, over 128 lines, a line without code, or a code that changes from line
    to line raise ReplyFault.
    """

    __slots__ = ("_buffer", "_code", "_enhanced", "_lines")

    def __init__(self) -> None:
        self._buffer = b""
        self._code: str | None = None
        self._enhanced: str | None = None
        self._lines: list[str] = []

    @property
    def has_rest(self) -> bool:
        """True when octets are left that are not part of a reply already returned."""
        return bool(self._buffer) or self._code is not None

    def feed(self, data: bytes) -> list[Reply]:
        """Takes octets, returns the replies that they complete. Raises ReplyFault."""
        if self._code is None and not self._buffer and len(data) <= _SHORT_SEGMENT:
            # Nearly all segments are whole replies, and the same server says the same ones again and again.
            whole = _judge_segment(data)
            if whole is not None:
                return [*whole]
        return self._read(data)

    def _read(self, data: bytes) -> list[Reply]:
        buffer = self._buffer + data if self._buffer else data
        replies: list[Reply] = []
        start = 0
        while (end := buffer.find(b"\n", start)) >= 0:
            line = buffer[start:end]
            start = end + 1
            reply = self._take_line(line[:-1] if line.endswith(b"\r") else line)
            if reply is not None:
                replies.append(reply)
        self._buffer = buffer[start:]
        if len(self._buffer) > MAX_REPLY_LINE:
            raise ReplyFault(f"reply line longer than {MAX_REPLY_LINE} octets")
        return replies

    def _take_line(self, line: bytes) -> Reply | None:
        code, is_last, enhanced, text = _judge_line(line)
        if self._code is None:
            self._code = code
            self._enhanced = enhanced if enhanced and enhanced[:1] == code[:1] else None
        elif code != self._code:
            raise ReplyFault(f"reply code changes from {self._code} to {code} within one reply")
        if enhanced and enhanced[:1] != code[:1]:
            text = enhanced + " " + text
        self._lines.append(text)
        if len(self._lines) > MAX_REPLY_LINES:
            raise ReplyFault(f"reply of more than {MAX_REPLY_LINES} lines")
        if not is_last:
            return None
        reply = Reply(int(code), self._enhanced, *self._lines)
        self._code, self._enhanced, self._lines = None, None, []
        return reply


def _judge_line(line: bytes) -> tuple[str, bool, str | None, str]:
    """A reply line: code, whether it is the last one, enhanced code, text."""
    found = _REPLY_LINE.match(line) if len(line) <= MAX_REPLY_LINE else None
    if found is None:
        raise ReplyFault(f"not a reply line: {line[:80]!r}")
    code, separator, raw_enhanced, rest = found.groups()
    # Kept whole but harmless: control characters of the peer never reach a log, a DSN or a page as they are.
    text = _FORBIDDEN.sub("?", rest.decode("utf-8", "replace"))
    return code.decode(), separator != b"-", raw_enhanced.decode() if raw_enhanced else None, text


@lru_cache(maxsize=512)
def _judge_segment(data: bytes) -> tuple[Reply, ...] | None:
    """The replies in octets that are nothing but whole replies; None for any others. Raises ReplyFault."""
    reader = ReplyReader()
    replies = tuple(reader._read(data))
    return None if reader.has_rest else replies
