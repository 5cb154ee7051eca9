"""The scheduler against a delivering side of the test's own: what is leased, renewed, given back, paused and cancelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import Action, Message, Query
from pillarbox.queue.retry import RetryPolicy
from pillarbox.queue.scheduler import LEASE_S, STUCK_S, Scheduler
from pillarbox.queue.work import Result, Work
from pillarbox.smtp.reply import Reply
from pillarbox.testing import ManualClock
from tests.conftest import run_async, until

OK, NO, LATER = Reply(250, "2.0.0", "taken"), Reply(550, "5.1.1", "no"), Reply(451, "4.2.0", "later")


class Delivering:
    """A delivering side that only keeps what it is given. The next hop is the recipient's domain."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.waiting: list[Work] = []
        self.full: set[str] = set()
        self.retry: float | None = None
        self.paused: set[str] = set()

    def next_hop(self, address: str, queued: str | None) -> str:
        return address.rpartition("@")[2]

    def deliver(self, work: Work) -> None:
        self.works.append(work)
        self.waiting.append(work)

    def has_room(self, next_hop: str, *, is_memory_full: bool = False) -> bool:
        return next_hop not in self.full | self.paused

    def blocked(self, *, is_memory_full: bool = False) -> list[str]:
        return sorted(self.full | self.paused)

    def down(self) -> list[str]:
        return []

    def retry_at(self, next_hop: str) -> float | None:
        return self.retry

    def room(self) -> int:
        return 100

    def room_at(self) -> float | None:
        return None

    def _take(self, wanted: Any) -> list[Work]:
        taken = [work for work in self.waiting if wanted(work)]
        self.waiting = [work for work in self.waiting if not wanted(work)]
        return taken

    def withdraw_from(self, next_hop: str) -> list[Work]:
        return self._take(lambda work: work.next_hop == next_hop)

    def withdraw(self, uids: Collection[str] | None) -> list[Work]:
        return self._take(lambda work: uids is None or work.message.uid in uids)

    def retry_now(self) -> None:
        self.retry = None

    def why_waiting(self, next_hops: Collection[str] | None = None) -> str | None:
        return None


class Queue:
    def __init__(self, store: MemoryStore | None = None) -> None:
        self.clock, self.store, self.side = ManualClock(), store or MemoryStore(), Delivering()
        self.commit = GroupCommit(self.store)
        policy = RetryPolicy(jitter=0.0)
        self.scheduler = Scheduler(self.commit, self.clock, policy, rng=random.Random(1))
        self.reported: list[list[str]] = []
        self.scheduler.connect(self.side, self.report, lambda work, judged: None, lambda names: None)  # type: ignore[arg-type]

    def report(self, message: Message, judged: Any, now: float) -> list[Message]:
        self.reported.append([one.settled.state for one in judged])
        return []

    def message(self, uid: str, *to: str) -> Message:
        now = self.clock.time()
        envelope = Envelope("s@a.test", [])
        for address in to or ("c@d.test",):
            envelope.add(address)
        return Message(uid, envelope, Content(b"x"), now, now + 4 * 86400)

    async def put(self, uid: str, *to: str) -> None:
        message = self.scheduler.prepare(self.message(uid, *to))
        done: list[Any] = []
        self.commit.accept(message, lambda error: (self.scheduler.accepted(message), done.append(error)))
        await until(lambda: done)

    async def settled(self) -> None:
        await self.commit.run(lambda store: None)

    def finish(self, work: Work, reply: Reply = OK, **result: Any) -> None:
        self.side.waiting = [one for one in self.side.waiting if one is not work]
        work.started_at = self.clock.time()
        given = {"is_delivered": reply.is_positive, "is_permanent": reply.is_permanent, **result}
        work.results = [Result(r, reply, "rcpt", **given) for r in work.recipients]
        self.scheduler.finished(work)

    def told(self, uid: str) -> list[tuple[str, bool, int]]:
        view = self.store.get(uid)
        assert view is not None
        return [(r.state, r.is_leased, r.attempts) for r in view.recipients]

    def due(self, uid: str) -> float | None:
        view = self.store.get(uid)
        assert view is not None
        return view.recipients[0].due_at


@asynccontextmanager
async def running(store: MemoryStore | None = None) -> AsyncIterator[Queue]:
    queue = Queue(store)
    queue.store.open()
    queue.commit.start()
    await queue.scheduler.start()
    try:
        yield queue
    finally:
        await queue.scheduler.stop()
        await queue.commit.stop()
        await queue.scheduler.drained()


