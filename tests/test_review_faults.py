"""Faults that reviews of the programming interface and of the sending side have found, each so that it cannot come back."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import io
import logging
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, Handler, Item, MailServer, Reply
from pillarbox.dns import Status
from pillarbox.errors import ListenError, OptionError, PluginError, StateError
from pillarbox.options import parse_options
from pillarbox.queue.model import Action, Query
from pillarbox.smtp.address import comparable_domain
from pillarbox.testing import DictResolver, ManualClock, ScriptedServer
from tests.conftest import Client, Wire, cuts, free_port, lane_of, queued, run_async, serving, until
from tests.delivery.test_dns_mx import look_up, names, refused
from tests.queue.test_delivery import relaying
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon
from tests.simplesmtp.test_methods import raw

# ------------------------------------------------------------------- the programming interface


class Answers:
    """The original's idiom: answer, then eat."""

    def on_cmd_noop(self, server: MailServer, event: Any) -> Eat:
        assert server.send_to_client(event.client_id, "250 early")
        assert not server.send_to_client(event.client_id, "250 twice")
        return Eat.ALL

    async def on_cmd_help(self, server: MailServer, event: Any) -> Eat:
        await asyncio.sleep(0)
        assert server.send_to_client(event.client_id, "214 later")
        return Eat.PLUGIN

    def on_cmd_rset(self, server: MailServer, event: Any) -> None:
        # Not eaten: the built-in answer stands, and this one is nobody's.
        server.send_to_client(event.client_id, "250 dropped")


@server_test()
async def test_an_answer_before_the_eat_code(server: MailServer) -> None:
    server.plugin_add("answers", Answers())
    client = await Client.connect(server)
    assert await client.ask(b"NOOP") == "250 early"
    assert await client.ask(b"HELP") == "214 later"
    assert await client.ask(b"RSET") == "250 2.0.0 OK"
    assert await client.ask(b"NOOP") == "250 early", "nothing of before is left"
    client.close()


