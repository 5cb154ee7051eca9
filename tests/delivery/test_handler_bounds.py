"""A handler's concurrency and time-outs, whatever it does: runs at once, what goes on after its time, stops."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pillarbox import Handler, Reply
from pillarbox.delivery.handlerlane import HandlerLane
from pillarbox.delivery.handlers import Item
from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.queue.model import Message
from pillarbox.queue.work import Work
from pillarbox.testing import ManualClock
from tests.conftest import run_async, until


class Lane:
    """A handler lane without a server."""

    def __init__(self, handler: Handler | None, *, may_begin: bool = True) -> None:
        self.handler, self.clock, self.may = handler, ManualClock(), may_begin
        self.done: list[Work] = []
        self.woken = 0
        self.lane = HandlerLane(
            "handler:.", lambda: self.handler, self.clock, self.done.append, self.wake, lambda: self.may
        )

    def wake(self) -> None:
        self.woken += 1

    def push(self, count: int = 1, life_s: float = 1000.0) -> None:
        for _ in range(count):
            now = self.clock.time()
            envelope = Envelope("a@b.test", [])
            envelope.add("c@d.test")
            self.lane.push(Work(Message("Q", envelope, Content(b"x"), now, now + life_s), "handler:."))

    @property
    def replies(self) -> list[str]:
        return [str(result.reply) for work in self.done for result in work.results]


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_handler_runs_as_often_at_once_as_its_concurrency(concurrency: int, in_thread: bool) -> None:
    async def main() -> None:
        running = most = 0
        guard = threading.Lock()
        go = threading.Event()

        def enter(step: int) -> None:
            nonlocal running, most
            with guard:
                running += step
                most = max(most, running)

        async def suspends(item: Item) -> None:
            enter(1)
            while not go.is_set():
                await asyncio.sleep(0.001)
            enter(-1)

        def blocks(item: Item) -> None:
            enter(1)
            go.wait(10)
            enter(-1)

        callback: Any = blocks if in_thread else suspends
        one = Lane(Handler(".", callback, in_thread=in_thread, concurrency=concurrency))
        one.push(10)
        await until(lambda: running == concurrency)
        await asyncio.sleep(0.01)
        assert most == concurrency and one.lane.waiting == 10 - concurrency
        assert one.lane.describe()["busy"] == concurrency and not one.lane.is_idle
        go.set()
        await until(lambda: len(one.done) == 10)
        assert most == concurrency and all(reply.startswith("250 2.0.0") for reply in one.replies)
        await until(lambda: one.lane.is_idle)

    run_async(main)


def test_thread_that_goes_on_after_its_time_keeps_its_place() -> None:
    async def main() -> None:
        go, calls = threading.Event(), []

        def blocks(item: Item) -> None:
            calls.append(1)
            if len(calls) == 1:
                go.wait(10)

        one = Lane(Handler(".", blocks, in_thread=True, concurrency=1, time_out_s=0.05))
        one.push(2)
        await until(lambda: one.done)
        assert one.replies == ["451 4.3.0 The handler took too long"]
        assert not one.done[0].results[0].is_permanent and not one.done[0].results[0].is_delivered
        await asyncio.sleep(0.02)
        assert len(calls) == 1 and not one.lane.is_idle, "its thread is still there"
        go.set()
        await until(lambda: len(one.done) == 2)
        assert one.replies[1].startswith("250")

    run_async(main)


def test_time_out_is_the_handlers_own_or_the_rest_of_the_messages_life() -> None:
    one = Lane(None)
    one.push(0)
    now = one.clock.time()
    work = Work(Message("Q", Envelope(None, []), Content(b""), now, now + 500))
    assert one.lane._limit(Handler(".", print, time_out_s=7), work) == 7
    assert one.lane._limit(Handler(".", print), work) == 500
    one.clock.advance(490)
    assert one.lane._limit(Handler(".", print), work) == 60


@pytest.mark.parametrize("may_begin", [True, False])
def test_work_whose_handler_or_lease_is_gone_goes_back_without_an_attempt(may_begin: bool) -> None:
    async def main() -> None:
        called: list[Any] = []
        one = Lane(None if may_begin else Handler(".", called.append), may_begin=may_begin)
        one.push()
        await until(lambda: one.done)
        (result,) = one.done[0].results
        assert not result.is_attempt and not result.is_delivered and result.retry_at == one.clock.time()
        assert not called

    run_async(main)


def test_stop_waits_for_what_runs_and_begins_nothing() -> None:
    async def main() -> None:
        begun = asyncio.Event()
        calls: list[int] = []

        async def slow(item: Item) -> None:
            calls.append(1)
            begun.set()
            await asyncio.sleep(0.05 if len(calls) == 1 else 60)

        one = Lane(Handler(".", slow, concurrency=2))
        one.push(3)
        await begun.wait()
        await one.lane.stop(0.3)
        await until(lambda: len(one.done) == 2)
        assert sorted(one.replies) == [
            "250 2.0.0 Taken by the handler",
            "451 4.3.2 The server stopped while the handler ran",
        ]
        assert len(calls) == 2 and one.lane.waiting == 1 and not one.lane.has_room()

    run_async(main)


def test_results_of_a_handler_are_for_all_its_recipients_and_name_it() -> None:
    async def main() -> None:
        one = Lane(Handler(".", lambda item: Reply(550, "5.1.1", "no")))
        envelope = Envelope("a@b.test", [])
        envelope.add("c@d.test"), envelope.add("e@d.test")
        now = one.clock.time()
        one.lane.push(Work(Message("Q", envelope, Content(b"x"), now, now + 9), "handler:."))
        await until(lambda: one.done)
        told = [
            (r.recipient.address, str(r.reply), r.is_permanent, r.is_attempt, r.stage, r.remote)
            for r in one.done[0].results
        ]
        assert told == [
            (address, "550 5.1.1 no", True, True, "handler", "handler:.") for address in ("c@d.test", "e@d.test")
        ]
        assert one.done[0].started_at == now

    run_async(main)