def scheduled(test: Any) -> Any:
    def run() -> None:
        async def main() -> None:
            async with running() as queue:
                await test(queue)

        run_async(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@scheduled
async def test_new_message_is_leased_and_delivered_from_memory(queue: Queue) -> None:
    await queue.put("A", "a@d.test", "b@e.test", "c@d.test")
    assert [(work.next_hop, len(work.recipients)) for work in queue.side.works] == [("d.test", 2), ("e.test", 1)]
    assert queue.told("A") == [("queued", True, 0)] * 3
    assert queue.due("A") == queue.clock.time() + LEASE_S
    queue.finish(queue.side.works[0])
    queue.finish(queue.side.works[1], NO)
    await queue.settled()
    assert queue.told("A") == [("delivered", False, 1), ("bounced", False, 1), ("delivered", False, 1)]
    assert queue.reported == [["bounced"]] and queue.scheduler.in_hand == 0


@scheduled
async def test_message_for_a_full_next_hop_is_not_leased_and_waits_for_its_time(queue: Queue) -> None:
    queue.side.full, queue.side.retry = {"d.test"}, queue.clock.time() + 50
    await queue.put("A")
    await queue.put("two", "a@d.test", "b@e.test")
    assert queue.told("A") == [("queued", False, 0)] and queue.due("A") == queue.clock.time() + 50
    assert not [work for work in queue.side.works if work.next_hop == "d.test"]
    queue.side.full = set()
    queue.clock.advance(51)
    queue.scheduler.wake()
    await until(lambda: [work for work in queue.side.works if work.message.uid == "A"])
    assert queue.told("A") == [("queued", True, 0)]


@scheduled
async def test_lease_is_renewed_as_long_as_the_work_goes_on(queue: Queue) -> None:
    await queue.put("A")
    stuck: list[float] = []
    queue.scheduler.on_stuck = lambda work, seconds: stuck.append(seconds)
    for _ in range(9):
        queue.clock.advance(LEASE_S / 3)
        await queue.settled()
        assert (queue.due("A") or 0) >= queue.clock.time() + LEASE_S - 1
    assert len(queue.side.works) == 1, "nobody claims it meanwhile"
    assert stuck and min(stuck) > STUCK_S


@scheduled
async def test_due_work_is_claimed_once_and_not_before_its_time(queue: Queue) -> None:
    await queue.put("A")
    queue.finish(queue.side.works[0], LATER)
    await queue.settled()
    assert queue.told("A") == [("deferred", False, 1)] and queue.due("A") == queue.clock.time() + 300
    for seconds, count in ((298, 1), (3, 2), (1, 2), (60, 2)):
        queue.clock.advance(seconds)
        for _ in range(5):
            await queue.settled()
        assert len(queue.side.works) == count
    assert queue.told("A") == [("deferred", True, 1)]


@scheduled
async def test_work_that_was_not_tried_is_no_attempt(queue: Queue) -> None:
    await queue.put("A")
    queue.finish(queue.side.works[0], LATER, is_attempt=False, retry_at=queue.clock.time() + 20)
    await queue.settled()
    assert queue.told("A") == [("queued", False, 0)] and queue.due("A") == queue.clock.time() + 20


def test_stop_gives_back_what_has_not_begun() -> None:
    store = MemoryStore()

    async def main() -> None:
        async with running(store) as queue:
            await queue.put("begun")
            queue.side.waiting.clear()
            await queue.put("waits")
        assert queue.told("waits") == [("queued", False, 0)]
        # It was begun: the lease stays, so that the next start knows.
        assert queue.told("begun") == [("queued", True, 0)]
        async with running(store) as again:
            await until(lambda: len(again.side.works) == 2)
            assert again.told("begun") == [("queued", True, 1)]
            assert [one.outcome for one in store.get("begun").attempts] == ["ambiguous"]  # type: ignore[union-attr]

    run_async(main)


@scheduled
async def test_pause_begins_nothing_until_resume(queue: Queue) -> None:
    await queue.put("A")
    await queue.scheduler.pause()
    await queue.put("B")
    await queue.settled()
    assert queue.told("A") == queue.told("B") == [("queued", False, 0)] and len(queue.side.works) == 1
    assert queue.store.flag("paused") is not None
    await queue.scheduler.resume()
    await until(lambda: len(queue.side.works) == 3)
    assert queue.store.flag("paused") is None


def test_pause_outlives_a_restart() -> None:
    store = MemoryStore()

    async def main() -> None:
        async with running(store) as queue:
            await queue.scheduler.pause()
            await queue.scheduler.pause_next_hop("d.test", is_paused=True)
        async with running(store) as again:
            assert again.scheduler.is_paused and again.scheduler.paused_next_hops == ["d.test"]
            await again.put("A")
            assert not again.side.works

    run_async(main)


@scheduled
async def test_paused_next_hop_holds_its_own_mail_only(queue: Queue) -> None:
    await queue.put("A", "a@d.test", "b@e.test")
    await queue.scheduler.pause_next_hop("d.test", is_paused=True)
    await queue.settled()
    assert queue.told("A") == [("queued", False, 0), ("queued", True, 0)]
    await queue.put("B", "b@e.test")
    assert [work.next_hop for work in queue.side.works] == ["d.test", "e.test", "e.test"]
    await queue.scheduler.pause_next_hop("d.test", is_paused=False)
    await until(lambda: len(queue.side.works) == 4)
    assert queue.side.works[-1].next_hop == "d.test"


@pytest.mark.parametrize("reply", [OK, NO, LATER])
def test_cancelled_work_is_reported_to_no_sender(reply: Reply) -> None:
    async def main() -> None:
        async with running() as queue:
            await queue.put("A")
            (work,) = queue.side.works
            queue.side.waiting.clear()
            assert await queue.scheduler.change(Action.CANCEL, Query(uids=["A"])) == ["A"]
            assert work.is_cancelled
            queue.finish(work, reply)
            await queue.settled()
            # A delivery is a fact all the same.
            assert queue.told("A") == [("delivered" if reply is OK else "cancelled", False, 1)]
            assert not queue.reported
            queue.clock.advance(86400)
            await queue.settled()
            assert len(queue.side.works) == 1

    run_async(main)


@pytest.mark.parametrize("action", [Action.HOLD, Action.CANCEL])
def test_steered_work_that_has_not_begun_never_begins(action: Action) -> None:
    async def main() -> None:
        async with running() as queue:
            await queue.put("A")
            await queue.put("B")
            await queue.scheduler.change(action, Query(uids=["A"]))
            await queue.settled()
            assert [work.message.uid for work in queue.side.waiting] == ["B"]
            assert queue.told("A") == [("held" if action is Action.HOLD else "cancelled", False, 0)]
            if action is Action.HOLD:
                await queue.scheduler.change(Action.RELEASE, Query(uids=["A"]))
                await until(lambda: len(queue.side.works) == 3)

    run_async(main)


@scheduled
async def test_outcome_of_what_others_took_over_is_not_settled_here(queue: Queue) -> None:
    await queue.put("A", "a@d.test", "b@d.test")
    (work,) = queue.side.works
    lost = {(work.message.key, 0)}
    assert queue.scheduler.let_go([work], lost) == 1
    await queue.settled()
    assert queue.told("A") == [("queued", True, 0), ("queued", False, 0)], "the first is not ours to give back"


@scheduled
async def test_held_mail_is_reported_and_never_claimed(queue: Queue) -> None:
    held: list[str] = []
    queue.scheduler.hold_new, queue.scheduler.on_held = "looked at", lambda message: held.append(message.uid)
    await queue.put("A")
    queue.clock.advance(7200)
    await queue.settled()
    assert queue.told("A") == [("held", False, 0)] and held == ["A"] and not queue.side.works


@scheduled
async def test_message_expires_without_a_further_attempt_when_its_time_is_over(queue: Queue) -> None:
    await queue.put("A")
    queue.finish(queue.side.works[0], LATER)
    for _ in range(200):
        queue.clock.advance(3600)
        await queue.settled()
        await asyncio.sleep(0)
        if queue.side.waiting:
            queue.finish(queue.side.waiting[0], LATER)
            await queue.settled()
        if queue.told("A")[0][0] == "expired":
            break
    assert queue.told("A")[0][0] == "expired" and queue.reported == [["expired"]]
    view = queue.store.get("A")
    assert view is not None and view.finished_at == pytest.approx(view.expires_at, abs=4 * 3600 + 1)
