"""Async plugins are driven inline, one coroutine after the other by the same driver; what waits has it for itself."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Reply
from pillarbox.events.catalogue import MessageQueued
from tests.conftest import Wire, cuts, run_async, serving, wired

WHOLE = cuts(0)[0]
NO = Reply(550, "5.7.1", "No")


async def _answers(plugin: Any, *lines: bytes) -> list[str]:
    async with wired(WHOLE) as (server, wire):
        server.pipeline().unshift("one", plugin)
        return [reply[:3] for line in lines for reply in await wire.ask(line)]


def test_one_after_the_other_in_every_mixture() -> None:
    class Mixed:
        def __init__(self) -> None:
            self.count = 0

        async def on_cmd_noop(self, server: Any, event: Any) -> Any:
            self.count += 1
            kind = self.count % 5
            if kind == 1:
                return None
            if kind == 2:
                return NO
            if kind == 3:
                await asyncio.sleep(0)
                return NO
            if kind == 4:
                raise ValueError("a fault")
            await asyncio.sleep(0)
            raise ValueError("a late fault")

    async def main() -> None:
        assert await _answers(Mixed(), b"HELO x.test\r\n", *[b"NOOP\r\n"] * 11) == [
            "250", *["250", "550", "550", "451", "451"] * 2, "250",
        ]  # fmt: skip

    run_async(main)


def test_a_coroutine_that_sends_an_event_that_is_heard_by_another() -> None:
    heard: list[str] = []

    class Outer:
        async def on_cmd_noop(self, server: Any, event: Any) -> Any:
            server.send_event("inner", 1)
            heard.append("outer")
            server.send_event("inner", 2)
            return NO

        async def on_inner(self, server: Any, event: Any) -> None:
            if event.args[0] == 2:
                await asyncio.sleep(0)
            heard.append(f"inner {event.args[0]}")

    async def main() -> None:
        assert await _answers(Outer(), b"HELO x.test\r\n", b"NOOP\r\n", b"NOOP\r\n") == ["250", "550", "550"]
        await asyncio.sleep(0)
        assert sorted(heard) == sorted(["inner 1", "outer", "inner 2"] * 2)
        assert heard[:2] == ["inner 1", "outer"]

    run_async(main)


def test_who_waits_together_ends_each_with_its_own() -> None:
    gates: list[asyncio.Event] = []

    class Waiting:
        async def on_cmd_noop(self, server: Any, event: Any) -> Any:
            gates.append(gate := asyncio.Event())
            number = len(gates)
            await gate.wait()
            await asyncio.sleep(0)
            return Reply(250 + number, "2.0.0", "Ok")

    async def main() -> None:
        async with wired(WHOLE) as (server, _):
            server.pipeline().unshift("one", Waiting())
            wires = [Wire(server, WHOLE()) for _ in range(3)]
            for wire in wires:
                await wire.ask(b"HELO x.test\r\n")
                wire.connection.data_received(b"NOOP\r\n")
            await asyncio.sleep(0)
            for gate in reversed(gates):
                gate.set()
            for number, wire in enumerate(wires):
                await wire.settle()
                assert [reply[:3] for reply in wire.replies()] == [str(251 + number)]
                wire.lose()

    run_async(main)


def test_lines_are_counted_when_somebody_asks() -> None:
    octets = b"a: b\r\n\r\ntext\r\n"
    plain = MessageQueued("s1", None, ["a@b.test"], "M1", 3, len(octets), "")
    event = MessageQueued("s1", None, ["a@b.test"], "M1", 0, len(octets), "")
    event.count_later(octets)
    twins = [copy.copy(event), copy.deepcopy(event), dataclasses.replace(event)]
    assert [twin.lines for twin in (event, *twins)] == [3] * 4 and event._octets is None
    assert event == plain and repr(event) == repr(plain) and dataclasses.asdict(event) == dataclasses.asdict(plain)
    # As another thread finds it that has asked at the same moment.
    assert type(event).__getattr__(event, "lines") == 3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'MessageQueued' object has no attribute 'line'"):
        event.line  # type: ignore[attr-defined]  # noqa: B018


def test_events_that_wait_for_a_subscriber_hold_no_content() -> None:
    """A subscriber may be ten thousand events behind."""
    seen: list[Any] = []

    def subscriber(event: Any) -> None:
        """Takes its time."""

    class Watching:
        def on_message_queued(self, server: Any, event: Any) -> None:
            seen.append(event)

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("watching", Watching())
            await wire.ask(b"HELO x.test\r\n")
            for step in range(2):
                for line in (
                    b"MAIL FROM:<a@b.test>\r\n",
                    b"RCPT TO:<c@d.test>\r\n",
                    b"DATA\r\n",
                    b"a: b\r\n\r\nx\r\n.\r\n",
                ):
                    await wire.ask(line)
                if not step:
                    server.register(subscriber, "message_queued")
        assert [getattr(event, "_octets", None) is not None for event in seen] == [True, False]
        assert seen[0].lines == seen[1].lines >= 6


def test_lines_of_a_file_are_counted_while_it_is_there(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watching:
        def on_message_queued(self, server: Any, event: Any) -> None:
            seen.append(event)

    async def main() -> None:
        async with serving(tmp_path, plugins={"watching": Watching()}, paused=True, spool_above_bytes=1000) as server:
            await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="a: b\n\n" + "x\n" * 1000)
            (file,) = Path(server._parts.store.spool).iterdir()
            file.unlink()
        assert seen[0].lines == 1005

    run_async(main)
