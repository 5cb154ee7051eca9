"""The dialogues of the original's own test scripts, written anew: text files with C:, S: and D: lines, and what must come of them.

C: a line of the client's; D: a line of content; S: a reply, `*` and `?` as in a file name; WAIT: time passes; END: the
server closes.
"""

from __future__ import annotations

import asyncio
import fnmatch
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pillarbox import MailServer
from pillarbox.testing import DictResolver, ManualClock, ScriptedServer
from tests.conftest import Client, queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon

FOLDER = Path(__file__).parent / "dialogues"


async def play(server: MailServer, name: str, wait: Callable[[], Any] = lambda: None, **connect: Any) -> None:
    """Speaks a dialogue; AssertionError names file and line."""
    client = await Client.connect(server, greeted=False, **connect)
    for number, line in enumerate((FOLDER / f"{name}.txt").read_text().splitlines(), 1):
        kind, _, text = line.partition(":")
        text = text.removeprefix(" ")
        if kind in ("C", "D"):
            client.send(text.replace("\\t", "\t").encode() + b"\r\n")
        elif kind == "S":
            reply = await client.reply()
            assert fnmatch.fnmatchcase(reply.split("\n")[0], text), f"{name}.txt line {number}: {reply!r}"
        elif line == "WAIT":
            await wait()
        elif line == "END":
            assert await client.rest() == "", f"{name}.txt line {number}"
        else:
            assert not line or line.startswith("#"), line
    client.close()


@server_test()
async def test_dialogue_basic(server: MailServer) -> None:
    await play(server, "basic")
    assert stored_content(server).endswith(b"Subject: hello\r\n\r\nHello, world.\r\n")


@server_test(
    dnsbl_enable=True,
    dnsbl="bl.test",
    resolver=DictResolver({"2.0.0.127.bl.test": {"A": ["127.0.0.2"], "TXT": ["go away"]}}),
)
async def test_dialogue_dnsbl(server: MailServer) -> None:
    await play(server, "dnsbl", local_addr=("127.0.0.2", 0))
    await play(server, "dnsbl_clean", local_addr=("127.0.0.3", 0))


def test_dialogue_time_out(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        options: dict[str, Any] = {"port": 0, "data_dir": str(tmp_path), "store": "memory", "hostname": "mx.test"}
        async with MailServer(clock=clock, client_time_out=10, direct=False, **options) as server:

            async def wait() -> None:
                for _ in range(13):
                    clock.advance(1)
                    await asyncio.sleep(0.005)

            await play(server, "time_out", wait)

    run_async(main)


def program(server: MailServer, file: Any = None) -> None:
    """The program of the data dialogues: it answers everything itself."""

    def answer(event: Any) -> None:
        code = {"cmd_data": "354", "cmd_quit": "221"}.get(event.name, "250")
        if event.name == "cmd_data":
            server.data_mode(event.client_id, file)
        server.send_to_client(event.client_id, f"{code} program")

    def content(event: Any) -> None:
        count = len(event.lines) if event.name == "data" else file.getvalue().count(b"\n")
        server.send_to_client(event.client_id, f"250 got {count} lines")

    server.register(answer, "cmd_helo", "cmd_mail", "cmd_rcpt", "cmd_data", "cmd_quit")
    server.register(content, "data", "data_fh")


@server_test(simple=False)
async def test_dialogue_data(server: MailServer) -> None:
    program(server)
    lines = heard(server, "data")
    await play(server, "data")
    assert (await soon(lines)).lines == [b"Subject: x", b"", b".one dot"]


@server_test(simple=False)
async def test_dialogue_data_with_file_handle(server: MailServer) -> None:
    file = io.BytesIO()
    program(server, file)
    await play(server, "data")
    assert file.getvalue() == b"Subject: x\r\n\r\n.one dot\r\n"


@server_test()
async def test_dialogue_handler(server: MailServer) -> None:
    got: list[Any] = []
    server.set_handlers([{"match": r"^you@server\.test$", "event": "handled"}])
    server.register(got.append, "handled")
    await play(server, "message")
    await until(lambda: got)
    assert got[0].recipients == ["you@server.test"] and got[0].content.endswith(b"\r\n\r\nbody\r\n")


def test_dialogue_enqueue(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            sent = heard(server, "send_success")
            uid = await server.enqueue(
                {"from": "me@client.test", "rcpt": ["you@server.test"], "msg": "Subject: x\n\nhi\n"}
            )
            assert (await soon(sent)).uid == uid
            sender, recipients, content = peer.messages[0]
            assert sender.startswith("MAIL FROM:<me@client.test>") and recipients == ["RCPT TO:<you@server.test>"]
            assert content.endswith(b"Subject: x\r\n\r\nhi\r\n")
        await peer.stop()

    run_async(main)


@server_test(domains=["server.test"], domains_via="relay", trust=[], relay="127.0.0.1:9", paused=True)
async def test_dialogue_domains(server: MailServer) -> None:
    await play(server, "domains")


@server_test()
async def test_dialogue_message_id(server: MailServer) -> None:
    await play(server, "message")
    uid = queued(server)[0].uid
    assert f"Message-ID: <{uid}@mx.test>\r\n".encode() in stored_content(server)
    assert b"Received: from client.test ([127.0.0.1])" in stored_content(server)


@server_test(origin=True)
async def test_dialogue_origin(server: MailServer) -> None:
    await play(server, "message")
    assert b"Received" not in stored_content(server) and b"secret.test" not in stored_content(server)
    assert b"Subject: x\r\n\r\nbody\r\n" in stored_content(server)


def test_dialogue_pause(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            await server.pause_queue()
            await play(server, "message")
            assert server.paused() and len(await server.mail_queue()) == 1 and not peer.messages
            await server.resume_queue()
            await until(lambda: peer.messages)
        await peer.stop()

    run_async(main)


@server_test(paused=True)
async def test_dialogue_cancel(server: MailServer) -> None:
    await play(server, "message")
    (item,) = await server.mail_queue()
    assert await server.cancel_message(item.uid) and await server.mail_queue() == []


def test_dialogue_transparency(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer()
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            await play(server, "transparency")
            await until(lambda: peer.messages)
            assert peer.messages[0][2].endswith(b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n .\r\nb.\r\n")
            await send(server, BODY)
        await peer.stop()

    run_async(main)
