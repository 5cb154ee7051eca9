"""The daemon's log: one handler that formats each line directly, as text or JSON, and writes the lines of a loop iteration
in one call.

A library's formatter chain cost 45 us a line. What a peer sent is escaped, so that no line can be forged (CWE-117).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import stat
import sys
import time
import traceback
from typing import Any, TextIO

from ..log.fields import FIELDS
from ..log.record import LEVEL_NAMES, LineRecord, escape_controls, format_fields, format_json

__all__ = ["LEVELS", "LogHandler", "configure_logs", "escape_controls"]
LEVELS = ("debug", "info", "warning", "error")
# To a pipe or socket that several workers share, only so many octets are one piece (POSIX PIPE_BUF).
_PIECE = 4096
# A log that does not take its lines delays the server at most so long, once; then lines are dropped and counted.
_WAIT_S = 1.0
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}


class LogHandler(logging.Handler):
    """Writes to a file descriptor; to a `path` it opens the file anew when that was moved away (logrotate)."""

    def __init__(self, stream: TextIO | None = None, *, path: str | None = None, as_json: bool) -> None:
        super().__init__()
        self._stream, self._path, self._as_json = stream, path, as_json
        self._fd = -1
        self._file_id: tuple[int, int] | None = None
        self._checked_at = 0.0
        self._lines: list[bytes] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._second, self._prefix = -1, ""
        self._has_colours = False
        self.lost = 0
        if path is not None:
            self._open()
        elif stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._fd = stream.fileno()
                self._has_colours = not as_json and stream.isatty()
        self._in_pieces = self._fd >= 0 and not stat.S_ISREG(os.fstat(self._fd).st_mode)
        # A worker must not write what its parent has not yet written.
        os.register_at_fork(before=self.flush)

    # --------------------------------------------------------------- formatting

    def _time(self, created: float) -> str:
        second = int(created)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{int((created - second) * 1e6):06d}Z"

    def line_of(self, record: logging.LogRecord) -> bytes:
        """The record's line, without its end."""
        level = LEVEL_NAMES.get(record.levelno) or record.levelname.lower()
        if record.__class__ is LineRecord:
            event, fields = record.kind.name, record.fields
        else:
            own = record.__dict__
            event, fields = record.getMessage(), {name: own[name] for name in FIELDS if name in own}
        fault = self._fault(record)
        if self._as_json:
            line = {"timestamp": self._time(record.created), "level": level, "event": event, "logger": record.name}
            line |= fields
            if fault:
                line["exception"] = fault
            return format_json(line)
        if record.__class__ is not LineRecord:
            event, fields = escape_controls(event), {}
        if self._has_colours:
            event, level = f"\x1b[1m{event}\x1b[0m", f"\x1b[{_COLOURS.get(level, '0')}m{level}\x1b[0m"
        text = f"{self._time(record.created)} {level} {event} {format_fields(fields)}".rstrip(" ")
        return (f"{text}\n{fault}" if fault else text).encode("utf-8", "backslashreplace")

    def _fault(self, record: logging.LogRecord) -> str:
        """The traceback; its lines are indented in text, so that none passes for a line of the log."""
        info: Any = record.exc_info
        if not info or info[0] is None:
            return ""
        lines = "".join(traceback.format_exception(*info)).rstrip("\n").split("\n")
        return "\n".join(lines) if self._as_json else "\n".join("    " + escape_controls(line) for line in lines)

    # ------------------------------------------------------------------ writing

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the line until the end of this loop iteration; a warning, and a line of another thread, is written now."""
        try:
            self._lines.append(self.line_of(record))
        except Exception:
            self.handleError(record)
            return
        # A burst of failed recipients is one write, too.
        if record.levelno < logging.WARNING or record.__class__ is LineRecord:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                pass
            else:
                if self._loop is not loop:
                    self._loop = loop
                    loop.call_soon(self._end_of_iteration)
                return
        self.flush()

    def _end_of_iteration(self) -> None:
        self._loop = None
        self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        with self.lock:  # type: ignore[union-attr]
            if not self._lines:
                return
            lines, self._lines = self._lines, []
            if self._path is not None:
                self._reopen_if_moved()
            lost, self.lost = self.lost, 0
            if lost and not self._write([self.line_of(_lost_record(lost))]):
                # The notice itself does not count.
                self.lost = lost + len(lines)
                return
            self._write(lines)

    def _write(self, lines: list[bytes]) -> bool:
        if self._fd < 0:
            if self._stream is not None:
                self._stream.write("".join([line.decode("utf-8", "replace") + "\n" for line in lines]))
            return True
        lines.append(b"")
        for piece in _pieces(lines) if self._in_pieces else (b"\n".join(lines),):
            if not self._write_piece(piece):
                self.lost += piece.count(b"\n")
                return False
        return True

    def _write_piece(self, piece: bytes) -> bool:
        while piece:
            try:
                piece = piece[os.write(self._fd, piece) :]
            except BlockingIOError:
                if not select.select([], [self._fd], [], _WAIT_S)[1]:
                    return False
            except OSError:
                # A full disk, a reader that is gone: the mail goes on.
                return False
        return True

    # --------------------------------------------------------------------- file

    def _open(self) -> None:
        assert self._path is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | _no_follow(self._path)
        fd = os.open(self._path, flags, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        status = os.fstat(fd)
        self._fd, self._file_id = fd, (status.st_dev, status.st_ino)

    def give_to(self, uid: int, gid: int) -> None:
        """Makes the log file that of the user who the server becomes. Never a file that has another name elsewhere."""
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            os.fchown(self._fd, uid, gid)

    def _reopen_if_moved(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < 1.0:
            return
        self._checked_at = now
        assert self._path is not None
        with contextlib.suppress(OSError):
            try:
                status = os.stat(self._path)
                is_same = (status.st_dev, status.st_ino) == self._file_id
            except FileNotFoundError:
                is_same = False
            if not is_same:
                self._open()


def _no_follow(path: str) -> int:
    """For root: a link in a folder of another user leads where that user wants the log to be written."""
    folder = os.path.dirname(os.path.abspath(path))
    return os.O_NOFOLLOW if os.geteuid() == 0 and os.stat(folder).st_uid != 0 else 0


def _lost_record(count: int) -> logging.LogRecord:
    text = f"log: {count} lines lost: the log did not take them"
    return logging.LogRecord("pillarbox.daemon", logging.ERROR, __file__, 0, text, None, None)


def _pieces(lines: list[bytes]) -> list[bytes]:
    """Whole lines, joined up to what is written in one piece."""
    pieces: list[bytes] = []
    for line in lines[:-1]:
        if pieces and len(pieces[-1]) + len(line) < _PIECE:
            pieces[-1] += line + b"\n"
        else:
            pieces.append(line + b"\n")
    return pieces


def configure_logs(
    level: str, *, as_json: bool | None = None, stream: TextIO | None = None, path: str | None = None
) -> LogHandler:
    """Sets the root logger up. `as_json` None: text on a terminal, else JSON lines. `path`: a file in place of stderr."""
    stream = stream or sys.stderr
    handler = LogHandler(
        stream, path=path, as_json=as_json if as_json is not None else path is not None or not stream.isatty()
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")
    # It tells of its start and end at "info", which our own ready line does already.
    logging.getLogger("uvicorn").setLevel("WARNING")
    return handler
