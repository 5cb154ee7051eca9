"""The Store protocol: what a store must do. One contract test suite runs for every store.

A store is blocking and used by one thread at a time; `queue.commit.GroupCommit` makes one transaction of what came
meanwhile, in the loop's thread or in one of its own. Everything done within `transaction()` is durable when the block is
left, or undone when it is left by an exception.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..mail.content import Content
from ..mail.envelope import Envelope
from .clocks import Bounds
from .model import Action, Message, Query, Settlement, View


class Reader(Protocol):
    """The verbs that only look, for another thread than the writer's."""

    def get(self, uid: str) -> View | None:
        """One message with all its recipients and attempts."""

    def content(self, uid: str) -> Content | None:
        """The content of a message that is not final, or None."""

    def envelope(self, uid: str) -> Envelope | None:
        """Its reverse-path and parameters, as they came; recipients are in its View."""

    def search(self, query: Query) -> list[View]:
        """Messages, oldest first, with all their recipients, without attempts."""

    def count(self, query: Query) -> int:
        """Returns the number of messages that a query selects, whatever its limit."""

    def counts(self) -> dict[str, int]:
        """Recipients by state."""

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """(next hop, state, recipients, earliest due time) of what is not final, the most first."""

    def flag(self, name: str) -> str | None:
        """A control flag, such as "paused"."""

    def nodes(self) -> list[dict[str, Any]]:
        """Who works on this queue, where it may be more than one server: id, name, version, beat_at, in_hand, ..."""

    def health(self) -> dict[str, float]:
        """What those who run the store's database watch, by name; empty where there is nothing to watch."""

    def close(self) -> None:
        """Gives up what it holds."""


class Store(Protocol):
    """See the module's text. Every time is a unix time in seconds that the caller passes in."""

    is_inline: bool
    """True for a store that never waits for a disk: it is used in the loop's own thread."""

    suits_loop: bool
    """True for a store whose small commits are so quick that the loop's own thread may do them."""

    @property
    def is_behind(self) -> bool:
        """True when there are commits that readers do not see yet: the next transaction, or `maintain`, brings them."""

    @property
    def wants_maintenance(self) -> bool:
        """True when `maintain` has work to do."""

    @property
    def maintains_beside(self) -> bool:
        """True when `maintain` may run in one thread while another one is in `try_commit`."""

    def maintain(self) -> None:
        """Work that belongs between two transactions (a checkpoint)."""

    @property
    def wants_preparing(self) -> bool:
        """True when `prepare` has work to do."""

    def prepare(self) -> None:
        """Work that takes its time and is in nobody's way: it may run beside everything else. Then it is not wanted any more."""

    def reader(self) -> Reader:
        """A reader for one other thread."""

    def open(self) -> None:
        """Opens or makes the store, and takes it for this process. StoreLockedError when another has it."""

    def close(self) -> None:
        """Gives it up; nothing is lost."""

    def transaction(self) -> AbstractContextManager[None]:
        """One durable commit for what is done inside. StoreFullError when the disk is full, StoreError else."""

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """`accept` and `settle` in a transaction of their own: the way of nearly all mail. Not inside transaction()."""

    def try_commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> bool:
        """As `commit`, for the loop's own thread, where the store `suits_loop`. False: not done, it is for `commit`."""

    def accept(self, batch: Sequence[Message]) -> None:
        """Takes messages; sets each one's `key`. DuplicateUidError for a uid that is there.

        A message with `leased_until` is in the caller's hands from the start, as if it had been claimed at once.
        """

    def restore(self, batch: Sequence[Message], now: float) -> None:
        """Takes messages that another queue had, as they were there: states, due times, tries, `attempts`; in nobody's hands.

        Sets each one's `key`. DuplicateUidError for a uid that is there.
        """

    def claim(
        self, limit: int, now: float, lease_until: float, max_content_bytes: int, skip: Collection[str] = ()
    ) -> list[Message]:
        """Up to `limit` messages that are due, each with its due recipients, leased until then.

        Recipients whose next hop is in `skip` stay where they are: it takes no more, and must not stand before others.
        """

    def claim_expired(
        self, limit: int, now: float, lease_until: float, only: Collection[str] | None = None
    ) -> list[Message]:
        """As `claim`, but only messages whose time is over: they are given up even if their next hop never comes back.

        `only` names the next hops that are down: what waits for any other has a last attempt still (None: all are).
        """

    def settle(self, batch: Sequence[Settlement]) -> set[tuple[int, int]]:
        """Outcomes of attempts. What was cancelled or held meanwhile stays so, unless it was delivered.

        Those that came too late, (key, recipient's number): somebody else of a shared queue has them, and they are history only.
        """

    def renew(self, keys: Collection[int], lease_until: float) -> None:
        """The work on these messages goes on: their leases last until then."""

    def lost(self, keys: Collection[int]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Of what is in hand of these messages, (key, recipient's number): what is not so any more, and what is not to be sent.

        Only other servers of a shared queue can bring that about.
        """

    def recover(self, now: float) -> int:
        """After a crash: leases without outcome are recorded as ambiguous and due at once. How many there were."""

    def bound_times(self, bounds: Bounds) -> int:
        """Mends times that a wrong wall clock has left (queue.clocks). Returns the number of recipients and messages.

        Recipients that are due later than the longest pause from now are due now; messages whose age cannot be right begin
        anew. Leases keep their end.
        """

    def get(self, uid: str) -> View | None:
        """One message with all its recipients and attempts."""

    def content(self, uid: str) -> Content | None:
        """The content of a message that is not final, or None."""

    def envelope(self, uid: str) -> Envelope | None:
        """See Reader."""

    def search(self, query: Query) -> list[View]:
        """Messages, oldest first, with all their recipients, without attempts."""

    def change(self, action: Action, query: Query, now: float) -> list[str]:
        """Holds, releases, retries, reroutes or cancels what the query means; the uids of what was changed."""

    def wake(self, next_hop: str, stages: Collection[str], now: float) -> int:
        """What was deferred for a fault of this next hop as a whole, or never tried, is due now; how many recipients."""

    def counts(self) -> dict[str, int]:
        """Recipients by state."""

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """(next hop, state, recipients, earliest due time) of what is not final, the most first."""

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """When the next recipient is due whose next hop is not in `skip`, or None."""

    def flag(self, name: str) -> str | None:
        """A control flag, such as "paused"."""

    def set_flag(self, name: str, value: str | None) -> None:
        """Sets or removes a control flag."""

    def nodes(self) -> list[dict[str, Any]]:
        """See Reader."""

    def purge(self, finished_before: float, keep: int, limit: int) -> list[str]:
        """Forgets finished messages older than that, and all but the last `keep`; at most `limit` at a time.

        Returns the names of spool files that nothing needs any longer (also those of messages finished since the last
        call).
        """

    def spool_names(self) -> set[str]:
        """The spool files that unfinished messages need."""
