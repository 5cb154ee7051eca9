"""Connections to a next hop, over all nodes of a shared queue."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from pillarbox.queue.postgres import PostgresStore
from pillarbox.queue.slots import HORIZON_S
from pillarbox.testing.scripted import ScriptedServer
from tests.conftest import run_async, serving, until
from tests.hostile.test_h_shared_queue import ask


def lease(store: PostgresStore, limit: int, **wants: tuple[int, int]) -> dict[str, int]:
    with store.transaction():
        return store.lease_slots(wants, limit)


def test_the_sum_stays_within_the_limit_and_everybody_has_a_part(tmp_path: Path, database: str) -> None:
    one, two, three = (PostgresStore(database, str(tmp_path / name)) for name in "abc")
    for store in (one, two, three):
        store.open()
    assert lease(one, 10, hop=(10, 0), other=(3, 0)) == {"hop": 10, "other": 3}
    assert lease(two, 10, hop=(4, 0)) == {"hop": 0}, "all are in use, for all it knows"
    # Who has them hears of it at the next turn, and keeps what is busy.
    assert lease(one, 10, hop=(10, 7)) == {"hop": 7}
    assert lease(two, 10, hop=(10, 0)) == {"hop": 3}
    assert lease(one, 10, hop=(10, 2)) == {"hop": 5}
    assert lease(two, 10, hop=(10, 3)) == {"hop": 5}
    assert lease(three, 10, hop=(1, 0)) == {"hop": 0}
    assert lease(two, 10, hop=(0, 0)) == {"hop": 0}
    assert lease(three, 10, hop=(9, 0)) == {"hop": 5}
    one.close()
    assert lease(three, 10, hop=(10, 5)) == {"hop": 10}, "a node that has left has none"
    for store in (two, three):
        store.close()


def turns(store: PostgresStore, interval_s: float, **wants: int) -> dict[str, tuple[float, int]]:
    with store.transaction():
        store.lease_slots({hop: (count, 0) for hop, count in wants.items()}, 10)
        return store.lease_turns(wants, interval_s)


def test_turns_are_leased_from_one_row_a_little_ahead_of_their_time(tmp_path: Path, database: str) -> None:
    one, two = (PostgresStore(database, str(tmp_path / name)) for name in "ab")
    one.open()
    two.open()
    # An hour between two messages: one now, and then nobody has one.
    assert turns(one, 3600.0, slow=5) == {"slow": (0.0, 1)}
    early, count = turns(two, 3600.0, slow=5)["slow"]
    assert count == 0 and 3590.0 < early <= 3600.0
    # Up to the horizon, and its part where another wants some, too; together never more than the rate gives.
    given = turns(one, 0.1, fast=500)["fast"]
    assert given[0] == 0.0 and given[1] in (20, 21)
    early, count = turns(two, 0.1, fast=500)["fast"]
    assert count <= 5 and early > HORIZON_S - 1.0
    assert turns(one, 0.1, fast=0)["fast"][1] == 0
    # The rate is raised: nobody waits an hour for it.
    early, count = turns(one, 0.1, slow=5)["slow"]
    assert early <= HORIZON_S + 0.2
    assert turns(one, 1e-5, most=2500)["most"] == (0.0, 2500)
    assert turns(two, 10.0, other=3) == {"other": (0.0, 1)}
    rows = ask(database, "SELECT next_hop FROM pace WHERE next_hop <> 'most' ORDER BY 1")
    assert rows == [("fast",), ("other",), ("slow",)]
    for store in (one, two):
        store.close()


def test_three_servers_never_have_more_connections_than_one_may(tmp_path: Path, database: str) -> None:
    most = 0

    async def main() -> None:
        nonlocal most
        async with ScriptedServer() as relay, contextlib.AsyncExitStack() as stack:
            options: dict[str, Any] = {
                "queue": database, "relay": f"127.0.0.1:{relay.port}", "maxrelay_per_next_hop": 4
            }  # fmt: skip
            nodes = [await stack.enter_async_context(serving(tmp_path / name, **options)) for name in "abc"]

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, len(relay._writers))
                    await asyncio.sleep(0.0005)

            watching = asyncio.create_task(watch())
            for number in range(100):
                for node in nodes:
                    item = {
                        "reverse_path": "a@b.test",
                        "recipients": [f"r{number}@d.test"],
                        "content": "Subject: x\n\nx",
                    }
                    await node.enqueue(**item)
            await until(lambda: len(relay.messages) == 300, 40)
            watching.cancel()

    run_async(main)
    assert 0 < most <= 4


def test_a_node_that_was_given_none_and_wants_no_more_leaves_nobody_waiting(tmp_path: Path, database: str) -> None:
    other = PostgresStore(database, str(tmp_path / "other"))
    other.open()
    assert lease(other, 4, **{"mx:x.test": (4, 4)}) == {"mx:x.test": 4}

    async def main() -> None:
        async with serving(tmp_path / "one", queue=database, maxrelay_per_next_hop=4) as server:
            slots = server._parts.lanes.slots
            assert slots is not None and slots.allowed("mx:x.test", 3) == 0
            await until(lambda: slots.is_denied("mx:x.test"))
            rows = "SELECT wanted FROM slot WHERE slots = 0"
            assert ask(database, rows) == [(3,)]
            # Its mail went another way, or was cancelled: it does not ask again.
            await until(lambda: ask(database, rows) == [], 10)

    run_async(main)
    assert lease(other, 4, **{"mx:x.test": (4, 0)}) == {"mx:x.test": 4}
    other.close()


def test_slots_of_a_node_that_was_held_for_dead_and_then_died(tmp_path: Path, database: str) -> None:
    """It went on for a moment, long enough to lease some again, and nobody would ever have given them back."""
    one, two = (PostgresStore(database, str(tmp_path / name), lease_s=0.6) for name in "ab")
    one.open()
    two.open()
    one.heart._stop.set()
    ask(database, f"DELETE FROM node WHERE id = {one.heart.me}")
    assert lease(one, 4, hop=(4, 0)) == {"hop": 4}

    async def main() -> None:
        await until(lambda: ask(database, "SELECT * FROM slot") == [], 10)

    run_async(main)
    assert lease(two, 4, hop=(4, 0)) == {"hop": 4}
    two.close()
    one.close()
