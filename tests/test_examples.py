"""Every example runs."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pillarbox import MailServer
from pillarbox.testing import ScriptedServer
from tests.conftest import ROOT, Client, run_async, until
from tests.simplesmtp.helpers import BODY, heard, send, soon


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def running(folder: Path, main: Any, **options: Any) -> AsyncIterator[MailServer]:
    """The example's own main, on port 0 in a scratch folder."""
    given = {"port": 0, "data_dir": str(folder), "alias": str(folder), "direct": False, **options}
    task = asyncio.ensure_future(main(**given))
    await until(lambda: task.done() or MailServer.find(str(folder)) is not None)
    server = MailServer.find(str(folder))
    assert server is not None, task.exception()
    await asyncio.sleep(0)
    try:
        yield server
    finally:
        await server.shutdown(grace_s=1.0)
        await task


def test_synopsis(tmp_path: Path, capsys: Any) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        async with running(tmp_path, example("synopsis").main, relay=f"127.0.0.1:{peer.port}") as server:
            sent = heard(server, "send_success")
            await send(server)
            await soon(sent)
        await peer.stop()

    run_async(main)
    assert "message_queued" in capsys.readouterr().out


def test_plugin_template(tmp_path: Path, capsys: Any) -> None:
    async def main() -> None:
        plugin = example("plugin_template").Template()

        async def serve(**options: Any) -> None:
            server = await MailServer.spawn(**options)
            await server.wait_closed()

        async with running(tmp_path, serve, store="memory", plugins={"template": plugin}) as server:
            client = await Client.connect(server)
            await client.ask(b"NOOP")
            await client.ask(b"RSET")
            client.close()
            assert plugin.connections == 1

    run_async(main)
    assert capsys.readouterr().out == "Default called for cmd_noop\n"


def test_inbound_app(tmp_path: Path) -> None:
    async def main() -> None:
        module = example("inbound_app")
        tickets = module.Tickets()

        async def serve(**options: Any) -> None:
            await module.main(tickets, **options)

        async with running(tmp_path, serve, trust=[]) as server:
            done = heard(server, "send_success", "send_failed")
            content = b"Subject: it broke\r\nFrom: a@b.test\r\n\r\nagain\r\n"
            assert (await send(server, content, b"ticket-7@example.org")).startswith("250")
            assert (await soon(done)).name == "send_success"
            ((uid, ticket, author, text),) = tickets.db.execute("SELECT * FROM comment").fetchall()
            assert (ticket, author, text) == (7, "a@b.test", "again") and uid
            await send(server, content, b"ticket-99@example.org")
            event = await soon(done)
            assert event.is_permanent and str(event.reply) == "550 5.1.1 There is no ticket 99"
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            await client.ask(b"MAIL FROM:<a@b.test>")
            assert (await client.ask(b"RCPT TO:<someone@example.org>")).startswith("550 5.1.1")
            client.close()

    run_async(main)


def test_raw_server(tmp_path: Path) -> None:
    async def main() -> None:
        module = example("raw_server")
        async with running(tmp_path, module.main, store="memory") as server:
            client = await Client.connect(server)
            assert await client.ask(b"EHLO x.test") == "250 Hello, tell me everything"
            assert await client.ask(b"HELP") == "502 I do not do that"
            assert await client.transaction(BODY) == "250 That was 4 lines, and I have forgotten them all"
            assert await client.ask(b"QUIT") == "221 Come again"
            client.close()

    run_async(main)


def test_mailing_list(tmp_path: Path) -> None:
    async def main() -> None:
        module = example("mailing_list")
        peer = ScriptedServer()
        await peer.start()
        async with running(tmp_path, module.main, relay=f"127.0.0.1:{peer.port}") as server:
            queued = heard(server, "message_queued")
            await send(server, BODY, b"Friends@lists.example.org")
            first, copy = await soon(queued), await soon(queued)
            assert copy.uid == f"{first.uid}-friends" and copy.recipients == ["ann@example.net", "bob@example.com"]
            await until(lambda: peer.messages)
            sender, recipients, content = peer.messages[0]
            assert sender.startswith("MAIL FROM:<friends-owner@lists.example.org>") and len(recipients) == 2
            assert b"List-Post: <mailto:friends@lists.example.org>" in content
            # What comes back through the list ends there.
            await send(server, content, b"friends@lists.example.org")
            await until(lambda: len(peer.messages) == 2)
            assert b"has been through the list before" in peer.messages[1][2], "its sender is told"
        await peer.stop()

    run_async(main)
