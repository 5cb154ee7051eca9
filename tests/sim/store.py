"""A disk, or a database of many nodes, that outlives the machines that use it; and fails them as the seed says.

What a transaction does is there as a whole once it is committed, or not at all. One server has a disk to itself; nodes
of a cluster share a database, with leases, heart-beats and slots as queue.postgres has them.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from pillarbox.errors import CommitInDoubtError, StoreError
from pillarbox.queue.clocks import Bounds
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import IN_HAND, Action, Attempt, Message, Query, Settlement
from pillarbox.queue.paused import PAUSED, PAUSED_HOPS
from pillarbox.queue.pgconnect import StoreAwayError
from pillarbox.queue.pgnode import News
from pillarbox.queue.slots import HORIZON_S, REFRESH_S

from .loop import Machine, SimLoop

Lease = tuple[int, int]


class Disk:
    """What is durable. `ambiguous` counts, by (uid, recipient), the attempts that nobody knows the end of."""

    def __init__(self, loop: SimLoop, rng: random.Random, *, is_shared: bool, lease_s: float) -> None:
        self.loop = loop
        self.rng = rng
        self.is_shared = is_shared
        self.lease_s = lease_s
        self.db = MemoryStore()
        # Of a cluster: who has what in hand, and until when each node lives.
        self.owners: dict[Lease, tuple[int, int]] = {}
        self.lease_until: dict[Lease, float] = {}
        self.alive_until: dict[int, float] = {}
        self.slots: dict[tuple[str, int], tuple[int, int]] = {}
        self.pace: dict[str, float] = {}
        self.stores: list[SimStore] = []
        self.violations: list[str] = []
        self.last_node = self.last_epoch = 0
        # Told by the world: does this node send that at this moment?
        self.is_at_it: Callable[[SimStore, Lease], bool] = lambda store, lease: False
        # Chances: a transaction fails; its answer is lost, with it done or not done, and nobody can tell.
        self.fails = self.in_doubt = 0.0
        self.commits = 0

    def now(self) -> float:
        """The database's clock, which nobody's skew changes."""
        return 1_800_000_000.0 + self.loop.now

    def save(self) -> Any:
        """What an undone transaction leaves."""
        db = self.db
        recipients = {
            key: [copy.copy(r) for r in m.recipients] for key, m in db._messages.items() if key not in db._finished
        }
        state = (db._messages, db._finished, db._flags, self.owners, self.lease_until, self.slots)
        attempts = {key: len(found) for key, found in db._attempts.items()}
        return [dict(one) for one in state], recipients, attempts

    def restore(self, saved: Any) -> None:
        """Undone."""
        db = self.db
        (db._messages, db._finished, db._flags, self.owners, self.lease_until, self.slots), recipients, attempts = saved
        for key, those in recipients.items():
            db._messages[key].recipients = those
        db._attempts = {key: found[: attempts[key]] for key, found in db._attempts.items() if key in attempts}

    def free(self, lease: Lease, why: str) -> None:
        """Whoever had it does not settle it: it may have been sent."""
        key, number = lease
        owner = self.owners.pop(lease)[0]
        self.lease_until.pop(lease)
        if owner in self.alive_until and self.alive_until[owner] > self.now():
            store = next(s for s in self.stores if s.me == owner)
            if not store.was_cut_off:
                self.violations.append(f"{key}/{number} was taken from node {owner}, which lives and is at it ({why})")
        message = self.db._messages[key]
        for r in message.recipients:
            if r.number == number:
                r.is_leased = False
                self.db._attempts[key].append(
                    Attempt(number, self.now(), 0, "ambiguous", r.next_hop, None, None, IN_HAND)
                )
                if r.due_at is not None:
                    r.due_at, r.attempts = self.now(), r.attempts + 1
        self.db._finish(message, self.now())

    def reap(self) -> int:
        """The leases of the dead, and such as nobody has renewed, are anybody's."""
        now = self.now()
        for node in [node for node, until in self.alive_until.items() if until < now]:
            del self.alive_until[node]
        self.slots = {key: value for key, value in self.slots.items() if key[1] in self.alive_until}
        lost = [
            lease
            for lease, (owner, _) in self.owners.items()
            if owner not in self.alive_until or self.lease_until[lease] < now
        ]
        for lease in lost:
            self.free(lease, "nobody renewed it" if self.lease_until[lease] < now else "its owner is dead")
        return len(lost)


