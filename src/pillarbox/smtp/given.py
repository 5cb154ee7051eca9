"""What the receiving side gives beside commands and pieces of content: ends of content, lines of an AUTH exchange. Values."""

from __future__ import annotations

from .reply import Reply

BARE_CONTENT = Reply(550, "5.5.2", "Content has a bare CR or LF: end lines with CR LF", reason="bad-line-ends")


class EndOfContent:
    """The end of a message (`is_last`) or of a BDAT chunk. `fault` is the reply that the content itself calls for.

    `is_plain`: whole lines that end in CRLF, none of which begins with a dot.
    """

    __slots__ = ("by_bdat", "fault", "is_abuse", "is_last", "is_plain", "size_bytes")

    def __init__(
        self, size_bytes: int, fault: Reply | None, *, is_last: bool, by_bdat: bool, is_plain: bool = False
    ) -> None:
        # A bare CR or LF in content is how messages are smuggled: the session ends with its refusal.
        self.is_abuse = fault is BARE_CONTENT
        self.size_bytes = size_bytes
        self.fault = fault
        self.is_last = is_last
        self.by_bdat = by_bdat
        self.is_plain = is_plain


# The end of content that came whole, and clean, in one segment (ServerProtocol.take_whole): nobody looks at its size.
WHOLE = EndOfContent(0, None, is_last=True, by_bdat=False, is_plain=True)


class AuthLine:
    """A line of an AUTH exchange; `line` is None when it passed its limit."""

    __slots__ = ("line",)

    def __init__(self, line: bytes | None) -> None:
        self.line = line
