"""The short ways of commands and content (server/atonce.py): the same replies as the long ones, whatever has changed."""

from __future__ import annotations

import asyncio
import gc
import ssl
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pillarbox import Eat, Reply
from tests.conftest import Client, Wire, WireTransport, cuts, queued, run_async, serving, stored_content, until, wired

WHOLE: Callable[[], Iterator[int]] = cuts(0)[0]
TRANSACTION = (b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n")
CONTENT = b"Subject: s\r\n\r\ntext\r\n.\r\n"


async def say(wire: Wire, *pieces: bytes) -> list[str]:
    """Codes of the replies to segments that come one by one."""
    return [reply[:3] for piece in pieces for reply in await wire.ask(piece)]


def test_a_plugin_that_comes_is_asked_at_the_next_line() -> None:
    """Lines that have been answered without it are answered by it; and without it again when it has gone."""

    class Refusing:
        def on_cmd_rcpt(self, server: Any, event: Any) -> Reply:
            return Reply(550, "5.1.1", "not today")

    class Watching:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_response(self, server: Any, event: Any) -> None:
            self.seen.append(event.verb)

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            assert await say(wire, b"HELO x.test\r\n", *TRANSACTION, CONTENT) == ["250", "250", "250", "354", "250"]
            assert await say(wire, *TRANSACTION[:2]) == ["250", "250"]
            server.pipeline().unshift("refusing", Refusing())
            assert await say(wire, TRANSACTION[1], b"RSET\r\n", *TRANSACTION[:2]) == ["550", "250", "250", "550"]
            server.pipeline().remove("refusing")
            assert await say(wire, TRANSACTION[1], b"DATA\r\n", CONTENT) == ["250", "354", "250"]
            server.pipeline().unshift("watching", watching := Watching())
            assert await say(wire, *TRANSACTION, CONTENT) == ["250", "250", "354", "250"]
            assert watching.seen == ["MAIL", "RCPT", "DATA", "."]
            server.pipeline().remove("watching")
            assert await say(wire, *TRANSACTION, CONTENT, b"QUIT\r\n") == ["250", "250", "354", "250", "221"]
            assert wire.transport.closed and len(queued(server)) == 4

    run_async(main)


def test_whoever_came_before_other_rules_keeps_its_own() -> None:
    """What a line means by one session's rules is not taken for what it means by another's; plugins see both."""

    class Refusing:
        def on_cmd_mail(self, server: Any, event: Any) -> Reply:
            return Reply(450, "4.7.1", "not now")

    async def main() -> None:
        async with wired(WHOLE) as (server, before):
            loose = b"MAIL FROM: <a@b.test>\r\n"
            assert await say(before, b"HELO x.test\r\n", loose, b"RSET\r\n", loose, b"RSET\r\n") == ["250"] * 5
            server.reload(strict_envelope=True)
            behind = Wire(server, WHOLE())
            await behind.settle()
            behind.replies()
            for _ in range(3):
                assert await say(before, loose, b"RSET\r\n") == ["250", "250"]
                assert await say(behind, b"HELO x.test\r\n", loose, TRANSACTION[0], b"RSET\r\n") == [
                    "250",
                    "501",
                    "250",
                    "250",
                ]
            server.pipeline().unshift("refusing", Refusing())
            assert await say(before, loose, TRANSACTION[0]) == ["450", "450"]
            assert await say(behind, loose, TRANSACTION[0]) == ["501", "450"]
            behind.lose()

    run_async(main)


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.server.atonce.MAX_KNOWN", 20)

    async def main() -> None:
        async with wired(WHOLE, max_junk=1000) as (server, wire):
            await say(wire, b"HELO x.test\r\n")
            ways = server._parts.dispatcher.ways
            most = 0
            for n in range(50):
                assert await say(wire, b"NOOP %d\r\n" % n) == ["250"]
                most = max(most, len(ways))
            assert most == 20 and ways is server._parts.dispatcher.ways

    run_async(main)


def test_behind_starttls_lines_that_are_known_are_out_of_order(tmp_path: Path, certificate: dict[str, str]) -> None:
    """RFC 3207 section 4.2: nothing that was said in clear counts."""

    async def main() -> None:
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, store="memory", **files) as server:
            reader, writer = await asyncio.open_connection(*server.getsocknames()[0])
            client = Client(reader, writer)
            await client.reply()
            for _ in range(2):
                for line in (b"EHLO x.test", b"MAIL FROM:<a@b.test>", b"RSET"):
                    assert (await client.ask(line)).startswith("250")
            assert (await client.ask(b"STARTTLS")).startswith("220")
            context = ssl.create_default_context(cafile=certificate["ca"])
            await writer.start_tls(context, server_hostname="mx.test")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("503")
            assert (await client.ask(b"EHLO x.test")).startswith("250")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("250")
            client.close()

    run_async(main)


def test_what_is_written_while_the_turn_s_writes_leave_follows_them() -> None:
    """Connections keep the list of writes at hand: it stays the same."""

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            outbox = server._parts.context.outbox
            before, said = outbox.writes, []

            class Transport(WireTransport):
                def write(self, data: Any) -> None:
                    said.append(bytes(data))
                    if data == b"one":
                        outbox.put(self, b"three")

            transport = Transport()
            outbox.put(transport, b"one")
            outbox.put(transport, b"two")
            outbox.put(transport, None)
            outbox.flush()
            assert said == [b"one", b"two"] and outbox.writes is before and transport.closed
            transport.closed = False
            await asyncio.sleep(0)
            assert said == [b"one", b"two", b"three"] and not outbox.writes
            assert await say(wire, b"HELO x.test\r\n") == ["250"]

    run_async(main)


def test_order_is_kept_by_lines_that_are_known() -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            assert await say(wire, b"MAIL FROM:<a@b.test>\r\n") == ["503"]
            for _ in range(2):
                assert await say(wire, b"HELO x.test\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n") == [
                    "250",
                    "503",
                    "503",
                ]
                assert await say(wire, *TRANSACTION[:1], *TRANSACTION[:1], b"DATA\r\n") == ["250", "503", "503"]
                # HELO within a transaction ends it, RSET too.
                assert await say(wire, b"HELO x.test\r\n", b"RCPT TO:<c@d.test>\r\n") == ["250", "503"]
                assert await say(wire, *TRANSACTION[:2], b"RSET\r\n", b"DATA\r\n") == ["250", "250", "250", "503"]
                # A line of content that looks like a command is content.
                assert await say(wire, *TRANSACTION, b"DATA\r\n", b"QUIT\r\n", b".\r\n") == ["250", "250", "354", "250"]
            assert [stored_content(server, n).endswith(b"DATA\r\nQUIT\r\n") for n in (0, 1)] == [True, True]

    run_async(main)


@pytest.mark.parametrize("is_heard", [False, True])
@pytest.mark.parametrize("command", [b"NOOP\r\n", b"RSET\r\n", b"HELO x.test\r\n"])
def test_junk_is_counted_on_every_way(command: bytes, is_heard: bool) -> None:
    async def main() -> None:
        async with wired(WHOLE, max_junk=5) as (server, wire):
            if is_heard:
                server.pipeline().unshift("heard", Heard())
            # A greeting counts a tenth.
            most = 50 if command.startswith(b"HELO") else 5
            assert await say(wire, b"HELO x.test\r\n", *[command] * (most - 1)) == ["250"] * most
            assert await say(wire, *TRANSACTION, CONTENT) == ["250", "250", "354", "250"], "it begins anew"
            assert await say(wire, *[command] * (most + 1)) == ["250"] * most + ["421"]

    run_async(main)


@pytest.mark.parametrize("chunk", [b"BDAT 3\r\nabc", b"BDAT 3 LAST\r\nabc"])
def test_known_lines_between_and_behind_chunks(chunk: bytes) -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            await say(wire, b"HELO x.test\r\n", *TRANSACTION, CONTENT, b"NOOP\r\n", b"RSET\r\n")
            assert await say(wire, *TRANSACTION[:2], chunk, b"NOOP\r\n") == ["250"] * 4
            is_last = b"LAST" in chunk
            assert await say(wire, b"MAIL FROM:<a@b.test>\r\n") == (["250"] if is_last else ["503"])
            assert await say(wire, b"RSET\r\n", *TRANSACTION, CONTENT) == ["250", "250", "250", "354", "250"]
            assert len(queued(server)) == 2 + is_last and b"abc" not in stored_content(server, 1 + is_last)

    run_async(main)


def test_content_that_is_too_large_or_has_a_bare_line_end_is_refused_at_its_end() -> None:
    async def main() -> None:
        async with wired(WHOLE, max_size_bytes=2000) as (server, wire):
            await say(wire, b"HELO x.test\r\n")
            assert await say(wire, *TRANSACTION, b"x" * 2000 + b"\r\n.\r\n") == ["250", "250", "354", "552"]
            assert await say(wire, *TRANSACTION, b"..x\r\n.y\r\n.\r\n") == ["250", "250", "354", "250"]
            assert stored_content(server).endswith(b"\r\n.x\r\ny\r\n")
            assert await say(wire, *TRANSACTION, b"x\n.\r\nMAIL FROM:<>\r\n.\r\n") == ["250", "250", "354", "550"]
            assert wire.transport.closed or wire.connection._lingers
            assert len(queued(server)) == 1

    run_async(main)


def test_large_content_goes_to_the_spool_though_it_comes_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="sqlite", paused=True, spool_above_bytes=4096) as server:
            wire = Wire(server, WHOLE())
            await wire.ask(b"HELO x.test\r\n")
            for size in (1000, 9000):
                assert await say(wire, *TRANSACTION, b"x" * size + b"\r\n.\r\n") == ["250", "250", "354", "250"]
            spooled = [path for path in tmp_path.rglob("*") if path.is_file() and "spool" in path.parts]
            assert len(spooled) == 1
            wire.lose()

    run_async(main)


def test_what_comes_behind_the_end_of_content_is_answered() -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            await say(wire, b"HELO x.test\r\n")
            for _ in range(2):
                assert await say(wire, *TRANSACTION, CONTENT + b"NOOP\r\n") == ["250", "250", "354", "250", "250"]
                # And what comes while the message waits for its commit.
                await say(wire, *TRANSACTION)
                wire.connection.data_received(CONTENT)
                wire.connection.data_received(b"NOOP\r\n")
                wire.connection.data_received(b"MAIL FROM:<a@b.test>\r\n")
                await wire.settle()
                assert [reply[:3] for reply in wire.replies()] == ["250", "250", "250"]
                assert await say(wire, b"RSET\r\n") == ["250"]
            assert len(queued(server)) == 4

    run_async(main)


class Heard:
    """Hears of everything."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_default(self, server: Any, event: Any) -> None:
        self.names.append(event.name)


class HeardAsync(Heard):
    async def on_default(self, server: Any, event: Any) -> None:  # type: ignore[override]
        self.names.append(event.name)


class HeardLater(Heard):
    async def on_default(self, server: Any, event: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.names.append(event.name)


class Rewriting(Heard):
    def on_cmd_mail(self, server: Any, event: Any) -> None:
        event.address = "other@b.test"

    def on_cmd_rcpt(self, server: Any, event: Any) -> None:
        event.address = "else@d.test"


class Failing(Heard):
    def on_cmd_mail(self, server: Any, event: Any) -> None:
        raise RuntimeError("on purpose")


class Changing(Heard):
    def on_response(self, server: Any, event: Any) -> None:
        if event.verb == "MAIL":
            event.reply = Reply(250, "2.1.0", "Changed")
        elif event.verb == "NOOP":
            event.reply = Reply(450, "4.0.0", "Not now")


class Keeping(Heard):
    """Keeps one reply back, and lets it out behind the next."""

    def on_response(self, server: Any, event: Any) -> Eat | None:
        return Eat.ALL if event.verb == "NOOP" else None


class Answering(Heard):
    def on_cmd_data(self, server: Any, event: Any) -> Reply:
        return Reply(250, "2.0.0", "No content wanted")


class Eating(Heard):
    def on_cmd_rcpt(self, server: Any, event: Any) -> Eat:
        server.send_to_client(event.client_id, Reply(250, "2.1.5", "By the program"))
        return Eat.ALL


DIALOGUE = (b"HELO x.test\r\n", b"NOOP\r\n", *TRANSACTION, CONTENT, b"RSET\r\n")


@pytest.mark.parametrize(
    "kind", [Heard, HeardAsync, HeardLater, Rewriting, Failing, Changing, Keeping, Answering, Eating]
)
def test_with_a_plugin_known_lines_are_answered_as_new_ones(kind: type[Heard], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round reads the lines; the others know them: the same replies, events and messages."""

    async def main() -> None:
        async with wired(WHOLE, max_errors=1000) as (server, wire):
            server.pipeline().unshift("plugin", plugin := kind())
            await until(lambda: "plugin_add" in plugin.names or kind not in (Heard, HeardAsync, HeardLater))
            rounds = []
            for _ in range(3):
                before = len(queued(server))
                plugin.names.clear()
                said = [[reply.replace(uid_of(reply), "ID") for reply in await wire.ask(piece)] for piece in DIALOGUE]
                mail = [(m.reverse_path, m.recipients[0].address) for m in queued(server)[before:]]
                rounds.append((said, list(plugin.names), mail))
            assert rounds[0] == rounds[1] == rounds[2]
            assert (len(queued(server)) > 0) == (kind not in (Failing, Answering))
            # And nothing of that by the long way alone.
            server.pipeline().remove("plugin")
            assert await say(wire, b"NOOP\r\n", *TRANSACTION, CONTENT) == ["250", "250", "250", "354", "250"]

    run_async(main)


def uid_of(reply: str) -> str:
    """The queue id in a 250 to content."""
    return reply.split()[2] if "accepted for delivery" in reply else reply


def test_a_plugin_that_refuses_later_is_obeyed() -> None:
    """A line that was taken ten times is refused the eleventh, and its session goes on."""

    class Tired(Heard):
        count = 0

        def on_cmd_rcpt(self, server: Any, event: Any) -> Reply | None:
            self.count += 1
            return Reply(452, "4.5.3", "enough") if self.count == 4 else None

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("tired", Tired())
            await say(wire, b"HELO x.test\r\n", TRANSACTION[0])
            assert await say(wire, *[TRANSACTION[1]] * 5) == ["250", "250", "250", "452", "250"]
            assert await say(wire, b"DATA\r\n", CONTENT, b"QUIT\r\n") == ["354", "250", "221"]
            assert wire.transport.closed and len(queued(server)[0].recipients) == 4

    run_async(main)


def test_a_client_that_goes_while_a_plugin_looks_at_its_line() -> None:
    class Hanging(Heard):
        wire: Any = None

        def on_cmd_noop(self, server: Any, event: Any) -> None:
            if self.wire is not None:
                self.wire.lose()

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("hanging", plugin := Hanging())
            assert await say(wire, b"HELO x.test\r\n", b"NOOP\r\n", b"NOOP\r\n") == ["250"] * 3
            plugin.wire = wire
            wire.connection.data_received(b"NOOP\r\n")
            await asyncio.sleep(0)
            assert wire.connection.session.is_lost and wire.replies() == []

    run_async(main)


@pytest.mark.parametrize("segment", [b"x.\r\n", b"A.\r\n", b"..\r\n", b"\n.\r\n", b"\r.\r\n", b"x\n.\r\n", b"x\r.\r\n"])
def test_no_other_dot_ends_content(segment: bytes) -> None:
    """What looks like an end behind the 354 is none: the lines behind it are content, not commands."""

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            for lines in (TRANSACTION, (*TRANSACTION[:2], b"DATA\r\n")):
                await say(wire, b"HELO x.test\r\n", *lines)
                assert await say(wire, segment, *TRANSACTION) == []
                assert await say(wire, b".\r\n") in (["250"], ["550"])
                if wire.transport.closed or wire.connection._lingers:
                    return
            assert len(queued(server)) == 2 and stored_content(server).endswith(b"DATA\r\n")

    run_async(main)


def test_a_greeting_forgets_what_a_refused_transaction_had_asked_for() -> None:
    class Greylist(Heard):
        count = 0

        def on_cmd_mail(self, server: Any, event: Any) -> Reply | None:
            self.count += 1
            if self.count == 1:
                server.data_mode(event.client_id)
                return Reply(450, "4.7.1", "later")
            return None

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("greylist", Greylist())
            assert await say(wire, b"HELO x.test\r\n", TRANSACTION[0], b"HELO x.test\r\n") == ["250", "450", "250"]
            assert await say(wire, *TRANSACTION, CONTENT) == ["250", "250", "354", "250"] and len(queued(server)) == 1

    run_async(main)


def test_data_mode_behind_a_spooled_message(tmp_path: Path) -> None:
    class Diverting(Heard):
        is_on = False
        given: ClassVar[list[Any]] = []

        def on_cmd_data(self, server: Any, event: Any) -> None:
            if self.is_on:
                assert server.data_mode(event.client_id)

        def on_data(self, server: Any, event: Any) -> Reply:
            self.given.append(event.lines)
            return Reply(250, "2.0.0", "Thanks")

    async def main() -> None:
        async with serving(tmp_path, store="sqlite", paused=True, spool_above_bytes=4096) as server:
            wire = Wire(server, WHOLE())
            server.pipeline().unshift("diverting", plugin := Diverting())
            await say(wire, b"HELO x.test\r\n", *TRANSACTION, b"x" * 9000 + b"\r\n.\r\n")
            plugin.is_on = True
            assert await say(wire, *TRANSACTION, CONTENT) == ["250", "250", "354", "250"]
            assert len(plugin.given) == 1
            wire.lose()

    run_async(main)


def test_an_async_plugin_that_answers_nonsense_is_told_of_once() -> None:
    class Nonsense(Heard):
        ignores_failures = True

        async def on_cmd_noop(self, server: Any, event: Any) -> bool:
            return True

    class Told(Heard):
        def on_plugin_error(self, server: Any, event: Any) -> None:
            self.names.append(f"error of {event.event_name}")

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("told", told := Told())
            server.pipeline().unshift("nonsense", Nonsense())
            assert await say(wire, b"HELO x.test\r\n", b"NOOP\r\n", b"NOOP\r\n") == ["250"] * 3
            assert told.names.count("error of cmd_noop") == 2

    run_async(main)


def test_a_chunk_that_a_plugin_refuses_leaves_nothing() -> None:
    class Refusing(Heard):
        is_on = True

        def on_response(self, server: Any, event: Any) -> None:
            if self.is_on and event.verb == ".":
                event.reply = Reply(451, "4.3.0", "no")

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("refusing", plugin := Refusing())
            assert await say(wire, b"EHLO x.test\r\n", *TRANSACTION[:2], b"BDAT 7\r\nstale\r\n") == ["250"] * 3 + [
                "451"
            ]
            assert wire.connection.session.facts.envelope is None
            plugin.is_on = False
            assert await say(wire, *TRANSACTION, CONTENT) == ["250", "250", "354", "250"]
            assert b"stale" not in stored_content(server)

    run_async(main)


def test_a_decision_that_comes_behind_the_421_changes_nothing() -> None:
    class Slow(Heard):
        go: asyncio.Event

        async def on_cmd_noop(self, server: Any, event: Any) -> None:
            await self.go.wait()

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            plugin = Slow()
            plugin.go = asyncio.Event()
            server.pipeline().unshift("slow", plugin)
            await say(wire, b"HELO x.test\r\n")
            wire.connection.data_received(b"NOOP\r\n")
            session = wire.connection.session
            session.leave(Reply(421, "4.3.2", "Shutting down"), "shutdown")
            plugin.go.set()
            await server._parts.dispatcher.settle()
            wire.connection.data_received(b"MAIL FROM:<a@b.test>\r\n")
            await wire.settle()
            assert [reply[:3] for reply in wire.replies()] == ["421"] and session.protocol.is_closed

    run_async(main)


ENDINGS = {
    "quit": [*TRANSACTION, CONTENT, b"QUIT\r\n"],
    "in one segment": [b"".join(TRANSACTION), CONTENT + b"QUIT\r\n"],
    "in pieces": [*TRANSACTION, CONTENT[:7], CONTENT[7:], b"QU", b"IT\r\n"],
    "no word": [],
    "within a transaction": list(TRANSACTION[:2]),
    "within content": [*TRANSACTION, CONTENT[:7]],
    "refused": [b"RCPT TO:<x@there.test>\r\n", b"NONSENSE\r\n"],
    "by chunks": [*TRANSACTION[:2], b"BDAT 3 LAST\r\na\r\n", b"QUIT\r\n"],
}


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("said", ENDINGS.values(), ids=ENDINGS)
def test_a_session_that_is_over_leaves_nothing_to_the_collector(said: list[bytes], listens: bool) -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, _):
            if listens:
                server.pipeline().unshift("heard", Heard())
            wire = Wire(server, WHOLE())
            await wire.settle()
            await say(wire, b"EHLO x.test\r\n", *said)
            seen = [weakref.ref(wire.connection)]
            wire.lose()
            del wire
            await asyncio.sleep(0)
            assert [ref() for ref in seen] == [None]

    gc.collect()
    gc.disable()
    try:
        run_async(main)
    finally:
        gc.enable()


def test_who_waited_until_the_client_was_gone_finds_no_session_and_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Waiting:
        def __init__(self) -> None:
            self.is_over = asyncio.Event()

        async def on_cmd_ehlo(self, server: Any, event: Any) -> None:
            await self.is_over.wait()

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.pipeline().unshift("waiting", waiting := Waiting())
            wire.connection.data_received(b"EHLO x.test\r\n")
            await asyncio.sleep(0)
            wire.lose()
            waiting.is_over.set()
            await server._parts.dispatcher.settle()

    run_async(main)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_session_that_was_sent_away_within_a_handshake_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with wired(WHOLE) as (_, wire):
            session, loop = wire.connection.session, asyncio.get_running_loop()

            class Loop:
                async def start_tls(self, *given: Any, **more: Any) -> Any:
                    session.leave(Reply(421, "4.3.2", "Closing"), "shutdown")
                    return given[0]

            wire.connection._context.tls = object()
            with monkeypatch.context() as patch:
                patch.setattr("pillarbox.server.connection.asyncio.get_running_loop", Loop)
                await wire.connection._handshake(wire.transport)
            assert session.protocol.is_closed and not session.facts.tls and loop is asyncio.get_running_loop()

    run_async(main)
