"""The faults of the original that were found by running it: a test each, by number."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, MailServer
from pillarbox.dns import Status
from pillarbox.errors import OptionError, PluginError
from pillarbox.testing import DictResolver, ScriptedServer
from tests.conftest import Client, queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon
from tests.simplesmtp.test_events import dnsbl_case
from tests.simplesmtp.test_methods import raw, raw_transaction


@server_test()
async def test_fault_b1_sessions_share_nothing(server: MailServer) -> None:
    one, two = await Client.connect(server), await Client.connect(server)
    one.send(b"NO")
    await until(lambda: any(s.protocol.buffered_bytes for s in server._parts.context.sessions.values()))
    assert (await two.ask(b"NOOP")).startswith("250")
    assert (await one.ask(b"OP")).startswith("250")
    one.close(), two.close()


@server_test()
async def test_fault_b2_the_end_first_then_undot(server: MailServer) -> None:
    assert (await send(server, b"Subject: x\r\n\r\n..\r\nMAIL FROM:<evil@x.test>\r\n...\r\n")).startswith("250")
    assert (
        stored_content(server).endswith(b"\r\n\r\n.\r\nMAIL FROM:<evil@x.test>\r\n..\r\n") and len(queued(server)) == 1
    )


@server_test()
async def test_fault_b3_commands_without_argument(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    assert (await client.ask(b"MAIL")).startswith("501 5.5.4")
    await client.ask(b"MAIL FROM:<a@b.test>")
    assert (await client.ask(b"RCPT")).startswith("501 5.5.4")
    client.close()


def test_fault_b4_octets_in_octets_out(tmp_path: Path) -> None:
    rng = random.Random(4)
    lines = [bytes(rng.choices(b".ab \t\xe9", k=rng.randint(0, 60))) for _ in range(3000)]
    body = b"Subject: x\r\n\r\n" + b"\r\n".join([b"..", b".", b"", *lines, b"the last line"]) + b"\r\n"
    stuffed = b"".join((b"." if line.startswith(b".") else b"") + line for line in body.splitlines(keepends=True))

    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        async with serving(tmp_path, store="sqlite", relay=f"127.0.0.1:{peer.port}") as server:
            await send(server, stuffed)
            await until(lambda: peer.messages)
            came = peer.messages[0][2]
            came = came[came.index(b"Subject: x\r\n") :]
            assert hashlib.sha256(came).digest() == hashlib.sha256(body).digest()
        await peer.stop()

    run_async(main)


@server_test()
async def test_fault_b5_odd_addresses_do_not_end_the_process(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    assert (await client.ask(b"MAIL FROM:<postmaster>")).startswith("501")
    await client.ask(b"MAIL FROM:<a@b.test>")
    label = b"x" * 64
    assert (await client.ask(b"RCPT TO:<a@" + label + b".test>")).startswith("501")
    client.close()


@server_test()
async def test_fault_b6_an_endless_line_is_bounded(server: MailServer) -> None:
    client = await Client.connect(server)
    client.send(b"x" * 1_000_000)
    assert (await client.reply()).startswith("500 5.5.2")
    assert sum(s.protocol.buffered_bytes for s in server._parts.context.sessions.values()) < 10_000
    client.close()


def test_fault_b7_out_of_descriptors(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", max_sessions_per_peer=10_000) as server:
            host, port = server.getsockname()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
            clients = []
            try:
                for _ in range(40):
                    try:
                        async with asyncio.timeout(0.2):
                            clients.append(await asyncio.open_connection(host, port))
                    except (OSError, TimeoutError):
                        break
            finally:
                for _, writer in clients:
                    writer.close()
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await until(lambda: not server._parts.context.sessions)
            client = await Client.connect(server)
            assert (await client.ask(b"NOOP")).startswith("250"), "accepting goes on"
            client.close()

    run_async(main)


def test_fault_b8_dnsbl(tmp_path: Path) -> None:
    zones: dict[str, Any] = {"2.0.0.127.bl.test": {"A": ["127.0.0.2"], "TXT": Status.FAILED}}
    event, reply = dnsbl_case(tmp_path, zones)
    assert event.result == "listed" and reply.startswith("554"), "a TXT that fails changes nothing; and 554 closes"
    for codes in (["127.255.255.254"], ["192.0.2.1"], ["127.0.0.2", "127.255.255.252"]):
        event, reply = dnsbl_case(tmp_path, {"2.0.0.127.bl.test": {"A": codes}})
        assert (event.result, event.codes) == ("unknown", codes) and reply.startswith("220")


def test_fault_b9_every_mx_is_tried(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start(host="127.0.0.15")
        resolver = DictResolver(
            {
                "d.test": {"MX": [(1, "dead.test"), (2, "deaf.test"), (3, "live.test")]},
                "dead.test": {"A": ["127.0.0.13"]},
                "deaf.test": {"A": ["127.0.0.14"]},
                "live.test": {"A": ["127.0.0.15"]},
            }
        )
        async with serving(
            tmp_path, store="memory", direct=True, resolver=resolver, mx_port=peer.port, mx_networks="127.0.0.0/8"
        ) as server:
            await send(server)
            await until(lambda: server._parts.store.get(queued(server)[0].uid).attempts)
            assert len(peer.messages) == len(server._parts.store.get(queued(server)[0].uid).attempts) == 1
        await peer.stop()

    run_async(main)


def test_fault_b10_handlers(tmp_path: Path) -> None:
    """With a smart host too; once, with just its recipients; what one changes no other sees."""

    async def main() -> None:
        got: list[Any] = []
        peer = ScriptedServer()
        await peer.start()

        def spoil(item: Any) -> None:
            got.append(list(item.recipients))
            item.recipients.clear()

        handlers = [Handler("^one", spoil), Handler("^two", spoil)]
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}", handlers=handlers) as server:
            to = ["one-a@d.test", "two@d.test", "one-b@d.test", "rest@d.test"]
            await server.enqueue(reverse_path="a@b.test", recipients=to, content=BODY)
            await until(lambda: len(got) == 2 and peer.messages)
            assert sorted(got) == [["one-a@d.test", "one-b@d.test"], ["two@d.test"]]
            assert peer.messages[0][1] == ["RCPT TO:<rest@d.test>"]
            await until(lambda: {r.state for r in queued(server)[0].recipients} == {"delivered"})
        await peer.stop()

    run_async(main)


def test_fault_b11_b12_work_conserving_and_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        relay = f"127.0.0.1:{peer.port}"
        async with serving(tmp_path, store="memory", relay=relay, maxrelay=5, paused=True) as server:
            for n in range(200):
                await server.enqueue(reverse_path="a@b.test", recipients=[f"r{n}@d.test"], content=BODY)
            started = time.monotonic()
            await server.resume_queue()
            await until(lambda: len(peer.messages) == 200)
            assert time.monotonic() - started < 10, "no timers between two messages"
            assert peer.connections <= 5
        await peer.stop()

    run_async(main)


@server_test(simple=False)
async def test_fault_b13_data_fh_exactly_once(server: MailServer) -> None:
    raw(server, io.BytesIO())
    events = heard(server, "data_fh", "disconnected")
    for content in (b"", b"x\r\n"):
        client = await raw_transaction(server, content)
        event = await soon(events)
        assert event.name == "data_fh"
        server.send_to_client(event.client_id, "250 ok")
        await client.reply()
        client.close()
        assert (await soon(events)).name == "disconnected"
    client = await Client.connect(server)
    for line in (b"HELO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        await client.ask(line)
    client.send(b"half a mess")
    client.close()
    assert (await soon(events)).name == "disconnected" and events.empty()


@server_test()
async def test_fault_b14_addresses_are_judged(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    for bad in (b"<a@b.test> x>", b"<<a@b.test>>", b"<a\0@b.test>", b"<a@b.test\r>", b"<a b@c.test>"):
        assert (await client.ask(b"MAIL FROM:" + bad))[:1] == "5", bad
    client.close()
    for bad_text in ("a@b.test\r\nRSET", "a@b.test>", "a"):
        with pytest.raises(OptionError, match="enqueue"):
            await server.enqueue(reverse_path=bad_text, recipients=["c@d.test"], content="x")


@pytest.mark.alone
def test_fault_b15_b17_accepting_stays_flat(tmp_path: Path) -> None:
    """Nothing of a session stays: objects, timers, table entries."""
    import gc

    async def main() -> None:
        async with serving(tmp_path, store="null") as server:

            async def many(count: int) -> float:
                started = time.monotonic()
                for _ in range(count):
                    client = await Client.connect(server)
                    await client.ask(b"QUIT")
                    client.close()
                return time.monotonic() - started

            await many(300)
            gc.collect()
            before = len(gc.get_objects())
            first = await many(1000)
            last = await many(1000)
            gc.collect()
            assert len(gc.get_objects()) - before < 2000
            assert last < 2.5 * first and not server._parts.context.sessions

    run_async(main, timeout_s=120)


@server_test()
async def test_fault_b16_a_plugin_that_fails_on_everything(server: MailServer) -> None:
    class Fails:
        ignores_failures = True

        def on_default(self, server: Any, event: Any) -> None:
            raise RuntimeError("again")

    errors = heard(server, "plugin_error")
    server.plugin_add("one", Fails())
    server.plugin_add("two", Fails())
    assert (await send(server)).startswith("250")
    assert 0 < errors.qsize() < 200, "contained"


def test_fault_b17b_retries_slow_down() -> None:
    from pillarbox.queue.retry import RetryPolicy, pause_s

    pauses = [pause_s(RetryPolicy(), n, random.Random(1)) for n in range(1, 12)]
    assert all(later > earlier * 0.9 for earlier, later in zip(pauses, pauses[1:], strict=False))
    assert pauses[0] < 600 and pauses[-1] > 3600


@server_test(trust=[])
async def test_fault_b18_no_open_relay(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    await client.ask(b"MAIL FROM:<a@b.test>")
    assert (await client.ask(b"RCPT TO:<c@d.test>")).startswith("550 5.7.1")
    assert server.getsockname()[0] == "127.0.0.1"
    client.close()


@server_test()
async def test_fault_b19_half_close(server: MailServer) -> None:
    client = await Client.connect(server)
    client.send(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nNOOP\r\n")
    client.writer.write_eof()
    finals = [line[:9] for line in (await client.rest()).split("\r\n") if line[3:4] == " "]
    assert [line[:3] for line in finals] == ["250"] * 4 and finals[1:] == ["250 2.1.0", "250 2.1.5", "250 2.0.0"]
    client.close()


@server_test(simple=False)
async def test_fault_b20_dots_in_replies_and_commands(server: MailServer) -> None:
    commands = heard(server, "cmd_noop")
    client = await Client.connect(server)
    client.send(b"NOOP ..x\r\n")
    event = await soon(commands)
    assert event.args == "..x"
    server.send_to_client(event.client_id, "250 .dot")
    assert await client.reply() == "250 .dot"
    client.close()


@server_test(max_header_bytes=128 * 1024)
async def test_fault_b21_linear_time(server: MailServer) -> None:
    started = time.monotonic()
    await send(server, b"no empty line here\r\n" * 500_000)
    assert time.monotonic() - started < 8


def test_fault_b22_b23_kept_first_then_250(tmp_path: Path) -> None:
    """One recipient's 5yz is one recipient's; its sender is told; expiry is told, too."""

    async def main() -> None:
        peer = ScriptedServer(RCPT=lambda line: "550 5.1.1 no" if "bad@" in line else "451 4.2.0 wait" if "slow@" in line else "250 ok")  # fmt: skip
        await peer.start()
        async with serving(
            tmp_path,
            store="memory",
            relay=f"127.0.0.1:{peer.port}",
            expire_s=0.6,
            retry_first_s=0.1,
            retry_longest_s=0.1,
        ) as server:
            to = ["good@d.test", "bad@d.test", "slow@d.test"]
            await server.enqueue(reverse_path="a@b.test", recipients=to, content=BODY)
            await until(lambda: len(peer.messages) == 3)
            states = {r.address: r.state for r in queued(server)[0].recipients}
            assert states == {"good@d.test": "delivered", "bad@d.test": "bounced", "slow@d.test": "expired"}
            assert all("MAIL FROM:<>" in message[0] for message in peer.messages[1:])
        await peer.stop()

    run_async(main)


@server_test(domains=["mx.test"], domains_via="relay", relay="127.0.0.1:9", paused=True)
async def test_fault_b24_b25_b26_rfc_5321(server: MailServer) -> None:
    client = await Client.connect(server)
    assert (await client.ask(b"HELP")).startswith("214") and (await client.ask(b"")).startswith("500")
    await client.ask(b"EHLO x.test")
    assert (await client.ask(b"MAIL FROM:<>")).startswith("250")
    assert (await client.ask(b"RCPT TO:<postmaster>")).startswith("250")
    assert (await client.ask(b"EHLO x.test")).startswith("250")
    assert (await client.ask(b"RCPT TO:<c@d.test>")).startswith("503"), "EHLO ends the transaction"
    client.close()


@server_test(sender_verify=True, resolver=DictResolver({"good.test": {"MX": [(1, "mx.test")]}}))
async def test_fault_b27_sender_verification_never_races(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    resolver = server.options.resolver
    resolver.hold = asyncio.Event()
    client.send(b"MAIL FROM:<a@slow.test>\r\nRSET\r\nMAIL FROM:<a@good.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
    await until(lambda: resolver.asked)
    await asyncio.sleep(0.02)
    assert not client.reader._buffer, "nothing is answered before the verdict"
    resolver.hold.set()
    codes = [(await client.reply())[:3] for _ in range(5)]
    assert codes == ["550", "250", "250", "250", "354"]
    client.send(BODY + b".\r\n")
    assert (await client.reply()).startswith("250 2.0.0"), "exactly one reply"
    client.close()


def test_fault_b28_b38_the_sending_side(tmp_path: Path, certificate: dict[str, str]) -> None:
    """EHLO, STARTTLS, any port, codes checked; a peer that closes in place of 221 gets no second copy; no AUTH in clear."""

    async def main() -> None:
        closes = ScriptedServer(QUIT="close")
        await closes.start()
        async with serving(tmp_path / "a", store="memory", relay=f"127.0.0.1:{closes.port}") as server:
            await send(server)
            await until(lambda: closes.messages)
            await until(lambda: queued(server)[0].recipients[0].state == "delivered")
        assert closes.lines[0].startswith("EHLO mx.test") and len(closes.messages) == 1
        await closes.stop()
        tls = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path / "up", store="memory", **tls) as upstream:
            relay = f"localhost:{upstream.getsockname()[1]}"
            async with serving(
                tmp_path / "b", store="memory", relay=relay, relay_tls="verify", relay_ca=certificate["ca"]
            ) as server:
                await send(server)
                await until(lambda: queued(upstream))
                assert b"with ESMTPS" in stored_content(upstream)

    run_async(main)


@server_test(direct=True, resolver=DictResolver({}))
async def test_fault_b29_look_ups_stop_nobody(server: MailServer) -> None:
    resolver = server.options.resolver
    resolver.hold = asyncio.Event()
    assert (await send(server)).startswith("250")
    await until(lambda: resolver.asked)
    assert (await send(server)).startswith("250"), "others go on while a name is looked up"
    resolver.hold.set()


@server_test()
async def test_fault_b31_the_header_section_alone(server: MailServer) -> None:
    cases = [
        (b"Subject: x\r\n\r\nMessage-ID: <in@body>\r\n", b"\r\n\r\nMessage-ID: <in@body>\r\n"),
        (b"just text\r\nand more\r\n", b"\r\n\r\njust text\r\nand more\r\n"),
        (b"Subject: only\r\n", b"Subject: only\r\n"),
        (b"", b"\r\n"),
    ]
    for number, (content, end) in enumerate(cases):
        assert (await send(server, content)).startswith("250")
        kept = stored_content(server, number)
        assert kept.endswith(end) and b"Message-ID: <" + queued(server)[number].uid.encode() in kept, content


@server_test()
async def test_fault_b32_b33_pipeline_operations_are_whole(server: MailServer) -> None:
    class Refuses:
        def plugin_register(self, server: Any) -> bool:
            return False

    class Leaves:
        def __init__(self) -> None:
            self.seen = 0

        def on_cmd_noop(self, server: MailServer, event: Any) -> None:
            self.seen += 1
            server.plugin_del(self)

    class Sees(Leaves):
        def on_cmd_noop(self, server: MailServer, event: Any) -> None:
            self.seen += 1

    leaves, sees = Leaves(), Sees()
    server.plugin_add("leaves", leaves)
    server.plugin_add("sees", sees)
    pipeline = server.pipeline()
    for wrong in (
        lambda: pipeline.replace("leaves", "x", Refuses()),
        lambda: pipeline.replace("leaves", "sees", object()),
        lambda: pipeline.insert_after("nobody", "x", object()),
        lambda: pipeline.bump_up("nobody"),
    ):
        with pytest.raises(PluginError):
            wrong()
        assert list(server.plugin_list()) == ["leaves", "sees", "simple"]
    pipeline.bump_up("leaves", 5)
    pipeline.bump_down("sees", 50)
    client = await Client.connect(server)
    assert (await client.ask(b"NOOP")).startswith("250"), "plugins see commands in simple mode"
    assert (await client.ask(b"NOOP")).startswith("250")
    client.close()
    assert (leaves.seen, sees.seen) == (1, 2), "a plugin that leaves takes no other's event away"


@server_test()
async def test_fault_b34_in_order(server: MailServer) -> None:
    order: list[str] = []
    server.set_handlers([{"match": ".", "callback": lambda item: order.append("handler")}])

    class Notes:
        def on_message_queued(self, server: Any, event: Any) -> None:
            order.append("message_queued")

    server.plugin_add("notes", Notes())
    await send(server)
    await until(lambda: len(order) == 2)
    assert order == ["message_queued", "handler"]


def test_fault_b35_servers_are_independent(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "one", store="memory", alias="one") as one:
            async with serving(tmp_path / "two", store="memory", alias="two"):
                assert MailServer.find("two") is not None
            assert MailServer.find("two") is None and MailServer.find("one") is one
            assert (await send(one)).startswith("250")

    run_async(main)


@server_test(paused=True)
async def test_fault_b36_b37_true_answers(server: MailServer) -> None:
    assert await server.cancel_message("never was") is False
    events = heard(server, "message_queued")
    await send(server)
    event = await soon(events)
    assert await server.cancel_message(event.uid) is True


@server_test()
async def test_fault_b39_commands_behind_quit(server: MailServer) -> None:
    commands = heard(server, "cmd_quit", "cmd_noop")
    client = await Client.connect(server)
    client.send(b"QUIT\r\nNOOP\r\nMAIL FROM:<a@b.test>\r\n")
    rest = await client.rest()
    assert rest.startswith("221") and rest.count("\r\n") == 1
    assert (await soon(commands)).name == "cmd_quit" and commands.empty()
    client.close()
