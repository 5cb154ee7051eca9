"""The one place that judges CR, LF, dots, NUL and lengths: command lines, DATA and BDAT (RFC 5321 section 2.3.8, 4.1.1.4, 4.5.2).

Everything after this file may trust its input. Verdicts do not depend on how the octets were cut into segments. Must
not know verbs, replies or what becomes of the content.
"""

from __future__ import annotations

import re

CRLF = b"\r\n"
END = b"\r\n.\r\n"


class OverlongLine:
    """Marks a command line that passed the limit; its octets are gone, and are not looked at."""


class BareLineFeed:
    """Marks a command line that was ended by LF alone."""


OVERLONG = OverlongLine()
BARE_LF = BareLineFeed()


class LineBuffer:
    """Octets on their way in, and how far they were used. Only CRLF ends a line (RFC 5321 section 2.3.8).

    A bare LF cannot be told from an attempt to smuggle: what it ends is refused at once (BARE_LF, once per LF) and
    what follows on the same CRLF line is dropped, so that no reader of the stream can see a command that we do not.
    With `accept_bare_lf` LF alone ends a line, too.
    """

    __slots__ = ("_buffer", "_position", "accept_bare_lf", "bare_lines", "is_dropping", "is_empty")

    def __init__(self, *, accept_bare_lf: bool = False) -> None:
        self.is_empty = True
        self._buffer = b""
        self._position = 0
        # True within a line that was refused already.
        self.is_dropping = False
        self.accept_bare_lf = accept_bare_lf
        # Lines so far that LF alone ended, and that were taken.
        self.bare_lines = 0

    def __len__(self) -> int:
        return len(self._buffer) - self._position

    def push(self, data: bytes) -> None:
        """Adds octets at the end."""
        if self.is_empty:
            self._buffer = data
        else:
            self._buffer = self._buffer[self._position :] + data
        self._position = 0
        self.is_empty = not self._buffer

    def take(self, count: int) -> bytes:
        """Up to `count` octets from the front."""
        start = self._position
        if start == 0 and count >= len(self._buffer):
            piece, self._buffer, self.is_empty = self._buffer, b"", True
            return piece
        piece = self._buffer[start : start + count]
        self._position = start + len(piece)
        self.is_empty = self._position >= len(self._buffer)
        return piece

    def take_all(self) -> bytes:
        """Everything."""
        piece = self._buffer[self._position :] if self._position else self._buffer
        self._buffer, self._position, self.is_empty = b"", 0, True
        return piece

    def peek(self) -> int:
        """The first octet, or -1."""
        return self._buffer[self._position] if self._position < len(self._buffer) else -1

    def begins_with(self, word: bytes) -> bool:
        """True when the first octets are this word, in any case."""
        start = self._position
        return self._buffer[start : start + len(word)].upper() == word

    def clear(self) -> int:
        """Throws everything away; returns how many octets that were."""
        count = len(self)
        self._buffer, self._position, self.is_dropping, self.is_empty = b"", 0, False, True
        return count

    def take_line(self, limit: int) -> bytes | OverlongLine | BareLineFeed | None:
        """The next line without its CRLF (of `limit` octets at most, CRLF counted), or a mark, or None: more is needed."""
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\n", start)
        if end < 0:
            if len(buffer) - start > limit:
                return self._overflow(buffer)
            if self.is_dropping:
                self._keep_tail(buffer)
            return None
        if end == start or buffer[end - 1] != 13:
            return self._take_bare(start, end, limit)
        if self.is_dropping:
            self._go_to(end + 1)
            self.is_dropping = False
            return None if self.is_empty else self.take_line(limit)
        self._position = end = end + 1
        self.is_empty = end >= len(buffer)
        return OVERLONG if end - start > limit else buffer[start : end - 2]

    def _go_to(self, position: int) -> None:
        self._position = position
        self.is_empty = position >= len(self._buffer)

    def _take_bare(self, start: int, end: int, limit: int) -> bytes | OverlongLine | BareLineFeed | None:
        """A line that LF alone ended."""
        if self.accept_bare_lf:
            self._go_to(end + 1)
            if self.is_dropping:
                self.is_dropping = False
                return None if self.is_empty else self.take_line(limit)
            self.bare_lines += 1
            return OVERLONG if end + 1 - start > limit else self._buffer[start:end]
        is_first, self.is_dropping = not self.is_dropping, True
        if is_first and end - start + 1 > limit:
            # The LF stays for the next call: cut into single octets, the line would give both marks, too.
            self._go_to(end)
            return OVERLONG
        self._go_to(end + 1)
        return BARE_LF

    def _overflow(self, buffer: bytes) -> OverlongLine | None:
        """A line without end: one mark, then everything up to its CRLF is dropped as it comes."""
        first = not self.is_dropping
        self.is_dropping = True
        self._keep_tail(buffer)
        return OVERLONG if first else None

    def _keep_tail(self, buffer: bytes) -> None:
        # A last CR may be half of the CRLF that ends the dropped line.
        self._buffer, self._position = (b"\r" if buffer.endswith(b"\r") else b""), 0
        self.is_empty = not self._buffer


