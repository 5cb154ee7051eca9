"""Handlers are durable: they get mail from the queue, again after a failure or a crash, and their bounds hold."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, Item, MailServer, Reject
from pillarbox.errors import OptionError
from pillarbox.testing import ManualClock
from tests.conftest import queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon

CRASHING = """
import asyncio, os, sys
from pillarbox import MailServer
log, data = sys.argv[1:3]

def handle(item):
    with open(log, "a") as file:
        file.write(f"{item.uid} {item.attempt}\\n")
        file.flush()
        os.fsync(file.fileno())
    if item.attempt == 1:
        os._exit(9)  # the side effect is done, the return never comes

async def main():
    server = MailServer(port=0, data_dir=data, direct=False, handlers=[{"match": ".", "callback": handle}])
    done = asyncio.Event()
    server.register(lambda event: done.set(), "send_success")
    await server.start()
    if not os.path.exists(log):
        await server.enqueue(reverse_path=None, recipients=["a@b.test"], content="Subject: x\\n\\n")
    await done.wait()
    await server.shutdown()

asyncio.run(main())
"""


def test_a_crash_after_the_side_effect(tmp_path: Path) -> None:
    """Between 250 and the handler's return: the same uid is handed over again."""
    script, log = tmp_path / "crashing.py", tmp_path / "log"
    script.write_text(CRASHING)
    command = [sys.executable, str(script), str(log), str(tmp_path / "data")]
    first = subprocess.run(command, timeout=30, check=False)
    assert first.returncode == 9
    second = subprocess.run(command, timeout=30, check=False)
    assert second.returncode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 and lines[0][0] == lines[1][0] and [attempt for _, attempt in lines] == ["1", "2"]


def test_one_that_raises_is_retried_on_schedule(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        calls: list[tuple[float, int]] = []

        def handle(item: Item) -> None:
            calls.append((clock.time(), item.attempt))
            if len(calls) < 4:
                raise RuntimeError("not yet")

        options: dict[str, Any] = {"port": 0, "data_dir": str(tmp_path), "store": "memory", "hostname": "mx.test"}
        server = MailServer(
            clock=clock, rng=random.Random(1), handlers=[Handler(".", handle)], direct=False, retry_first_s=100,
            retry_longest_s=1000, **options,
        )  # fmt: skip
        async with server:
            failed = heard(server, "send_failed", "send_success")
            uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
            expected = []
            for number in range(1, 4):
                event = await soon(failed)
                assert event.name == "send_failed" and event.uid == uid and event.stage == "handler"
                assert (
                    event.next_hop == "handler:." and str(event.reply) == "451 4.3.0 The handler failed: RuntimeError"
                )
                assert len(calls) == number
                pause = event.next_attempt - clock.time()
                expected.append(pause)
                clock.advance(pause * 0.98)
                await asyncio.sleep(0.01)
                assert len(calls) == number, "not before its time"
                while len(calls) == number:
                    clock.advance(pause * 0.01)
                    await asyncio.sleep(0.005)
            assert (await soon(failed)).name == "send_success"
            assert [attempt for _, attempt in calls] == [1, 2, 3, 4]
            assert 80 < expected[0] < 130 and expected[0] < expected[1] < expected[2]

    run_async(main)


@server_test()
async def test_reject_makes_a_dsn(server: MailServer) -> None:
    def refuse(item: Item) -> None:
        raise Reject("No\r\nsuch: order", 554, "5.1.6")

    server.set_handlers([Handler("^order", refuse)])
    await send(server, to=b"order-1@d.test")
    await until(lambda: len(queued(server)) == 2)
    assert queued(server)[0].recipients[0].state == "bounced"
    dsn = stored_content(server, 1)
    assert b"554 5.1.6 No??such: order" in dsn and b"Final-Recipient: rfc822; order-1@d.test" in dsn
    assert queued(server)[1].reverse_path is None and queued(server)[1].recipients[0].address == "a@b.test"


@server_test()
async def test_ways_to_call(server: MailServer) -> None:
    got: list[str] = []

    async def suspends(item: Item) -> None:
        await asyncio.sleep(0)
        got.append("async")

    def blocks(item: Item) -> None:
        time.sleep(0.02)
        got.append("thread")

    @server.handler(r"^decorated@", concurrency=3)
    async def decorated(item: Item) -> None:
        got.append("decorated")

    server.set_handlers(
        [*server.get_handlers(), Handler("^async@", suspends), Handler("^thread@", blocks, in_thread=True)]
    )
    await server.enqueue(
        reverse_path=None, recipients=[f"{n}@d.test" for n in ("async", "thread", "decorated")], content=BODY
    )
    await until(lambda: len(got) == 3)
    assert sorted(got) == ["async", "decorated", "thread"]


@server_test(retry_first_s=0.05, retry_longest_s=0.05)
async def test_time_out_and_cancellation(server: MailServer) -> None:
    calls: list[int] = []

    async def slow(item: Item) -> None:
        calls.append(item.attempt)
        if item.attempt == 1:
            await asyncio.Event().wait()
        if item.attempt == 2:
            raise asyncio.CancelledError

    server.set_handlers([Handler(".", slow, time_out_s=0.05)])
    failed = heard(server, "send_failed", "send_success")
    await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=BODY)
    assert "took too long" in str((await soon(failed)).reply)
    assert "cancelled itself" in str((await soon(failed)).reply)
    assert (await soon(failed)).name == "send_success"


