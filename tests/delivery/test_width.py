"""How many connections a lane opens: few at first, more while deliveries succeed, no more than the next hop gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.delivery import lanes, width
from pillarbox.delivery.client import ClientConnection
from pillarbox.delivery.width import (
    FIRST,
    PAUSE_FIRST_S,
    PAUSE_LONGEST_S,
    SHORTEST_S,
    SOON_S,
    STALL_PAUSE_S,
    STALLED_S,
    Width,
)
from pillarbox.queue.model import Query
from pillarbox.testing.clock import ManualClock
from pillarbox.testing.scripted import HANG, ScriptedServer
from tests.conftest import lane_of, run_async, serving, until
from tests.delivery.test_direct import direct
from tests.dnsserver import nameserver


def test_it_grows_with_each_success_up_to_the_limit() -> None:
    one = Width(ManualClock(), lambda: None)
    assert one.now(20) == FIRST and one.now(1) == 1
    assert one.worked(4, 0, 1) and one.worked(4, 0, 1) and not one.worked(4, 0, 1)
    assert one.now(4) == 4 and one.now(20) == 4
    one.begin_anew()
    assert one.now(20) == FIRST


def test_a_refusal_is_the_ceiling_and_one_more_is_tried_after_a_pause_that_grows() -> None:
    clock = ManualClock()
    one = Width(clock, lambda: None)
    while one.worked(20, 0, 1):
        pass
    # Several that were on their way are refused together: one refusal.
    for _ in range(4):
        one.refused(3)
    clock.advance(PAUSE_FIRST_S - 1)
    assert one.now(20) == 3
    clock.advance(1)
    assert one.now(20) == 4
    pauses = []
    for _ in range(6):
        one.refused(3)
        began = clock.monotonic()
        while one.now(20) == 3:
            clock.advance(PAUSE_FIRST_S)
        pauses.append(clock.monotonic() - began)
    assert pauses == [120, 240, 480, PAUSE_LONGEST_S, PAUSE_LONGEST_S, PAUSE_LONGEST_S]


def test_a_next_hop_that_gives_more_again_gets_all_that_it_may_have() -> None:
    clock = ManualClock()
    one = Width(clock, lambda: None)
    while one.worked(5, 0, 1):
        pass
    one.refused(2)
    found = [one.now(5)]
    for _ in range(3):
        clock.advance(PAUSE_FIRST_S)
        found.append(one.now(5))
    assert found == [2, 3, 4, 5]
    assert one.now(5) == 5
    clock.advance(PAUSE_FIRST_S)
    assert one.now(5) == 5 and not one.is_waiting, "nothing is left of the refusal"
    one.refused(0)
    assert one.now(5) == 1 and one.is_waiting, "one there is always"


def test_a_pause_that_has_grown_is_short_again_once_more_are_given() -> None:
    clock = ManualClock()
    one = Width(clock, lambda: None)
    while one.worked(20, 0, 1):
        pass
    one.refused(3)
    for _ in range(5):
        # One is tried, and refused.
        while one.now(20) == 3:
            clock.advance(PAUSE_FIRST_S)
        one.refused(3)
    began = clock.monotonic()
    while one.now(20) < 20:
        clock.advance(PAUSE_FIRST_S)
    # Two long pauses until the first that is tried has proved itself, then one a minute.
    assert clock.monotonic() - began <= 2 * PAUSE_LONGEST_S + 17 * PAUSE_FIRST_S


def test_a_next_hop_that_gives_one_less_than_the_limit_is_asked_less_and_less() -> None:
    clock = ManualClock()
    one = Width(clock, lambda: None)
    pauses = []
    for _ in range(4):
        one.refused(1)
        began = clock.monotonic()
        while one.now(2) == 1:
            clock.advance(PAUSE_FIRST_S)
        pauses.append(clock.monotonic() - began)
    assert pauses == [60, 120, 240, 480]


def test_connections_that_work_are_enough_where_they_are_quick_and_nothing_hangs() -> None:
    clock = ManualClock()
    looks: list[float] = []
    one = Width(clock, lambda: looks.append(clock.monotonic()))

    def work(seconds: float, times: int = 200) -> None:
        for _ in range(times):
            clock.advance(seconds)
            one.worked(20, clock.monotonic() - seconds, clock.monotonic())

    assert not one.is_enough(1, 20), "nothing is known"
    work(0.002)
    # Each of them takes a message in 2.5 ms: two to go for each.
    assert one.is_enough(1, 1) and one.is_enough(2, 1) and not one.is_enough(3, 1)
    assert one.is_enough(9, 4) and not one.is_enough(10, 4)
    assert not one.is_enough(1, 0), "somebody has to begin"
    assert not looks
    clock.advance(SOON_S + 0.001)
    assert len(looks) == 1, "asked again, once"
    assert not one.is_enough(1, 1), "perhaps it hangs"
    work(0.002, 1)
    assert one.is_enough(2, 1)
    work(0.1)
    assert not one.is_enough(1, 4) and not one.is_enough(1, 16), "a slow one: all connections it may have"
    work(0.0)
    assert not one.is_enough(20, 1), "nothing takes no time"
    assert one.is_enough(1, 1)
    work(STALLED_S + 0.01, 1)
    work(0.002)
    assert not one.is_enough(1, 4), "it may happen again"
    assert one.stalled(0.0 - STALL_PAUSE_S), "of a quick one that is odd"
    work(STALLED_S / 2)
    assert not one.stalled(0.0 - STALL_PAUSE_S), "of this one it is not"
    work(0.002)
    work(STALLED_S + 0.01, 1)
    work(0.002)
    clock.advance(STALL_PAUSE_S)
    work(0.002, 1)
    assert one.is_enough(1, 4)
    one.begin_anew()
    assert not one.is_enough(1, 20)


def test_a_quick_next_hop_gets_content_and_the_next_commands_in_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever the machine's pace is: this next hop is a quick one. And it has no idle connection beside the one that works.
    monkeypatch.setattr(width, "SOON_S", 60.0)
    monkeypatch.setattr(width, "FIRST", 1)
    writes: list[bytes] = []
    real = ClientConnection._write

    def write(self: ClientConnection, data: bytes) -> None:
        writes.append(data)
        real(self, data)

    monkeypatch.setattr(ClientConnection, "_write", write)

    async def main() -> None:
        async with ScriptedServer() as peer:
            async with serving(tmp_path, relay=f"127.0.0.1:{peer.port}", maxrelay_per_next_hop=20) as server:

                async def send(first: int, last: int) -> None:
                    for number in range(first, last):
                        await server.enqueue(
                            {"from": "a@b.test", "rcpt": [f"r{number}@c.test"], "msg": "Subject: x\r\n\r\nx\r\n"}
                        )

                await send(0, 60)
                await peer.wait_for(60)
                await server.pause_queue()
                await send(60, 160)
                before, writes[:] = peer.connections, []
                await server.resume_queue()
                await peer.wait_for(160)
                assert peer.connections == before == 1, "none was opened for those that waited"
                both = [data for data in writes if b"\r\n.\r\nMAIL FROM" in data]
                assert len(both) >= 90, (len(both), len(writes))

    run_async(main)


async def send(server: MailServer, first: int, last: int) -> None:
    for number in range(first, last):
        await server.enqueue({"from": "a@b.test", "rcpt": [f"r{number}@c.test"], "msg": "Subject: x\r\n\r\nx\r\n"})


def test_mail_does_not_wait_behind_what_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick next hop, until it keeps a message for itself: the others go on other connections, and not by the sweep."""
    monkeypatch.setattr(lanes, "SWEEP_S", 3600.0)
    monkeypatch.setattr(width, "SOON_S", 0.2)

    async def main() -> None:
        async with ScriptedServer() as peer:
            async with serving(tmp_path, relay=f"127.0.0.1:{peer.port}", maxrelay_per_next_hop=20) as server:
                await send(server, 0, 60)
                await peer.wait_for(60)
                # Whatever the machine's pace is: this next hop is a quick one.
                lane_of(server)._width._works_s = SHORTEST_S
                hanging: list[str] = []
                peer.script(".", lambda line: "250 2.0.0 OK taken" if hanging else hanging.append(line) or HANG)
                await send(server, 60, 61)
                await until(lambda: bool(hanging))
                for number in range(61, 64):
                    await send(server, number, number + 1)
                    await peer.wait_for(number)
                peer.go_on()
                await peer.wait_for(64)

    run_async(main)


