"""The capture inbox, and faults on purpose."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from pillarbox.capture import Fault, Faults, parse_fault
from pillarbox.errors import OptionError, StateError
from pillarbox.testing import ScriptedServer
from tests.conftest import Client, run_async, serving, until

EVERYONE = ["0.0.0.0/0", "::/0"]


async def bring(server: Any, to: bytes = b"c@d.test", subject: bytes = b"hello", *, last: str = "250") -> str:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    reply = await client.transaction(b"Subject: " + subject + b"\r\n\r\nbody\r\n", to=to)
    assert reply.startswith(last), reply
    client.close()
    return reply


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_the_inbox_keeps_everything_and_sends_nothing(tmp_path: Path, store: str) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            given = {"capture": True, "store": store, "relay": f"127.0.0.1:{relay.port}"}
            async with serving(tmp_path, **given) as server:
                await bring(server, b"one@d.test", b"first")
                await bring(server, b"two@d.test", b"second")
                await server.enqueue(
                    reverse_path="x@b.test", recipients=["three@d.test"], content="Subject: own\n\nx\n"
                )
                found = await server.inbox.messages()
                assert [m.subject for m in found] == ["own", "second", "first"]
                assert [m.subject for m in await server.inbox.messages(to="TWO@")] == ["second"]
                assert [m.subject for m in await server.inbox.messages(sender="x@b", subject="OW")] == ["own"]
                first = found[-1]
                assert first.recipients == ["one@d.test"] and first.text.strip() == "body" and first.html == ""
                assert first.octets.startswith(b"Received:") and first.parsed()["Subject"] == "first"
                assert (await server.inbox.get(first.uid)) == first and await server.inbox.get("no") is None
                assert not relay.messages and server._parts.scheduler.in_hand == 0
                # One of them goes on its way; the others stay.
                assert await server.inbox.release(first.uid) and not await server.inbox.release("no")
                await relay.wait_for(1)
                assert relay.messages[0][1] == ["RCPT TO:<one@d.test>"]
                await until(lambda: server._parts.scheduler.in_hand == 0)
                assert [m.subject for m in await server.inbox.messages()] == ["own", "second"]
                assert await server.inbox.delete([found[0].uid]) == [found[0].uid]
                assert len(await server.inbox.delete()) == 1 and await server.inbox.messages() == []
                assert await server.inbox.delete() == []

    run_async(main)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("size", [10, 400_000], ids=["in memory", "spooled"])
def test_release_from_the_inbox_sends_no_bcc_and_the_queue_keeps_it(tmp_path: Path, store: str, size: int) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            options: dict[str, Any] = {"relay": f"127.0.0.1:{relay.port}", "data_dir": str(tmp_path), "store": store}
            async with serving(tmp_path, capture=True, **options) as server:
                head = (
                    b"To: a@d.test\r\nBCC: secret@d.test,\r\n more@d.test\r\nResent-Bcc: s@d.test\r\nSubject: x\r\n\r\n"
                )
                body = b"Bcc: in the body\r\n" + b"line\r\n" * (size // 6)
                client = await Client.connect(server)
                await client.ask(b"EHLO x.test")
                await client.transaction(head + body, to=b"secret@d.test")
                client.close()
                uid = (await server.inbox.messages())[0].uid
                kept = await server.inbox.get(uid)
                assert kept is not None and b"secret@d.test" in kept.octets
                assert await server.inbox.release(uid)
                await relay.wait_for(1)
                sent = relay.messages[0][2]
                assert b"bcc" not in sent.partition(b"\r\n\r\n")[0].lower() and b"more@d.test" not in sent
                assert sent.endswith(body) and b"\r\nSubject: x\r\n\r\n" in sent

    run_async(main)


def test_waiting_for_a_message(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, capture=True, store="memory") as server:
            await bring(server, b"one@d.test", b"there already")
            found = await server.inbox.wait_for(subject="there", timeout=5)
            assert found.recipients == ["one@d.test"]
            import asyncio

            waiting = asyncio.ensure_future(server.inbox.wait_for(to="two@", where=lambda m: "body" in m.text))
            await asyncio.sleep(0)
            await bring(server, b"two@d.test", b"late")
            assert (await waiting).subject == "late"
            with pytest.raises(TimeoutError, match=r"to='nobody'.*'there already'.*'late'"):
                await server.inbox.wait_for(to="nobody", timeout=0.05)

    run_async(main)


def test_the_oldest_makes_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, capture=True, capture_messages=3, history_messages=0) as server:
            for number in range(8):
                await bring(server, subject=b"n%d" % number)
            for _ in range(500):
                found = [m.subject for m in await server.inbox.messages()]
                if len(found) <= 3:
                    break
                await asyncio.sleep(0.01)
            assert found == ["n7", "n6", "n5"]

    run_async(main)


def test_a_plugin_holds_a_message(tmp_path: Path) -> None:
    class Quarantine:
        def on_message(self, server: Any, event: Any) -> None:
            if b"virus" in event.content.read():
                event.hold = "quarantine: looks ill"

    async def main() -> None:
        async with serving(tmp_path, plugins={"q": Quarantine()}) as server:
            await bring(server, subject=b"virus")
            await bring(server, subject=b"fine")
            held, fine = await server.queue.list(_all())
            assert held["state"] == "held" and held["received"]["held_for"] == "quarantine: looks ill"
            assert held["recipients"][0]["due_at"] is None and fine["state"] == "queued"
            with pytest.raises(StateError, match="capture=True"):
                _ = server.inbox

    run_async(main)


def _all() -> Any:
    from pillarbox.queue.model import Query

    return Query()


# ------------------------------------------------------------------------- faults


def test_faults_happen_where_and_to_whom_they_should(tmp_path: Path) -> None:
    faults = Faults(
        [
            "refuse at=rcpt to=*@closed.test",
            'defer at=rcpt to=full@* reply="452 4.2.2 Mailbox full"',
            "refuse at=mail from=spam@*",
            "defer at=message to=late@*",
            "drop at=data to=cut@*",
        ]
    )

    async def main() -> None:
        async with serving(tmp_path, capture=True, store="memory", plugins={"faults": faults}) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"MAIL FROM:<spam@b.test>")).startswith("550 5.7.1 A fault on purpose")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("250")
            assert (await client.ask(b"RCPT TO:<x@closed.test>")).startswith("550 5.7.1")
            assert await client.ask(b"RCPT TO:<full@d.test>") == "452 4.2.2 Mailbox full"
            await client.ask(b"RSET")
            assert (await client.transaction(b"x\r\n", to=b"late@d.test")).startswith("451 4.7.1")
            await client.ask(b"MAIL FROM:<a@b.test>")
            await client.ask(b"RCPT TO:<cut@d.test>")
            client.send(b"DATA\r\n")
            assert await client.rest() == ""
            faults.clear()
            await bring(server, b"cut@d.test")
            assert len(await server.inbox.messages()) == 1
            faults.add(Fault("refuse", "connect", reply="554 5.7.1 Not today"))
            client = await Client.connect(server, greeted=False)
            assert await client.reply() == "554 5.7.1 Not today"
            faults.clear()
            faults.add("delay at=mail seconds=0.05")
            client = await Client.connect(server)
            import asyncio

            before = asyncio.get_running_loop().time()
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("250")
            assert asyncio.get_running_loop().time() - before >= 0.04
            client.close()

    run_async(main)


def test_a_rate_is_a_rate(tmp_path: Path) -> None:
    faults = Faults(["refuse at=rcpt rate=0.3"], rng=random.Random(7))

    async def main() -> None:
        async with serving(
            tmp_path, capture=True, store="memory", plugins={"faults": faults}, max_errors=1000
        ) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            await client.ask(b"MAIL FROM:<a@b.test>")
            refused = 0
            for number in range(200):
                refused += (await client.ask(b"RCPT TO:<r%d@d.test>" % number)).startswith("550")
            assert 40 <= refused <= 80
            client.close()

    run_async(main)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a fault is refuse, defer"),
        ("explode", "there are refuse, defer, delay, drop"),
        ("refuse at=noon", "there are connect, mail, rcpt, data, message"),
        ("refuse rate=2", "from 0 to 1"),
        ("refuse rate=often", "'often' is no number"),
        ("delay seconds=-1", "from 0 to 3600"),
        ("refuse whom=me", "'whom=me': there are at=, to=, from="),
        ('refuse reply="hm"', "begins with a code"),
        ('refuse reply="250 OK"', "is none that refuses"),
        ('refuse reply="55', "No closing quotation"),
    ],
)
def test_a_fault_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_fault(text)
    assert words in str(caught.value)
