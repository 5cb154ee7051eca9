"""A store that says yes and forgets: lets a benchmark tell the disk from the protocol. Loses all mail, on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from .memory import MemoryStore
from .model import Message, Settlement


class NullStore:
    """Accepts everything, has nothing; the rest of the contract is an empty MemoryStore's."""

    is_inline = True
    suits_loop = True
    wants_maintenance = wants_preparing = is_behind = maintains_beside = False

    def __init__(self, spool: str = "") -> None:
        self.spool = spool
        empty = MemoryStore(spool)
        self.open, self.close, self.transaction = empty.open, empty.close, empty.transaction
        self.claim, self.renew, self.recover = empty.claim, empty.renew, empty.recover
        self.get, self.content, self.search, self.change = empty.get, empty.content, empty.search, empty.change
        self.count = empty.count
        self.wake, self.counts, self.next_due = empty.wake, empty.counts, empty.next_due
        self.next_hops, self.nodes, self.health = empty.next_hops, empty.nodes, empty.health
        self.flag, self.set_flag, self.purge, self.spool_names = (
            empty.flag,
            empty.set_flag,
            empty.purge,
            empty.spool_names,
        )
        self.maintain, self.prepare = empty.maintain, empty.prepare
        self.claim_expired, self.lost, self.bound_times = empty.claim_expired, empty.lost, empty.bound_times
        self.envelope, self.restore = empty.envelope, lambda batch, now: self.accept(batch)
        self._count = 0

    def reader(self) -> NullStore:
        """Itself."""
        return self

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """Yes."""
        self.accept(accepts)

    def try_commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> bool:
        """Yes."""
        self.accept(accepts)
        return True

    def settle(self, batch: Sequence[Settlement]) -> set[tuple[int, int]]:
        """Yes."""
        return set()

    def accept(self, batch: Sequence[Message]) -> None:
        """Counts, no more."""
        for message in batch:
            self._count += 1
            message.key = self._count