class Pulse:
    """A node's heart (queue.pgnode.Heart): beats every third of the lease."""

    def __init__(self, store: SimStore) -> None:
        self.tell: Callable[[Any], None] = lambda news: None
        self.on_away: Callable[[bool], None] = lambda is_away: None
        self.on_unfit: Callable[[str], None] = lambda why: None
        self.counters = {"takeovers": 0, "late_settles": 0}
        self._store = store
        self._alive_until = 0.0
        self._is_away = False
        self._timer: Any = None

    @property
    def is_alive(self) -> bool:
        """By this machine's own measure."""
        return self._store.disk.loop.now < self._alive_until

    def beat(self) -> None:
        """Once; and again in a while."""
        store, disk = self._store, self._store.disk
        self._timer = disk.loop.call_later(disk.lease_s / 3, self.beat)
        if store.is_cut_off:
            if not self._is_away:
                self._is_away = True
                self.on_away(True)
            return
        was_dead = not self.is_alive or store.me not in disk.alive_until
        disk.alive_until[store.me] = disk.now() + disk.lease_s
        self._alive_until = disk.loop.now + disk.lease_s
        self.counters["takeovers"] += disk.reap()
        if self._is_away:
            self._is_away = False
            self.on_away(False)
        self.tell(News(disk.db.flag(PAUSED) is not None, disk.db.flag(PAUSED_HOPS), was_dead))

    def stop(self) -> None:
        """No more."""
        if self._timer is not None:
            self._timer.cancel()


