"""Room on the disk: below the reserve no mail is begun, so that what was begun can be ended (RFC 1870 section 6)."""

from __future__ import annotations

import logging
import os

_log = logging.getLogger("pillarbox.listener")


class Room:
    """Looks at a folder's file system, when it is asked to; `is_enough` is what the last look said.

    A queue that is away has no room either: `is_away`.
    """

    def __init__(self, folder: str, reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self.is_enough = True
        self._has_room = True
        self.is_away = False

    def set_away(self, is_away: bool) -> None:
        """The queue's database is away, or back."""
        self.is_away = is_away
        self.is_enough = self._has_room and not is_away

    def look(self) -> None:
        """Once a second; a change is told of."""
        if not self._reserve_bytes:
            return
        try:
            found = os.statvfs(self._folder)
        except OSError:
            # No folder, no verdict: whoever writes there finds out.
            return
        free = found.f_bavail * found.f_frsize
        # File systems without a number of inodes say 0 of 0.
        has_inodes = found.f_files == 0 or found.f_favail > 0
        is_enough = free >= self._reserve_bytes and has_inodes
        if is_enough != self._has_room:
            self._has_room = is_enough
            self.is_enough = is_enough and not self.is_away
            if is_enough:
                _log.warning("there is room again in %s: mail is taken", self._folder)
            else:
                what = (
                    f"{free} octets are left, {self._reserve_bytes} are kept in reserve"
                    if has_inodes
                    else "no inode is left"
                )
                _log.error("no room in %s (%s): mail is refused with 452 until there is", self._folder, what)
