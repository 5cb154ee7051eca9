"""The scheduler: claims due work, hands it to delivery, settles outcomes. Runs in the loop, has no task per message.

Must not know SMTP, routes or sockets: the delivering side is a `Deliverer`, DSNs come from a `Reporter`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection

from ..clock import Clock, Timer
from .clocks import STEP_S, Bounds, StepWatch
from .commit import GroupCommit
from .judged import Judged, Reporter, judge, parse_kept
from .model import Action, Message, Query, Recipient, Settled, Settlement
from .paused import PAUSED, PAUSED_HOPS, format_hops, parse_hops
from .retry import RetryPolicy
from .settling import Settling
from .store import Store
from .upkeep import History, Upkeep
from .work import Deliverer, Result, Work

_log = logging.getLogger("pillarbox.queue")
LEASE_S = 3600.0
# Work that has not ended by then is told of.
STUCK_S = 3600.0
CLAIM_MESSAGES = 200
CLAIM_BYTES = 8 << 20
CLAIM_WHEN_FULL = 20
# Small contents that wait in memory for their delivery, and never have to be read back.
MEMORY_BYTES = 64 << 20
MEMORY_MESSAGES = 5000
# A claim that failed (disk, lock) is tried again after this.
FAULT_PAUSE_S = 5.0
EXPIRY_SWEEP_S = 60.0


class Scheduler:
    """One worker's scheduler. `on_outcome(work, judged)` is called after each settled attempt is on its way to the disk."""

    def __init__(
        self,
        commit: GroupCommit,
        clock: Clock,
        policy: RetryPolicy,
        *,
        history: History | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._commit = commit
        self._clock = clock
        self.policy = policy
        self._settling = Settling(commit, self, self._spawn)
        self._steps = StepWatch(clock)
        self._upkeep = Upkeep(commit, clock, history or History(), self._spawn)
        self._rng = rng or random.Random()
        self._deliverer: Deliverer
        self.on_stuck: Callable[[Work, float], None] = lambda work, seconds: None
        self._on_outcome: Callable[[Work, list[Judged]], None] = lambda work, judged: None
        self._in_hand: dict[int, Work] = {}
        self._in_hand_bytes = 0
        self._timer: Timer | None = None
        self._armed_for: float | None = None
        self._renewal: Timer | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._has_more = False
        self._wakes_again = False
        self._is_running = False
        self._next_sweep = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_paused = False
        # A text: every new message is held, for that reason; and who hears of them.
        self.hold_new = ""
        self.on_held: Callable[[Message], None] = lambda message: None

    def connect(
        self,
        deliverer: Deliverer,
        reporter: Reporter,
        on_outcome: Callable[[Work, list[Judged]], None],
        remove_spool: Callable[[list[str]], None],
    ) -> None:
        """Names the others; app.py does this once."""
        self._deliverer = deliverer
        self._settling.reporter = reporter
        self._on_outcome = on_outcome
        self._upkeep.remove_spool = remove_spool

    def change_policy(self, policy: RetryPolicy, history: History) -> None:
        """Other pauses and bounds, from the next outcome on."""
        self.policy, self._upkeep.history = policy, history

    # ----------------------------------------------------------------- life

    async def start(self) -> None:
        """Frees what a crash left leased, then begins to claim."""
        recovered, paused, hops = await self._commit.run(self._recover)
        self._deliverer.paused |= parse_hops(hops)
        if recovered:
            _log.warning("%d deliveries were in hand when the server stopped: they are due again", recovered)
        self.is_paused = self.is_paused or paused
        self._is_running = True
        self._renewal = self._clock.call_later(LEASE_S / 3, self._renew)
        self._upkeep.start()
        self.wake()

    def _recover(self, store: Store) -> tuple[int, bool, str | None]:
        recovered = store.recover(self._clock.time())
        self._bound_times(store, self._bounds(0.0))
        return recovered, store.flag(PAUSED) is not None, store.flag(PAUSED_HOPS)

    def _bounds(self, forward_s: float) -> Bounds:
        now, policy = self._clock.time(), self.policy
        return Bounds(now, now + policy.longest_s * (1.0 + policy.jitter) + STEP_S, forward_s)

    @staticmethod
    def _bound_times(store: Store, bounds: Bounds) -> None:
        if count := store.bound_times(bounds):
            _log.warning("queue: %d due times or ages written with a wrong clock; counted from now instead", count)

    async def _mend_times(self, step_s: float) -> None:
        """The wall clock was set: what it said before must not delay or expire mail."""
        bounds = self._bounds(max(step_s, 0.0))
        for message in {id(work.message): work.message for work in self._in_hand.values()}.values():
            message.received_at, message.expires_at = bounds.mended(message.received_at, message.expires_at)
        _log.warning("clock: set by %+.0f s; due times and ages in the queue are checked", step_s)
        await self._run_quietly(lambda store: self._bound_times(store, bounds))

    async def stop(self) -> None:
        """No more claims; work that has not begun goes back to the store."""
        self._is_running = False
        for timer in (self._timer, self._renewal):
            if timer is not None:
                timer.cancel()
        self._upkeep.stop()
        if self._claiming is not None:
            await asyncio.wait([self._claiming])
        self._give_back(self._deliverer.withdraw(None))

    async def drained(self) -> None:
        """Returns when what was settled is on the disk, and the spool files that nothing needs any more are gone."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await self._upkeep.last()

    @property
    def is_running(self) -> bool:
        """True between start and stop."""
        return self._is_running

    @property
    def in_hand(self) -> int:
        """Messages that are leased and not settled."""
        return len(self._in_hand)

    # ------------------------------------------------------------- new messages

    def prepare(self, message: Message) -> Message:
        """For a message that is about to be accepted: decides next hops, and whether it is delivered from memory."""
        deliverer = self._deliverer
        if self.hold_new:
            message.hold(self.hold_new)
        is_full = self._is_memory_full
        has_room = True
        for r in message.recipients:
            r.next_hop = deliverer.next_hop(r.address, r.next_hop)
            has_room = has_room and deliverer.has_room(r.next_hop, is_memory_full=is_full)
        if not self._is_running or self.is_paused or message.is_held:
            return message
        if has_room:
            message.leased_until = self._clock.time() + LEASE_S
            return message
        self._has_more = True
        if len(message.recipients) == 1:
            # Its next hop is down: due when that is tried again, so that no claim has to walk past it until then.
            message.due_at = deliverer.retry_at(message.recipients[0].next_hop or "")
        return message

    @property
    def _is_memory_full(self) -> bool:
        return len(self._in_hand) >= MEMORY_MESSAGES or self._in_hand_bytes > MEMORY_BYTES

    def accepted(self, message: Message) -> None:
        """A message is durable now. A leased one is delivered, for any other a claim will come."""
        if message.leased_until is not None:
            if self._is_running and not self.is_paused:
                self._take(message)
            else:
                self._give_back([Work(message)])
        elif message.is_held:
            self.on_held(message)
        else:
            self.wake()

    def _take(self, message: Message) -> None:
        """Into delivery: one piece of work for each next hop of its recipients."""
        recipients = message.recipients
        # What is retried is routed anew: options and handlers may have changed.
        route, now = self._deliverer.next_hop, self._clock.monotonic()
        if len(recipients) == 1:
            only = recipients[0]
            works = [Work(message, route(only.address, only.next_hop), recipients, 0.0, 0.0, False, now)]
        else:
            groups: dict[str, list[Recipient]] = {}
            for recipient in recipients:
                groups.setdefault(route(recipient.address, recipient.next_hop), []).append(recipient)
            works = [Work(message, hop, group, 0.0, 0.0, False, now) for hop, group in groups.items()]
        for work in works:
            self._in_hand[id(work)] = work
            self._in_hand_bytes += len(message.content.prefix)
        for work in works:
            self._deliverer.deliver(work)

    # ------------------------------------------------------------------- claims

    def wake(self) -> None:
        """There may be work: claims it, unless there is no room for it."""
        if not self._is_running or self.is_paused:
            return
        if self._claiming is not None:
            # The claim may have looked before what woke us was there.
            self._wakes_again = True
            return
        is_full = self._is_memory_full
        room = min(CLAIM_MESSAGES, self._deliverer.room(), MEMORY_MESSAGES - len(self._in_hand))
        if is_full:
            # `finished` wakes us when half of it is free; until then a little, for those who have nothing in hand.
            self._has_more = True
            room = min(self._deliverer.room(), CLAIM_WHEN_FULL)
        until_sweep = self._next_sweep - self._clock.monotonic()
        if room <= 0 and until_sweep > 0:
            self._arm(self._soonest(self._deliverer.room_at(), self._clock.time() + until_sweep + 0.01))
            return
        blocked = self._deliverer.blocked(is_memory_full=is_full)
        if until_sweep <= 0 and self._deliverer.down():
            # What waits for a next hop that takes nothing is not claimed: its time is looked at here.
            self._wakes_again = self._wakes_again or room > 0
            room = 0
        elif until_sweep <= 0 and room > 0:
            # None is down: the claim is all that is to be done, and the next look has its time.
            self._next_sweep = self._clock.monotonic() + EXPIRY_SWEEP_S
        self._claiming = asyncio.get_running_loop().create_task(self._claim(room, blocked))

    def _arm(self, due_at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_for = due_at
        if due_at is not None:
            # The wall clock may step: never sleep past a minute on its word (hostile row 116).
            delay = min(max(due_at - self._clock.time(), 0.001), 60.0)
            self._timer = self._clock.call_later(delay, self.wake)

    async def _claim(self, room: int, skip: list[str]) -> None:
        if step_s := self._steps.step_s():
            await self._mend_times(step_s)
        now = self._clock.time()
        lease = now + LEASE_S
        is_sweep = room <= 0
        only = None if self._deliverer.room() <= 0 else self._deliverer.down()

        def work(store: Store) -> tuple[list[Message], float | None]:
            if is_sweep:
                return store.claim_expired(CLAIM_MESSAGES, now, lease, only), None
            return store.claim(room, now, lease, CLAIM_BYTES, skip), store.next_due(skip)

        try:
            messages, next_due = await self._commit.run(work)
        except Exception as error:
            _log.error("cannot claim work: %s", error)
            self._claiming = None
            self._arm(now + FAULT_PAUSE_S)
            return
        self._claiming = None
        if is_sweep:
            self._next_sweep = self._clock.monotonic() + EXPIRY_SWEEP_S
            self._expire(messages)
            self._arm(self._soonest(self._deliverer.room_at(), now + EXPIRY_SWEEP_S + 0.01))
            if self._wakes_again:
                self._wakes_again = False
                self.wake()
            return
        self._has_more = next_due is not None and next_due <= now
        self._take_all(messages)
        if self._wakes_again or (messages and self._has_more):
            self._wakes_again = False
            self.wake()
        else:
            until_sweep = self._next_sweep - self._clock.monotonic()
            sweep_at = self._clock.time() + max(until_sweep, 0.0) + 0.01 if skip else None
            self._arm(self._soonest(next_due, sweep_at))

    def _not_in_hand(self, messages: list[Message]) -> list[Message]:
        # A wall clock that steps forward ends leases of what is still in hand here: that is not sent twice, nor given up.
        held = {(work.message.key, r.number) for work in self._in_hand.values() for r in work.recipients}
        if not held:
            return messages
        for message in messages:
            message.recipients = [r for r in message.recipients if (message.key, r.number) not in held]
        return [message for message in messages if message.recipients]

    def _take_all(self, messages: list[Message]) -> None:
        for message in self._not_in_hand(messages):
            if self._is_running and not self.is_paused:
                try:
                    self._take(message)
                except Exception:
                    # One row that makes no sense must not end the claims of all others (hostile row 133).
                    _log.exception("queue: message %s: delivery failed to start; its lease ends first", message.uid)
            else:
                self._give_back([Work(message)])

    @staticmethod
    def _soonest(*times: float | None) -> float | None:
        return min((t for t in times if t is not None), default=None)

    def _expire(self, messages: list[Message]) -> None:
        """Given up without a further try: their next hop has been down to the end."""
        for message in self._not_in_hand(messages):
            work = Work(message, started_at=self._clock.time())
            for r in message.recipients:
                reply = parse_kept(r.last_reply)
                work.results.append(Result(r, reply, r.last_stage or "connect", is_attempt=False))
            self.finished(work)

    # ----------------------------------------------------------------- outcomes

    def finished(self, work: Work) -> None:
        """Delivery is done with it: `work.results` has one result for each recipient."""
        if self._in_hand.pop(id(work), None) is not None:
            self._in_hand_bytes -= len(work.message.content.prefix)
        now = self._clock.time()
        seconds = self._clock.monotonic() - work.started_clock if work.started_clock else 0.0
        judged = []
        due_at, is_news = None, False
        for result in work.results:
            one = judge(work, result, self.policy, self._rng, now, seconds)
            judged.append(one)
            settled = one.settled
            if settled.due_at is not None:
                due_at = min(settled.due_at, due_at or settled.due_at)
            is_news = is_news or settled.is_attempt or settled.state == "expired"
        self._settling.settle(work, judged, now)
        if due_at is not None and self._is_running and (self._armed_for is None or due_at < self._armed_for):
            self._arm(due_at)
        if is_news:
            try:
                self._on_outcome(work, judged)
            except Exception:
                _log.exception("telling the outcome of %s failed", work.message.uid)
        self._upkeep.finished(has_spool=bool(work.message.content.path))
        if self._has_more and len(self._in_hand) < MEMORY_MESSAGES // 2 and self._in_hand_bytes <= MEMORY_BYTES // 2:
            self.wake()

    def _spawn(self, coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give_back(self, works: list[Work]) -> None:
        """Unbegun work returns to the store as it was."""
        now = self._clock.time()
        for work in works:
            if self._in_hand.pop(id(work), None) is not None:
                self._in_hand_bytes -= len(work.message.content.prefix)
            settled = [Settled(r.number, r.state, r.state, due_at=now, is_attempt=False) for r in work.recipients]
            self._commit.settle(Settlement(work.message.key, settled, now))

    # ----------------------------------------------------------------- steering

    async def pause(self) -> None:
        """What runs finishes; nothing else is sent until `resume`, not even after a restart."""
        self.is_paused = True
        self._give_back(self._deliverer.withdraw(None))
        await self._commit.run(lambda store: store.set_flag(PAUSED, "1"))

    async def resume(self) -> None:
        """Goes on."""
        await self._commit.run(lambda store: store.set_flag(PAUSED, None))
        self.is_paused = False
        self.wake()

    async def pause_next_hop(self, next_hop: str, *, is_paused: bool) -> None:
        """The same for one next hop, there already or not; or the end of it."""
        paused = self._deliverer.paused
        if is_paused:
            paused.add(next_hop)
            self._give_back(self._deliverer.withdraw_from(next_hop))
        else:
            paused.discard(next_hop)
        flag, now = format_hops(paused), self._clock.time()

        def work(store: Store) -> None:
            store.set_flag(PAUSED_HOPS, flag)
            if not is_paused:
                # What was on its way there when it was paused has come back for a while.
                store.wake(next_hop, ["lookup"], now)

        await self._commit.run(work)
        self.wake()

    @property
    def paused_next_hops(self) -> list[str]:
        """Those that an operator has paused."""
        return sorted(self._deliverer.paused)

    # ------------------------------------------------------------- other nodes

    def follow(self, *, is_paused: bool, next_hops: set[str]) -> None:
        """The flags of a queue that is not this server's alone, as somebody has set them."""
        paused = self._deliverer.paused
        if is_paused and not self.is_paused:
            self._give_back(self._deliverer.withdraw(None))
        self.is_paused = is_paused
        for hop in next_hops - paused:
            paused.add(hop)
            self._give_back(self._deliverer.withdraw_from(hop))
        paused &= next_hops

    def let_others(self, next_hop: str) -> None:
        """Other servers have all connections to that next hop: what waits for it here is for them."""
        self._give_back(self._deliverer.withdraw_from(next_hop))

    def unbegun(self) -> list[Work]:
        """Work in hand that no attempt has been begun for."""
        return [work for work in self._in_hand.values() if not work.started_at]

    def let_go(self, works: list[Work], lost: set[tuple[int, int]]) -> int:
        """Work that others have changed; of what is lost, (key, recipient's number), nothing is settled. How many waited."""
        withdrawn = self._deliverer.withdraw({work.message.uid for work in works})
        for work in withdrawn:
            work.recipients = [r for r in work.recipients if (work.message.key, r.number) not in lost]
        self._give_back(withdrawn)
        return len(withdrawn)

    async def change(self, action: Action, query: Query) -> list[str]:
        """Hold, release, retry, cancel: the uids of what was changed, durable when it returns."""
        now = self._clock.time()
        changed = await self._commit.run(lambda store: store.change(action, query, now))
        if action is Action.CANCEL:
            gone = set(changed)
            for work in self._in_hand.values():
                work.is_cancelled = work.is_cancelled or work.message.uid in gone
        if action in (Action.HOLD, Action.CANCEL) and changed:
            self._give_back(self._deliverer.withdraw(set(changed)))
        elif changed:
            self._deliverer.retry_now()
            self.wake()
        if action is Action.CANCEL:
            self._upkeep.purge()
        return changed

    def next_hop_is_back(self, next_hop: str, stages: Collection[str]) -> None:
        """After trouble a delivery succeeded: what was deferred for that trouble is due now."""
        now = self._clock.time()

        async def run() -> None:
            try:
                count = await self._commit.run(lambda store: store.wake(next_hop, stages, now))
                if count:
                    _log.info("next hop %s takes mail again: %d recipients are due now", next_hop, count)
            except Exception as error:
                _log.error("what waits for %s keeps its time: %s", next_hop, error)
            self.wake()

        self._spawn(run())

    # ------------------------------------------------------------------- upkeep

    def _renew(self) -> None:
        self._renewal = self._clock.call_later(LEASE_S / 3, self._renew)
        keys = {work.message.key for work in self._in_hand.values()}
        now = self._clock.monotonic()
        for work in self._in_hand.values():
            if now - work.taken_at > STUCK_S:
                _log.warning(
                    "%s is in hand for %.0f s: next hop %s", work.message.uid, now - work.taken_at, work.next_hop
                )
                self.on_stuck(work, now - work.taken_at)
        if keys:
            until = self._clock.time() + LEASE_S
            self._spawn(self._run_quietly(lambda store: store.renew(keys, until)))

    async def _run_quietly(self, work: Callable[[Store], object]) -> None:
        try:
            await self._commit.run(work)
        except Exception as error:
            _log.error("upkeep of the queue failed: %s", error)