@server_test(simple=False)
async def test_bdat_without_built_in_behaviour(server: MailServer) -> None:
    raw(server)
    refused_chunks: list[str] = []

    def chunk(event: Any) -> None:
        reply = "552 too much" if event.size_bytes > 10 else "250 come on"
        refused_chunks.append(reply)
        server.send_to_client(event.client_id, reply)

    server.register(chunk, "cmd_bdat")
    data = heard(server, "data")
    client = await Client.connect(server)
    for line in (b"HELO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>"):
        await client.ask(line)
    client.send(b"BDAT 5\r\none\r\nBDAT 5 LAST\r\ntwo\r\n")
    assert (await client.reply()).startswith("250 2.0.0 Chunk"), "the reply follows the octets"
    event = await soon(data)
    assert event.lines == [b"one", b"two"]
    assert server.send_to_client(event.client_id, "250 thanks")
    assert await client.reply() == "250 thanks"
    for line in (b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>"):
        await client.ask(line)
    client.send(b"BDAT 20 LAST\r\n" + b"x" * 20)
    assert await client.reply() == "552 too much"
    assert await client.ask(b"QUIT") == "221 bye"
    client.close()


@server_test(simple=False)
async def test_data_mode_that_comes_too_late(server: MailServer) -> None:
    raw(server)
    client = await Client.connect(server)
    for line in (b"HELO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        await client.ask(line)
    client.send(b"one\r\n")
    (session,) = server._parts.context.sessions.values()
    await until(lambda: session.content_bytes)
    file = io.BytesIO()
    assert server.data_mode(session.facts.client_id, file) is False
    data = heard(server, "data")
    client.send(b"two\r\n.\r\n")
    assert (await soon(data)).lines == [b"one", b"two"] and file.getvalue() == b"", "nothing is lost"
    client.close()


@server_test(simple=False, max_junk=5, max_size_bytes=2000)
async def test_after_content_of_the_programs_own(server: MailServer) -> None:
    raw(server)
    events = heard(server, "data")
    client = await Client.connect(server)
    await client.ask(b"HELO x")
    for _ in range(12):
        server.register(lambda event: server.send_to_client(event.client_id, "250 ok"), "cmd_rset")
        await client.ask(b"RSET")
        for line in (b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
            await client.ask(line)
        client.send(b"x\r\n.\r\n")
        server.send_to_client((await soon(events)).client_id, "250 ok")
        assert await client.reply() == "250 ok", "what counts as junk begins anew with a message"
        (session,) = server._parts.context.sessions.values()
        assert session.facts.envelope is None and not session.is_busy
    for line in (b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        await client.ask(line)
    client.send(b"y" * 3000 + b"\r\n.\r\n")
    assert (await client.reply()).startswith("552")
    event = await soon(events)
    assert event.fault is not None and event.fault.code == 552 and event.lines == [], "the program hears of its end"
    client.close()


@pytest.mark.parametrize("sizes", cuts(9), ids=["whole", "bytes", "random"])
def test_trace_shows_no_secret_however_it_is_cut(tmp_path: Path, sizes: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        options = {"options": {"trace": True}, "authenticator": lambda u, p: True, "store": "memory"}
        async with serving(tmp_path, **options) as server:
            wire = Wire(server, sizes())
            protocol = wire.connection.session.protocol
            protocol.facts = dataclasses.replace(protocol.facts, is_tls=True)
            await wire.settle()
            await wire.ask(b"EHLO x.test\r\n")
            await wire.ask(b"AUTH PLAIN AGJvYgBnZWhlaW0=\r\n")
            await wire.ask(b"RSET\r\n")
            await wire.ask(b"AUT H PLAIN AGJvYgBnZWhlaW0=\r\nNOOP after\r\n")
            wire.lose()

    with caplog.at_level(logging.INFO, "pillarbox.trace"):
        run_async(main)
    assert "AGJvYgBnZWhlaW0" not in caplog.text and "C: AUTH ***" in caplog.text and "C: NOOP after" in caplog.text


@server_test()
async def test_a_shutdown_that_is_given_up_goes_on(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    await client.ask(b"MAIL FROM:<a@b.test>")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.shutdown(grace_s=20), 0.1)
    async with asyncio.timeout(5):
        await server.shutdown(grace_s=0)
        await server.wait_closed()
    client.close()


def test_what_a_server_that_does_not_run_says(tmp_path: Path) -> None:
    async def main() -> None:
        server = MailServer(port=0, data_dir=str(tmp_path), hostname="mx.test", direct=False)
        for state in ("before", "after"):
            for ask in (server.mail_queue, server.pause_queue, server.resume_queue):
                with pytest.raises(StateError, match="does not run"):
                    await ask()
            for ask_for in (server.queued_content, server.cancel_message):
                with pytest.raises(StateError, match="does not run"):
                    await ask_for("X")
            if state == "before":
                await server.start()
                await server.shutdown()

    run_async(main)


def test_a_unix_socket_that_is_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        path = f"unix:{tmp_path}/smtp.sock"
        async with serving(tmp_path / "a", store="memory", address=path) as first:
            with pytest.raises(ListenError, match="in use"):
                async with serving(tmp_path / "b", store="memory", address=path):
                    pass
            client = Client(*await asyncio.open_unix_connection(path[5:]))
            assert (await client.reply()).startswith("220"), "the first still has it"
            client.close()
            assert first.getsockname() == (path[5:], 0)

    run_async(main)


def test_start_listener_after_a_start_that_failed(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        async with serving(tmp_path / "a", store="memory", port=port):
            server = MailServer(
                port=port, data_dir=str(tmp_path / "b"), store="memory", hostname="mx.test", direct=False
            )
            with pytest.raises(ListenError):
                await server.start()
            with pytest.raises(ListenError):
                await server.start_listener()
        await server.start_listener()
        assert (await send(server)).startswith("250")
        await server.shutdown()

    run_async(main)


def test_options_that_were_let_through() -> None:
    for given in (
        {"address": ""}, {"address": []}, {"address": "[::1]"}, {"address": "unix:rel"}, {"version": "a\r\nb"}, {"alias": ""},
        {"relay": "unix:/x"}, {"relay": "host:0"}, {"relay": "-bad-..host"}, {"dnsbl": [], "dnsbl_enable": True},
    ):  # fmt: skip
        with pytest.raises(OptionError, match=next(iter(given))):
            parse_options(given)


@server_test(handlers=[{"match": r"^postmaster@mx\.test$", "callback": lambda item: None}], trust=[])
async def test_postmaster_without_a_domain(server: MailServer) -> None:
    done = heard(server, "send_success")
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    assert (await client.transaction(BODY, to=b"postmaster")).startswith("250")
    assert (await soon(done)).recipients == ["postmaster"]
    client.close()


@server_test(direct=True, resolver=DictResolver({}))
async def test_postmaster_with_no_way_to_go(server: MailServer) -> None:
    assert (await send(server, to=b"postmaster")).startswith("250"), "RFC 5321 section 4.5.1"
    assert queued(server)[0].recipients[0].state == "queued"


@server_test()
async def test_the_pipeline_is_all_or_nothing(server: MailServer) -> None:
    class Named:
        def on_cmd_noop(self, server: Any, event: Any) -> None:
            self.seen = True

    class Async:
        async def plugin_register(self, server: Any) -> bool:
            return False

    class AddsItself:
        def plugin_register(self, server: MailServer) -> None:
            server.plugin_add("again", self)

    class TakesTheName(Named):
        left = 0

        def plugin_register(self, server: MailServer) -> None:
            server.plugin_add("name", Named())

        def plugin_unregister(self, server: MailServer) -> None:
            self.left += 1

    a, b, late = Named(), Named(), TakesTheName()
    server.plugin_add("a", a)
    server.plugin_add("b", b)
    pipeline = server.pipeline()
    for wrong in (
        lambda: pipeline.replace("a", "c", b),
        lambda: pipeline.bump_down("a", 0.5),  # type: ignore[arg-type]
        lambda: pipeline.push("async", Async()),
        lambda: pipeline.push("self", AddsItself()),
    ):
        with pytest.raises(PluginError) as caught:
            wrong()
        assert len(str(caught.value)) < 300 and list(server.plugin_list()) == ["a", "b", "simple"]
    with pytest.raises(PluginError, match="'name' is in the pipeline already"):
        server.plugin_add("name", late)
    assert late.left == 1 and list(server.plugin_list()) == ["a", "b", "name", "simple"]
    assert server.plugin_unregister(a, "SMTPD", "cmd_rset") == ["cmd_rset"]
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    assert a.seen, "what it had never asked for by name it keeps"
    assert server.plugin_unregister(a, "SMTPD", "cmd_noop") == []
    a.seen = False
    await client.ask(b"NOOP")
    assert not a.seen
    client.close()
    with pytest.raises(OptionError, match="did you mean 'cmd_noop'"):
        server.plugin_register(b, "SMTPD", "cmd_nop")


@server_test()
async def test_another_plugin_under_the_name_of_the_built_in_one(server: MailServer) -> None:
    class Mine:
        async def on_connection(self, server: Any, event: Any) -> Reply:
            return Reply(220, None, "mine")

        def on_cmd_noop(self, server: Any, event: Any) -> None:
            raise RuntimeError("no")

    server.pipeline().replace("simple", "simple", Mine())
    client = await Client.connect(server, greeted=False)
    assert await client.reply() == "220 mine"
    assert (await client.ask(b"NOOP")).startswith("451 4.3.0")
    client.close()


@server_test(simple=False)
async def test_lines_of_replies(server: MailServer) -> None:
    commands = heard(server, "cmd_noop")
    client = await Client.connect(server)
    for lines, expected in (
        (["250-2.1.0 a", "250 b"], "250-2.1.0 a\n250 b"),
        (["250-a", "250 2.1.0 b"], "250-a\n250 2.1.0 b"),
    ):
        client.send(b"NOOP\r\n")
        client_id = (await soon(commands)).client_id
        assert all(server.send_to_client(client_id, line) for line in lines)
        assert await client.reply() == expected
    assert server.send_to_client(client_id, "250-stale") is False
    client.send(b"NOOP\r\n")
    await soon(commands)
    server.send_to_client(client_id, "250-x")
    with pytest.raises(ValueError, match="one reply has one code"):
        server.send_to_client(client_id, "550 y")
    server.send_to_client(client_id, "250 fresh")
    assert await client.reply() == "250-x\n250 fresh"
    client.close()


def test_event_iterators_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            server.events("connection")
            gc.collect()
            assert not server.dispatcher.subscribers.listens("connection"), "one that nobody reads is gone"

            async def read() -> list[str]:
                return [event.name async for event in server.events("cmd_noop")]

            task = asyncio.ensure_future(read())
            await asyncio.sleep(0)
            client = await Client.connect(server)
            await client.ask(b"NOOP")
            client.close()
            await server.shutdown()
            async with asyncio.timeout(5):
                assert await task == ["cmd_noop"]

    run_async(main)


def test_two_servers_of_one_alias(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "a", store="memory", alias="same") as first:
            async with serving(tmp_path / "b", store="memory", alias="same") as second:
                assert MailServer.find("same") is second
            assert MailServer.find("same") is first
        assert MailServer.find("same") is None

    run_async(main)


@server_test(dnsbl_enable=True, dnsbl={"a.test": 0.7, "b.test": 0.2, "c.test": 0.1}, resolver=DictResolver({f"2.0.0.127.{z}.test": {"A": ["127.0.0.2"]} for z in "abc"}))  # fmt: skip
async def test_weights_add_up(server: MailServer) -> None:
    client = await Client.connect(server, greeted=False, local_addr=("127.0.0.2", 0))
    assert (await client.reply()).startswith("554")
    client.close()


def test_flags_of_patterns() -> None:
    assert Handler(re.compile("^ a  @ # comment", re.X), print).matches("a@d.test")
    one, two = Handler(re.compile("A@"), print), Handler(re.compile("A@", re.I), print)
    assert one.name != two.name and not one.matches("a@d.test") and two.matches("a@d.test")


def test_files_of_data_mode() -> None:
    from pillarbox.server.diverted import Diverted, is_writable

    class Short(io.RawIOBase):
        def __init__(self) -> None:
            self.kept = b""

        def writable(self) -> bool:
            return True

        def write(self, octets: Any) -> int:
            self.kept += bytes(octets[:3])
            return min(3, len(octets))

    file = Short()
    Diverted(file).write(b"all of these octets")  # type: ignore[arg-type]
    assert file.kept == b"all of these octets"
    assert is_writable(file) and not is_writable(io.StringIO())


# ---------------------------------------------------------------------------- the sending side


def test_expired_mail_of_a_healthy_next_hop_has_its_last_attempt(tmp_path: Path) -> None:
    """More than a lane takes at once, expired while the server was down: sent, not bounced unseen."""

    async def main() -> None:
        peer = ScriptedServer()
        await peer.start(host="127.0.0.7")
        options: dict[str, Any] = {
            "direct": True, "resolver": DictResolver({"d.test": {"A": ["127.0.0.7"]}}), "mx_port": peer.port, "mx_networks": "127.0.0.0/8",
        }  # fmt: skip
        async with serving(tmp_path, paused=True, **options) as server:
            for n in range(300):
                await server.enqueue(reverse_path=None, recipients=[f"u{n}@d.test"], content=BODY, ts=1000)
            await server.resume_queue()
            await until(lambda: len(peer.messages) == 300)
        await peer.stop()

    run_async(main)


def test_slow_next_hops_do_not_take_it_all(tmp_path: Path) -> None:
    """Memory and connections: next hops that accept and say nothing leave room for others."""

    async def main() -> None:
        port = free_port()
        mute = [await asyncio.start_server(lambda r, w: asyncio.sleep(30), f"127.0.0.{n}", port) for n in range(20, 26)]
        peer = ScriptedServer()
        await peer.start(port, host="127.0.0.19")
        zones: dict[str, Any] = {f"slow{n}.test": {"A": [f"127.0.0.{n}"]} for n in range(20, 26)}
        zones["live.test"] = {"A": ["127.0.0.19"]}
        async with serving(
            tmp_path, direct=True, resolver=DictResolver(zones), mx_port=port, mx_networks="127.0.0.0/8", maxrelay=20
        ) as server:
            large = b"x" * 70 + b"\r\n"
            for n in range(20, 26):
                for k in range(60):
                    await server.enqueue(reverse_path=None, recipients=[f"u{k}@slow{n}.test"], content=large * 1600)
            assert server._parts.scheduler._in_hand_bytes < 40 << 20
            started = time.monotonic()
            await server.enqueue(reverse_path=None, recipients=["a@live.test"], content=BODY)
            await until(lambda: peer.messages, 5)
            assert time.monotonic() - started < 5 and server._parts.lanes.connections <= 20
            await server.pause_queue()
            await server.shutdown(grace_s=0)
        for one in mute:
            one.close()
        await peer.stop()

    run_async(main)


def test_a_stepped_clock_sends_nothing_twice(tmp_path: Path) -> None:
    async def main() -> None:
        clock, calls, go = ManualClock(), [], asyncio.Event()

        async def handle(item: Item) -> None:
            calls.append(item.uid)
            await go.wait()

        options: dict[str, Any] = {"port": 0, "data_dir": str(tmp_path), "hostname": "mx.test", "direct": False}
        async with MailServer(clock=clock, rng=random.Random(1), handlers=[Handler(".", handle)], **options) as server:
            await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=BODY)
            await until(lambda: calls)
            clock.step_wall(7200)
            server._parts.scheduler.wake()
            await until(lambda: server._parts.scheduler._claiming is None)
            await asyncio.sleep(0.05)
            assert len(calls) == 1 and server._parts.scheduler.in_hand == 1
            go.set()
            await until(lambda: server._parts.scheduler.in_hand == 0)

    run_async(main)


def test_a_refusal_in_the_turn_that_connects(tmp_path: Path) -> None:
    """Some loops read before the task that connects goes on: 554 and the end must not get lost."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"554 5.7.1 go away\r\n")
            writer.close()

        peer = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = peer.sockets[0].getsockname()[1]
        async with serving(
            tmp_path, store="memory", relay=f"127.0.0.1:{port}", retry_first_s=0.01, retry_longest_s=0.01
        ) as server:
            for _ in range(20):
                lane = lane_of(server)
                lane._back_off.retry_at = None
                failed = heard(server, "send_failed")
                await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=BODY)
                async with asyncio.timeout(5):
                    event = await failed.get()
                assert "go away" in str(event.reply)
                server.unregister(failed.put_nowait)
                await server._parts.scheduler.change(Action.CANCEL, Query())
        peer.close()

    run_async(main)


def test_one_grace_for_everybody_and_handlers_that_do_not_end(tmp_path: Path) -> None:
    async def main() -> None:
        async def swallows(item: Item) -> None:
            while not ended.is_set():
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    continue

        ended = asyncio.Event()
        handlers = [Handler("^async", swallows), Handler("^thread", lambda item: time.sleep(2), in_thread=True)]
        async with serving(tmp_path, handlers=handlers) as server:
            for n in range(8):
                await server.enqueue(
                    reverse_path=None, recipients=[f"async{n}@d.test", f"thread{n}@d.test"], content=BODY
                )
            await until(lambda: server._parts.scheduler.in_hand >= 16)
            started = time.monotonic()
            await server.shutdown(grace_s=0.5)
            assert time.monotonic() - started < 4
            ended.set()

    run_async(main, timeout_s=20)


def test_a_full_lane_that_empties_without_a_transaction(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, direct=True, resolver=DictResolver({}), paused=True) as server:
            for n in range(450):
                await server.enqueue(reverse_path=None, recipients=[f"u{n}@nowhere.test"], content=b"x\r\n")
            await server.resume_queue()
            started = time.monotonic()
            while (await server.mail_queue(limit=1)) and time.monotonic() - started < 20:
                await asyncio.sleep(0.01)
            assert time.monotonic() - started < 10, "not at the next timer"

    run_async(main)


def test_a_listed_client_whose_reason_does_not_come(tmp_path: Path) -> None:
    class Slow(DictResolver):
        async def resolve(self, name: str, kind: str) -> Any:
            if kind == "TXT":
                await asyncio.sleep(30)
            return await super().resolve(name, kind)

    async def main() -> None:
        resolver = Slow({"2.0.0.127.bl.test": {"A": ["127.0.0.2"]}})
        async with serving(
            tmp_path, store="memory", dnsbl_enable=True, dnsbl="bl.test", resolver=resolver, dnsbl_time_out=0.6
        ) as server:
            client = await Client.connect(server, greeted=False, local_addr=("127.0.0.2", 0))
            assert await client.reply() == "554 5.7.1 127.0.0.2 is listed by bl.test"
            client.close()

    run_async(main)


def test_our_own_mx_by_name() -> None:
    def is_me(host: str, address: str) -> bool:
        return host == "me.test"

    backup = {"A": ["127.0.0.9"]}
    for own in (Status.FAILED, {"AAAA": ["::1"]}, {}):
        zones = {"d.test": {"MX": [(10, "me.test"), (20, "backup.test")]}, "me.test": own, "backup.test": backup}
        assert refused(look_up(zones, is_ourselves=is_me, ip_preference="ipv4-only")) == "554 5.4.6"
    zones = {
        "d.test": {"MX": [(5, "good.test"), (10, "me.test")]},
        "good.test": {"A": ["127.0.0.8"]},
        "me.test": Status.FAILED,
    }
    assert names(look_up(zones, is_ourselves=is_me)) == ["127.0.0.8"]
    worse = {
        "d.test": {"MX": [(10, "me.test"), (20, "bad.test")]},
        "me.test": {"A": ["127.0.0.1"]},
        "bad.test": Status.FAILED,
    }
    assert refused(look_up(worse, is_ourselves=is_me)) == "554 5.4.6"


def test_letters_that_idna_2003_changed() -> None:
    assert comparable_domain("faß.de") == "xn--fa-hia.de" and comparable_domain("BÜCHER.de") == "xn--bcher-kva.de"
    assert comparable_domain("FASS.de") == "fass.de"


def test_a_reporter_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT="550 5.1.1 no") as peer:
            async with relaying(tmp_path, peer.port) as (server, _):

                def broken(*args: Any) -> list[Any]:
                    raise RuntimeError("no DSN today")

                server._parts.scheduler._reporter = broken
                await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
                await until(lambda: queued(server)[0].recipients[0].state == "bounced")

    run_async(main)


@pytest.mark.parametrize("sizes", cuts(21), ids=["whole", "bytes", "random"])
def test_an_empty_chunk_is_answered_at_once(tmp_path: Path, sizes: Any) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            wire = Wire(server, sizes())
            await wire.ask(b"EHLO x.test\r\n")
            for last in (b"BDAT 0 LAST\r\n", b"BDAT 0\r\n", b"BDAT 0 LAST\r\n"):
                if wire.connection.session.facts.envelope is None:
                    await wire.ask(b"MAIL FROM:<a@b.test>\r\n")
                    await wire.ask(b"RCPT TO:<c@d.test>\r\n")
                assert [reply[:3] for reply in await wire.ask(last)] == ["250"], last
            wire.lose()

    run_async(main)


def test_changed_built_in_behaviour_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pillarbox.plugins.simple import Simple

    monkeypatch.setattr(Simple, "on_cmd_noop", lambda self, server, event: Reply(250, "2.0.0", "mine"))

    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            client = await Client.connect(server)
            assert await client.ask(b"NOOP") == "250 2.0.0 mine"
            client.close()

    run_async(main)
