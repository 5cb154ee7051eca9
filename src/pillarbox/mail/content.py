"""Content: the octets that DATA or BDAT carried, in memory or in a spool file, with a header section that can change.

A large content is a memory part (trace fields and, once changed, the header section) and the rest of a file; the file
itself is never written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from email.message import EmailMessage

from ..smtp.framing import is_plain
from . import headers
from .emailmessage import read_email
from .fieldtext import format_field

# How much of a large content is kept in memory, too: the header section has to fit in.
HEAD_BYTES = 128 * 1024
_READ_BYTES = 256 * 1024
# No header section has more; `max_header_bytes` sets the bound for messages that come in.
MAX_HEADER_BYTES = 8 << 20


class Content:
    """The content of a message.

    In memory: `prefix` holds all of it, `path` is None. In the spool: `prefix`, then the file at `path` from `offset` on,
    `file_bytes` octets long there. `head` is the start of the file. `is_smtputf8` is True in the event `message` if the
    client said SMTPUTF8: fields that are set may then be UTF-8 (RFC 6532).
    """

    __slots__ = ("_plain", "file_bytes", "head", "is_smtputf8", "offset", "path", "prefix")

    def __init__(
        self, octets: bytes = b"", *, path: str | None = None, offset: int = 0, file_bytes: int = 0, head: bytes = b""
    ) -> None:
        self.prefix = octets
        self.path = path
        self.offset = offset
        self.file_bytes = file_bytes
        self.head = head
        # These octets have been judged; others, whoever puts them there, have not.
        self._plain: bytes | None = None
        self.is_smtputf8 = False

    def mark_plain(self) -> None:
        """What is in memory now is plain (framing.is_plain): it was judged as it came in."""
        self._plain = self.prefix

    @property
    def is_plain(self) -> bool:
        """True when all of it is known to be plain: it goes through DATA as it is."""
        return self._plain is self.prefix and self.path is None

    @property
    def size_bytes(self) -> int:
        """All octets, trace fields included."""
        return len(self.prefix) + (self.file_bytes if self.path else 0)

    def chunks(self) -> Iterator[bytes]:
        """The octets, piece by piece; a file is read 256 KB at a time."""
        if self.prefix:
            yield self.prefix
        if self.path:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                left = self.file_bytes
                while left > 0 and (piece := file.read(min(_READ_BYTES, left))):
                    left -= len(piece)
                    yield piece
                if left > 0:
                    raise OSError(f"spool file {self.path} is {left} octets too short")

    def check(self) -> None:
        """Raises OSError where the spool file is missing or not readable, ValueError where it is too short."""
        if self.path:
            size = os.stat(self.path).st_size
            if size < self.offset + self.file_bytes:
                raise ValueError(f"spool file has {size} of {self.offset + self.file_bytes} octets")

    def read(self) -> bytes:
        """All octets at once: for small content, or when you mean it."""
        return self.prefix if not self.path else b"".join(self.chunks())

    def start(self, limit: int = HEAD_BYTES) -> bytes:
        """The first octets, up to `limit`."""
        if not self.path:
            return self.prefix[:limit]
        if not self.head:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                self.head = file.read(HEAD_BYTES)
        return (self.prefix + self.head)[:limit]

    def count_lines(self) -> int:
        """How many line ends there are, trace fields included; 0 where a spool file cannot be read."""
        if self.is_plain:
            # Each LF has its CR, and pairs are counted four times as fast.
            return self.prefix.count(b"\r\n")
        try:
            return sum(piece.count(b"\n") for piece in self.chunks())
        except OSError:
            return 0

    # ------------------------------------------------------------ header section

    @property
    def header_section(self) -> bytes:
        """The octets of the header section, without the empty line behind it."""
        start = self.section_start()
        return start[: headers.section_end(start)]

    def section_start(self, limit: int = MAX_HEADER_BYTES) -> bytes:
        """Octets from the start that cover the header section, if it has not more than `limit`."""
        if not self.path:
            return self.prefix
        start = self.start(len(self.prefix) + HEAD_BYTES)
        if len(start) < min(limit, self.size_bytes) and headers.goes_on(start, headers.section_end(start)):
            # Longer than what is kept in memory.
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                start = self.prefix + file.read(min(self.file_bytes, limit - len(self.prefix)))
        return start

    def header(self, name: str) -> str | None:
        """The value of the first field of that name, decoded for people, or None."""
        raw = headers.get_raw(self.header_section, name)
        return None if raw is None else headers.decode_value(raw)

    def set_header(self, name: str, value: str) -> None:
        """Gives the field that value (added where it was missing), encoded (RFC 2047) and folded.

        ValueError for control characters, a bad name, and addresses that are not valid.
        """
        self._set_section(headers.replace(self.header_section, name, value, is_utf8=self.is_smtputf8))

    def add_header(self, name: str, value: str) -> None:
        """Adds a field on top. As set_header."""
        self.prepend(format_field(name, value, is_utf8=self.is_smtputf8))

    def parsed(self) -> EmailMessage:
        """Returns the message as Python's own class, for a look at its parts.

        It reads all octets and parses them in the caller's thread. In a plugin use `await asyncio.to_thread(content.parsed)`
        for large content. Never raises on what is not valid.
        """
        return read_email(self.read())

    def remove_header(self, name: str) -> None:
        """Takes out every field of that name."""
        self._set_section(headers.remove(self.header_section, name))

    def remove_claims(self, name: str, authserv_id: str) -> None:
        """Takes out the fields of that name that `authserv_id` seems to have made (RFC 8601 section 5)."""
        self._set_section(headers.remove_claims(self.header_section, name, authserv_id))

    def end_section(self) -> None:
        """Puts an empty line behind the header section, for a line follows that some readers would take for a part of it."""
        self._set_section(self.header_section + b"\r\n")

    def prepend(self, fields: bytes) -> None:
        """Puts octets (whole fields with CRLF) on top."""
        if fields:
            was_plain = self._plain is self.prefix
            self.prefix = fields + self.prefix
            if was_plain and is_plain(fields):
                self._plain = self.prefix

    def replace(self, octets: bytes) -> None:
        """Another content altogether; a spool file is left to be collected."""
        self.prefix, self.path, self.head = octets, None, b""
        self.offset = self.file_bytes = 0

    def _set_section(self, section: bytes) -> None:
        old = len(self.header_section)
        if old == 0 and section:
            # Text without a header section: from now on it has one, so an empty line must set it apart.
            section += b"\r\n" if self.start(2) != b"\r\n" else b""
        if old <= len(self.prefix):
            self.prefix = section + self.prefix[old:]
            return
        into_file = old - len(self.prefix)
        self.prefix = section
        self.head = self.head[into_file:]
        self.offset += into_file
        self.file_bytes -= into_file
