"""A test for each event of the original, with all its fields, and for each of its plugin rules."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, MailServer, Reply
from pillarbox.errors import ListenError, PluginError
from pillarbox.events.catalogue import CATALOGUE, Kind
from pillarbox.testing import DictResolver, ScriptedServer
from tests.conftest import Client, free_port, queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon
from tests.simplesmtp.test_methods import raw, raw_transaction


def test_event_registered(tmp_path: Path) -> None:
    async def main() -> None:
        server = MailServer(port=0, data_dir=str(tmp_path), store="memory", hostname="mx.test", direct=False)
        events = heard(server, "registered")
        async with server:
            assert (await soon(events)).server is server

    run_async(main)


def test_event_listener_failed(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        async with serving(tmp_path / "a", store="memory", port=port):
            server = MailServer(
                port=port, data_dir=str(tmp_path / "b"), store="memory", hostname="mx.test", direct=False
            )
            events = heard(server, "smtpd_listener_failed")
            with pytest.raises(ListenError):
                await server.start()
            event = await soon(events)
            assert (event.operation, event.address) == ("bind", f"127.0.0.1:{port}")
            assert event.errno > 0 and "in use" in event.strerror

    run_async(main)


@server_test()
async def test_event_connection(server: MailServer) -> None:
    events = heard(server, "connection")
    client = await Client.connect(server)
    event = await soon(events)
    own = client.writer.get_extra_info("sockname")
    assert (event.peer.host, event.peer.port) == own[:2] and (
        event.local.host,
        event.local.port,
    ) == server.getsockname()
    assert event.client_id and event.tls == "" and event.proxied is False
    client.close()


@server_test()
async def test_event_disconnected(server: MailServer) -> None:
    events = heard(server, "connection", "disconnected")
    client = await Client.connect(server)
    await client.ask(b"QUIT")
    first, last = await soon(events), await soon(events)
    assert last.client_id == first.client_id and last.reason == "QUIT"
    client.close()
    await until(lambda: not server._parts.context.sessions)
    assert events.empty(), "once"


@server_test()
async def test_event_cmd(server: MailServer) -> None:
    """Every command, QUIT too, with the text as given and the parsed parts."""
    names = [name for name in CATALOGUE if name.startswith("cmd_")]
    events = heard(server, *names)
    client = await Client.connect(server)
    lines = [
        (b"HELO x.test", "cmd_helo", "x.test"),
        (b"EHLO  x.test", "cmd_ehlo", " x.test"),
        (b"MAIL FROM:<a@b.test> SIZE=10", "cmd_mail", "FROM:<a@b.test> SIZE=10"),
        (b"RCPT TO:<c@d.test> NOTIFY=NEVER", "cmd_rcpt", "TO:<c@d.test> NOTIFY=NEVER"),
        (b"VRFY someone", "cmd_vrfy", "someone"),
        (b"EXPN list", "cmd_expn", "list"),
        (b"HELP MAIL", "cmd_help", "MAIL"),
        (b"NOOP hm", "cmd_noop", "hm"),
        (b"XCLIENT NAME=evil", "cmd_xclient", "NAME=evil"),
        (b"DATA", "cmd_data", ""),
    ]
    for line, name, args in lines:
        await client.ask(line)
        event = await soon(events)
        assert (event.name, event.args.strip()) == (name, args.strip()), line
        if name == "cmd_mail":
            assert event.address == "a@b.test" and event.parameters == {"SIZE": 10}
        if name == "cmd_rcpt":
            assert event.address == "c@d.test" and event.parameters["NOTIFY"] == ("NEVER",)
    client.send(BODY + b".\r\nRSET\r\nBDAT 0 LAST\r\nQUIT\r\n")
    assert [(await soon(events)).name for _ in range(2)] == ["cmd_rset", "cmd_quit"]
    client.close()
    assert set(names) >= {name for _, name, _ in lines} | {"cmd_starttls", "cmd_auth", "cmd_bdat"}


@server_test()
async def test_event_message(server: MailServer) -> None:
    class Changes:
        def on_message(self, server: Any, event: Any) -> Reply | None:
            assert event.client_id and event.envelope.reverse_path == "a@b.test"
            if "refuse" in (event.content.header("Subject") or ""):
                return Reply(554, "5.7.1", "Not this one")
            event.content.set_header("Subject", "changed")
            event.envelope.remove("c@d.test")
            event.envelope.add("new@d.test")
            return None

    server.plugin_add("changes", Changes())
    assert (await send(server)).startswith("250")
    assert b"Subject: changed\r\n" in stored_content(server)
    assert [r.address for r in queued(server)[0].recipients] == ["new@d.test"]
    assert (await send(server, b"Subject: refuse me\r\n\r\n")).startswith("554 5.7.1")
    assert len(queued(server)) == 1


@server_test(simple=False)
async def test_event_data(server: MailServer) -> None:
    raw(server)
    events = heard(server, "data")
    client = await raw_transaction(server, b"")
    event = await soon(events)
    assert event.lines == [] and event.client_id == event.session.client_id
    server.send_to_client(event.client_id, "554 no")
    assert await client.reply() == "554 no"
    client.close()


@server_test(simple=False)
async def test_event_data_fh(server: MailServer) -> None:
    file = io.BytesIO()
    raw(server, file)
    events = heard(server, "data_fh")
    client = await raw_transaction(server, b"")
    event = await soon(events)
    assert event.file is file and event.size_bytes == 0, "also for an empty message"
    client.close()


def dnsbl_case(tmp_path: Path, zones: dict[str, Any], **options: Any) -> tuple[Any, str]:
    found: list[Any] = []

    async def main() -> None:
        async with serving(
            tmp_path, store="memory", dnsbl_enable=True, dnsbl="bl.test", resolver=DictResolver(zones), **options
        ) as server:
            events = heard(server, "dnsbl")
            client = await Client.connect(server, greeted=False, local_addr=("127.0.0.2", 0))
            found.extend([await soon(events), await client.reply()])
            if found[1].startswith("554"):
                assert await client.rest() == "", "nothing else is served"
            client.close()

    run_async(main)
    return found[0], found[1]


def test_event_dnsbl(tmp_path: Path) -> None:
    listed = {"2.0.0.127.bl.test": {"A": ["127.0.0.4"], "TXT": ["bad\x07 reputation"]}}
    event, reply = dnsbl_case(tmp_path, listed)
    assert (event.result, event.zone, event.codes, event.reason) == (
        "listed",
        "bl.test",
        ["127.0.0.4"],
        "bad? reputation",
    )
    assert event.reply.code == 554 and reply.startswith("554 5.7.1 127.0.0.2 is listed by bl.test: bad? reputation")
    event, reply = dnsbl_case(tmp_path, {})
    assert (event.result, event.reply, event.codes) == ("clean", None, []) and reply.startswith("220")


@server_test(sender_verify=True, resolver=DictResolver({"good.test": {"MX": [(1, "mx.test")]}}))
async def test_event_fverify(server: MailServer) -> None:
    events = heard(server, "fverify")
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    await client.ask(b"MAIL FROM:<a@good.test>")
    event = await soon(events)
    assert (event.reply, event.error, event.domain) == (None, "", "good.test") and event.client_id
    await client.ask(b"RSET")
    await client.ask(b"MAIL FROM:<a@bad.test>")
    event = await soon(events)
    assert (event.reply.code, event.error, event.domain) == (550, "no such domain", "bad.test")
    client.close()


@server_test(paused=True)
async def test_event_message_queued(server: MailServer) -> None:
    events = heard(server, "message_queued")
    reply = await send(server)
    event = await soon(events)
    assert reply == f"250 2.0.0 {event.uid} Message accepted for delivery"
    assert (event.reverse_path, event.recipients, event.subject) == ("a@b.test", ["c@d.test"], "hello")
    content = stored_content(server)
    assert event.size_bytes == len(content) and event.lines == content.count(b"\n") and event.client_id
    await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=BODY)
    assert (await soon(events)).client_id is None


def test_event_send_success(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            events = heard(server, "send_success", "message_queued")
            await send(server)
            uid, event = (await soon(events)).uid, await soon(events)
            assert (event.uid, event.recipients, event.next_hop, event.attempt) == (
                uid, ["c@d.test"], f"relay:127.0.0.1:{peer.port}", 1,
            )  # fmt: skip
            assert event.reply.code == 250 and event.reply.text == "OK taken"
        await peer.stop()

    run_async(main)


def test_event_send_failed(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(RCPT=lambda line: "550 5.1.1 nobody" if "bad" in line else "451 4.2.1 later")
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            events = heard(server, "send_failed")
            await server.enqueue(reverse_path="a@b.test", recipients=["bad@d.test", "c@d.test"], content=BODY)
            both = {event.is_permanent: event for event in (await soon(events), await soon(events))}
            assert both[True].recipients == ["bad@d.test"] and both[True].next_attempt is None
            assert both[False].recipients == ["c@d.test"] and both[False].next_attempt > 1e9
            assert both[True].stage == "rcpt" and str(both[True].reply) == "550 5.1.1 nobody"
            assert both[False].uid and both[False].next_hop.startswith("relay:")
        await peer.stop()

    run_async(main)


class Named:
    """A plugin."""


@server_test()
async def test_event_plugin_add(server: MailServer) -> None:
    events = heard(server, "plugin_add")
    plugin = Named()
    server.plugin_add("named", plugin)
    event = await soon(events)
    assert (event.alias, event.plugin) == ("named", plugin)


@server_test()
async def test_event_plugin_del(server: MailServer) -> None:
    events = heard(server, "plugin_del")
    plugin = Named()
    server.plugin_add("named", plugin)
    server.plugin_del("named")
    event = await soon(events)
    assert (event.alias, event.plugin) == ("named", plugin)


class Fails:
    def on_default(self, server: Any, event: Any) -> None:
        raise RuntimeError("on everything")


@server_test()
async def test_event_plugin_error(server: MailServer) -> None:
    events = heard(server, "plugin_error")
    plugin = Fails()
    server.plugin_add("fails", plugin)
    client = await Client.connect(server, greeted=False)
    assert (await client.reply()).startswith("421 4.3.0")
    event = await soon(events)
    assert (event.alias, event.plugin) == ("fails", plugin) and isinstance(event.exception, RuntimeError)
    assert event.event_name in ("plugin_add", "connection")
    client.close()


@server_test()
async def test_event_handler(server: MailServer) -> None:
    got: list[Any] = []
    server.set_handlers([{"match": "@d.test$", "event": "mail_for_d"}])
    server.register(got.append, "mail_for_d")
    await send(server)
    await until(lambda: got)
    (item,) = got
    assert item.name == "mail_for_d" and item.uid == queued(server)[0].uid and item.attempt == 1
    assert (item.reverse_path, item.recipients) == ("a@b.test", ["c@d.test"]) and item.received_at > 1e9
    assert item.content.endswith(BODY) and item.parsed()["Subject"] == "hello"
    with item.open() as file:
        assert file.read() == item.content
    assert item.size_bytes == len(item.content)


@server_test()
async def test_event_response(server: MailServer) -> None:
    class Rewrites:
        def on_response(self, server: Any, event: Any) -> Eat | None:
            assert event.client_id
            if event.verb == "NOOP":
                event.reply = Reply(250, None, "rewritten", "twice")
            return None

    server.plugin_add("rewrites", Rewrites())
    client = await Client.connect(server)
    assert await client.ask(b"NOOP") == "250-rewritten\n250 twice"
    client.close()


# ------------------------------------------------------------------------- plugins


def test_plugin_types() -> None:
    kinds = {name: cls.kind for name, cls in CATALOGUE.items()}
    assert kinds.pop("response") is Kind.SMTPC and set(kinds.values()) == {Kind.SMTPD}


@server_test()
async def test_plugin_arguments_may_be_changed(server: MailServer) -> None:
    seen: list[Any] = []

    class Changes:
        def on_cmd_rcpt(self, server: Any, event: Any) -> None:
            event.address = "elsewhere@d.test"

    class Sees:
        def on_cmd_rcpt(self, server: Any, event: Any) -> None:
            seen.append(event.address)

    server.plugin_add("changes", Changes())
    server.plugin_add("sees", Sees())
    events = heard(server, "cmd_rcpt")
    await send(server)
    assert seen == ["elsewhere@d.test"] and (await soon(events)).address == "elsewhere@d.test"
    assert queued(server)[0].recipients[0].address == "elsewhere@d.test"


class Eats:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def on_cmd_noop(self, server: Any, event: Any) -> Any:
        return self.answer

    def on_response(self, server: Any, event: Any) -> Any:
        return self.answer if event.verb == "HELP" else None


@server_test()
async def test_plugin_eat_codes(server: MailServer) -> None:
    later: list[str] = []

    class Later:
        def on_cmd_noop(self, server: Any, event: Any) -> None:
            later.append("later")

    eater = Eats(None)
    server.plugin_add("eater", eater)
    server.plugin_add("later", Later())
    for answer, is_answered, plugins, subscribers in (
        (Eat.NONE, True, 1, 1), (None, True, 1, 1), (Eat.CLIENT, False, 1, 0), (Eat.PLUGIN, False, 0, 1), (Eat.ALL, False, 0, 0),
    ):  # fmt: skip
        eater.answer = answer
        later.clear()
        events = heard(server, "cmd_noop")
        client = await Client.connect(server)
        client.send(b"NOOP\r\n")
        if is_answered or answer is Eat.CLIENT:
            # CLIENT keeps it from subscribers alone: the built-in behaviour, a plugin, answers.
            assert (await client.reply()).startswith("250")
        else:
            await until(lambda: any(s.awaits_program for s in server._parts.context.sessions.values()))
            (client_id,) = [i for i, s in server._parts.context.sessions.items() if s.awaits_program]
            server.send_to_client(client_id, "250 mine")
            assert await client.reply() == "250 mine", "then the plugin owes the reply"
        assert len(later) == plugins, answer
        await asyncio.sleep(0)
        assert events.qsize() == subscribers, answer
        server.unregister(events.put_nowait)
        client.close()
        await until(lambda: not server._parts.context.sessions)


@server_test()
async def test_plugin_eats_a_response(server: MailServer) -> None:
    server.plugin_add("eater", Eats(Eat.CLIENT))
    client = await Client.connect(server)
    client.send(b"HELP\r\n")
    assert (await client.ask(b"RSET")).startswith("250 2.0.0"), "nothing was sent for HELP"
    client.close()


@server_test()
async def test_plugins_come_before_the_built_in_behaviour(server: MailServer) -> None:
    server.plugin_add("first", Eats(Reply(451, "4.0.0", "mine")))
    assert list(server.plugin_list()) == ["first", "simple"]
    client = await Client.connect(server)
    assert await client.ask(b"NOOP") == "451 4.0.0 mine"
    client.close()


def test_plugin_entry_and_exit(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counts:
        def plugin_register(self, server: Any) -> bool:
            calls.append("in")
            return True

        def plugin_unregister(self, server: Any) -> None:
            calls.append("out")

    async def main() -> None:
        async with serving(tmp_path, store="memory", plugins={"counts": Counts()}) as server:
            server.plugin_add("again", Counts())
            server.plugin_del("again")
        assert calls == ["in", "in", "out", "out"], "once each, also at shutdown"

    run_async(main)


@server_test()
async def test_plugin_default(server: MailServer) -> None:
    class Default:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_cmd_noop(self, server: Any, event: Any) -> None:
            self.seen.append("noop")

        def on_default(self, server: Any, event: Any) -> None:
            self.seen.append(event.name)

    plugin = Default()
    server.plugin_add("default", plugin)
    server.send_event("own_one", 1)
    client = await Client.connect(server)
    await client.ask(b"NOOP")
    client.close()
    assert plugin.seen == ["plugin_add", "own_one", "connection", "response", "noop", "response"]


@server_test()
async def test_plugin_that_fails(server: MailServer) -> None:
    class Raises:
        ignores_failures = False

        def on_cmd_noop(self, server: Any, event: Any) -> None:
            raise RuntimeError("secret text")

    plugin = Raises()
    server.plugin_add("raises", plugin)
    client = await Client.connect(server)
    reply = await client.ask(b"NOOP")
    assert reply.startswith("451 4.3.0") and "secret" not in reply
    plugin.ignores_failures = True
    assert (await client.ask(b"NOOP")).startswith("250"), "the session lives"
    client.close()
    with pytest.raises(PluginError):
        server.plugin_add("raises", plugin)
