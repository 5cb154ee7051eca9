"""Work that waits in memory for one next hop, bounded in messages and octets; tells when it has room again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from ..queue.work import Work


class WaitingLine:
    """First in, first out. `wake` is called when half of it is free, once somebody has been told that it is full."""

    def __init__(self, max_messages: int, max_bytes: int, wake: Callable[[], None]) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._wake = wake
        # To be looked at: whether there is any is asked several times for each message.
        self.works: deque[Work] = deque()
        self._bytes = 0
        self._was_full = False

    def change(self, max_messages: int) -> None:
        """Another bound; what is there stays."""
        self._max_messages = max_messages

    def __len__(self) -> int:
        return len(self.works)

    def has_room(self) -> bool:
        """False while enough waits."""
        if len(self.works) < self._max_messages and self._bytes <= self._max_bytes:
            return True
        self._was_full = True
        return False

    def push(self, work: Work) -> None:
        """At the end; also beyond the bound, for what is there already."""
        self.works.append(work)
        self._bytes += _size(work)

    def push_first(self, work: Work) -> None:
        """What was popped, and has not begun."""
        self.works.appendleft(work)
        self._bytes += _size(work)

    def pop(self) -> Work:
        """The first."""
        work = self.works.popleft()
        self._bytes -= _size(work)
        if self._was_full:
            self._shrunk()
        return work

    def take(self, uids: Collection[str] | None = None) -> list[Work]:
        """Takes out the work for these messages, or (None) all of it."""
        taken = [work for work in self.works if uids is None or work.message.uid in uids]
        if taken:
            gone = {id(work) for work in taken}
            left = [work for work in self.works if id(work) not in gone]
            self.works.clear()
            self.works.extend(left)
            self._bytes = sum(map(_size, left))
            self._shrunk()
        return taken

    def _shrunk(self) -> None:
        is_low = len(self.works) <= self._max_messages // 2 and self._bytes <= self._max_bytes // 2
        if self._was_full and is_low:
            self._was_full = False
            self._wake()


def _size(work: Work) -> int:
    return len(work.message.content.prefix)
