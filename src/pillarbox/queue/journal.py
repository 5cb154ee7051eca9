"""The journal of a shard: what was committed and is not in its database yet, in a file of a fixed length.

A commit is one write that overwrites old octets and is on the disk when it returns (RWF_DSYNC): nothing of the file system's
own is to be noted. The file has two halves. While what one of them holds is written to the database, commits go to the
other. Records are numbered; the database knows up to which number it has them (flag "journal"), and says so in the
very transaction that brings them: none is forgotten, none is taken twice.

What is behind the last record of a half is older, and may be the middle of somebody's mail. So each file has a key that
nobody else knows, in a block of its own before the halves, and a record is one only with that. Must not know what they say.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

from .spool import sync_folder

HALF_BYTES = 16 << 20
_PIECE_BYTES = 1 << 16
_BLOCK_BYTES = 4096
_MAGIC = b"PBXJ"
_KEY_BYTES = 16
# magic, key; then CRC-32 of what follows it, number, octets of head and of contents
_HEADER = struct.Struct("<4s16sIQII")
_CRC_AT = 20
_NUMBERED = struct.Struct("<QII")
# Linux's: a write is on the disk when it returns.
_DSYNC: int = getattr(os, "RWF_DSYNC", 0)
Record = tuple[int, bytes, memoryview]


class Journal:
    """`path` is the file's; `number` that of the last record, also of one that could not be written; `key` the file's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = 0
        self.key = b""
        self._file: int | None = None
        self._half = 0
        self._at = 0

    @staticmethod
    def is_possible() -> bool:
        """True where the system can write and sync at once."""
        return bool(_DSYNC)

    def make(self) -> None:
        """A new file of full length, in zeroes, on the disk, with a new key. OSError when that cannot be."""
        if self._file is not None:
            raise OSError("it is there")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self.path, flags, 0o600)
        try:
            zeroes = bytes(_PIECE_BYTES)
            for start in range(_BLOCK_BYTES, _BLOCK_BYTES + 2 * HALF_BYTES, _PIECE_BYTES):
                if os.pwrite(file, zeroes, start) < _PIECE_BYTES:
                    raise OSError("the disk took less than it was given")
            os.fsync(file)
            self.key = os.urandom(_KEY_BYTES)
            # Also tells whether this file system can.
            os.pwritev(file, [_MAGIC + self.key, bytes(_BLOCK_BYTES - 4 - _KEY_BYTES)], 0, _DSYNC)
            sync_folder(os.path.dirname(self.path) or ".")
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            raise
        self._file, self._half, self._at = file, 0, 0

    def has_room(self, size_bytes: int) -> bool:
        """True when a record of head and contents of that size still fits into this half."""
        return self._at + size_bytes + _HEADER.size + _BLOCK_BYTES <= HALF_BYTES

    @property
    def is_open(self) -> bool:
        """It was made, and not closed."""
        return self._file is not None

    @property
    def is_in_place(self) -> bool:
        """It was made, and the file at its path is still that one."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            return False

    @property
    def is_half_full(self) -> bool:
        """It is time to turn to the other half."""
        return self._at > HALF_BYTES // 2

    def append(self, head: bytes, contents: Sequence[bytes]) -> None:
        """One record, on the disk when it returns. OSError when it is not: it may be there all the same, after a crash."""
        file = self._file
        assert file is not None
        self.number += 1
        octets = contents[0] if len(contents) == 1 else b"".join(contents)
        numbered = _NUMBERED.pack(self.number, len(head), len(octets))
        crc = zlib.crc32(octets, zlib.crc32(head, zlib.crc32(numbered)))
        pieces = [_MAGIC, self.key, crc.to_bytes(4, "little"), numbered, head, octets]
        size = _HEADER.size + len(head) + len(octets)
        pieces.append(bytes(-size % _BLOCK_BYTES))
        size += len(pieces[-1])
        start = _BLOCK_BYTES + self._half * HALF_BYTES + self._at
        written = os.pwritev(file, pieces, start, _DSYNC)
        if written < size:
            raise OSError(f"the disk took {written} of {size} octets")
        self._at += size

    def turn(self) -> None:
        """To the other half, whose records are all in the database."""
        self._half, self._at = 1 - self._half, 0

    def read(self) -> tuple[bytes, list[Record]]:
        """For a file that was left: its key, and its records in order, (number, head, contents). OSError when it cannot be."""
        try:
            with open(self.path, "rb") as file:
                octets = memoryview(file.read())
        except FileNotFoundError:
            return b"", []
        if bytes(octets[:4]) != _MAGIC:
            # Its making was cut off.
            return b"", []
        key = bytes(octets[4 : 4 + _KEY_BYTES])
        found = {record[0]: record for record in _records(octets[_BLOCK_BYTES:], key)}
        return key, [found[number] for number in sorted(found)]

    def close(self, *, is_needed: bool = False) -> None:
        """Gives the file up, and removes it unless it `is_needed`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not is_needed:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def _records(octets: memoryview, key: bytes) -> Iterator[Record]:
    """All there are, also behind damage."""
    at = 0
    mark = _MAGIC + key
    while at + _HEADER.size <= len(octets):
        end = at
        if octets[at : at + len(mark)] == mark:
            _, _, crc, number, head_bytes, content_bytes = _HEADER.unpack_from(octets, at)
            body = at + _HEADER.size
            end = body + head_bytes + content_bytes
            if end <= len(octets) and zlib.crc32(octets[at + _CRC_AT + 4 : end]) == crc:
                yield number, bytes(octets[body : body + head_bytes]), octets[body + head_bytes : end]
            else:
                end = at
        at = max(end + -(end - at) % _BLOCK_BYTES, at + _BLOCK_BYTES)