@server_test()
async def test_bound_of_what_waits(server: MailServer) -> None:
    """A handler that is stuck holds up nobody: the rest stays in the queue, others are served."""
    go = asyncio.Event()
    done: list[str] = []

    async def stuck(item: Item) -> None:
        await go.wait()
        done.append(item.uid)

    quick: list[Any] = []
    server.set_handlers([Handler("^stuck", stuck, concurrency=1), Handler("^quick", quick.append)])
    for n in range(500):
        await server.enqueue(reverse_path=None, recipients=[f"stuck{n}@d.test"], content=b"x\r\n")
    assert server._parts.scheduler.in_hand <= 201 and server._parts.lanes.blocked() == ["handler:^stuck"]
    await server.enqueue(reverse_path=None, recipients=["quick@d.test"], content=BODY)
    await until(lambda: quick)
    go.set()
    await until(lambda: len(done) == 500)
    assert len(set(done)) == 500


def test_shutdown_waits_for_handlers(tmp_path: Path) -> None:
    async def main() -> None:
        started, ended = asyncio.Event(), []

        async def handle(item: Item) -> None:
            started.set()
            await asyncio.sleep(0.05 if item.reverse_path == "quick@b.test" else 60)
            ended.append(item.uid)

        handlers = [Handler(".", handle)]
        async with serving(tmp_path, store="sqlite", handlers=handlers) as server:
            await server.enqueue(reverse_path="quick@b.test", recipients=["c@d.test"], content=BODY)
            slow = await server.enqueue(reverse_path="slow@b.test", recipients=["c@d.test"], content=BODY)
            await started.wait()
            await server.shutdown(grace_s=0.3)
        assert len(ended) == 1, "one finished within the grace"
        async with serving(tmp_path, store="sqlite", paused=True) as server:
            (left,) = await server.mail_queue()
            assert left.uid == slow and left.recipients[0].attempts == 1

    run_async(main)


@server_test(paused=True)
async def test_handlers_that_went(server: MailServer) -> None:
    """What was routed to a handler that is gone goes the ordinary way when its time comes."""
    server.set_handlers([Handler("^x@", print)])
    await server.enqueue(reverse_path=None, recipients=["x@d.test"], content=BODY)
    assert (await server.mail_queue())[0].recipients[0].next_hop == "handler:^x@"
    server.set_handlers([])
    got: list[Any] = []
    server.set_handlers([Handler("d.test$", got.append)])
    await server.resume_queue()
    await until(lambda: got)


def test_mail_for_a_handler_event_without_subscriber_waits_without_attempts(tmp_path: Path) -> None:
    async def main() -> None:
        clock, got = ManualClock(), list[Any]()
        handlers = [{"match": ".", "event": "orders"}]
        async with serving(tmp_path, store="memory", handlers=handlers, clock=clock) as server:
            await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=BODY)
            for _ in range(3):
                await until(lambda: server._parts.scheduler.in_hand == 0 and queued(server)[0].recipients[0].last_reply)
                clock.advance(61)
            recipient = queued(server)[0].recipients[0]
            assert (recipient.state, recipient.attempts) == ("queued", 0)
            assert "No callback is registered" in (recipient.last_reply or "")
            server.register(got.append, "orders")
            clock.advance(61)
            await until(lambda: got)
            assert got[0].attempt == 1

    run_async(main)


def test_patterns() -> None:
    handler = Handler(r"@d\.test$", print)
    assert handler.matches("x@d.test") and not handler.matches("x@D.test")
    import re

    assert Handler(re.compile("^ABC@", re.I), print).matches("abc@d.test")
    for bad in ("", None, b"x", "(", "[a"):
        with pytest.raises(OptionError, match="'match'"):
            Handler(bad, print)  # type: ignore[arg-type]
    assert "Handler('@d" in repr(handler)


def test_large_content(tmp_path: Path) -> None:
    async def main() -> None:
        sizes: list[int] = []

        def read(item: Item) -> None:
            with item.open() as file:
                total = 0
                while piece := file.read(10_000):
                    total += len(piece)
            assert total == item.size_bytes == len(item.content)
            sizes.append(total)

        async with serving(tmp_path, store="sqlite", handlers=[Handler(".", read)]) as server:
            await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=b"line of text\r\n" * 100_000)
            await until(lambda: sizes)
            assert sizes[0] > 1_400_000

    run_async(main)