def test_what_went_ahead_behind_a_message_that_hangs_goes_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands were behind the other's content, and an idle connection was there: it takes that one, and none does it again."""
    monkeypatch.setattr(width, "SOON_S", 60.0)

    async def main() -> None:
        hanging: list[str] = []
        async with ScriptedServer() as peer:
            async with serving(tmp_path, relay=f"127.0.0.1:{peer.port}", maxrelay_per_next_hop=20) as server:
                await server.pause_queue()
                await send(server, 0, 100)
                await server.resume_queue()
                await peer.wait_for(100)
                lane = lane_of(server)
                await until(lambda: len(lane._idle) == len(lane._connections) > 1)
                lane._width._works_s = SHORTEST_S
                peer.script(".", lambda line: "250 2.0.0 OK taken" if hanging else hanging.append(line) or HANG)
                await server.pause_queue()
                await send(server, 100, 102)
                await server.resume_queue()
                await until(lambda: bool(hanging))
                # One of them hangs. The other one's commands were behind it; then it came on another connection.
                await peer.wait_for(101)
                assert lane._width._quick_from > server._parts.clock.monotonic()
                assert sum(line.startswith(("RCPT TO:<r100@", "RCPT TO:<r101@")) for line in peer.lines) == 2
                await server.pause_queue()
                await send(server, 102, 122)
                await server.resume_queue()
                await peer.wait_for(121)
                peer.go_on()
                await peer.wait_for(122)
                taken = sorted(recipients[0] for _, recipients, _ in peer.messages)
                assert taken == sorted(f"RCPT TO:<r{n}@c.test>" for n in range(122)), "none twice, none missing"
                # The connection of the one that hung has ended with it: the server waited for content there.
                await until(lambda: lane._busy == 0 and len(lane._idle) == len(lane._connections))

    run_async(main)