class _Nothing(LineBuffer):
    __slots__ = ()

    def push(self, data: bytes) -> None:
        raise AssertionError("it is everybody's")


# Shared by all in which nothing waits, and nothing ever has.
NOTHING: LineBuffer = _Nothing()
_CR, _LF, DOT = 13, 10, 46


class DataScanner:
    """Content between 354 and CRLF . CRLF: finds the end, then undoes dot-stuffing, and notes bare CR and LF.

    `feed` returns (piece, rest): `piece` is content (maybe empty), `rest` is None, or what followed the end. What could
    be the start of the terminator is held back until it is decided; the text before the first octet counts as a line
    end, so that a first line "." ends an empty message. `has_bare` turns true when a bare CR or LF was met: then the
    caller refuses the message at its true end. `has_dots`: a line began with a dot.
    """

    __slots__ = ("_held", "_skip", "has_bare", "has_dots", "size_bytes")
    normalise = False

    def __init__(self) -> None:
        self._held = CRLF
        self._skip = 2
        self.has_bare = self.has_dots = False
        self.size_bytes = 0

    def feed(self, chunk: bytes) -> tuple[bytes, bytes | None]:
        """Takes octets from the wire."""
        if self._held:
            if self._held is CRLF and self._skip and chunk and chunk[0] != DOT:
                # The line end that stands before the first octet matters only where a dot follows.
                self._skip = 0
            else:
                chunk = self._held + chunk
            self._held = b""
        rest = None
        # The first line with a dot in front is the end, nearly always: one search serves for both.
        dot = chunk.find(b"\r\n.")
        end = dot
        if dot >= 0 and chunk[dot + 3 : dot + 5] != CRLF:
            end = chunk.find(END, dot)
        if end >= 0:
            rest = chunk[end + 5 :]
            chunk = chunk[: end + 2]
        elif chunk.endswith((b"\r", b"\r\n", b"\r\n.", b"\r\n.\r")):
            cut = len(chunk) - 4 if chunk.endswith(b"\r\n.\r") else chunk.rfind(b"\r")
            self._held = chunk[cut:]
            chunk = chunk[:cut]
        if not self.has_bare:
            self.has_bare = not is_clean(chunk)
        if dot != end:
            # RFC 5321 section 4.5.2: the first dot of a line was added by the sender.
            chunk = chunk.replace(b"\r\n.", CRLF)
            self.has_dots = True
        if self._skip and chunk:
            chunk = chunk[self._skip :]
            self._skip = 0
        self.size_bytes += len(chunk)
        return chunk, rest

    @property
    def is_plain(self) -> bool:
        """At the end: True when DATA can carry the content on as it is, for a DotStuffer would find nothing to do."""
        return not self.has_bare and not self.has_dots


# A line end and, where the first line ends, what it began with. LF alone is a line end, too.
_LOOSE_DOT = re.compile(rb"(\r?\n)\.")
_LOOSE_END = re.compile(rb"\n\.\r?\n")
# Could be the start of an end, or a line end whose dot has not come yet.
_LOOSE_TAIL = re.compile(rb"(?:\r?\n(?:\.\r?)?|\r)\Z")


