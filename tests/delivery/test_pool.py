"""Pool: outgoing connections over all lanes, shared out so that slow next hops never take all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pillarbox.delivery.pool import PATIENCE_S, Place, Pool, Rank
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import free_port, run_async, until
from tests.delivery.test_direct import direct, put
from tests.dnsserver import SILENT, nameserver


class Lane:
    def __init__(self, key: str) -> None:
        self.key = key
        self.wants = True
        self.spared: list[Place] = []

    def wants_place(self) -> bool:
        return self.wants

    def spare_place(self, place: Place) -> bool:
        self.spared.append(place)
        return True


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_pool_keeps_a_quarter_for_next_hops_that_worked() -> None:
    async def main() -> None:
        pool = Pool(ManualClock(), 8, 0)
        fresh = [asyncio.create_task(pool.take(Lane(f"f{n}"), f"a{n}")) for n in range(10)]
        await turns()
        assert sum(task.done() for task in fresh) == 6 == len(pool)
        pool.worked("good")
        assert await pool.take(Lane("good"), "b") is not None and len(pool) == 7
        for task in fresh:
            task.cancel()

    run_async(main)


def test_pool_bounds_connections_to_one_address() -> None:
    async def main() -> None:
        pool = Pool(ManualClock(), 100, 3)
        tasks = [asyncio.create_task(pool.take(Lane(f"l{n}"), "one:25")) for n in range(5)]
        await turns()
        assert [task.done() for task in tasks] == [True, True, True, False, False]
        other = await pool.take(Lane("other"), "two:25")
        assert other is not None
        granted = tasks[0].result()
        assert granted is not None
        pool.free(granted)
        await turns()
        assert tasks[3].done() and not tasks[4].done()
        tasks[4].cancel()
        await turns()
        assert not pool.is_short

    run_async(main)


def test_pool_fresh_connection_gives_way_after_its_time() -> None:
    async def main() -> None:
        clock = ManualClock()
        pool = Pool(clock, 4, 0)
        gone: list[str] = []
        for n in range(3):
            lane = Lane(f"tar{n}")
            place = await pool.take(lane, f"t{n}")
            assert place is not None and place.rank is Rank.FRESH

            def give_way(lane: Lane = lane) -> bool:
                gone.append(lane.key)
                pool.was_slow(lane.key)
                return True

            place.give_way = give_way
        waiting = asyncio.create_task(pool.take(Lane("new"), "n"))
        await turns()
        assert not waiting.done() and not gone
        clock.advance(PATIENCE_S[Rank.FRESH] + 0.1)
        await turns()
        assert waiting.done() and gone == ["tar0"] and pool.rank("tar0") is Rank.SLOW
        clock.advance(3601.0)
        assert pool.rank("tar0") is Rank.FRESH

    run_async(main)


def test_pool_does_not_end_what_would_be_in_doubt() -> None:
    async def main() -> None:
        clock = ManualClock()
        pool = Pool(clock, 1, 0)
        pool.worked("a")
        place = await pool.take(Lane("a"), "a")
        assert place is not None
        place.give_way = lambda: False
        pool.worked("b")
        waiting = asyncio.create_task(pool.take(Lane("b"), "b"))
        clock.advance(60.0)
        await turns()
        assert not waiting.done() and len(pool) == 1
        pool.free(place)
        await turns()
        assert waiting.done()

    run_async(main)


def test_pool_ends_an_idle_connection_for_a_lane_that_waits() -> None:
    async def main() -> None:
        pool = Pool(ManualClock(), 1, 0)
        pool.worked("a")
        first = Lane("a")
        place = await pool.take(first, "a")
        assert place is not None
        pool.idles(place)
        pool.worked("b")
        assert await pool.take(Lane("b"), "b") is not None
        assert first.spared == [place]

    run_async(main)


def test_pool_forgets_a_lane_that_wants_nothing_any_more() -> None:
    async def main() -> None:
        pool = Pool(ManualClock(), 1, 0)
        pool.worked("a")
        place = await pool.take(Lane("a"), "a")
        lane = Lane("b")
        waiting = asyncio.create_task(pool.take(lane, "b"))
        await turns()
        lane.wants = False
        assert place is not None
        pool.free(place)
        await turns()
        assert waiting.result() is None and not pool.is_short and not len(pool)

    run_async(main)


TARPITS = 200


@pytest.mark.parametrize("silent_at", ["CONNECT", "EHLO", "MAIL"])
@pytest.mark.parametrize("is_one_address", [True, False])
def test_tarpits_do_not_delay_mail_for_a_healthy_next_hop(tmp_path: Path, silent_at: str, is_one_address: bool) -> None:
    """200 domains that fall silent: a next hop that is new, and one that has worked, get their mail within five seconds."""
    port = free_port()
    hosts = [f"127.0.1.{1 if is_one_address else n + 1}" for n in range(TARPITS)]
    records: dict[str, Any] = {f"t{n}.test": {"A": [host]} for n, host in enumerate(hosts)}
    records |= {"known.test": {"A": ["127.0.0.52"]}, "new.test": {"A": ["127.0.0.53"]}}
    check(tmp_path, port, records, sorted(set(hosts)), silent_at)


def test_slow_name_servers_do_not_delay_mail_for_a_healthy_next_hop(tmp_path: Path) -> None:
    records: dict[str, Any] = {f"t{n}.test": {"MX": SILENT, "A": SILENT} for n in range(TARPITS)}
    records |= {"known.test": {"A": ["127.0.0.52"]}, "new.test": {"A": ["127.0.0.53"]}}
    check(tmp_path, free_port(), records, [], "CONNECT")


def check(folder: Path, port: int, records: dict[str, Any], hosts: list[str], silent_at: str) -> None:
    async def main() -> None:
        known, new = ScriptedServer(), ScriptedServer()
        await known.start(port, "127.0.0.52")
        await new.start(port, "127.0.0.53")
        tarpits = [ScriptedServer(**{silent_at: "silent"}) for _ in hosts]
        for tarpit, host in zip(tarpits, hosts, strict=True):
            await tarpit.start(port, host)
        loop = asyncio.get_running_loop()
        with nameserver(records) as (address, _):
            async with direct(folder, address, port) as server:
                await put(server, "u@known.test")
                await known.wait_for(1)
                for n in range(TARPITS):
                    await put(server, f"u@t{n}.test")
                if hosts:
                    await until(lambda: sum(tarpit.connections for tarpit in tarpits) >= 20)
                began = loop.time()
                await put(server, "u@new.test")
                await put(server, "u@known.test")
                await known.wait_for(2)
                assert loop.time() - began < 5.0
                await new.wait_for(1)
                assert loop.time() - began < 5.0
                assert server._parts.lanes.connections <= server.options.maxrelay
                await asyncio.gather(*(tarpit.stop() for tarpit in tarpits))
        await known.stop()
        await new.stop()

    run_async(main)
