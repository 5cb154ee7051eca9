"""server.pid in the data directory: which process is the server, held locked while it runs.

The queue has locks of its own; this one is for people and for `pillarbox reload`.
"""

from __future__ import annotations

import fcntl
import os

from ..config.files import check_folder
from ..errors import StoreError, StoreLockedError

NAME = "server.pid"


def claim(folder: str) -> int:
    """Locks the file and writes our pid; keep the descriptor open. StoreLockedError when a server has it."""
    check_folder(folder)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        handle = os.open(os.path.join(folder, NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"cannot use the data directory {folder}: {error.strerror}; see --data-dir") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = _read(handle)
        os.close(handle)
        raise StoreLockedError(
            f"a server (pid {owner or 'unknown'}) runs on {folder}: stop it, or use another --data-dir"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def running_pid(folder: str) -> int | None:
    """The server that runs on a data directory, None when there is none."""
    try:
        handle = os.open(os.path.join(folder, NAME), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{os.path.join(folder, NAME)} cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read(handle)
    finally:
        os.close(handle)
    return None


def _read(handle: int) -> int | None:
    text = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None
