"""Rows F85 to F104, G110 to G112, H130 and H136 of the hostile checklist: names, the sending side, resources."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, Item, MailServer
from pillarbox.dns import Answer, DnsResolver, Status
from pillarbox.queue.model import Action, Query
from pillarbox.testing import DictResolver, ManualClock, ScriptedServer
from tests.conftest import Client, queued, run_async, serving, stored_content, until
from tests.dnsserver import SILENT, nameserver
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon
from tests.simplesmtp.test_events import dnsbl_case


def outcome(tmp_path: Path, zones: dict[str, Any], **options: Any) -> Any:
    """The first event of an attempt for c@d.test by MX."""
    found: list[Any] = []

    async def main() -> None:
        given = {"direct": True, "resolver": DictResolver(zones), "mx_networks": "127.0.0.0/8", **options}
        async with serving(tmp_path, store="memory", **given) as server:
            events = heard(server, "send_failed", "send_success")
            await send(server)
            found.append(await soon(events))

    run_async(main)
    return found[0]


def relayed(tmp_path: Path, peer: ScriptedServer, check: Callable[[MailServer, Any], Any], **options: Any) -> None:
    """One message through this peer; `check(server, event)` gets the first outcome."""

    async def main() -> None:
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}", **options) as server:
            events = heard(server, "send_failed", "send_success")
            await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
            answer = check(server, await soon(events))
            if asyncio.iscoroutine(answer):
                await answer
        await peer.stop()

    run_async(main)


# ----------------------------------------------------------------------------- names


def test_f85_null_mx(tmp_path: Path) -> None:
    event = outcome(tmp_path, {"d.test": {"MX": [(0, ".")], "A": ["127.0.0.1"]}})
    assert event.is_permanent and str(event.reply).startswith("556 5.1.10")

    async def main() -> None:
        resolver = DictResolver({"null.test": {"MX": [(0, ".")]}})
        async with serving(tmp_path, store="memory", sender_verify=True, resolver=resolver) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"MAIL FROM:<a@null.test>")).startswith("550 5.7.27")
            client.close()

    run_async(main)


def test_f86_only_an_address(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start(host="127.0.0.7")
        resolver = DictResolver({"d.test": {"A": ["127.0.0.7"]}, "b.test": {"AAAA": ["2001:db8::1"]}})
        async with serving(
            tmp_path,
            store="memory",
            direct=True,
            resolver=resolver,
            mx_port=peer.port,
            mx_networks="127.0.0.0/8",
            sender_verify=True,
        ) as server:
            assert (await send(server)).startswith("250"), "the sender's check passes"
            await until(lambda: peer.messages)
        await peer.stop()

    run_async(main)


def test_f87_failure_is_not_absence(tmp_path: Path) -> None:
    for zones, permanent, start in (
        ({"d.test": Status.FAILED}, False, "451 4.4.3"),
        ({}, True, "550 5.1.2"),
        ({"d.test": {"MX": [(1, "m.test")]}, "m.test": Status.FAILED}, False, "451 4.4.3"),
        ({"d.test": {"MX": Status.FAILED, "A": ["127.0.0.1"]}}, False, "451 4.4.3"),
    ):
        event = outcome(tmp_path, zones)
        assert event.is_permanent is permanent and str(event.reply).startswith(start), zones


def test_f88_targets_that_no_mx_may_name(tmp_path: Path) -> None:
    alias = {"A": Answer(Status.FOUND, ("9.9.9.9",), 60, "", "real.test")}
    for zones in (
        {"d.test": {"MX": [(1, "alias.test")]}, "alias.test": alias},
        {"d.test": {"MX": [(1, "192.0.2.1")]}},
        {"d.test": {"MX": [(1, "localhost")]}},
        {"d.test": {"MX": [(1, "m.test")]}, "m.test": {"A": ["10.1.2.3"]}},
        {"d.test": {"MX": [(1, "m.test")]}, "m.test": {"A": ["169.254.169.254"]}},
        {"d.test": {"MX": [(1, "m.test")]}, "m.test": {"AAAA": ["::ffff:127.0.0.1"]}},
    ):
        event = outcome(tmp_path, zones, mx_networks=[])
        assert event.is_permanent and str(event.reply).startswith("550 5.4.4"), zones


def test_f89_many_mx_and_broken_answers(tmp_path: Path) -> None:
    zones: dict[str, Any] = {"d.test": {"MX": [(n, f"h{n}.test") for n in range(500)]}}
    for n in range(500):
        zones[f"h{n}.test"] = {"A": [f"127.9.{n % 250}.{k % 250}" for k in range(500)]}
    started = time.monotonic()
    event = outcome(tmp_path, zones, mx_port=1)
    assert not event.is_permanent and time.monotonic() - started < 10

    async def garbage() -> None:
        """A nameserver that answers with pointer loops and truncated records."""
        loop = asyncio.get_running_loop()
        rng = random.Random(89)

        class Liar(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, address: Any) -> None:
                header = data[:2] + b"\x81\x80\x00\x01\xff\xff\x00\x00\x00\x00" + data[12:]
                tail = rng.choice([b"\xc0\x0c" * 200, b"\xc0\xff" + bytes(40), header[12:] * 3, rng.randbytes(500)])
                self.transport.sendto((header + tail)[:65000], address)

        transport, _ = await loop.create_datagram_endpoint(Liar, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        resolver = DnsResolver([f"127.0.0.1:{port}"], time_out_s=0.5)
        for _ in range(8):
            assert (await resolver.resolve("d.test", "MX")).status is Status.FAILED
        transport.close()

    run_async(garbage)


def test_f90_lists_that_lie(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for codes in (["127.255.255.254"], ["1.2.3.4"], ["127.255.255.255", "127.0.0.2"]):
        event, reply = dnsbl_case(tmp_path, {"2.0.0.127.bl.test": {"A": codes}})
        assert event.result == "unknown" and reply.startswith("220"), codes
    everything = {"2.0.0.127.bl.test": {"A": ["127.0.0.2"]}, "1.0.0.127.bl.test": {"A": ["127.0.0.2"]}}

    async def main() -> None:
        resolver = DictResolver(everything)
        async with serving(tmp_path, store="memory", dnsbl_enable=True, dnsbl="bl.test", resolver=resolver) as server:
            events = heard(server, "dnsbl")
            for expected in ("unknown", "clean"):
                client = await Client.connect(server, local_addr=("127.0.0.2", 0))
                event = await soon(events)
                assert event.result == expected, "once, then the list is not asked for an hour"
                client.close()
            assert server.plugin_get("dnsbl").counts == {"listed": 0, "clean": 1, "unknown": 1}

    run_async(main)
    assert "lists everything" in caplog.text, "said aloud"


def test_f91_a_slow_list(tmp_path: Path) -> None:
    async def main() -> None:
        resolver = DictResolver({})
        resolver.hold = asyncio.Event()
        async with serving(
            tmp_path, store="memory", dnsbl_enable=True, dnsbl="bl.test", resolver=resolver, dnsbl_time_out=0.1
        ) as server:
            events = heard(server, "dnsbl")
            started = time.monotonic()
            clients = [await Client.connect(server, greeted=False) for _ in range(10)]
            for client in clients:
                assert (await client.reply()).startswith("220")
                client.close()
            assert time.monotonic() - started < 2, "asked at once, not one behind the other"
            assert {(await soon(events)).result for _ in clients} == {"unknown"}
            assert server.plugin_get("dnsbl").counts["unknown"] == 10
            resolver.hold.set()

    run_async(main)


# ------------------------------------------------------------------- the sending side


def test_f95_replies_that_are_none(tmp_path: Path) -> None:
    for number, reply in enumerate(
        ("250-x\r\n" * 5000 + "250 y", "250 " + "x" * 100_000, "hello there", "250-a\r\n550 b", "2x0 ok", "-", "999 no")
    ):

        def check(server: MailServer, event: Any, reply: str = reply) -> None:
            assert event.name == "send_failed" and not event.is_permanent, reply[:30]

        relayed(tmp_path / str(number), ScriptedServer(MAIL=reply), check)


def test_f96_out_of_turn(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], bool, str]] = [
        ({"DATA": "250 2.0.0 why not"}, False, "data"),
        ({"DATA": "close"}, False, "connection"),
        ({"CONNECT": "554 5.7.1 go away"}, False, "greeting"),
        ({"CONNECT": "421 4.3.2 closing"}, False, "greeting"),
        ({"MAIL": "421 4.3.2 closing"}, False, "mail"),
        ({"RCPT": "421 4.3.2 closing"}, False, "rcpt"),
        ({".": "421 4.3.2 closing"}, False, "end of content"),
        ({"RCPT": "550 5.1.1 no"}, True, "rcpt"),
    ]
    for number, (script, permanent, stage) in enumerate(cases):

        def check(
            server: MailServer, event: Any, permanent: bool = permanent, stage: str = stage, script: Any = script
        ) -> None:
            assert event.name == "send_failed" and event.is_permanent is permanent, script
            assert event.stage in (stage, "connection"), (script, event.stage)

        relayed(tmp_path / str(number), ScriptedServer(**script), check)


def test_f97_lost_after_the_final_dot(tmp_path: Path) -> None:
    async def check(server: MailServer, event: Any) -> None:
        assert event.name == "send_failed" and not event.is_permanent
        await until(lambda: server._parts.store.get(event.uid).attempts)
        view = server._parts.store.get(event.uid)
        assert view.attempts[0].outcome == "ambiguous" and view.recipients[0].due_at > time.time() + 60

    relayed(tmp_path, ScriptedServer(**{".": "close"}), check)


def test_f98_never_reused_after_a_time_out(tmp_path: Path) -> None:
    peer = ScriptedServer()
    silent = True
    peer.script(".", lambda line: "silent" if silent else "250 2.0.0 late")

    async def again(server: MailServer, event: Any) -> None:
        nonlocal silent
        silent = False
        assert event.reply.enhanced == "4.4.2" and peer.connections == 1
        await server._parts.scheduler.change(Action.RETRY, Query())
        await until(lambda: peer.messages)
        assert peer.connections == 2

    relayed(tmp_path, peer, again, time_out=0.3)


def test_f99_552_on_rcpt(tmp_path: Path) -> None:
    def check(server: MailServer, event: Any) -> None:
        assert not event.is_permanent and event.reply.code == 552

    relayed(tmp_path, ScriptedServer(RCPT="552 5.5.3 too many"), check)


def test_f100_some_recipients(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(RCPT=lambda line: "250 ok" if "good" in line else "550 5.1.1 no" if "bad" in line else "450 4.2.1 wait")  # fmt: skip
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            to = ["good1@d.test", "bad@d.test", "wait@d.test", "good2@d.test"]
            await server.enqueue(reverse_path=None, recipients=to, content=BODY)
            await until(lambda: peer.messages and queued(server)[0].recipients[2].state == "deferred")
            states = [r.state for r in queued(server)[0].recipients]
            assert states == ["delivered", "bounced", "deferred", "delivered"] and len(peer.messages[0][1]) == 2
            # None accepted, and yet 354: a lone dot.
            await server.enqueue(reverse_path=None, recipients=["bad@d.test"], content=BODY)
            await until(lambda: len(queued(server)) == 2 and queued(server)[1].recipients[0].state == "bounced")
            # The peer waits for content then; only a dot of its own brings it on to the next command.
            assert peer.lines[-1].split()[0] in ("DATA", "QUIT") and len(peer.messages) == 1
        await peer.stop()

    run_async(main)


def test_f101_a_server_that_drips(tmp_path: Path) -> None:
    """One octet every 30 seconds, for ever: the step's time is for a whole reply; and one that answers each step just in
    time, but never ends, is given up as a whole."""

    async def main() -> None:
        clock = ManualClock()
        writers: list[asyncio.StreamWriter] = []

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            writer.write(b"220 x\r\n")
            await reader.readline()
            writer.write(b"250 x\r\n")

        peer = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = peer.sockets[0].getsockname()[1]
        options: dict[str, Any] = {"port": 0, "data_dir": str(tmp_path), "store": "memory", "hostname": "mx.test"}
        async with MailServer(clock=clock, relay=f"127.0.0.1:{port}", direct=False, **options) as server:
            failed = heard(server, "send_failed")
            await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
            await until(lambda: writers and server._parts.lanes.connections)
            await until(lambda: next(iter(server._parts.lanes._lanes.values()))._busy)
            for octet in b"250-this takes its time and never comes to an end":
                writers[0].write(bytes([octet]))
                await asyncio.sleep(0.001)
                clock.advance(30)
                if not failed.empty():
                    break
            event = await soon(failed)
            assert event.reply.enhanced == "4.4.2" and not event.is_permanent
            await until(
                lambda: not server._parts.lanes._lanes or not next(iter(server._parts.lanes._lanes.values()))._busy
            )
        peer.close()

    run_async(main)


def test_f101_a_whole_transaction_has_its_time_too(tmp_path: Path) -> None:
    from pillarbox.delivery.client import ClientConnection, ClientSettings
    from pillarbox.delivery.route import Target
    from pillarbox.delivery.tlspolicy import TlsPolicy
    from pillarbox.smtp.client import Recipient, Transaction

    async def main() -> None:
        clock = ManualClock()
        peer = ScriptedServer(RCPT="silent")
        await peer.start()
        done: list[Any] = []

        class Owner:
            def transaction_done(self, connection: Any, transaction: Any) -> None:
                done.append(transaction)

            def may_send_more(self, connection: Any) -> None:
                pass

            def connection_closed(self, connection: Any) -> None:
                pass

        connection = ClientConnection(
            Owner(), Target("127.0.0.1", peer.port), ClientSettings("x.test", TlsPolicy.NONE, None), clock
        )
        await connection.open()
        connection.send(Transaction("a@b.test", [Recipient("c@d.test")], [b"x"]))
        for _ in range(200):
            clock.advance(100)
            # As if something had just moved.
            connection.progress = clock.monotonic()
            connection.sweep(clock.monotonic())
            if done:
                break
        assert done and clock.monotonic() < 1000 + 4000
        connection.abort()
        await peer.stop()

    run_async(main)


def test_f102_garbage_in_replies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nasty = "550 5.1.1 <b>%s %n \x1b[2J\x07 \x00 line\rbreak \u202e"

    def check(server: MailServer, event: Any) -> None:
        text = str(event.reply)
        assert all(c.isprintable() or c == "\u202e" for c in text), text
        view = server._parts.store.get(event.uid)
        assert "\x1b" not in view.recipients[0].last_reply and "\r" not in view.recipients[0].last_reply
        dsn = stored_content(server, 1)
        assert b"\x1b" not in dsn and b"<b>%s" in dsn and b"\x00" not in dsn

    with caplog.at_level(logging.INFO):
        relayed(tmp_path, ScriptedServer(RCPT=nasty), check)
    assert "\x1b" not in caplog.text and "\x07" not in caplog.text


def test_f103_what_the_next_hop_lacks(tmp_path: Path) -> None:
    plain = "250-x\r\n250 SIZE 1000000"

    async def main() -> None:
        peer = ScriptedServer(EHLO=plain)
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            failed = heard(server, "send_failed")
            await server.enqueue(reverse_path="a@b.test", recipients=["grüße@d.test"], content=BODY)
            assert str((await soon(failed)).reply).startswith("553 5.6.7")
            await server.enqueue(
                reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\r\n\r\ngrüße\r\n".encode()
            )
            assert str((await soon(failed)).reply).startswith("554 5.6.3")
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"MAIL FROM:<a@b.test> REQUIRETLS")).startswith("555"), "not offered, not ignored"
            client.close()
            assert all(b"gr" not in message[2] for message in peer.messages if "c@d.test" in str(message[1]))
        await peer.stop()

    run_async(main)


def test_f104_tls_fails_under_may(tmp_path: Path) -> None:
    peer = ScriptedServer(EHLO="250-x\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 SIZE 1000000", STARTTLS="220 go")

    async def check(server: MailServer, event: Any) -> None:
        assert event.name == "send_success" and peer.connections == 2, "one more, in clear"
        await send(server)
        await until(lambda: len(peer.messages) == 2)
        assert peer.lines.count("STARTTLS") == 1, "remembered"

    relayed(tmp_path / "a", peer, check)
    secret = ScriptedServer(EHLO="250-x\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 SIZE 1000000", STARTTLS="220 go")

    def never(server: MailServer, event: Any) -> None:
        assert event.name == "send_failed" and not event.is_permanent
        assert not any(line.startswith("AUTH") for line in secret.lines), "never with AUTH"

    relayed(tmp_path / "b", secret, never, relay_user="u", relay_pass="p", relay_tls="verify")


# -------------------------------------------------------------------- resources, faults


@server_test()
async def test_g110_a_pathological_pattern(server: MailServer) -> None:
    good: list[Any] = []
    server.set_handlers(
        [Handler(r"^(?:a|aa|a?a)+@never\.(?:x|xx)+z$", good.append), Handler(r"@d\.test$", good.append)]
    )
    local_part = "a" * 60
    started = time.monotonic()
    other = asyncio.ensure_future(send(server, to=b"b@d.test"))
    assert (await send(server, to=f"{local_part}@never.xxxxxxxxxxxxxxxxxxxxxxxxxy.d.test".encode())).startswith("250")
    assert (await other).startswith("250")
    await until(lambda: good)
    assert time.monotonic() - started < 5, "bounded, whatever the pattern"


def test_g111_back_off_per_destination(tmp_path: Path) -> None:
    """A lane that is down takes nothing, others are not touched (the latency beside 5,000 messages: tests/delivery)."""

    async def main() -> None:
        peer = ScriptedServer()
        await peer.start(host="127.0.0.7")
        zones = {"live.test": {"A": ["127.0.0.7"]}, "dead.test": {"A": ["127.0.0.8"]}}
        async with serving(
            tmp_path,
            store="sqlite",
            direct=True,
            resolver=DictResolver(zones),
            mx_port=peer.port,
            mx_networks="127.0.0.0/8",
        ) as server:
            for n in range(300):
                await server.enqueue(reverse_path=None, recipients=[f"u{n}@dead.test"], content=BODY)
            await until(lambda: "mx:dead.test" in server._parts.lanes.blocked())
            tried = sum(1 for view in await server.mail_queue() if view.recipients[0].attempts)
            assert tried < 50, "one message probes, the others wait untried"
            for n in range(20):
                await server.enqueue(reverse_path=None, recipients=[f"u{n}@live.test"], content=BODY)
            await until(lambda: len(peer.messages) == 20)
            assert "mx:live.test" not in server._parts.lanes.blocked()
        await peer.stop()

    run_async(main)


def test_g112_a_message_that_never_progresses(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()

        async def hangs(item: Item) -> None:
            await asyncio.Event().wait()

        options: dict[str, Any] = {"port": 0, "data_dir": str(tmp_path), "store": "memory", "hostname": "mx.test"}
        async with MailServer(clock=clock, handlers=[Handler(".", hangs)], direct=False, **options) as server:
            stuck = heard(server, "message_stuck")
            uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
            await until(lambda: server._parts.scheduler.in_hand)
            for _ in range(9):
                clock.advance(600)
                await asyncio.sleep(0)
            event = await soon(stuck)
            assert event.uid == uid and event.next_hop == "handler:." and event.seconds > 3600
            await server.shutdown(grace_s=0.05)

    run_async(main)


def test_g112_max_age_is_enforced(tmp_path: Path) -> None:
    async def main() -> None:
        async def hangs(item: Item) -> None:
            await asyncio.Event().wait()

        handlers = [Handler(".", hangs, time_out_s=0.2)]
        async with serving(tmp_path, store="memory", handlers=handlers, expire_s=0.1) as server:
            failed = heard(server, "send_failed")
            await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=BODY)
            assert (await soon(failed)).is_permanent
            assert queued(server)[0].recipients[0].state == "expired"

    run_async(main)


def test_h130_a_dead_resolver(tmp_path: Path) -> None:
    async def main() -> None:
        with nameserver({"d.test": SILENT, "2.0.0.127.bl.test": SILENT}) as (address, _):
            resolver = DnsResolver([address], time_out_s=0.2)
            async with serving(
                tmp_path, store="memory", direct=True, resolver=resolver, dnsbl_enable=True, dnsbl="bl.test"
            ) as server:
                events = heard(server, "dnsbl", "send_failed")
                client = await Client.connect(server, local_addr=("127.0.0.2", 0))
                assert (await soon(events)).result == "unknown"
                await client.ask(b"EHLO x.test")
                assert (await client.transaction(BODY)).startswith("250"), "mail is taken"
                event = await soon(events)
                assert not event.is_permanent and str(event.reply).startswith("451 4.4.3")
                client.close()

    run_async(main)


@server_test(
    sender_verify=True,
    resolver=DictResolver({"good.test": {"MX": [(1, "mx.good.test")]}, "weird.test": {"MX": [(0, ".")]}}),
)
async def test_h136_caches_are_not_for_clients_to_fill(server: MailServer) -> None:
    """What one session asks about changes nothing for another: keys are name and kind, values the resolver's alone."""
    one, two = await Client.connect(server), await Client.connect(server)
    for client in (one, two):
        await client.ask(b"EHLO x.test")
    for probe in (
        b"a@bad.test",
        b"a@weird.test",
        b'"good.test"@bad.test',
        b"good.test@bad.test",
        b"a@good.test.bad.test",
    ):
        assert (await one.ask(b"MAIL FROM:<" + probe + b">")).startswith("550"), probe
    assert (await two.ask(b"MAIL FROM:<a@GOOD.test>")).startswith("250")
    cache = server._parts.resolver
    assert {name for name, _ in cache._answers} <= {"bad.test", "weird.test", "good.test", "good.test.bad.test"}
    for key, (_, answer) in list(cache._answers.items()):
        assert answer == await server.options.resolver.resolve(*key)
    one.close(), two.close()
