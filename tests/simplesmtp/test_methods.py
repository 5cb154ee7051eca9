"""A test for each method of the original, and for each of its input events."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import threading
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, MailServer, Reply
from pillarbox.errors import DuplicateUidError, OptionError, PluginError, StateError
from pillarbox.testing import ScriptedServer
from tests.conftest import Client, queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon


@server_test()
async def test_method_session_id(server: MailServer) -> None:
    assert server.session_id() == server.session_id() and len(server.session_id()) >= 16
    other = MailServer(port=0, store="memory", direct=False)
    assert other.session_id() != server.session_id()


@server_test()
async def test_method_shutdown(server: MailServer) -> None:
    idle, busy = await Client.connect(server), await Client.connect(server)
    await busy.ask(b"EHLO x.test")
    for line in (b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        await busy.ask(line)
    closing = asyncio.ensure_future(server.shutdown(grace_s=10))
    assert (await idle.reply()).startswith("421 4.3.2")
    busy.send(BODY + b".\r\n")
    assert (await busy.reply()).startswith("250 2.0.0"), "a running transaction finishes"
    assert (await busy.reply()).startswith("421 4.3.2")
    await closing
    await server.wait_closed()
    await server.shutdown()
    with pytest.raises(OSError, match=r"."):
        await asyncio.open_connection(*server.options.listeners[0][1:])


@server_test()
async def test_method_send_event(server: MailServer) -> None:
    class Sees:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_mine(self, server: Any, event: Any) -> Eat | None:
            self.seen.append(event.args)
            return Eat.CLIENT if event.args == ("secret",) else None

    plugin = Sees()
    server.plugin_add("sees", plugin)
    server.define_event("mine")
    events = heard(server, "mine")
    assert server.send_event("mine", 1, "two") is None
    assert server.send_event("mine", "secret") is Eat.CLIENT
    event = await soon(events)
    assert (event.name, event.args) == ("mine", (1, "two")) and events.empty()
    assert plugin.seen == [(1, "two"), ("secret",)]
    known = heard(server, "plugin_add")
    server.send_event("plugin_add", "alias", plugin)
    assert (await soon(known)).alias == "alias"
    with pytest.raises(OptionError, match="has the fields client_id, session, reason"):
        server.send_event("disconnected", 1)
    thread = threading.Thread(target=server.send_event_threadsafe, args=("mine", "from a thread"))
    thread.start()
    assert (await soon(events)).args == ("from a thread",)
    thread.join()


@server_test(simple=False)
async def test_method_send_to_client(server: MailServer) -> None:
    replies: list[str] = []
    server.register(lambda event: replies.append(str(event.reply)), "response")
    commands = heard(server, "cmd_noop")
    client = await Client.connect(server)
    cases: list[tuple[Any, str]] = [
        ("250 OK", "250 OK"),
        ("250", "250 OK"),
        (b"250 2.0.0 octets", "250 2.0.0 octets"),
        (Reply(250, "2.0.0", "one", "two"), "250-2.0.0 one\n250 2.0.0 two"),
        ("451 5.1.1 odd", "451 5.1.1 odd"),
    ]
    for given, expected in cases:
        client.send(b"NOOP\r\n")
        event = await soon(commands)
        assert server.send_to_client(event.client_id, given)
        assert await client.reply() == expected
    client.send(b"NOOP\r\n")
    event = await soon(commands)
    assert server.send_to_client(event.client_id, "250-first")
    assert server.send_to_client(event.client_id, "250-second")
    assert server.send_to_client(event.client_id, "250 last")
    assert await client.reply() == "250-first\n250-second\n250 last"
    assert "250 2.0.0 octets" in replies, "it passes `response`"
    for bad in ("250 a\r\n250 b", "250 a\nb", b"250 a\r", "hello", "99 x"):
        with pytest.raises(ValueError, match="send_to_client"):
            server.send_to_client(event.client_id, bad)
    assert server.send_to_client(event.client_id, "250 nobody asked") is False
    assert server.send_to_client("nobody", "250 OK") is False
    client.close()


def raw(server: MailServer, file: Any = None) -> None:
    """Answers everything, as a program of the original did."""
    answers = {
        "cmd_helo": "250 hi",
        "cmd_mail": "250 ok",
        "cmd_rcpt": "250 ok",
        "cmd_data": "354 go on",
        "cmd_quit": "221 bye",
    }

    def answer(event: Any) -> None:
        if event.name == "cmd_data":
            assert server.data_mode(event.client_id, file)
        server.send_to_client(event.client_id, answers.get(event.name, "502 no"))

    server.register(answer, *answers)


async def raw_transaction(server: MailServer, content: bytes) -> Client:
    client = await Client.connect(server)
    for line in (b"HELO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        await client.ask(line)
    client.send(content + b".\r\n")
    return client


@server_test(simple=False)
async def test_method_data_mode(server: MailServer) -> None:
    raw(server)
    events = heard(server, "data")
    client = await raw_transaction(server, b"Subject: x\r\n\r\n..dots\r\n...\r\nlast\r\n")
    event = await soon(events)
    assert event.lines == [b"Subject: x", b"", b".dots", b"..", b"last"]
    server.send_to_client(event.client_id, "250 thanks")
    assert await client.reply() == "250 thanks"
    assert await client.ask(b"QUIT") == "221 bye"
    client.close()
    assert queued(server) == [], "it is the program's"
    assert server.data_mode("nobody") is False
    with pytest.raises(OptionError, match="binary mode"):
        server.data_mode("nobody", io.StringIO())  # type: ignore[arg-type]


@server_test(simple=False)
async def test_method_data_mode_with_a_file(server: MailServer) -> None:
    class Watched(io.BytesIO):
        writes = 0

        def write(self, octets: Any) -> int:
            Watched.writes += 1
            return super().write(octets)

    file = Watched()
    raw(server, file)
    events = heard(server, "data_fh")
    large = b"".join(b"%06d %s\r\n" % (n, b"x" * 70) for n in range(20_000))
    client = await raw_transaction(server, large)
    event = await soon(events)
    assert event.file is file and event.size_bytes == len(large) and file.getvalue() == large
    assert Watched.writes > 3, "as it arrives"
    server.send_to_client(event.client_id, "250 thanks")
    assert await client.reply() == "250 thanks"
    client.close()


@server_test(simple=False)
async def test_data_mode_when_the_file_fails(server: MailServer) -> None:
    class Full(io.BytesIO):
        def write(self, octets: Any) -> int:
            raise OSError(28, "no space")

    raw(server, Full())
    client = await raw_transaction(server, BODY)
    assert (await client.reply()).startswith("451 4.3.0")
    assert await client.ask(b"QUIT") == "221 bye"
    client.close()


def test_method_getsockname(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", address=["127.0.0.1", "127.0.0.3"]) as server:
            assert server.getsockname() == server.getsocknames()[0]
            assert [name[0] for name in server.getsocknames()] == ["127.0.0.1", "127.0.0.3"]
        with pytest.raises(StateError, match="does not listen"):
            server.getsockname()

    run_async(main)


@server_test(handlers=[{"match": "a", "callback": print}])
async def test_method_get_handlers(server: MailServer) -> None:
    handlers = server.get_handlers()
    assert [handler.match for handler in handlers] == ["a"]
    handlers.clear()
    assert len(server.get_handlers()) == 1, "a copy"


@server_test()
async def test_method_set_handlers(server: MailServer) -> None:
    first: list[Any] = []
    second: list[Any] = []
    server.set_handlers([{"match": "@d.test$", "callback": first.append}])
    await send(server)
    await until(lambda: first)
    server.set_handlers([{"match": "@d.test$", "callback": second.append}])
    await send(server)
    await until(lambda: second)
    assert len(first) == 1


@server_test(paused=True)
async def test_method_mail_queue(server: MailServer) -> None:
    for n in range(5):
        await server.enqueue(
            reverse_path="a@b.test", recipients=[f"r{n}@d.test"], content=f"Subject: s{n}\r\n\r\nx\r\n"
        )
    items = await server.mail_queue()
    assert [item.subject for item in items] == [f"s{n}" for n in range(5)]
    item = items[0]
    (recipient,) = item.recipients
    assert (item.reverse_path, recipient.address, recipient.state, recipient.attempts) == (
        "a@b.test",
        "r0@d.test",
        "queued",
        0,
    )
    assert item.uid and item.size_bytes and item.received_at and recipient.due_at is not None
    assert len(await server.mail_queue(limit=2)) == 2
    assert [i.recipients[0].address for i in await server.mail_queue(recipient="r3@")] == ["r3@d.test"]
    content = await server.queued_content(item.uid)
    assert content is not None and content.read().endswith(b"\r\n\r\nx\r\n")
    assert await server.queued_content("nobody") is None


def test_method_pause_queue(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        options: dict[str, Any] = {"relay": f"127.0.0.1:{peer.port}", "store": "sqlite"}
        async with serving(tmp_path, **options) as server:
            await server.pause_queue()
            await send(server)
        async with serving(tmp_path, **options) as server:
            assert server.paused(), "it survives a restart"
            await asyncio.sleep(0.05)
            assert not peer.messages
            await server.resume_queue()
            await until(lambda: peer.messages)
        await peer.stop()

    run_async(main)


@server_test(paused=True)
async def test_method_resume_queue(server: MailServer) -> None:
    got: list[Any] = []
    server.set_handlers([{"match": ".", "callback": got.append}])
    await send(server)
    assert not got
    await server.resume_queue()
    await until(lambda: got)


@server_test()
async def test_method_paused(server: MailServer) -> None:
    assert server.paused() is False
    await server.pause_queue()
    assert server.paused() is True
    await server.resume_queue()
    assert server.paused() is False


@server_test(paused=True)
async def test_method_cancel_message(server: MailServer) -> None:
    uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
    assert await server.cancel_message(uid) is True
    assert await server.cancel_message(uid) is False and await server.cancel_message("nobody") is False
    assert await server.mail_queue() == []


def test_cancel_message_in_flight(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(**{".": "451 4.0.0 not now"})
        await peer.start()
        relay = f"127.0.0.1:{peer.port}"
        async with serving(tmp_path, store="memory", relay=relay, retry_first_s=0.05, retry_longest_s=0.05) as server:
            uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
            await until(lambda: "." in "".join(peer.lines) or any(line.startswith("DATA") for line in peer.lines))
            assert await server.cancel_message(uid)
            await until(lambda: server._parts.scheduler.in_hand == 0)
            count = len(peer.lines)
            await asyncio.sleep(0.2)
            assert len(peer.lines) <= count + 2, "not sent again"
            assert server._parts.store.get(uid).recipients[0].state == "cancelled"
        await peer.stop()

    run_async(main)


def test_method_start_listener(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            with pytest.raises(StateError, match="listens already"):
                await server.start_listener()
            name = server.getsockname()
            server._parts.listeners._close()
            with pytest.raises(StateError, match="does not listen"):
                server.getsockname()
            await server.start_listener()
            assert server.getsockname()[0] == name[0]
            await send(server)
        with pytest.raises(StateError, match="does not run"):
            await server.start_listener()

    run_async(main)


@server_test(paused=True)
async def test_method_enqueue(server: MailServer) -> None:
    events = heard(server, "message_queued")
    message = EmailMessage()
    message["Subject"], message["From"] = "grüße", "a@b.test"
    message.set_content("hällo\n")
    cases: list[Any] = [
        {"from": "a@b.test", "rcpt": ["c@d.test"], "msg": "Subject: a\n\nx\ny"},
        {"from": "<a@b.test>", "rcpt": "<c@d.test>", "msg": b"Subject: a\r\n\r\nx\r\ny\r\n"},
        {"reverse_path": None, "recipients": ("c@d.test", "e@f.test"), "content": message},
        {"reverse_path": "", "recipients": ["c@d.test"], "content": io.BytesIO(b"Subject: a\n\nx\n")},
        {"reverse_path": "<>", "recipients": ["c@d.test"], "content": b"", "ts": 1_700_000_000},
    ]
    for case in cases:
        uid = await server.enqueue(case)
        event = await soon(events)
        assert event.uid == uid and event.client_id is None and event.lines >= 1
    views = queued(server)
    assert [view.reverse_path for view in views] == ["a@b.test", "a@b.test", None, None, None]
    assert stored_content(server, 0).endswith(b"Subject: a\r\n\r\nx\r\ny\r\n")
    assert f"Message-ID: <{views[0].uid}@mx.test>".encode() in stored_content(server, 0)
    assert [r.address for r in views[2].recipients] == ["c@d.test", "e@f.test"]
    assert views[2].subject == "grüße" and views[4].received_at == 1_700_000_000
    uid = await server.enqueue(
        reverse_path="a@b.test", recipients=["c@d.test"], content="Message-ID: <own@x>\r\n\r\n", uid="order-17"
    )
    assert uid == "order-17" and stored_content(server, 5).count(b"Message-ID") == 1
    with pytest.raises(DuplicateUidError, match="queued already"):
        await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x", uid="order-17")
    good = {"reverse_path": "a@b.test", "recipients": ["c@d.test"], "content": "x"}
    faults: list[tuple[dict[str, Any], str]] = [
        ({"recipients": []}, "'recipients'"),
        ({"recipients": ["c@d.test\r\nRCPT TO:<e@f.test>"]}, "'recipients'"),
        ({"recipients": 3}, "'recipients'"),
        ({"reverse_path": "a b@c.test"}, "'reverse_path'"),
        ({"reverse_path": "a@b.test>\r\nDATA"}, "'reverse_path'"),
        ({"content": 3}, "'content'"),
        ({"content": io.StringIO("x")}, "'content'"),
        ({"uid": "../x"}, "'uid'"),
        ({"ts": "today"}, "'ts'"),
        ({"sender": "x"}, "key 'sender' is not known"),
        ({"from": "x@y.test"}, "given twice"),
    ]
    for wrong, text in faults:
        with pytest.raises(OptionError, match=text):
            await server.enqueue({**good, **wrong})
    with pytest.raises(OptionError, match="'content' is missing"):
        await server.enqueue(reverse_path=None, recipients=["c@d.test"])
    assert len(queued(server)) == 6


def test_enqueue_is_durable_and_large_content_goes_to_the_spool(tmp_path: Path) -> None:
    rng = random.Random(5)
    lines = b"".join(bytes(rng.choices(b"abcdefgh \t", k=70)) + rng.choice((b"\n", b"\r\n")) for _ in range(30_000))
    (tmp_path / "big.eml").write_bytes(b"Subject: big\n\n" + lines)

    async def main() -> None:
        async with serving(tmp_path / "data", store="sqlite", paused=True) as server:
            with open(tmp_path / "big.eml", "rb") as file:
                first = await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=file)
            second = await server.enqueue(
                reverse_path=None, recipients=["c@d.test"], content=(tmp_path / "big.eml").read_bytes()
            )
            assert len(os.listdir(tmp_path / "data" / "spool")) == 2
            with pytest.raises(DuplicateUidError):
                await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=b"x" * 500_000, uid=first)
        async with serving(tmp_path / "data", store="sqlite") as server:
            expected = hashlib.sha256(lines.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")).hexdigest()
            for uid in (first, second):
                content = await server.queued_content(uid)
                assert content is not None
                body = content.read().partition(b"\r\n\r\n")[2]
                assert hashlib.sha256(body).hexdigest() == expected

    run_async(main)


@server_test()
async def test_method_register(server: MailServer) -> None:
    seen: list[str] = []
    server.register(lambda event: seen.append(event.name), "connection", ["cmd_noop", "smtpd_disconnected"])
    everything = heard(server, "all")
    iterated: list[Any] = []

    async def iterate() -> None:
        async for event in server.events("cmd_noop"):
            iterated.append(event)
            break

    task = asyncio.ensure_future(iterate())
    await asyncio.sleep(0)
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    client.close()
    await until(lambda: len(seen) == 3)
    await task
    assert seen == ["connection", "cmd_noop", "disconnected"] and len(iterated) == 1
    assert (await soon(everything)).name == "connection"
    with pytest.raises(OptionError, match="did you mean 'message_queued'"):
        server.register(print, "mesage_queued")
    with pytest.raises(OptionError, match="at least one"):
        server.register(print)
    with pytest.raises(OptionError, match="define_event"):
        server.register(print, "order_came")
    server.define_event("order_came")
    orders = heard(server, "order_came")
    server.send_event("order_came", 1)
    assert (await soon(orders)).args == (1,)
    for bad in ("connection", "all", "a b", ""):
        with pytest.raises(OptionError):
            server.define_event(bad)


@server_test()
async def test_method_unregister(server: MailServer) -> None:
    seen: list[str] = []

    def callback(event: Any) -> None:
        seen.append(event.name)

    server.register(callback, "connection", "cmd_noop")
    assert server.unregister(callback, "connection") is True
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    await until(lambda: seen)
    assert server.unregister(callback) is True and server.unregister(callback) is False
    await client.ask(b"NOOP")
    assert seen == ["cmd_noop"]
    client.close()


@server_test()
async def test_method_pipeline(server: MailServer) -> None:
    pipeline = server.pipeline()
    a, b, c, d, e = (type(name, (), {})() for name in "abcde")
    pipeline.push("a", a)
    pipeline.unshift("b", b)
    pipeline.insert_before("a", "c", c)
    pipeline.insert_after(a, "d", d)
    assert list(pipeline.list()) == ["b", "c", "a", "d", "simple"]
    pipeline.bump_up("d", 2)
    pipeline.bump_down(b)
    assert list(pipeline.list()) == ["d", "b", "c", "a", "simple"]
    assert pipeline.replace("d", "e", e) is d
    assert pipeline.get("e") is e and pipeline.get_index(e) == 0
    assert pipeline.remove("e") is e and pipeline.pop() is a and pipeline.shift() is b
    assert list(pipeline.list()) == ["c", "simple"]


class Quiet:
    """A plugin that does nothing."""


class Refuses:
    def plugin_register(self, server: Any) -> bool:
        return False


@server_test()
async def test_method_plugin_add(server: MailServer) -> None:
    assert server.plugin_add("one", Quiet()) == 2
    with pytest.raises(PluginError, match="already"):
        server.plugin_add("one", Quiet())
    with pytest.raises(PluginError, match="refused"):
        server.plugin_add("two", Refuses())
    assert list(server.plugin_list()) == ["one", "simple"]


@server_test()
async def test_method_plugin_del(server: MailServer) -> None:
    plugin = Quiet()
    server.plugin_add("one", plugin)
    assert server.plugin_del("one") is plugin
    server.plugin_add("one", plugin)
    assert server.plugin_del(plugin) is plugin
    with pytest.raises(PluginError, match="no plugin 'one'"):
        server.plugin_del("one")


@server_test()
async def test_method_plugin_get(server: MailServer) -> None:
    plugin = Quiet()
    server.plugin_add("one", plugin)
    assert (
        server.plugin_get("one") is plugin and server.plugin_get(plugin) is plugin and server.plugin_get("two") is None
    )


@server_test()
async def test_method_plugin_list(server: MailServer) -> None:
    plugin = Quiet()
    server.plugin_add("one", plugin)
    assert server.plugin_list()["one"] is plugin and isinstance(server.plugin_list(), dict)


@server_test()
async def test_method_plugin_order(server: MailServer) -> None:
    one, two = Quiet(), Quiet()
    server.plugin_add("one", one)
    server.plugin_add("two", two)
    assert server.plugin_order()[:2] == [one, two]


class Chooses:
    """Registers for some of what it has methods for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def plugin_register(self, server: MailServer) -> bool:
        return server.plugin_register(self, "SMTPD", "cmd_noop") and server.plugin_register(self, "SMTPC", "all")

    def on_default(self, server: Any, event: Any) -> None:
        self.seen.append(event.name)

    def on_cmd_noop(self, server: Any, event: Any) -> None:
        self.seen.append("noop")

    def on_cmd_rset(self, server: Any, event: Any) -> None:
        self.seen.append("rset")


