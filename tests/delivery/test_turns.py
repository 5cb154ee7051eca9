"""A rate for each next hop: evenly, over connections, workers' shares and nodes, and changed while mail waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer, PillarboxError
from pillarbox.delivery.turns import TOGETHER_S, Patience, Turns
from pillarbox.options import interval_s
from pillarbox.places import Slot
from pillarbox.queue.slots import STALE_S
from pillarbox.testing import ManualClock
from pillarbox.testing.scripted import ScriptedServer
from tests.conftest import lane_of, run_async, serving, until


def test_rates_are_read() -> None:
    rates = ("10/s", "600/m", "5000/h", "86400 / d", " 1/s ")
    assert [interval_s(rate) for rate in rates] == [0.1, 0.1, 0.72, 1.0, 1.0]
    for wrong in ("10", "0/s", "ten/s", "10/w", "-1/s", "10/s/s", "1.5/s", ""):
        with pytest.raises(ValueError, match="10/s, 600/m"):
            interval_s(wrong)
    with pytest.raises(PillarboxError, match=r"rate_per_next_hop.*'10 per second'.*10/s, 600/m"):
        MailServer(rate_per_next_hop="10 per second")


@pytest.mark.parametrize("interval", [0.003, 0.05, 1.0, 360.0])
def test_turns_come_evenly_and_never_more_than_the_rate_allows(interval: float) -> None:
    turns, now, taken = Turns(), 100.0, []
    while len(taken) < 200:
        pause = turns.take("hop", interval, now)
        if pause == 0.0:
            taken.append(now)
        else:
            # As late as a timer may be.
            now += pause + 0.001
    for start in (0, 50, 120):
        for count in (1, 2, 40):
            spent = taken[start + count] - taken[start]
            assert spent >= count * interval - (TOGETHER_S if interval < TOGETHER_S else 0.0) - 1e-6
    # Whoever waits loses next to nothing by it.
    assert taken[-1] - taken[0] <= 199 * (interval + 0.0011)
    assert turns.take("another", interval, now) == 0.0, "each next hop has a rate of its own"
    # The operator raises the rate: what was noted before binds nobody.
    assert turns.take("hop", interval / 50, now) <= interval / 50 + TOGETHER_S + 1e-6
    turns.forget(now + 2 * interval + TOGETHER_S)
    assert not turns._next


def test_one_timer_for_a_lane() -> None:
    clock, ended = ManualClock(), []
    answers = [0.0, 3.0, 0.0]
    patience = Patience(clock, lambda waiting: answers.pop(0), lambda: ended.append(clock.monotonic()))
    assert patience.take_turn(9) and patience.take_turn(9) and len(answers) == 3, "no rate is set"
    patience.interval_s = 3.0
    # It is kept while a connection is opened for it, and when nothing was sent in it.
    assert patience.has_turn(2) and patience.has_turn(2) and patience.take_turn(2)
    patience.give_back()
    assert patience.take_turn(2) and patience.why("hop") is None
    assert not patience.take_turn(1) and not patience.has_turn(1) and patience.is_waiting and patience.why("hop")
    began = clock.monotonic()
    clock.advance(2.9)
    assert not ended and not patience.has_turn(1)
    clock.advance(0.1)
    assert ended == [began + 3.0] and not patience.is_waiting and patience.take_turn(1)
    answers.append(5.0)
    assert not patience.has_turn(1)
    patience.stop()
    clock.advance(9.0)
    assert len(ended) == 1, "it was stopped"


async def queue_up(server: MailServer, count: int, domain: str = "c.test") -> None:
    for number in range(count):
        item = {"from": "a@b.test", "rcpt": [f"r{number}@{domain}"], "msg": "Subject: x\r\n\r\nx\r\n"}
        await server.enqueue(item)


def test_a_next_hop_gets_no_more_than_its_rate_and_people_are_told_why_the_rest_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer:
            relay = f"127.0.0.1:{peer.port}"
            async with serving(tmp_path, relay=relay, rate_per_next_hop="40/s", paused=True) as server:
                await queue_up(server, 20)
                began = time.monotonic()
                await server.resume_queue()
                # Told while it waits for its turn; for a moment, at each turn, it does not.
                why = f"relay:{relay} gets a message each 0.025 s at most (rate_per_next_hop)"
                await until(
                    lambda: peer.messages and [lane["reason"] for lane in server._parts.lanes.describe()] == [why]
                )
                await peer.wait_for(20)
                assert time.monotonic() - began >= 19 * 0.025 - TOGETHER_S
                assert len(peer.messages) == 20 and server._parts.lanes.why_waiting() is None
                assert peer.connections <= 3, "few are enough for that rate"

    run_async(main)


def test_a_slower_rate_and_none_at_all_while_mail_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer:
            options: dict[str, Any] = {"relay": f"127.0.0.1:{peer.port}", "rate_per_next_hop": "1/d"}
            async with serving(tmp_path, **options) as server:
                await queue_up(server, 5)
                await peer.wait_for(1)
                # Only those whose turn comes soon wait in memory.
                await until(lambda: lane_of(server).waiting >= 2 and lane_of(server)._patience.is_waiting)
                before = {name: getattr(server.options, name) for name in type(server.options).model_fields}
                assert server.reload(**{**before, "rate_per_next_hop": None}) == []
                # At once, and not tomorrow.
                await peer.wait_for(5)

    run_async(main)


def test_workers_have_a_share_each(tmp_path: Path) -> None:
    server = MailServer(data_dir=str(tmp_path), rate_per_next_hop="10/s", store="memory", slot=Slot(count=4))
    assert server._parts.lanes.ways.limits.interval_s == pytest.approx(0.4)


def test_nodes_of_a_shared_queue_have_one_rate_together(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay, contextlib.AsyncExitStack() as stack:
            options = {"queue": database, "relay": f"127.0.0.1:{relay.port}", "rate_per_next_hop": "20/s"}
            nodes = [await stack.enter_async_context(serving(tmp_path / name, **options)) for name in "abc"]
            began = time.monotonic()
            await asyncio.gather(*(queue_up(node, 20, f"{name}.test") for name, node in zip("abc", nodes, strict=True)))
            await relay.wait_for(60, 30)
            assert time.monotonic() - began >= 59 * 0.05 - STALE_S
            assert len(relay.messages) == 60

    run_async(main)
