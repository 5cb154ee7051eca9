"""From root to another user, for good: a server once its ports are bound, a command before it opens a data directory."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from dataclasses import dataclass

from ..errors import OptionError, StoreError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the server shall be."""

    name: str
    uid: int
    gid: int


def find_identity(text: str) -> Identity:
    """`USER` or `USER:GROUP`, by name or number. OptionError names the one that is not there."""
    user, _, group = text.partition(":")
    try:
        found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise OptionError(f"option 'user': there is no user {user!r}: make one, or name another") from None
    gid = found.pw_gid
    if group:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise OptionError(f"option 'user': there is no group {group!r}: make one, or name another") from None
    return Identity(found.pw_name, found.pw_uid, gid)


def become(identity: Identity, data_dir: str) -> None:
    """For good. The data directory is made for that user, if there is none yet. OptionError when it cannot be."""
    if os.geteuid() == identity.uid:
        return
    if os.geteuid() != 0:
        raise OptionError(
            f"option 'user': only root can become {identity.name}: start as root, or leave the option out"
        )
    if not os.path.isdir(data_dir):
        mask = os.umask(0o022)
        try:
            # That user has to get there.
            os.makedirs(os.path.dirname(os.path.abspath(data_dir)), exist_ok=True)
        finally:
            os.umask(mask)
        os.mkdir(data_dir, mode=0o700)
        os.chown(data_dir, identity.uid, identity.gid)
    elif os.stat(data_dir).st_uid != identity.uid:
        raise OptionError(
            f"the data directory {data_dir} is not {identity.name}'s: chown -R {identity.name} {data_dir}"
        )
    try:
        _change(identity)
    except StoreError as error:
        raise OptionError(f"option 'user': {error}") from None


def belongs_to_another(folder: str) -> bool:
    """True for root and a folder of another user."""
    try:
        return os.geteuid() == 0 and os.stat(folder).st_uid != 0
    except OSError:
        return False


def become_owner(folder: str) -> None:
    """Makes root the owner of a data directory of another user, for good. StoreError when that cannot be.

    Its owner may put links, other files and other process ids there: root must not open, change or signal what it leads to.
    """
    if not belongs_to_another(folder):
        return
    found = os.stat(folder)
    try:
        row = pwd.getpwuid(found.st_uid)
        identity = Identity(row.pw_name, row.pw_uid, row.pw_gid)
    except KeyError:
        identity = Identity(str(found.st_uid), found.st_uid, found.st_gid)
    try:
        _change(identity)
    except StoreError as error:
        raise StoreError(f"{folder} belongs to {identity.name}, root does not work there: {error}") from None


def _change(identity: Identity) -> None:
    try:
        if identity.name.isdigit():
            os.setgroups([])
        else:
            os.initgroups(identity.name, identity.gid)
        os.setgid(identity.gid)
        os.setuid(identity.uid)
    except OSError as error:
        raise StoreError(f"cannot become {identity.name}: {error.strerror}") from None
    if identity.uid and 0 in os.getresuid():
        raise StoreError(f"still root after becoming {identity.name}")
    program = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path in (program, sys.executable):
        if not os.access(path, os.R_OK | os.X_OK):
            raise StoreError(
                f"{identity.name} cannot read the program at {path}: install it where that user may, such as /opt"
            )
    # Files of before are not this user's to see.
    os.environ.pop("HOME", None)
