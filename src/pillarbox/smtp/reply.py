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
# Characters of a reply's text that are kept, for queue, log and DSN; the rest is replaced by "...". Postfix and mox keep as many.
MAX_REPLY_TEXT = 1000
# The EHLO reply is read for its keywords and not kept.
MAX_EHLO_TEXT = 16_000
# Octets of one line that are read; the rest of the line is skipped.
MAX_REPLY_LINE = 4096
# A reply beyond these bounds ends the connection.
MAX_REPLY_OCTETS = 1 << 16
MAX_REPLY_LINES = 1000
_SHORT_SEGMENT = 256
_CUT = "..."


class ReplyFault(ValueError):
    """The peer's octets are not SMTP replies, or pass a bound; the connection is of no further use."""


class ReplyReader:
    """Collects a remote server's octets into replies, within bounds (RFC 5321 section 4.2.1).

    Replies that do not keep to the letter are understood where their meaning is plain, as Postfix understands them:

    - a bare LF ends a line (nothing can be smuggled in a reply), and empty lines are skipped;
    - the code of the last line decides, unless the lines disagree on success;
    - a line without a code is text when it stands within a reply;
    - long lines and long replies are cut to `max_text` characters, see MAX_REPLY_TEXT.

    All else sets `fault`. The replies that were complete before the fault are returned all the same: a complete 250 counts,
    whatever follows it.
    """

    __slots__ = ("_buffer", "_count", "_is_positive", "_lines", "_octets", "_room", "_skipped", "fault", "max_text")

    def __init__(self) -> None:
        self._buffer = b""
        # Lines of the open reply as (enhanced status code, text), and whether its codes mean success.
        self._lines: list[tuple[str, str]] = []
        self._is_positive: bool | None = None
        # Characters of text that the open reply may still keep; octets and lines that it has had; empty lines before it.
        self._room = self._octets = self._count = self._skipped = 0
        self.max_text = MAX_REPLY_TEXT
        self.fault: ReplyFault | None = None

    @property
    def has_rest(self) -> bool:
        """True when octets have come that are not part of a reply already returned."""
        return bool(self._buffer or self._lines or self._skipped)

    def feed(self, data: bytes) -> list[Reply]:
        """Takes octets, returns the replies that they complete. Read `fault` afterwards."""
        if len(data) <= _SHORT_SEGMENT and not self.has_rest:
            # Nearly all segments are whole replies, and the same server says the same ones again and again.
            whole = _read_segment(data)
            if whole is not None:
                return [*whole]
        return self._read(data)

    def _read(self, data: bytes) -> list[Reply]:
        buffer = self._buffer + data if self._buffer else data
        replies: list[Reply] = []
        start = 0
        while self.fault is None and (end := buffer.find(b"\n", start)) >= 0:
            self._octets += end + 1 - start
            self._check_bounds()
            if self.fault is not None:
                break
            reply = self._take_line(buffer[start:end].rstrip(b"\r"))
            start = end + 1
            if reply is not None:
                replies.append(reply)
        # Of a line that does not end its beginning is kept.
        rest = buffer[start:]
        self._octets += max(0, len(rest) - MAX_REPLY_LINE)
        self._buffer = rest[:MAX_REPLY_LINE]
        self._check_bounds()
        return replies

    def _check_bounds(self) -> None:
        if self.fault is None and (self._octets > MAX_REPLY_OCTETS or self._count > MAX_REPLY_LINES):
            self.fault = ReplyFault(f"reply longer than {MAX_REPLY_OCTETS} octets or {MAX_REPLY_LINES} lines")

    def _take_line(self, line: bytes) -> Reply | None:
        self._count += 1
        found = _REPLY_LINE.match(line[:MAX_REPLY_LINE])
        if found is None:
            if self._lines:
                self._keep("", _printable(line[:MAX_REPLY_LINE]))
            elif line:
                self.fault = ReplyFault(f"not a reply line: {line[:80]!r}")
            else:
                self._skipped += 1
            return None
        code, separator, enhanced, rest = found.groups()
        is_positive = code < b"4"
        if not self._lines:
            self._room, self._is_positive = self.max_text, is_positive
        elif is_positive is not self._is_positive:
            self.fault = ReplyFault(f"reply code changes to {code.decode()} within one reply")
            return None
        self._keep(enhanced.decode() if enhanced else "", _printable(rest))
        if separator == b"-":
            return None
        reply = _assemble(int(code), self._lines)
        self._lines = []
        self._octets = self._count = self._skipped = 0
        return reply

    def _keep(self, enhanced: str, text: str) -> None:
        if self._room < 0:
            return
        if len(text) > self._room:
            text, self._room = text[: self._room] + _CUT, -1
        else:
            # An empty line takes room as well, so the number of lines is bounded.
            self._room -= max(len(text), 1)
        # RFC 5322 section 2.1.1: no line of a DSN may pass 998 octets, so a long line becomes several.
        width = max(_TEXT_LIMIT, self.max_text // 4)
        for start in range(0, len(text) or 1, width):
            self._lines.append((enhanced if start == 0 else "", text[start : start + width]))


def cut_reply(reply: Reply, most: int = MAX_REPLY_TEXT) -> Reply:
    """The reply with `most` characters of text at most."""
    if sum(map(len, reply.lines)) <= most:
        return reply
    lines, room = [], most
    for line in reply.lines:
        if len(line) > room:
            lines.append(line[:room] + _CUT)
            break
        lines.append(line)
        room -= max(len(line), 1)
    return Reply(reply.code, reply.enhanced, *lines)


def _assemble(code: int, lines: list[tuple[str, str]]) -> Reply:
    """The reply that these lines make: the last line's code has decided, and statuses of another class are text."""
    kind = str(code)[0]
    status = next((enhanced for enhanced, _ in lines if enhanced[:1] == kind), None)
    return Reply(code, status, *(f"{e} {text}" if e and e[0] != kind else text for e, text in lines))


def _printable(octets: bytes) -> str:
    """Text that is harmless in a log, a DSN or a page: control characters of the peer become "?"."""
    text = octets.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


@lru_cache(maxsize=512)
def _read_segment(data: bytes) -> tuple[Reply, ...] | None:
    """The replies in octets that are nothing but whole replies; None for any others."""
    reader = ReplyReader()
    replies = tuple(reader._read(data))
    return None if reader.has_rest or reader.fault is not None else replies
