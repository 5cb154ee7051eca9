"""Who may read our secrets, and who may write where the queue is: owners and modes of files and folders.

Every check of that kind is here. Must not change anything.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator

from ..errors import StoreError


def exposed_text(path: str | os.PathLike[str], what: str) -> str | None:
    """Says that every user may read or write a secret, and how to mend it; None where that is not so, or no file is there.

    A group may read it: root:pillarbox 0640 is how a service is given a secret.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if not stat.S_ISREG(mode) or not mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    verb = "read" if mode & stat.S_IROTH else "write"
    return f"every user may {verb} {what} in {path} (mode {stat.S_IMODE(mode):04o}): chmod o-rwx {path}"


def open_folder_text(path: str) -> str | None:
    """Says that every user may write a folder whose code is run; None where that is not so, or no folder is there."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if not mode & stat.S_IWOTH:
        return None
    return f"every user may write {path} (mode {stat.S_IMODE(mode):04o}), whose code the server runs: chmod o-w {path}"


def check_folder(folder: str) -> list[str]:
    """Checks a data directory that is there. StoreError where it is another user's, or every user may write there.

    Returns what is wrong with the folders above it: their owners could put another folder in its place.
    """
    try:
        found = os.stat(folder)
    except OSError:
        return []
    me = os.geteuid()
    if found.st_uid not in _trusted():
        owner = user_name(found.st_uid)
        raise StoreError(
            f"the data directory {folder} belongs to {owner}, this process is {user_name(me)}: start the server as {owner} "
            f"(or with the option user = {owner!r}), or `chown -R {user_name(me)} {folder}` if nobody else prepared it"
        )
    if found.st_mode & stat.S_IWOTH:
        raise StoreError(
            f"every user may write the data directory {folder} (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 {folder}, "
            "and look what others have put there"
        )
    return list(_above(os.path.realpath(folder)))


def _above(folder: str) -> Iterator[str]:
    trusted = _trusted()
    while (parent := os.path.dirname(folder)) != folder:
        folder = parent
        try:
            found = os.stat(folder)
        except OSError:
            continue
        if found.st_uid not in trusted:
            yield f"{folder}, above the data directory, belongs to {user_name(found.st_uid)}, who could replace it"
        elif found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            yield f"every user may write {folder}, above the data directory, and could replace it: chmod o-w {folder}"


def _trusted() -> set[int]:
    # Within a user namespace root is whoever owns the root folder.
    return {0, os.geteuid(), os.stat("/").st_uid}


def user_name(uid: int) -> str:
    """The name of a user, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
