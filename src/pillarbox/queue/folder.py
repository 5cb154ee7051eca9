"""The data directory of one worker: its folders, and the lock that says that nobody else works there."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
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
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        raise StoreError(f"the spool {folder} is {what}: expected a folder; it may hold queued messages, move it aside")
    if found.st_uid != os.geteuid():
        # The spool holds every queued message above 128 KB: it is never to be removed.
        owner, me = _user(found.st_uid), _user(os.geteuid())
        top = os.path.dirname(os.path.abspath(folder))
        raise StoreError(
            f"the spool {folder} belongs to {owner}, this process is {me}: start the server as {owner} (or with the option "
            f"user = {owner!r}), or give the queue to {me} with `chown -R {me} {top}`"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(folder, 0o700)


def make_private_file(path: str, *, is_new_allowed: bool) -> None:
    """Makes the file, where it is missing, and gives it mode 0600. Never follows a link (hostile row 135).

    FileNotFoundError when it is missing and not `is_new_allowed`; StoreError when it is a link, or of another user.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if is_new_allowed else 0)
    try:
        handle = os.open(path, flags, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        what = "is a symbolic link" if error.errno in (errno.ELOOP, errno.EMLINK) else error.strerror
        raise StoreError(f"cannot open {path}: {what}") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise StoreError(
                f"cannot open {path}: expected a file of {_user(os.geteuid())}, found one of {_user(found.st_uid)}"
            )
        if stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


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