class LooseScanner:
    """As `DataScanner`, for content whose bare CR and LF become CRLF: RFC 5321 section 4.5.2 holds behind LF, too.

    The end is CRLF . CRLF, found on the octets as they came. With `ends_by_lf` LF may stand for each of these CRLF: only
    for a client that ends its commands by LF alone. A message of another server can then not end early.
    """

    __slots__ = ("_ends_by_lf", "_held", "_skip", "has_bare", "size_bytes")
    normalise = True
    is_plain = False

    def __init__(self, *, ends_by_lf: bool = False) -> None:
        self._ends_by_lf = ends_by_lf
        self._held = CRLF
        self._skip = 2
        self.has_bare = False
        self.size_bytes = 0

    def feed(self, chunk: bytes) -> tuple[bytes, bytes | None]:
        """Takes octets from the wire; the result is that of `DataScanner.feed`."""
        chunk, self._held, rest = self._held + chunk, b"", None
        if self._ends_by_lf:
            found = _LOOSE_END.search(chunk)
            end, behind = (found.start() + 1, found.end()) if found else (-1, -1)
        else:
            end = chunk.find(END)
            end, behind = (end + 2, end + 5) if end >= 0 else (-1, -1)
        if end >= 0:
            rest, chunk = chunk[behind:], chunk[:end]
        else:
            tail = chunk[-4:]
            held = _LOOSE_TAIL.search(tail)
            if held is not None:
                cut = len(chunk) - len(tail) + held.start()
                chunk, self._held = chunk[:cut], chunk[cut:]
        chunk = _LOOSE_DOT.sub(rb"\1", chunk)
        if self._skip and chunk:
            chunk = chunk[self._skip :]
            self._skip = 0
        if not is_clean(chunk):
            self.has_bare = True
            chunk = _normalised(chunk)
        self.size_bytes += len(chunk)
        return chunk, rest


class ChunkScanner:
    """Content of BDAT chunks (RFC 3030 section 2): counted, not searched.

    `has_bare` turns true when a bare CR or LF was met. With `normalise` it becomes CRLF: chunks are counted, so a line
    end cannot smuggle anything in, and without BINARYMIME the next hop gets lines (RFC 3030 section 3). A line end may be
    cut by a chunk's border. Call `finish` after the last piece.
    """

    __slots__ = ("_held", "has_bare", "normalise", "size_bytes")

    def __init__(self, *, normalise: bool = False) -> None:
        self._held = b""
        self.has_bare = False
        self.normalise = normalise
        self.size_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Takes octets of a chunk, returns content; a last CR is held until the octet behind it is known."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if chunk.endswith(b"\r"):
            self._held = b"\r"
            chunk = chunk[:-1]
        return self._judge(chunk)

    def finish(self) -> bytes:
        """Content that was held back. A message whose last line has no CRLF gets one, so that DATA can carry it."""
        chunk, self._held = self._held, b""
        return self._judge(chunk) if chunk else b""

    def _judge(self, chunk: bytes) -> bytes:
        if not is_clean(chunk):
            self.has_bare = True
            if self.normalise:
                chunk = _normalised(chunk)
        self.size_bytes += len(chunk)
        return chunk


def is_clean(content: bytes) -> bool:
    """True when every CR stands before an LF and every LF behind a CR.

    Without its pairs it has neither. Two blanks for a pair, for what keeps its length is replaced in one go: twice as
    fast as leaving the pair out, and six times as fast as counting each of the three.
    """
    rest = content.replace(CRLF, b"  ")
    return _CR not in rest and _LF not in rest


def is_plain(lines: bytes) -> bool:
    """True for whole lines that end in CRLF, none of which begins with a dot: nothing to do for a DotStuffer."""
    return lines[-2:] == CRLF and lines[0] != DOT and b"\n." not in lines and is_clean(lines)


def _normalised(content: bytes) -> bytes:
    return content.replace(CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", CRLF)


def normalise_lines(content: bytes) -> bytes:
    """Every line end of whatever kind becomes CRLF."""
    return content if is_clean(content) else _normalised(content)


class DotStuffer:
    """Content on its way out by DATA: dots doubled, bare CR and LF mended, CRLF . CRLF at the end.

    RFC 5321 section 4.5.2 and 2.3.8: whatever a plugin, BDAT or a program put into the queue, the next hop can never
    see more than one message.
    """

    __slots__ = ("_at_line_start", "_held")

    def __init__(self) -> None:
        self._at_line_start = True
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Takes content, returns octets for the wire."""
        if self._held:
            piece = self._held + piece
            self._held = b""
        if piece.endswith(b"\r"):
            self._held = b"\r"
            piece = piece[:-1]
        return self._stuff(piece)

    def _stuff(self, piece: bytes) -> bytes:
        if not piece:
            return piece
        if not is_clean(piece):
            piece = _normalised(piece)
        starts_dotted = self._at_line_start and piece.startswith(b".")
        self._at_line_start = piece.endswith(b"\n")
        if b"\n." in piece:
            piece = piece.replace(b"\n.", b"\n..")
        return b"." + piece if starts_dotted else piece

    def finish(self) -> bytes:
        """The end: a line end where the content had none, then the terminator."""
        tail = b""
        if self._held:
            self._held = b""
            tail = self._stuff(b"\r")
        return tail + (b".\r\n" if self._at_line_start else END)