def test_a_lane_with_enough_gives_an_idle_connection_to_one_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two connections, all that there may be, one works and the other idles, though a message waits: it can be spared."""
    monkeypatch.setattr(lanes, "SWEEP_S", 3600.0)
    monkeypatch.setattr(width, "SOON_S", 60.0)
    records = {"quick.test": {"A": ["127.0.0.61"]}, "other.test": {"A": ["127.0.0.62"]}}

    async def main() -> None:
        quick, other = ScriptedServer(), ScriptedServer()
        await quick.start(host="127.0.0.61")
        await other.start(quick.port, host="127.0.0.62")
        with nameserver(records) as (address, _):
            async with direct(tmp_path, address, quick.port, maxrelay=2) as server:

                async def send(*recipients: str) -> None:
                    for one in recipients:
                        await server.enqueue(
                            reverse_path="a@b.test", recipients=[one], content="Subject: x\r\n\r\nx\r\n"
                        )

                await server.pause_queue()
                await send("r1@quick.test", "r2@quick.test")
                await server.resume_queue()
                await quick.wait_for(2)
                lane = server._parts.lanes._lane("mx:quick.test")
                await until(lambda: len(lane._idle) == len(lane._connections) == 2)
                hanging: list[str] = []
                quick.script(".", lambda line: hanging.append(line) or HANG)
                await send("r3@quick.test")
                await until(lambda: bool(hanging))
                await send("r4@quick.test")
                await until(lambda: lane.waiting == 1)
                await send("r5@other.test")
                await other.wait_for(1)
                assert lane.connections == 1
                quick.go_on()
                await quick.wait_for(4)
        await quick.stop()
        await other.stop()

    run_async(main)


def test_a_slow_next_hop_has_all_its_connections(tmp_path: Path) -> None:
    """It answers to no message before ten wait for their answer: fewer connections, and none would ever be."""

    async def main() -> None:
        waiting: list[str] = []

        def end(line: str) -> str:
            waiting.append(line)
            if len(waiting) >= 10:
                peer.go_on()
            return HANG

        async with ScriptedServer() as peer:
            async with serving(tmp_path, relay=f"127.0.0.1:{peer.port}", maxrelay_per_next_hop=20) as server:
                await send(server, 0, 60)
                await peer.wait_for(60)
                lane = lane_of(server)
                # It was quick until now, and less quick than no time at all.
                assert lane._width._works_s > SHORTEST_S
                peer.script(".", end)
                await server.pause_queue()
                await send(server, 60, 80)
                await server.resume_queue()
                await peer.wait_for(80)

    run_async(main)


@pytest.mark.parametrize("gives", [1, 3])
def test_a_next_hop_that_gives_few_connections_is_not_asked_for_more_and_more(tmp_path: Path, gives: int) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        peer.script("CONNECT", lambda line: "421 4.7.0 Too many" if len(peer._writers) > gives else "220 peer")
        await peer.start()
        async with serving(tmp_path, relay=f"127.0.0.1:{peer.port}", maxrelay_per_next_hop=20, paused=True) as server:
            for number in range(600):
                await server.enqueue(
                    {"from": "a@b.test", "rcpt": [f"r{number}@c.test"], "msg": "Subject: x\r\n\r\nx\r\n"}
                )
            # All of them wait before the first connection is made.
            await server.resume_queue()
            await peer.wait_for(600)
        await peer.stop()
        assert len(peer.messages) == 600
        # Some are on their way when the first refusal comes.
        assert peer.connections <= gives + 6, peer.connections

    run_async(main)


def test_an_early_refusal_counts_those_that_are_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty that are opened at once the very first is refused; the others come about."""
    monkeypatch.setattr(width, "FIRST", 20)

    async def main() -> None:
        peer = ScriptedServer()
        peer.script("CONNECT", lambda line: "421 4.7.0 Too many" if peer.connections == 1 else "220 peer")
        await peer.start()
        options: dict[str, Any] = {"relay": f"127.0.0.1:{peer.port}", "maxrelay_per_next_hop": 20, "paused": True}
        async with serving(tmp_path, **options) as server:
            for number in range(100):
                await server.enqueue(
                    {"from": "a@b.test", "rcpt": [f"r{number}@c.test"], "msg": "Subject: x\r\n\r\nx\r\n"}
                )
            await server.resume_queue()
            await peer.wait_for(100)
            assert lane_of(server)._width.now(20) == 19
            # Nobody took the refusal for trouble, and no message had an attempt by it.
            found = server._parts.store.search(Query(limit=200))
            assert found and all(r.attempts <= 1 for view in found for r in view.recipients)
        await peer.stop()
        assert peer.connections == 20

    run_async(main)


def test_a_few_messages_do_not_open_as_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width.Width, "worked", lambda self, limit, began, ended: False)

    async def main() -> None:
        async with ScriptedServer() as peer:
            async with serving(
                tmp_path, relay=f"127.0.0.1:{peer.port}", maxrelay_per_next_hop=20, paused=True
            ) as server:
                for number in range(20):
                    await server.enqueue(
                        {"from": "a@b.test", "rcpt": [f"r{number}@c.test"], "msg": "Subject: x\r\n\r\nx\r\n"}
                    )
                await server.resume_queue()
                await peer.wait_for(20)
            assert peer.connections <= FIRST

    run_async(main)