class SimStore:
    """One incarnation's way to its disk. See queue.store.Store; of a shared one also slots.Lender and follow.Pulse."""

    is_inline = False
    suits_loop = False
    wants_maintenance = wants_preparing = is_behind = maintains_beside = False
    spool = ""

    def __init__(self, disk: Disk, machine: Machine) -> None:
        self.disk = disk
        self.machine = machine
        self.db = disk.db
        self.me = 0
        self.heart = Pulse(self)
        self.is_cut_off = False
        # It was away from the database, or stopped, for longer than its lease may last.
        self.was_cut_off = False
        self._hands: dict[Lease, int] = {}
        self._doubtful: dict[Lease, tuple[int, int]] = {}
        for name in (
            "get",
            "content",
            "search",
            "count",
            "counts",
            "next_hops",
            "flag",
            "nodes",
            "health",
            "spool_names",
        ):
            setattr(self, name, getattr(disk.db, name))

    def open(self) -> None:
        """Of a shared one: a new node."""
        self.disk.stores.append(self)
        if self.disk.is_shared:
            self.disk.last_node += 1
            self.me = self.disk.last_node
            self.heart.beat()

    def close(self) -> None:
        """What is in hand still is anybody's."""
        if self.disk.is_shared:
            self.heart.stop()
            self.disk.alive_until.pop(self.me, None)
            if not self.is_cut_off:
                self.disk.reap()

    def reader(self) -> SimStore:
        """Itself."""
        return self

    def maintain(self) -> None:
        """Nothing to do."""

    prepare = maintain

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """As a whole, or not at all."""
        disk, rng = self.disk, self.disk.rng
        if self.is_cut_off:
            raise StoreAwayError("the database cannot be reached")
        fate = rng.random()
        if fate < disk.fails / 2:
            raise StoreError("the disk has a bad moment")
        self._free_doubtful()
        saved, hands = disk.save(), dict(self._hands)
        try:
            yield
            if fate < disk.fails:
                raise StoreError("the disk fails at the commit")
            if disk.is_shared and fate < disk.fails + disk.in_doubt / 2:
                raise CommitInDoubtError("what became of it cannot be told: nothing")
        except BaseException:
            disk.restore(saved)
            self._hands = hands
            raise
        disk.commits += 1
        if disk.is_shared and fate < disk.fails + disk.in_doubt:
            # What it took nobody knows of, until the database answers.
            self._doubtful |= {lease: owner for lease, owner in disk.owners.items() if saved[0][3].get(lease) != owner}
            self._hands = hands
            raise CommitInDoubtError("what became of it cannot be told: it is done")

    @property
    def is_in_doubt(self) -> bool:
        """See PostgresStore."""
        return bool(self._doubtful)

    def _free_doubtful(self) -> None:
        """As Session._free_doubtful: free, and not tried."""
        doubtful, self._doubtful = self._doubtful, {}
        for lease, owner in doubtful.items():
            if self.disk.owners.get(lease) == owner:
                del self.disk.owners[lease], self.disk.lease_until[lease]
                for r in self.db._messages[lease[0]].recipients:
                    if r.number == lease[1] and r.is_leased:
                        r.is_leased, r.due_at = False, self.disk.now() if r.due_at is not None else None
                self.db._finish(self.db._messages[lease[0]], self.disk.now())

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """Both, in a transaction."""
        with self.transaction():
            self.accept(accepts)
            self.settle(settles)

    def _leased(self, messages: Sequence[Message], now: float | None = None) -> None:
        """The caller's times count as so long from its `now`, and from when a message was received."""
        if not self.disk.is_shared:
            return
        self.disk.last_epoch += 1
        for message in messages:
            for r in message.recipients:
                lease = (message.key, r.number)
                for store in self.disk.stores:
                    if not store.machine.is_dead and not store.was_cut_off and self.disk.is_at_it(store, lease):
                        self.disk.violations.append(f"{lease} is taken by node {self.me}, and node {store.me} is at it")
                self._hands[lease] = self.disk.last_epoch
                self.disk.owners[lease] = (self.me, self.disk.last_epoch)
                self.disk.lease_until[lease] = (
                    self.disk.now() + (message.leased_until or 0.0) - (message.received_at if now is None else now)
                )

    def accept(self, batch: Sequence[Message]) -> None:
        """See Store."""
        self.db.accept(batch)
        self._leased([m for m in batch if m.leased_until is not None and not m.is_held])

    def claim(
        self, limit: int, now: float, lease_until: float, max_content_bytes: int, skip: Collection[str] = ()
    ) -> list[Message]:
        """See Store."""
        return self._claimed(
            lambda at, until: self.db.claim(limit, at, until, max_content_bytes, skip), now, lease_until
        )

    def claim_expired(
        self, limit: int, now: float, lease_until: float, only: Collection[str] | None = None
    ) -> list[Message]:
        """See Store."""
        return self._claimed(lambda at, until: self.db.claim_expired(limit, at, until, only), now, lease_until)

    def _claimed(self, claim: Callable[[float, float], list[Message]], now: float, lease_until: float) -> list[Message]:
        if not self.disk.is_shared:
            return claim(now, lease_until)
        if not self.heart.is_alive:
            return []
        at = self.disk.now()
        # What somebody has in hand is nobody else's, however late it is: that is for `reap`.
        hidden = []
        for key, number in self.disk.owners:
            for r in self.db._messages[key].recipients:
                if r.number == number and r.due_at is not None:
                    hidden.append((r, r.due_at))
                    r.due_at = None
        try:
            claimed = claim(at, at + lease_until - now)
        finally:
            for r, due_at in hidden:
                r.due_at = due_at
        self._leased(claimed, at)
        return claimed

    def settle(self, batch: Sequence[Settlement]) -> set[Lease]:
        """See Store. Of a shared one: what comes with an old lease is history, and nothing else."""
        if not self.disk.is_shared:
            return self.db.settle(batch)
        late = set()
        for one in batch:
            mine = []
            if one.epochs is None:
                one.epochs = [self._hands.get((one.key, s.number), -1) for s in one.recipients]
            epochs = {s.number: epoch for s, epoch in zip(one.recipients, one.epochs, strict=True)}
            for s in one.recipients:
                lease = (one.key, s.number)
                # As first tried: what is claimed anew meanwhile is another's.
                epoch = epochs[s.number]
                if self._hands.get(lease, -1) == epoch:
                    self._hands.pop(lease, None)
                if self.disk.owners.get(lease) == (self.me, epoch):
                    mine.append(s)
                    del self.disk.owners[lease], self.disk.lease_until[lease]
                    continue
                late.add(lease)
                self.heart.counters["late_settles"] += 1
                if s.is_attempt:
                    text = f"too late, another node had it: {s.reply}"
                    self.db._attempts[one.key].append(
                        Attempt(s.number, s.started_at, s.seconds, "ambiguous", s.next_hop, s.remote, s.stage, text)
                    )
            at = self.disk.now()
            for s in mine:
                if s.due_at is not None:
                    s.due_at = at + s.due_at - one.at
            self.db.settle([Settlement(one.key, mine, at)])
        return late

    def renew(self, keys: Collection[int], lease_until: float) -> None:
        """See Store."""
        if not self.disk.is_shared:
            self.db.renew(keys, lease_until)
            return
        for lease, (owner, _) in self.disk.owners.items():
            if owner == self.me and lease[0] in keys:
                self.disk.lease_until[lease] = self.disk.now() + lease_until - self.disk.loop.wall()

    def bound_times(self, bounds: Bounds) -> int:
        """See Store. A shared queue has its database's clock."""
        if not self.disk.is_shared:
            return self.db.bound_times(bounds)
        now = self.disk.now()
        return self.db.bound_times(Bounds(now, now + bounds.latest_due_at - bounds.now))

    def recover(self, now: float) -> int:
        """See Store."""
        return self.heart.counters["takeovers"] if self.disk.is_shared else self.db.recover(now)

    def lost(self, keys: Collection[int]) -> tuple[set[Lease], set[Lease]]:
        """As PostgresStore.lost."""
        held = {lease for lease in self._hands if lease[0] in keys}
        lost = {lease for lease in held if self.disk.owners.get(lease, (0, 0))[0] != self.me}
        for lease in lost:
            del self._hands[lease]
        steered = set()
        for key, number in held - lost:
            states = {r.number: r.state for r in self.db._messages[key].recipients}
            if states[number] not in ("queued", "deferred"):
                steered.add((key, number))
        return lost, steered

    def change(self, action: Action, query: Query, now: float) -> list[str]:
        """See Store."""
        return self.db.change(action, query, self.disk.now() if self.disk.is_shared else now)

    def wake(self, next_hop: str, stages: Collection[str], now: float) -> int:
        """See Store."""
        return self.db.wake(next_hop, stages, self.disk.now() if self.disk.is_shared else now)

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """See Store."""
        if not self.disk.is_shared:
            return self.db.next_due(skip)
        leased = self.disk.owners
        found = [
            r.due_at
            for m in self.db._messages.values()
            for r in m.recipients
            if r.due_at is not None and r.next_hop not in skip and (m.key, r.number) not in leased
        ]
        return min(found) - self.disk.now() + self.disk.loop.wall() if found else None

    def set_flag(self, name: str, value: str | None) -> None:
        """See Store."""
        self.db.set_flag(name, value)

    def purge(self, finished_before: float, keep: int, limit: int) -> list[str]:
        """History is what is counted at the end: none of it is forgotten."""
        return []

    def lease_slots(self, wants: dict[str, tuple[int, int]], limit: int) -> dict[str, int]:
        """As the SQL of queue.slots: what is in use stays, a fair part beyond it where others are hungry."""
        granted: dict[str, int] = {}
        for hop, (wanted, used) in wants.items():
            others = [value for (name, node), value in self.disk.slots.items() if name == hop and node != self.me]
            taken = sum(slots for slots, _ in others)
            hungry = any(want > slots for slots, want in others)
            wanting = sum(want > 0 for _, want in others)
            part = max(limit // (wanting + 1), 1) if hungry else limit
            granted[hop] = max(used, min(wanted, limit - taken, part), 0)
            if granted[hop] or wanted:
                self.disk.slots[(hop, self.me)] = (granted[hop], wanted)
            else:
                self.disk.slots.pop((hop, self.me), None)
        return granted

    def lease_turns(self, wants: dict[str, int], interval_s: float) -> dict[str, tuple[float, int]]:
        """As its SQL: each node that has mail gets its part of what the rate allows until the horizon."""
        now, leased = self.disk.now(), {}
        for hop, wanted in wants.items():
            start = min(max(self.disk.pace.get(hop, 0.0), now), now + HORIZON_S + interval_s)
            slots = self.disk.slots.items()
            others = sum(name == hop and node != self.me and has > 0 for (name, node), (has, _) in slots)
            part = math.ceil(REFRESH_S / interval_s / (others + 1)) if others else wanted
            count = max(min(wanted, math.floor((now + HORIZON_S - start) / interval_s) + 1, part), 0)
            leased[hop] = (start - now, count)
            if count:
                self.disk.pace[hop] = start + count * interval_s
        return leased
