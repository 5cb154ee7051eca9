"""A test for each thing that simple mode does."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer, Reject
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import Client, queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, send, server_test


@server_test(version="Acme 1.0")
async def test_simple_220(server: MailServer) -> None:
    client = await Client.connect(server, greeted=False)
    assert await client.reply() == "220 mx.test ESMTP Acme 1.0"
    client.close()


@server_test()
async def test_simple_ehlo(server: MailServer) -> None:
    client = await Client.connect(server)
    lines = (await client.ask(b"EHLO x.test")).split("\n")
    words = {line[4:].split()[0] for line in lines[1:]}
    assert words >= {"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "ENHANCEDSTATUSCODES", "DSN"}
    client.close()


@server_test()
async def test_simple_help_and_empty_line(server: MailServer) -> None:
    client = await Client.connect(server)
    assert (await client.ask(b"HELP")).startswith("214")
    assert (await client.ask(b"")).startswith("500")
    assert (await client.ask(b"HELP nothing")).startswith("504")
    client.close()


@server_test()
async def test_simple_mail(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    for line, code in (
        (b"MAIL FROM:<>", "250"),
        (b"MAIL FROM:<a@b.test> SIZE=5 BODY=8BITMIME", "250"),
        (b"MAIL FROM:<a@b.test> FOO=1", "555"),
        (b"MAIL FROM:<a>", "501"),
        (b"MAIL FROM:a@b.test", "501"),
    ):
        reply = await client.ask(line)
        assert reply[:2] == code[:2], (line, reply)
        await client.ask(b"RSET")
    client.close()


@server_test(local_parts=True)
async def test_local_parts_by_option(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    assert (await client.ask(b"MAIL FROM:<root> SIZE=5")).startswith("250")
    assert (await client.ask(b"RCPT TO:<bob>")).startswith("250")
    assert (await client.ask(b"RCPT TO:<a b>")).startswith("501")
    assert (await client.ask(b"DATA")).startswith("354")
    client.send(b"x\r\n.\r\n")
    assert (await client.reply()).startswith("250")
    view = queued(server)[0]
    assert (view.reverse_path, view.recipients[0].address) == ("root@mx.test", "bob@mx.test")
    client.close()


@server_test()
async def test_simple_out_of_order(server: MailServer) -> None:
    client = await Client.connect(server)
    for line in (b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        assert (await client.ask(line)).startswith("503 5.5.1")
    await client.ask(b"EHLO x.test")
    await client.ask(b"MAIL FROM:<a@b.test>")
    assert (await client.ask(b"MAIL FROM:<x@y.test>")).startswith("503 5.5.1")
    assert (await client.ask(b"DATA")).startswith("503 5.5.1")
    client.close()


@server_test(spool_above_bytes=1000, max_size_bytes=50_000)
async def test_simple_content(server: MailServer) -> None:
    large = b"Subject: x\r\n\r\n" + b"line of text\r\n" * 2000
    assert (await send(server, large)).startswith("250")
    assert stored_content(server).endswith(large), "in a file, the same octets"
    assert (await send(server, b"x" * 60_000 + b"\r\n")).startswith("552 5.3.4")
    assert (await send(server, b"a\nb\r\n")).startswith("550 5.5.2"), "a bare LF is no line end"


@server_test()
async def test_simple_message_id_and_received(server: MailServer) -> None:
    await send(server, b"Subject: x\r\n\r\nbody\r\n")
    content = stored_content(server)
    uid = queued(server)[0].uid
    assert re.match(
        rb"Received: from x\.test \(\[127\.0\.0\.1\]\)\r\n\tby mx\.test with ESMTP id " + uid.encode(), content
    )
    assert f"Message-ID: <{uid}@mx.test>\r\n".encode() in content and b"\r\nDate: " in content
    await send(server, b"Message-ID: <own@x>\r\nDate: now\r\n\r\n")
    assert stored_content(server, 1).count(b"Message-ID:") == 1 and stored_content(server, 1).count(b"Date:") == 1


def test_simple_250(tmp_path: Path) -> None:
    """After the fsync: what the store refuses is not accepted."""

    async def main() -> None:
        async with serving(tmp_path, store="sqlite", paused=True) as server:
            reply = await send(server)
            uid = reply.split()[2]
            assert reply == f"250 2.0.0 {uid} Message accepted for delivery"
            assert [item.uid for item in await server.mail_queue()] == [uid]

            def broken(*args: Any) -> None:
                from pillarbox.errors import StoreFullError

                raise StoreFullError("full")

            server._parts.store.commit = broken  # type: ignore[method-assign]
            assert (await send(server)).startswith("452 4.3.1")

    run_async(main)


def test_simple_delivery(tmp_path: Path) -> None:
    """Per recipient, with DSN; a smart host does not stand before handlers."""

    async def main() -> None:
        got: list[Any] = []
        peer = ScriptedServer(RCPT=lambda line: "550 5.1.1 nobody" if "bad" in line else "250 ok")
        await peer.start()
        async with serving(
            tmp_path,
            store="memory",
            relay=f"127.0.0.1:{peer.port}",
            handlers=[{"match": "^app@", "callback": got.append}],
        ) as server:
            await server.enqueue(
                reverse_path="a@b.test", recipients=["good@d.test", "bad@d.test", "app@d.test"], content=BODY
            )
            await until(lambda: len(peer.messages) == 2 and got)
            states = {r.address: r.state for r in queued(server)[0].recipients}
            assert states == {"good@d.test": "delivered", "bad@d.test": "bounced", "app@d.test": "delivered"}
            assert peer.messages[0][1] == ["RCPT TO:<good@d.test>"], "the handler's recipient is not relayed"
            assert "a@b.test" in peer.messages[1][1][0] and b"550 5.1.1 nobody" in peer.messages[1][2]
            assert got[0].recipients == ["app@d.test"]
        await peer.stop()

    run_async(main)


def test_simple_idle_client(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        server = MailServer(
            clock=clock, port=0, data_dir=str(tmp_path), store="memory", hostname="mx.test", direct=False
        )
        async with server:
            client = await Client.connect(server)
            for _ in range(302):
                clock.advance(1)
                if not _ % 50 or _ > 298:
                    await asyncio.sleep(0.01)
            assert (await client.reply()).startswith("421 4.4.2")
            client.close()

    run_async(main)


def test_simple_queue_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="sqlite", paused=True) as server:
            uid = await server.enqueue(reverse_path=None, recipients=["c@d.test"], content=BODY)
        async with serving(tmp_path, store="sqlite") as server:
            assert [item.uid for item in await server.mail_queue()] == [uid]

    run_async(main)


@server_test()
async def test_simple_lines(server: MailServer) -> None:
    client = await Client.connect(server)
    client.send(b"NOOP\nNOOP\r\n")
    assert (await client.reply()).startswith("500 5.5.2")
    assert (await client.ask(b"NOOP")).startswith("250")
    client.close()


def test_simple_pause_and_handlers(tmp_path: Path) -> None:
    """Running deliveries end; a handler is called once, with just its recipients, never more at once than it allows."""

    async def main() -> None:
        running = most = 0
        go = asyncio.Event()
        calls: list[list[str]] = []

        async def handle(item: Any) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            calls.append(item.recipients)
            await go.wait()
            running -= 1

        handlers = [{"match": "^app", "callback": handle, "concurrency": 2}]
        async with serving(tmp_path, store="memory", handlers=handlers) as server:
            for n in range(6):
                await server.enqueue(
                    reverse_path="a@b.test",
                    recipients=[f"app{n}@d.test", f"appx{n}@d.test", "other@d.test"],
                    content=BODY,
                )
            await until(lambda: running == 2)
            await server.pause_queue()
            go.set()
            await until(lambda: running == 0)
            assert len(calls) == 2 and most == 2 and calls[0] == ["app0@d.test", "appx0@d.test"]
            await server.resume_queue()
            await until(lambda: len(calls) == 6)
            assert most == 2

    run_async(main)


def test_reject_is_exported() -> None:
    assert Reject("no").reply.code == 550
    with pytest.raises(ValueError, match="5yz"):
        Reject("no", 450)
