"""Content that a program asked for by `data_mode`: lines in memory, or a file of its own that gets them as they arrive.

Framing and bounds are those of any other content. Must not know the queue.
"""

from __future__ import annotations

import logging
from typing import IO, Any

from ..events.catalogue import Data, DataFh, Session

_log = logging.getLogger("pillarbox.session")


class Diverted:
    """One transaction's content on its way to the program; `file` is a writable binary file, or None for lines."""

    __slots__ = ("_error", "_file", "_pieces", "_size")

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self._pieces: list[bytes] = []
        self._size = 0
        self._error: Exception | None = None

    def write(self, octets: bytes) -> None:
        """A piece, as it arrives. What the file raises is kept: the message fails at its end."""
        self._size += len(octets)
        if self._file is None:
            self._pieces.append(octets)
        elif self._error is None:
            try:
                self._file.write(octets)
            except Exception as error:
                self._error = error

    def finish(self, session: Session) -> Any | None:
        """The event that tells the program, or None when its file failed."""
        if self._file is None:
            octets = b"".join(self._pieces)
            lines = octets.split(b"\r\n")
            if lines[-1] == b"":
                lines.pop()
            return Data(session.client_id, session, lines)
        if self._error is not None:
            _log.error("session %s: the program's file failed: %r", session.client_id, self._error)
            return None
        return DataFh(session.client_id, session, self._file, self._size)


def is_writable(file: Any) -> bool:
    """True for what data_mode takes."""
    return callable(getattr(file, "write", None)) and not hasattr(file, "encoding")
