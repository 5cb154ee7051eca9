"""The data directory of one worker: its folders, and the lock that says that nobody else works there."""

from __future__ import annotations

import fcntl
import os
import stat

from ..errors import StoreError, StoreLockedError


def make_folder(folder: str) -> None:
    """Makes it, for this user alone, where it is missing. StoreError says why it cannot be."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the data directory {folder}: {error.strerror}; see --data-dir") from error


def make_spool(folder: str) -> None:
    """As make_folder. StoreError when it is somebody else's, or leads elsewhere: mail would be written there (row 135)."""
    make_folder(folder)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        what = "is a symbolic link" if stat.S_ISLNK(found.st_mode) else "is not a folder of this user's"
        raise StoreError(f"the spool {folder} {what}: remove it, the server makes its own")
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(folder, 0o700)


def take_lock(path: str, folder: str) -> int:
    """The lock's descriptor: closing it gives the lock up. StoreLockedError names who has it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}; see --data-dir") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 32).decode("ascii", "replace").strip()
        os.close(lock)
        raise StoreLockedError(
            f"a server (pid {owner or 'unknown'}) runs on {folder}: stop it, or use another --data-dir"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock
