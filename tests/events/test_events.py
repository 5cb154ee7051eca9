"""Pipeline, dispatch and subscribers (DESIGN section 4)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, MailServer, Plugin, Reply
from pillarbox.errors import OptionError, PluginError
from pillarbox.events.catalogue import CATALOGUE, CmdNoop, Kind
from pillarbox.events.pipeline import Pipeline
from pillarbox.events.subscribers import BUFFER
from tests.conftest import Client, Wire, cuts, queued, run_async, serving, stored_content, until, wired

WHOLE: Callable[[], Iterator[int]] = cuts(0)[0]


class Named:
    """A plugin that notes its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def on_cmd_noop(self, server: Any, event: Any) -> None:
        self.log.append(self.name)

    def plugin_register(self, server: Any) -> None:
        self.log.append(f"+{self.name}")

    def plugin_unregister(self, server: Any) -> None:
        self.log.append(f"-{self.name}")


# ------------------------------------------------------------------------ pipeline


def names(pipeline: Pipeline) -> list[str]:
    return list(pipeline.list())


def filled(*aliases: str) -> Pipeline:
    pipeline = Pipeline()
    for alias in aliases:
        pipeline.push(alias, Named(alias, []))
    return pipeline


def test_order_of_operations() -> None:
    pipeline = filled("a", "b")
    assert pipeline.push("simple", Named("simple", [])) == 3
    assert pipeline.push("c", Named("c", [])) == 4 and names(pipeline) == ["a", "b", "c", "simple"]
    pipeline.unshift("z", Named("z", []))
    pipeline.insert_before("b", "y", Named("y", []))
    pipeline.insert_after("b", "x", Named("x", []))
    pipeline.insert_after("simple", "last", Named("last", []))
    assert names(pipeline) == ["z", "a", "y", "b", "x", "c", "last", "simple"]
    assert pipeline.shift().name == "z" and pipeline.pop().name == "last"
    assert pipeline.bump_up("c") == 3 and names(pipeline) == ["a", "y", "b", "c", "x", "simple"]
    assert pipeline.bump_up("c", 99) == 0 and pipeline.bump_down("c", 99) == 4
    assert pipeline.bump_up("simple") == 5 and names(pipeline)[-1] == "simple"
    assert pipeline.get("y").name == "y" and pipeline.get("nobody") is None and pipeline.get_index("b") == 2
    assert pipeline.alias_of(pipeline.get("b")) == "b" and pipeline.get(pipeline.get("b")).name == "b"
    assert pipeline.remove("y").name == "y" and len(pipeline) == 5
    assert [p.name for p in pipeline.order()] == ["a", "b", "x", "c", "simple"]
    pipeline.clear()
    assert pipeline.pop() is None and pipeline.shift() is None and names(pipeline) == []


def test_replace_is_all_or_nothing() -> None:
    log: list[str] = []
    pipeline = Pipeline()
    first, second = Named("a", log), Named("b", log)
    pipeline.push("a", first)

    class Refuses:
        def plugin_register(self, server: Any) -> bool:
            return False

    class Raises:
        def plugin_register(self, server: Any) -> None:
            raise RuntimeError("no")

    for bad in (Refuses(), Raises()):
        with pytest.raises(PluginError):
            pipeline.replace("a", "bad", bad)
        with pytest.raises(PluginError):
            pipeline.push("bad", bad)
        assert names(pipeline) == ["a"]
    assert pipeline.replace("a", "b", second) is first and names(pipeline) == ["b"] and log == ["+a", "+b", "-a"]
    with pytest.raises(PluginError, match="there are: b"):
        pipeline.remove("a")
    with pytest.raises(PluginError, match="already"):
        pipeline.push("b", first)
    with pytest.raises(PluginError, match="already, as 'b'"):
        pipeline.push("c", second)
    with pytest.raises(PluginError):
        pipeline.push("", first)
    with pytest.raises(PluginError, match="already"):
        pipeline.push("c", first)
        pipeline.replace("c", "b", Named("d", log))


def test_a_method_that_is_none() -> None:
    class Odd:
        on_cmd_noop = "not callable"

    pipeline = Pipeline()
    with pytest.raises(PluginError, match="not a method"):
        pipeline.push("odd", Odd())
    assert pipeline.push("fine", Named("fine", [])) == 1


def test_failing_unregister_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def plugin_unregister(self, server: Any) -> None:
            raise RuntimeError("cannot leave")

    pipeline = Pipeline()
    pipeline.push("bad", Bad())
    assert pipeline.remove("bad") is not None and "cannot leave" in caplog.text


# ------------------------------------------------------------------------ dispatch


def noop(plugins: dict[str, Any], **options: Any) -> tuple[list[str], list[str]]:
    """(replies to NOOP, names of events that a subscriber heard)."""

    async def main() -> tuple[list[str], list[str]]:
        heard: list[str] = []
        async with wired(WHOLE, plugins=plugins, **options) as (server, _):
            server.register(lambda event: heard.append(event.name), "cmd_noop")
            wire = Wire(server, WHOLE())
            await wire.settle()
            wire.replies()
            replies = await wire.ask(b"NOOP\r\n")
            await asyncio.sleep(0)
            wire.lose()
            return replies, heard

    return run_async(main)  # type: ignore[no-any-return]


def returning(value: Any, *, is_async: bool) -> Any:
    class Sync:
        calls = 0

        def on_cmd_noop(self, server: Any, event: Any) -> Any:
            self.calls += 1
            return value

    class Async:
        calls = 0

        async def on_cmd_noop(self, server: Any, event: Any) -> Any:
            self.calls += 1
            return value

    class Waits:
        calls = 0

        async def on_cmd_noop(self, server: Any, event: Any) -> Any:
            await asyncio.sleep(0.001)
            self.calls += 1
            return value

    return Sync() if not is_async else (Async() if is_async == 1 else Waits())


@pytest.mark.parametrize("is_async", [0, 1, 2])
@pytest.mark.parametrize(
    ("value", "reply", "heard", "second"),
    [
        (None, "250", 1, 1),
        (Eat.NONE, "250", 1, 1),
        (Eat.CLIENT, "250", 0, 1),
        (Reply(550, "5.7.1", "no"), "550", 0, 0),
    ],
)
def test_eat_codes(is_async: int, value: Any, reply: str, heard: int, second: int) -> None:
    first, after = returning(value, is_async=is_async), returning(None, is_async=0)
    replies, names_heard = noop({"first": first, "after": after})
    assert [r[:3] for r in replies] == [reply]
    assert (len(names_heard), after.calls) == (heard, second)


@pytest.mark.parametrize("is_async", [0, 1, 2])
@pytest.mark.parametrize(("value", "heard"), [(Eat.PLUGIN, 1), (Eat.ALL, 0)])
def test_eaten_commands_owe_their_reply(is_async: int, value: Eat, heard: int) -> None:
    async def main() -> None:
        seen: list[str] = []
        after = returning(None, is_async=0)
        async with wired(WHOLE, plugins={"first": returning(value, is_async=is_async), "after": after}) as (
            server,
            wire,
        ):
            server.register(lambda event: seen.append(event.name), "cmd_noop")
            await wire.send(b"NOOP\r\nRSET\r\n")
            client_id = wire.connection.session.facts.client_id
            await until(lambda: wire.connection.session.awaits_program)
            assert wire.replies() == [] and after.calls == 0
            assert server.send_to_client("nobody", "250 x") is False
            assert server.send_to_client(client_id, Reply(252, "2.0.0", "by the program"))
            await wire.settle()
            assert [r[:3] for r in wire.replies()] == ["252", "250"]
            assert server.send_to_client(client_id, "250 again") is False
            assert len(seen) == heard

    run_async(main)


def test_eat_client_then_plugin_is_eaten_by_all() -> None:
    async def main() -> None:
        seen: list[str] = []
        plugins = {"one": returning(Eat.CLIENT, is_async=0), "two": returning(Eat.PLUGIN, is_async=0)}
        async with wired(WHOLE, plugins=plugins) as (server, wire):
            server.register(lambda event: seen.append(event.name), "cmd_noop")
            await wire.send(b"NOOP\r\n")
            assert wire.connection.session.awaits_program and seen == []
            server.send_to_client(wire.connection.session.facts.client_id, "250 fine")
            await wire.settle()
            assert wire.replies() == ["250 fine"]

    run_async(main)


def test_an_eaten_greeting_is_owed_too() -> None:
    class Greeter:
        def on_connection(self, server: Any, event: Any) -> Eat:
            return Eat.ALL

    async def main() -> None:
        async with wired(WHOLE) as (server, _):
            server.plugin_add("greeter", Greeter())
            wire = Wire(server, WHOLE())
            assert wire.connection.session.awaits_program
            assert server.send_to_client(wire.connection.session.facts.client_id, "220 hello from the program")
            await wire.settle()
            assert wire.replies() == ["220 hello from the program"]
            assert (await wire.ask(b"NOOP\r\n"))[0].startswith("250")
            wire.lose()

    run_async(main)


class Boom(Plugin):
    def __init__(self, name: str, *, is_async: bool = False) -> None:
        async def later(server: Any, event: Any) -> None:
            await asyncio.sleep(0)
            raise RuntimeError("the secret of the plugin")

        def now(server: Any, event: Any) -> None:
            raise RuntimeError("the secret of the plugin")

        setattr(self, f"on_{name}", later if is_async else now)


