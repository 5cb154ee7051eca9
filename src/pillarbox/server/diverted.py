"""Content that a program asked for by `data_mode`: lines in memory, or a file of its own that gets them as they arrive.

Framing and bounds are those of any other content. Must not know the queue.
"""

from __future__ import annotations

import logging
from typing import IO, Any

from ..events.catalogue import Data, DataFh, Session
from ..smtp.reply import Reply

_log = logging.getLogger("pillarbox.session")
_FAULT = Reply(451, "4.3.0", "The message could not be stored: try again later", reason="internal-fault")


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
                _write_all(self._file, octets)
            except Exception as error:
                self._error = error

    def finish(self, session: Session, fault: Reply | None = None) -> Data | DataFh:
        """The event that tells the program; its `fault` is what was answered in the program's place, or None."""
        if self._file is None:
            octets = b"".join(self._pieces)
            lines = octets.split(b"\r\n")
            if lines[-1] == b"":
                lines.pop()
            return Data(session.client_id, session, lines if fault is None else [], fault)
        if self._error is not None:
            _log.error("session %s: the program's file failed: %r", session.client_id, self._error)
            fault = fault or _FAULT
        return DataFh(session.client_id, session, self._file, self._size, fault)


def _write_all(file: IO[bytes], octets: bytes) -> None:
    """A raw file may take less than it is given."""
    while octets:
        count = file.write(octets)
        if not isinstance(count, int) or count >= len(octets):
            return
        octets = octets[count:]


def is_writable(file: Any) -> bool:
    """True for what data_mode takes."""
    if not callable(getattr(file, "write", None)) or hasattr(file, "encoding"):
        return False
    asked = getattr(file, "writable", None)
    return bool(asked()) if callable(asked) else True
