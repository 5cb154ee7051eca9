"""From root to somebody else, once the ports below 1024 are bound."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from dataclasses import dataclass

from ..errors import OptionError


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
    os.initgroups(identity.name, identity.gid)
    os.setgid(identity.gid)
    os.setuid(identity.uid)
    if identity.uid and os.getuid() == 0:
        raise OptionError(f"option 'user': still root after becoming {identity.name}")
    program = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path in (program, sys.executable):
        if not os.access(path, os.R_OK | os.X_OK):
            raise OptionError(
                f"option 'user': {identity.name} cannot read the program at {path}: install it where that user may, such as /opt"
            )
    # Files of before are not this user's to see.
    os.environ.pop("HOME", None)
