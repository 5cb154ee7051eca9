"""Rows A1 to A17 of the hostile checklist: framing and smuggling. Each row whole, byte by byte, and cut at random."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pillarbox.smtp.framing import DotStuffer
from tests.conftest import cuts, queued, run_async, stored_content, wired

Sizes = Callable[[], Iterator[int]]
pytestmark = pytest.mark.parametrize("sizes", cuts(1), ids=["whole", "bytes", "random"])
START = b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
SMUGGLED = b"MAIL FROM:<evil@b.test>\r\nRCPT TO:<victim@d.test>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n.\r\n"


async def to_content(wire: Any) -> None:
    await wire.ask(START)
    assert (await wire.ask(b"DATA\r\n"))[0].startswith("354")


def check_refused(sizes: Sizes, middle: bytes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await to_content(wire)
            replies = await wire.ask(b"Subject: x\r\n\r\nbody" + middle + SMUGGLED)
            assert [reply[:9] for reply in replies] == ["550 5.5.2"], replies
            assert wire.transport.closed
            assert queued(server) == []

    run_async(main)


def check_normalised(sizes: Sizes, middle: bytes) -> None:
    """By option the message is taken, as one, and can only ever be one."""

    async def main() -> None:
        async with wired(sizes, bare_line_ends="normalise") as (server, wire):
            await to_content(wire)
            replies = await wire.ask(b"Subject: x\r\n\r\nbody" + middle + SMUGGLED)
            assert [reply[:3] for reply in replies] == ["250"], replies
            assert len(queued(server)) == 1
            stuffer = DotStuffer()
            wire_form = stuffer.feed(stored_content(server)) + stuffer.finish()
            assert wire_form.count(b"\r\n.\r\n") == 1 and wire_form.endswith(b"\r\n.\r\n")
            assert wire_form.replace(b"\r\n", b"").count(b"\n") == wire_form.replace(b"\r\n", b"").count(b"\r") == 0

    run_async(main)


def both(sizes: Sizes, middle: bytes) -> None:
    check_refused(sizes, middle)
    check_normalised(sizes, middle)


def test_a1_lf_dot_lf(sizes: Sizes) -> None:
    both(sizes, b"\n.\n")


def test_a2_lf_dot_crlf(sizes: Sizes) -> None:
    both(sizes, b"\n.\r\n")


def test_a3_crlf_dot_lf(sizes: Sizes) -> None:
    both(sizes, b"\r\n.\n")


@pytest.mark.parametrize("end", [b"\r.\r", b"\r\n.\r", b"\r.\r\n"])
def test_a4_bare_cr(sizes: Sizes, end: bytes) -> None:
    both(sizes, end)


def test_a5_cr_cr_lf(sizes: Sizes) -> None:
    both(sizes, b"\r\r\n.\r\r\n")


def test_a6_nul(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await to_content(wire)
            replies = await wire.ask(b"Subject: x\r\n\r\nbody\r\n\0.\r\n" + SMUGGLED)
            assert [reply[:3] for reply in replies] == ["250"]
            assert len(queued(server)) == 1
            assert b"body\r\n\0.\r\nMAIL FROM" in stored_content(server)

    run_async(main)


def test_a7_split_end(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await to_content(wire)
            await wire.send(b"Subject: x\r\n\r\nbody")
            for piece in (b"\r", b"\n.", b"\r", b"\n"):
                wire.connection.data_received(piece)
                await asyncio.sleep(0)
            await wire.settle()
            assert [reply[:3] for reply in wire.replies()] == ["250"]
            assert len(queued(server)) == 1
            assert stored_content(server).endswith(b"\r\n\r\nbody\r\n")

    run_async(main)


def test_a8_transparency(sizes: Sizes) -> None:
    lines = [b".", b"..", b".x", b"...", b"x.", b"", b"." + b"y" * 5000, b"z" * 4094, b".", b"."]
    content = b"Subject: x\r\n\r\n" + b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join(
        (b"." + line if line.startswith(b".") else line) + b"\r\n" for line in content.split(b"\r\n")[:-1]
    )

    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await to_content(wire)
            assert (await wire.ask(stuffed + b".\r\n"))[0].startswith("250")
            assert stored_content(server).endswith(content)

    run_async(main)


def test_a9_bdat_with_bare_lf(sizes: Sizes) -> None:
    content = b"Subject: x\r\n\r\nbody\n.\nMAIL FROM:<evil@b.test>\n"

    async def main() -> None:
        for policy in ("refuse", "normalise"):
            async with wired(sizes, bare_line_ends=policy) as (server, wire):
                # RFC 3030 section 2: octets are counted, so the command behind them is a command, and the only one.
                replies = await wire.ask(START + b"BDAT %d LAST\r\n" % len(content) + content + b"NOOP\r\n")
                assert [reply[:3] for reply in replies[-2:]] == ["250", "250"] and len(queued(server)) == 1
                stuffer = DotStuffer()
                out = stuffer.feed(stored_content(server)) + stuffer.finish()
                assert b"body\r\n..\r\nMAIL" in out and out.count(b"\r\n.\r\n") == 1

    run_async(main)


def test_a10_binarymime_is_not_offered(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            hello = await wire.ask(b"EHLO x.test\r\n")
            assert "BINARYMIME" not in hello[0]
            assert (await wire.ask(b"MAIL FROM:<a@b.test> BODY=BINARYMIME\r\n"))[0].startswith("501 5.5.4")

    run_async(main)


def test_a11_plugin_content_is_normalised_by_the_writer(sizes: Sizes) -> None:
    rng = sizes()
    content = b"a\n.\nb\r.\rc\r\n.\r\nd"
    stuffer = DotStuffer()
    out, place = b"", 0
    while place < len(content):
        size = next(rng)
        out += stuffer.feed(content[place : place + size])
        place += size
    out += stuffer.finish()
    assert out == b"a\r\n..\r\nb\r\n..\r\nc\r\n..\r\nd\r\n.\r\n"


def test_a12_command_with_bare_lf(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            replies = await wire.ask(b"EHLO x.test\r\nNOOP\nMAIL FROM:<a@b.test>\r\nNOOP\r\n")
            assert [r[:3] for r in replies] == ["250", "500", "250"]
            assert wire.connection.session.facts.envelope is None
        async with wired(sizes, bare_lf_commands="accept") as (_, wire):
            replies = await wire.ask(b"EHLO x.test\nNOOP\nNOOP\r\n")
            assert [r[:3] for r in replies] == ["250", "250", "250"]
            # Content keeps its own rule.
            await wire.ask(b"MAIL FROM:<a@b.test>\nRCPT TO:<c@d.test>\nDATA\n")
            assert (await wire.ask(b"x\n.\n\r\n.\r\n"))[0].startswith("550 5.5.2")

    run_async(main)


def test_a13_data_before_354(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await wire.ask(START)
            wire.connection.data_received(b"DATA\r\nSubject: x\r\n\r\nbody\r\n.\r\nNOOP\r\n")
            await wire.settle()
            assert [r[:9] for r in wire.replies()] == ["503 5.5.0"]
            assert wire.transport.closed and queued(server) == []

    run_async(main)


def test_a14_talks_before_the_banner(sizes: Sizes) -> None:
    class Slow:
        def __init__(self) -> None:
            self.gate: asyncio.Event = asyncio.Event()
            self.early: list[bool] = []

        async def on_connection(self, server: Any, event: Any) -> None:
            await self.gate.wait()
            self.early.append(event.session.talked_early)

    async def main() -> None:
        async with wired(sizes) as (server, _):
            from tests.conftest import Wire

            slow = Slow()
            server.plugin_add("slow", slow)
            wire = Wire(server, sizes())
            await wire.send(b"EHLO x.test\r\n")
            assert wire.replies() == []
            slow.gate.set()
            await wire.settle()
            assert [r[:3] for r in wire.replies()] == ["220", "250"]
            assert slow.early == [True]
            wire.lose()

    run_async(main)


def test_a15_empty_message(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await to_content(wire)
            assert (await wire.ask(b".\r\n"))[0].startswith("250")
            assert stored_content(server).startswith(b"Received: ")

    run_async(main)


def test_a16_endless_line(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes, max_size_bytes=2_000_000) as (server, wire):
            await to_content(wire)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            piece = b"x" * 65536
            for _ in range(400):
                wire.connection.data_received(piece)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert after - before < 30_000, "26 MB came in, no more than a few may stay"
            wire.connection.data_received(b"\r\n.\r\n")
            await wire.settle()
            assert wire.replies()[-1].startswith("552 5.3.4") and queued(server) == []

    run_async(main)


def test_a17_line_lengths(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await wire.ask(b"EHLO x.test\r\n")
            content = b"Subject: x\r\n\r\n" + b"".join(b"y" * n + b"\r\n" for n in (998, 999, 1000, 1001))
            await wire.ask(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
            await wire.ask(b"DATA\r\n")
            assert (await wire.ask(content + b".\r\n"))[0].startswith("250")
            stored = stored_content(server)
            assert hashlib.sha256(stored[-len(content) :]).digest() == hashlib.sha256(content).digest()
            # A command line of exactly the limit, and of one octet more.
            fits = b"NOOP " + b"x" * (2048 - 7) + b"\r\n"
            assert len(fits) == 2048
            assert (await wire.ask(fits))[0].startswith("250")
            assert (await wire.ask(b"NOOP " + b"x" * (2048 - 6) + b"\r\n"))[0].startswith("500 5.5.2")
            assert (await wire.ask(b"NOOP\r\n"))[0].startswith("250")

    run_async(main)