@pytest.mark.parametrize("is_async", [False, True])
def test_failures_are_answered_451_and_the_session_lives(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        errors: list[Any] = []
        async with wired(WHOLE, plugins={"boom": Boom("cmd_vrfy", is_async=is_async)}) as (server, wire):
            server.register(errors.append, "plugin_error")
            assert await wire.ask(b"VRFY x\r\nNOOP\r\n") == [
                "451 4.3.0 Temporary failure: try again later",
                "250 2.0.0 OK",
            ]
            await asyncio.sleep(0)
            assert [(event.alias, event.event_name) for event in errors] == [("boom", "cmd_vrfy")]
        assert re.search(r"'boom' failed on cmd_vrfy \(session s\w+-1\)", caplog.text)

    run_async(main)


@pytest.mark.parametrize("is_async", [False, True])
def test_failure_at_connection_response_and_disconnected(is_async: bool) -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.plugin_add("boom", Boom("connection", is_async=is_async))
            other = Wire(server, WHOLE())
            await until(lambda: other.transport.out)
            assert bytes(other.transport.out).startswith(b"421 4.3.0") and other.connection.session.protocol.is_closed
            other.connection.connection_lost(None)
            server.plugin_del("boom")
            server.plugin_add("boom", Boom("response", is_async=is_async))
            assert await wire.ask(b"NOOP\r\n") == ["250 2.0.0 OK"]
            server.plugin_del("boom")
            server.plugin_add("boom", Boom("disconnected", is_async=is_async))
            wire.lose()
            await asyncio.sleep(0.01)

    run_async(main)


@pytest.mark.parametrize("value", [42, "250 OK", object()])
@pytest.mark.parametrize("is_async", [0, 1, 2])
def test_nonsense(value: Any, is_async: int) -> None:
    replies, _ = noop({"odd": returning(value, is_async=is_async)})
    assert replies == ["451 4.3.0 Temporary failure: try again later"]


def test_ignored_failures() -> None:
    plugin = Boom("cmd_noop")
    plugin.ignores_failures = True
    assert noop({"boom": plugin})[0] == ["250 2.0.0 OK"]


def test_deadline() -> None:
    class Slow(Plugin):
        deadline_s = 0.02

        async def on_cmd_noop(self, server: Any, event: Any) -> None:
            await asyncio.Event().wait()

    assert noop({"slow": Slow()})[0] == ["451 4.3.0 Temporary failure: try again later"]


def test_a_plugin_that_cancels_itself() -> None:
    class Gone(Plugin):
        async def on_cmd_noop(self, server: Any, event: Any) -> None:
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    assert noop({"gone": Gone()})[0] == ["451 4.3.0 Temporary failure: try again later"]


def test_plugin_error_is_not_recursive() -> None:
    class Worse:
        def on_default(self, server: Any, event: Any) -> None:
            if event.name in ("cmd_noop", "plugin_error"):
                raise RuntimeError(event.name)

    assert noop({"worse": Worse(), "boom": Boom("plugin_error")})[0] == ["451 4.3.0 Temporary failure: try again later"]


def test_needs_task_and_futures() -> None:
    class Timed(Plugin):
        needs_task = True

        async def on_cmd_noop(self, server: Any, event: Any) -> Reply:
            async with asyncio.timeout(1):
                await asyncio.sleep(0)
            assert asyncio.current_task() is not None
            return Reply(250, "2.0.0", "in a task")

    class Future(Plugin):
        def on_cmd_noop(self, server: Any, event: Any) -> Any:
            future = asyncio.get_running_loop().create_future()
            future.set_result(Reply(250, "2.0.0", "a future"))
            return future

    assert noop({"timed": Timed()})[0] == ["250 2.0.0 in a task"]
    assert noop({"future": Future()})[0] == ["250 2.0.0 a future"]


def test_an_async_plugin_holds_nobody_else_and_keeps_order() -> None:
    class Gate(Plugin):
        def __init__(self) -> None:
            self.open: asyncio.Future[None] | None = None

        async def on_cmd_vrfy(self, server: Any, event: Any) -> Reply:
            self.open = asyncio.get_running_loop().create_future()
            await self.open
            return Reply(252, "2.0.0", event.args)

    async def main() -> None:
        gate = Gate()
        async with wired(WHOLE, plugins={"gate": gate}) as (server, wire):
            await wire.send(b"NOOP\r\nVRFY one\r\nNOOP\r\nRSET\r\n")
            await asyncio.sleep(0.005)
            assert [r[:3] for r in wire.replies()] == ["250"], "later commands wait behind the parked one"
            other = Wire(server, WHOLE())
            await other.settle()
            assert [r[:3] for r in await other.ask(b"NOOP\r\n")] == ["220", "250"]
            other.lose()
            # Its input stays buffered, and reading stops when that grows.
            wire.connection.data_received(b"NOOP\r\n" * 20_000)
            assert wire.transport.is_reading_paused
            assert gate.open is not None
            gate.open.set_result(None)
            await wire.settle()
            assert [r[:3] for r in wire.replies()][:3] == ["252", "250", "250"]

    run_async(main)


def test_the_client_leaves_while_a_plugin_thinks() -> None:
    class Gate(Plugin):
        done = False

        async def on_message(self, server: Any, event: Any) -> None:
            await asyncio.sleep(0.01)
            self.done = True

    async def main() -> None:
        gate = Gate()
        async with wired(WHOLE, plugins={"gate": gate}) as (server, wire):
            await wire.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
            await wire.ask(b"DATA\r\n")
            await wire.send(b"x\r\n.\r\n")
            wire.lose()
            await until(lambda: gate.done)
            await asyncio.sleep(0.005)
            assert queued(server) == [], "nobody heard 250, so the client sends it again"

    run_async(main)


def test_fields_may_be_changed() -> None:
    class Rewrite(Plugin):
        def on_cmd_mail(self, server: Any, event: Any) -> None:
            event.address = "changed@b.test"

        def on_cmd_rcpt(self, server: Any, event: Any) -> None:
            event.address = event.address.replace("old", "new")

        def on_message(self, server: Any, event: Any) -> None:
            event.content.set_header("Subject", "[list] " + (event.content.header("Subject") or ""))
            event.envelope.add("copy@d.test")

    async def main() -> None:
        async with wired(WHOLE, plugins={"rewrite": Rewrite()}) as (server, wire):
            await wire.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<old@d.test>\r\n")
            await wire.ask(b"DATA\r\n")
            await wire.ask(b"From: x\r\nSubject: hello\r\n\r\nbody\r\n.\r\n")
            (view,) = queued(server)
            assert view.reverse_path == "changed@b.test" and view.subject == "[list] hello"
            assert [r.address for r in view.recipients] == ["new@d.test", "copy@d.test"]
            assert b"Subject: [list] hello\r\n\r\nbody\r\n" in stored_content(server)

    run_async(main)


def test_a_message_may_be_refused_taken_over_or_emptied() -> None:
    class Judge(Plugin):
        def on_message(self, server: Any, event: Any) -> Reply | None:
            subject = event.content.header("Subject")
            if subject == "empty":
                event.envelope.recipients.clear()
            return {"bad": Reply(554, "5.7.1", "no"), "mine": Reply(250, "2.0.0", "taken over")}.get(subject)

    async def main() -> None:
        async with wired(WHOLE, plugins={"judge": Judge()}) as (server, wire):
            await wire.ask(b"EHLO x.test\r\n")
            for subject, code in (
                (b"bad", "554 5.7.1"),
                (b"mine", "250 2.0.0 taken"),
                (b"empty", "554 5.5.1"),
                (b"good", "250 2.0.0 1"),
            ):
                await wire.ask(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
                await wire.ask(b"DATA\r\n")
                assert (await wire.ask(b"Subject: " + subject + b"\r\n\r\nx\r\n.\r\n"))[0].startswith(code)
            assert [v.subject for v in queued(server)] == ["good"]

    run_async(main)


def test_response_may_be_replaced_or_eaten() -> None:
    class Polite(Plugin):
        verbs: list[str] = []

        def on_response(self, server: Any, event: Any) -> Any:
            self.verbs.append(event.verb)
            if event.verb == "VRFY":
                return Eat.ALL
            if event.verb == "NOOP":
                return Reply(250, "2.0.0", "as you wish")
            if event.verb == "RCPT":
                event.reply = Reply(550, "5.7.1", "changed")
            return None

    async def main() -> None:
        polite = Polite()
        async with wired(WHOLE, plugins={"polite": polite}) as (server, wire):
            replies = await wire.ask(
                b"NOOP\r\nVRFY x\r\nEHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"
            )
            assert [r[:3] for r in replies] == ["250", "250", "250", "550", "503"], "what was answered is what happened"
            assert replies[0] == "250 2.0.0 as you wish"
            assert polite.verbs == ["", "NOOP", "VRFY", "EHLO", "MAIL", "RCPT", "DATA"]

    run_async(main)


def test_default_gets_the_rest() -> None:
    class Default(Plugin):
        def __init__(self) -> None:
            self.names: list[str] = []

        def on_cmd_noop(self, server: Any, event: Any) -> None:
            self.names.append("own")

        def on_default(self, server: Any, event: Any) -> None:
            self.names.append(event.name)

    async def main() -> None:
        plugin = Default()
        async with wired(WHOLE, plugins={"default": plugin}) as (server, wire):
            plugin.names.clear()
            await wire.ask(b"NOOP\r\nHELP\r\n")
            wire.lose()
            assert plugin.names == ["own", "response", "cmd_help", "response", "disconnected"]

    run_async(main)


def test_live_changes_and_snapshots() -> None:
    """A plugin may take itself out, or put others in, while an event goes round: the round keeps its plugins."""

    class Once(Plugin):
        def on_cmd_noop(self, server: Any, event: Any) -> None:
            server.plugin_del(self)
            server.plugin_add("late", late)

    late = returning(None, is_async=0)

    async def main() -> None:
        changes: list[tuple[str, str]] = []
        async with wired(WHOLE) as (server, wire):
            server.register(lambda event: changes.append((event.name, event.alias)), "plugin_add", "plugin_del")
            server.plugin_add("once", Once())
            assert server.plugin_get("once") is not None and list(server.plugin_list()) == ["once", "simple"]
            assert len(server.plugin_order()) == 2
            assert await wire.ask(b"NOOP\r\n") == ["250 2.0.0 OK"] and late.calls == 0
            await wire.ask(b"NOOP\r\n")
            assert late.calls == 1 and list(server.plugin_list()) == ["late", "simple"]
            await asyncio.sleep(0)
            assert changes == [("plugin_add", "once"), ("plugin_del", "once"), ("plugin_add", "late")]

    run_async(main)


# --------------------------------------------------------------------- subscribers


def test_subscribers(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            heard: list[str] = []
            order: list[int] = []

            async def slowly(event: Any) -> None:
                await asyncio.sleep(0.001)
                order.append(len(order))

            def callback(event: Any) -> None:
                heard.append(event.name)

            def broken(event: Any) -> None:
                raise RuntimeError("subscriber")

            async def broken_later(event: Any) -> None:
                raise RuntimeError("subscriber")

            server.register(callback, "all")
            server.register(slowly, ["cmd_noop", "cmd_rset"])
            server.register(broken, "cmd_noop")
            server.register(broken_later, "cmd_noop")
            client = await Client.connect(server)
            for _ in range(5):
                assert (await client.ask(b"NOOP")).startswith("250")
            await until(lambda: len(order) == 5)
            assert heard[0] == "connection" and heard.count("cmd_noop") == 5 and "response" in heard
            assert server.unregister(callback) and not server.unregister(callback)
            assert server.unregister(slowly, "cmd_noop") and server.unregister(slowly, "cmd_rset")
            with pytest.raises(OptionError, match="did you mean 'cmd_noop'"):
                server.register(callback, "cmd_nop")
            with pytest.raises(OptionError):
                server.register(callback)
            client.close()

    run_async(main)


def test_event_stream(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            stream = server.events("message_queued", "disconnected")
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            reply = await client.transaction(b"Subject: hi\r\n\r\nx\r\n")
            await client.ask(b"QUIT")
            seen = []
            async for event in stream:
                seen.append(event)
                if event.name == "disconnected":
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            queued_event, gone = seen
            assert (
                queued_event.uid in reply and queued_event.recipients == ["c@d.test"] and queued_event.subject == "hi"
            )
            assert gone.reason == "QUIT" and not server.dispatcher.subscribers.by_name

    run_async(main)


def test_a_slow_subscriber_drops_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    from pillarbox.events.subscribers import Subscribers

    async def main() -> None:
        subscribers = Subscribers()
        stream = subscribers.events(["cmd_noop"])
        session: Any = None
        for _ in range(BUFFER + 5):
            subscribers.notify(CmdNoop("s1", session))
        assert subscribers.dropped == 5 and "too slow" in caplog.text
        heard: list[Any] = []
        subscribers.register(heard.append, ["cmd_noop"])
        for _ in range(250):
            subscribers.notify(CmdNoop("s1", session))
        await until(lambda: len(heard) == 250)
        assert stream is not None

    caplog.set_level(logging.WARNING)
    run_async(main)


def test_catalogue() -> None:
    assert CATALOGUE["response"].kind is Kind.SMTPC and CATALOGUE["cmd_mail"].kind is Kind.SMTPD
    for name, cls in CATALOGUE.items():
        assert cls.name == name and cls.__doc__


def test_send_to_client_texts(tmp_path: Path) -> None:
    server = MailServer(port=0, data_dir=str(tmp_path), store="memory", hostname="mx.test")
    assert server.send_to_client("nobody", "250 OK") is False
    with pytest.raises(ValueError, match="begins with a code"):
        server.send_to_client("nobody", "no code here")
    with pytest.raises(ValueError, match="line end"):
        server.send_to_client("nobody", "250 a\r\nb")
