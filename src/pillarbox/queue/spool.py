"""The spool: files of large contents, written as they arrive, durable before the row that names them commits.

Order of a large message: pieces to the file, the file's fdatasync, the directory's fsync, then (elsewhere) the row's
commit, then 250. A crash between leaves a file that no row names: `collect_orphans` removes it at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from ..errors import StoreError, StoreFullError
from ..mail.content import HEAD_BYTES, Content

_log = logging.getLogger("pillarbox.spool")
PIECE_BYTES = 256 * 1024
# Above the high mark of one message the caller should stop reading, below the low one go on.
HIGH_BYTES = 512 * 1024
LOW_BYTES = 128 * 1024
WRITERS = 4


def _translated(error: OSError, path: str) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"no room left in the spool at {path}: make room on that disk")
    return StoreError(f"the spool file {path} could not be written: {error.strerror}")


class Spool:
    """A folder of spool files and a few threads that write them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="pillarbox-spool")
        self._is_closed = False

    def create(self, name: str, wants_reading: Callable[[bool], None]) -> SpoolWriter:
        """A new file; `wants_reading(False)` asks to stop the flow, `wants_reading(True)` to go on."""
        return SpoolWriter(self, os.path.join(self.folder, name), wants_reading)

    def submit(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """`work` in a writer thread, then `done` in the loop. Neither once it is closed: what is left the next start collects."""
        if self._is_closed:
            return
        loop = asyncio.get_running_loop()

        def job() -> None:
            failure: BaseException | None = None
            try:
                work()
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done, failure)

        self._pool.submit(job)

    def remove(self, names: Iterable[str]) -> None:
        """Unlinks files, later, in a writer thread."""
        if self._is_closed:
            return
        for name in names:
            self._pool.submit(_unlink, os.path.join(self.folder, name))

    def collect_orphans(self, needed: set[str]) -> int:
        """Removes what no row names; call it before anything is accepted. How many there were."""
        orphans = [entry for entry in os.listdir(self.folder) if entry not in needed]
        for entry in orphans:
            _unlink(os.path.join(self.folder, entry))
        if orphans:
            _log.info("removed %d spool files of messages that were never accepted", len(orphans))
        return len(orphans)

    def close(self) -> None:
        """Waits for the writers."""
        self._is_closed = True
        self._pool.shutdown(wait=True)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class SpoolWriter:
    """One file on its way to the disk. At most one job of a file is with the writers, so pieces stay in order."""

    def __init__(self, spool: Spool, path: str, wants_reading: Callable[[bool], None]) -> None:
        self.path = path
        self.size_bytes = 0
        self.head = b""
        self.error: StoreError | None = None
        self._spool = spool
        self._wants_reading = wants_reading
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._writing_bytes = 0
        self._is_writing = False
        self._is_stopped = False
        self._file: int | None = None
        self._finished: Callable[[StoreError | None], None] | None = None
        self._is_aborted = False

    def write(self, piece: bytes) -> None:
        """Takes octets; they are written when there are enough of them."""
        if self.error is not None:
            return
        if len(self.head) < HEAD_BYTES:
            self.head += piece[: HEAD_BYTES - len(self.head)]
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)
        self.size_bytes += len(piece)
        if self._waiting_bytes >= PIECE_BYTES:
            self._push()
        if not self._is_stopped and self._waiting_bytes + self._writing_bytes > HIGH_BYTES:
            self._is_stopped = True
            self._wants_reading(False)

    def finish(self, done: Callable[[StoreError | None], None]) -> None:
        """`done(None)` when everything is on the disk, the file's name too."""
        self._finished = done
        self._push()

    def content(self) -> Content:
        """The content, once finished."""
        return Content(b"", path=self.path, file_bytes=self.size_bytes, head=self.head)

    def abort(self) -> None:
        """The message is not wanted: the file goes."""
        self._is_aborted = True
        self._finished = None
        if self._is_stopped:
            self._is_stopped = False
            self._wants_reading(True)
        self._pieces.clear()
        if not self._is_writing:
            self._discard()

    def _discard(self) -> None:
        file, self._file = self._file, None

        def work() -> None:
            if file is not None:
                os.close(file)
            _unlink(self.path)

        self._spool.submit(work, lambda error: None)

    def _push(self) -> None:
        if self._is_writing:
            return
        pieces, self._pieces = self._pieces, []
        self._writing_bytes, self._waiting_bytes = self._waiting_bytes, 0
        self._is_writing = True
        is_last = self._finished is not None
        if self.error is not None:
            asyncio.get_running_loop().call_soon(self._written, None, is_last)
            return
        self._spool.submit(lambda: self._work(pieces, is_last), lambda error: self._written(error, is_last))

    def _work(self, pieces: list[bytes], is_last: bool) -> None:
        """In a writer thread."""
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self.path, flags, 0o600)
        _write_all(self._file, pieces)
        if is_last:
            os.fdatasync(self._file)
            file, self._file = self._file, None
            os.close(file)
            sync_folder(self._spool.folder)

    def _written(self, error: BaseException | None, is_last: bool) -> None:
        self._is_writing = False
        self._writing_bytes = 0
        if isinstance(error, OSError):
            self.error = _translated(error, self.path)
            self._pieces.clear()
            self._waiting_bytes = 0
        if self._is_aborted:
            self._discard()
            return
        if self._is_stopped and self._waiting_bytes <= LOW_BYTES:
            self._is_stopped = False
            self._wants_reading(True)
        if is_last and self._finished is not None:
            done, self._finished = self._finished, None
            if self.error is not None:
                self._discard()
            done(self.error)
        elif self._finished is not None or self._is_stopped or self._waiting_bytes >= PIECE_BYTES:
            # While reading is stopped nothing more comes that could fill a piece: what there is goes now.
            self._push()


def _write_all(file: int, pieces: list[bytes]) -> None:
    """All of it, short writes included; at most 1,024 pieces a call (IOV_MAX)."""
    for start in range(0, len(pieces), 1000):
        group = pieces[start : start + 1000]
        total = sum(map(len, group))
        written = os.writev(file, group)
        if written < total:
            rest = memoryview(b"".join(group))[written:]
            while rest:
                rest = rest[os.write(file, rest) :]


def sync_folder(folder: str) -> None:
    """The folder's entries are on the disk (a new file's name is lost without)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
