"""Async plugins are driven inline, one coroutine after the other by the same driver; what waits has it for itself."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Reply
from pillarbox.events.catalogue import MessageQueued
from pillarbox.mail.content import Content
from tests.conftest import cuts, run_async, serving, wired

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
        from tests.conftest import Wire

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


def test_lines_are_counted_when_somebody_asks(tmp_path: Path) -> None:
    content = Content(b"a: b\r\n\r\ntext\r\n")
    event = MessageQueued("s1", None, ["a@b.test"], "M1", 0, content.size_bytes, "")
    event.count_later(content)
    twin = copy.copy(event)
    assert (event.lines, twin.lines, event._content) == (3, 3, None)
    assert event == MessageQueued("s1", None, ["a@b.test"], "M1", 3, content.size_bytes, "")
    with pytest.raises(AttributeError, match="'MessageQueued' object has no attribute 'line'"):
        event.line  # type: ignore[attr-defined]  # noqa: B018
    event.count_later(Content(path=str(tmp_path / "gone"), file_bytes=5))
    assert event.lines == 0


def test_events_that_wait_for_a_subscriber_hold_no_content(tmp_path: Path) -> None:
    """A subscriber may be ten thousand events behind."""
    seen: list[Any] = []

    class Watching:
        def on_message_queued(self, server: Any, event: Any) -> None:
            seen.append(event)

    async def main() -> None:
        async with serving(tmp_path, store="memory", plugins={"watching": Watching()}) as server:
            message = {"reverse_path": "a@b.test", "recipients": ["c@d.test"], "content": "Subject: x\n\none\ntwo\n"}
            await server.enqueue(**message)
            server.register(lambda event: None, "message_queued")
            await server.enqueue(**message)
        assert seen[0]._content is not None and seen[1]._content is None
        assert seen[0].lines == seen[1].lines >= 4

    run_async(main)