@server_test()
async def test_method_plugin_register(server: MailServer) -> None:
    plugin = Chooses()
    server.plugin_add("chooses", plugin)
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    await client.ask(b"RSET")
    client.close()
    assert plugin.seen == ["response", "noop", "response", "response"]
    with pytest.raises(OptionError, match="SMTPD"):
        server.plugin_register(plugin, "USER", "all")


@server_test()
async def test_method_plugin_unregister(server: MailServer) -> None:
    plugin = Chooses()
    server.plugin_add("chooses", plugin)
    assert server.plugin_unregister(plugin, "SMTPD", "cmd_noop", "cmd_mail") == ["cmd_mail"]
    assert server.plugin_unregister(plugin, "SMTPC", "all") == []
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    client.close()
    assert plugin.seen == []


# ------------------------------------------------------------------- input events


@server_test()
async def test_input_register(server: MailServer) -> None:
    seen: list[Any] = []
    threading.Thread(target=server.post, args=("register", seen.append, "cmd_noop")).start()
    await until(lambda: server.dispatcher.subscribers.listens("cmd_noop"))
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    await until(lambda: seen)
    client.close()


@server_test()
async def test_input_unregister(server: MailServer) -> None:
    server.register(print, "cmd_noop")
    server.post("unregister", print)
    await until(lambda: not server.dispatcher.subscribers.listens("cmd_noop"))


@server_test()
async def test_input_shutdown(server: MailServer) -> None:
    server.post("shutdown")
    await server.wait_closed()
    with pytest.raises(StateError, match="does not run"):
        server.post("shutdown")


@server_test()
async def test_input_send_event(server: MailServer) -> None:
    server.define_event("mine")
    events = heard(server, "mine")
    server.post("send_event", "mine", 3)
    assert (await soon(events)).args == (3,)
    with pytest.raises(OptionError, match="did you mean 'send_event'"):
        server.post("send_events", "mine")


@server_test(simple=False)
async def test_input_send_to_client(server: MailServer) -> None:
    commands = heard(server, "cmd_noop")
    client = await Client.connect(server)
    client.send(b"NOOP\r\n")
    server.post("send_to_client", (await soon(commands)).client_id, "250 by post")
    assert await client.reply() == "250 by post"
    client.close()


@server_test()
async def test_input_start_listener(server: MailServer) -> None:
    server._parts.listeners._close()
    server.post("start_listener")
    await until(lambda: server.getsocknames())
