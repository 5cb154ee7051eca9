"""A store in memory, for tests: the same contract, nothing kept. Not for mail that matters."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ..errors import DuplicateUidError
from ..mail.content import Content
from ..mail.envelope import Envelope
from .clocks import Bounds
from .model import (
    ACTIVE,
    FINAL,
    IN_HAND,
    Action,
    Attempt,
    Message,
    Query,
    Recipient,
    Settled,
    Settlement,
    View,
    first_page,
    matches,
)


class MemoryStore:
    """See queue.store.Store. `spool` may name a folder for large contents."""

    is_inline = True
    suits_loop = True

    def __init__(self, spool: str = "") -> None:
        self.spool = spool
        self._messages: dict[int, Message] = {}
        self._attempts: dict[int, list[Attempt]] = {}
        self._finished: dict[int, float] = {}
        self._flags: dict[str, str] = {}
        self._last_key = 0
        self._dropped_spool: list[str] = []

    def open(self) -> None:
        """Makes the spool folder, if there is one."""
        if self.spool:
            os.makedirs(self.spool, mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Nothing to do."""

    def reader(self) -> MemoryStore:
        """Itself: everything happens in one thread."""
        return self

    wants_maintenance = wants_preparing = is_behind = maintains_beside = False

    def maintain(self) -> None:
        """Nothing to do."""

    prepare = maintain

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Undone as a whole by an exception, like a real one."""
        state = (self._messages, self._attempts, self._finished, self._flags)
        saved = copy.copy(state[0]), copy.copy(state[1]), copy.copy(state[2]), copy.copy(state[3])
        try:
            yield
        except BaseException:
            self._messages, self._attempts, self._finished, self._flags = saved
            raise

    def try_commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> bool:
        """See Store."""
        self.commit(accepts, settles)
        return True

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """Both, in a transaction of their own."""
        with self.transaction():
            self.accept(accepts)
            self.settle(settles)

    def accept(self, batch: Sequence[Message]) -> None:
        """Takes copies, so that the caller's objects may change."""
        known = {message.uid for message in self._messages.values()}
        for message in batch:
            if message.uid in known:
                raise DuplicateUidError("a message with this queue id is queued already: choose another uid")
            known.add(message.uid)
            self._last_key += 1
            message.key = self._last_key
            kept = copy.copy(message)
            leased = message.leased_until is not None
            due_at = message.leased_until if leased else message.due_at or message.received_at
            if message.is_held:
                due_at = None
            kept.recipients = [copy.copy(r) for r in message.recipients]
            for r in kept.recipients:
                r.due_at, r.is_leased = due_at, leased
            self._messages[kept.key] = kept
            self._attempts[kept.key] = []

    def restore(self, batch: Sequence[Message], now: float) -> None:
        """As they were."""
        due = [[r.due_at for r in message.recipients] for message in batch]
        self.accept(batch)
        for message, times in zip(batch, due, strict=True):
            for r, due_at in zip(self._messages[message.key].recipients, times, strict=True):
                r.due_at, r.is_leased = due_at, False
            self._attempts[message.key] = list(message.attempts)

    def claim(
        self, limit: int, now: float, lease_until: float, max_content_bytes: int, skip: Collection[str] = ()
    ) -> list[Message]:
        """Earliest due first."""
        return self._claim(lambda m, r: r.next_hop not in skip, limit, now, lease_until, max_content_bytes)

    def claim_expired(
        self, limit: int, now: float, lease_until: float, only: Collection[str] | None = None
    ) -> list[Message]:
        """Messages past their time."""

        def wanted(m: Message, r: Recipient) -> bool:
            return m.expires_at <= now and (only is None or (r.next_hop or "") in only)

        return self._claim(wanted, limit, now, lease_until, 1 << 26)

    def _claim(
        self,
        wanted: Callable[[Message, Recipient], bool],
        limit: int,
        now: float,
        lease_until: float,
        max_content_bytes: int,
    ) -> list[Message]:
        due = [
            (r.due_at, key)
            for key, message in self._messages.items()
            for r in message.recipients
            if r.due_at is not None and r.due_at <= now and wanted(message, r)
        ]
        claimed: list[Message] = []
        size = 0
        for key in dict.fromkeys(key for _, key in sorted(due)[:limit]):
            message = self._messages[key]
            mine = []
            for r in message.recipients:
                if r.due_at is not None and r.due_at <= now and wanted(message, r):
                    r.due_at, r.is_leased = lease_until, True
                    mine.append(copy.copy(r))
            taken = copy.copy(message)
            taken.recipients, taken.leased_until = mine, lease_until
            claimed.append(taken)
            size += len(message.content.prefix)
            if size > max_content_bytes:
                break
        return claimed

    def settle(self, batch: Sequence[Settlement]) -> set[tuple[int, int]]:
        """Outcomes."""
        for settlement in batch:
            message = self._messages[settlement.key]
            by_number = {r.number: r for r in message.recipients}
            for s in settlement.recipients:
                self._settle_one(by_number[s.number], s)
                if s.is_attempt:
                    attempt = Attempt(
                        s.number, s.started_at, s.seconds, s.outcome, s.next_hop, s.remote, s.stage, s.reply
                    )
                    self._attempts[settlement.key].append(attempt)
            self._finish(message, settlement.at)
        return set()

    @staticmethod
    def _settle_one(r: Recipient, s: Settled) -> None:
        is_steered = r.state not in ACTIVE
        r.is_leased = False
        r.attempts += s.is_attempt
        r.last_reply = s.reply or r.last_reply
        r.last_stage = s.stage or r.last_stage
        if is_steered:
            if s.state == "delivered" or (s.state in ("bounced", "expired") and r.state == "held"):
                r.state, r.due_at = s.state, None
            return
        r.state, r.due_at = s.state, s.due_at
        r.next_hop = s.next_hop or r.next_hop
        r.is_delay_reported = r.is_delay_reported or s.is_delay_reported

    def _finish(self, message: Message, now: float) -> None:
        if message.key in self._finished or any(r.state not in FINAL or r.is_leased for r in message.recipients):
            return
        self._finished[message.key] = now
        if message.content.path:
            self._dropped_spool.append(os.path.basename(message.content.path))

    def renew(self, keys: Collection[int], lease_until: float) -> None:
        """Moves the end of the leases."""
        for key in keys:
            for r in self._messages[key].recipients:
                if r.is_leased and r.due_at is not None:
                    r.due_at = lease_until

    def lost(self, keys: Collection[int]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Nothing: nobody else works here."""
        return set(), set()

    def recover(self, now: float) -> int:
        """Frees every lease."""
        count = 0
        for key, message in self._messages.items():
            for r in message.recipients:
                if r.is_leased:
                    self._attempts[key].append(Attempt(r.number, now, 0, "ambiguous", r.next_hop, None, None, IN_HAND))
                if r.is_leased and r.due_at is not None:
                    r.due_at, r.attempts, count = now, r.attempts + 1, count + 1
                r.is_leased = False
            self._finish(message, now)
        return count

    def bound_times(self, bounds: Bounds) -> int:
        """See Store."""
        count = 0
        for key, message in self._messages.items():
            if key in self._finished:
                continue
            mended = copy.copy(message)
            mended.received_at, mended.expires_at = bounds.mended(message.received_at, message.expires_at)
            count += mended.received_at != message.received_at
            mended.recipients = [copy.copy(r) for r in message.recipients]
            for r in mended.recipients:
                if r.due_at is not None and r.due_at > bounds.latest_due_at and not r.is_leased:
                    r.due_at, count = bounds.now, count + 1
            self._messages[key] = mended
        return count

    def get(self, uid: str) -> View | None:
        """One message with its attempts."""
        for message in self._messages.values():
            if message.uid == uid:
                view = self._view(message)
                view.attempts = list(self._attempts[message.key])
                return view
        return None

    def _view(self, m: Message) -> View:
        return View(
            m.uid,
            m.envelope.reverse_path,
            m.content.size_bytes,
            m.received_at,
            m.expires_at,
            m.subject,
            m.facts,
            [copy.copy(r) for r in m.recipients],
            finished_at=self._finished.get(m.key),
            position=(m.received_at, m.key),
        )

    def content(self, uid: str) -> Content | None:
        """Content of what is not final."""
        for message in self._messages.values():
            if message.uid == uid and message.key not in self._finished:
                return message.content
        return None

    def envelope(self, uid: str) -> Envelope | None:
        """Reverse-path and parameters."""
        return next((copy.copy(m.envelope) for m in self._messages.values() if m.uid == uid), None)

    def search(self, query: Query) -> list[View]:
        """Oldest first."""
        messages = reversed(self._messages.values()) if query.is_newest_first else self._messages.values()
        return first_page(query, (v for v in map(self._view, messages) if matches(query, v)))

    def count(self, query: Query) -> int:
        """See Reader."""
        return sum(matches(query, view) for view in map(self._view, self._messages.values()))

    def change(self, action: Action, query: Query, now: float) -> list[str]:
        """Steers what the query means."""
        wanted = {view.uid for view in self.search(query)}
        changed = []
        for message in self._messages.values():
            if message.uid in wanted and self._steer_all(message, action, now):
                changed.append(message.uid)
                self._finish(message, now)
        return changed

    @staticmethod
    def _steer_all(message: Message, action: Action, now: float) -> bool:
        # Every recipient, not only up to the first that changes.
        return sum(_steer(action, r, now) for r in message.recipients) > 0

    def wake(self, next_hop: str, stages: Collection[str], now: float) -> int:
        """Due now."""
        count = 0
        for message in self._messages.values():
            for r in message.recipients:
                is_untried = r.last_stage is None and r.attempts == 0
                if (
                    r.due_at is None
                    or r.is_leased
                    or r.next_hop != next_hop
                    or not (is_untried or r.last_stage in stages)
                ):
                    continue
                r.due_at, count = now, count + 1
        return count

    def counts(self) -> dict[str, int]:
        """Recipients by state."""
        counts: dict[str, int] = {}
        for message in self._messages.values():
            for r in message.recipients:
                counts[r.state] = counts.get(r.state, 0) + 1
        return counts

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """(next hop, state, recipients, earliest due time) of what is not final, the most first."""
        found: dict[tuple[str, str], list[float]] = {}
        for message in self._messages.values():
            for r in message.recipients:
                if r.state not in FINAL:
                    due = found.setdefault((r.next_hop or "", r.state), [])
                    due.append(float("inf") if r.due_at is None or r.is_leased else r.due_at)
        rows = [
            (hop, state, len(due), min(due) if min(due) < float("inf") else None) for (hop, state), due in found.items()
        ]
        return sorted(rows, key=lambda row: (-row[2], row[0]))[:limit]

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """The next due time."""
        recipients = (r for m in self._messages.values() for r in m.recipients)
        return min((r.due_at for r in recipients if r.due_at is not None and r.next_hop not in skip), default=None)

    def nodes(self) -> list[dict[str, Any]]:
        """Nobody else."""
        return []

    def health(self) -> dict[str, float]:
        """Nothing to watch."""
        return {}

    def flag(self, name: str) -> str | None:
        """A control flag."""
        return self._flags.get(name)

    def set_flag(self, name: str, value: str | None) -> None:
        """Sets or removes."""
        if value is None:
            self._flags.pop(name, None)
        else:
            self._flags[name] = value

    def purge(self, finished_before: float, keep: int, limit: int) -> list[str]:
        """Forgets old history."""
        by_age = sorted(self._finished, key=lambda key: (self._finished[key], key))
        old = [key for key in by_age if self._finished[key] < finished_before][:limit]
        for key in dict.fromkeys(old + by_age[: max(0, len(by_age) - keep)][:limit]):
            del self._messages[key], self._attempts[key], self._finished[key]
        dropped, self._dropped_spool = self._dropped_spool, []
        return dropped

    def spool_names(self) -> set[str]:
        """Spool files in need."""
        unfinished = (m for m in self._messages.values() if m.key not in self._finished)
        return {os.path.basename(m.content.path) for m in unfinished if m.content.path}


def _steer(action: Action, r: Recipient, now: float) -> bool:
    if action is Action.HOLD and r.state in ACTIVE:
        r.state, r.due_at = "held", None
    elif action is Action.RELEASE and r.state == "held":
        r.state = "deferred" if r.attempts else "queued"
        r.due_at = now + 3600 if r.is_leased else now
    elif action in (Action.RETRY, Action.REROUTE) and r.state in ACTIVE and not r.is_leased:
        r.due_at = now
        if action is Action.REROUTE:
            r.next_hop = None
    elif action is Action.CANCEL and r.state not in FINAL:
        r.state, r.due_at = "cancelled", None
    else:
        return False
    return True
