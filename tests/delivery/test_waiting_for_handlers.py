"""Mail for a handler, and mail for an own domain, waits while no handler matches: it never goes to a relay or an MX."""

from __future__ import annotations

import asyncio
import json
import signal
import smtplib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, Item, MailServer
from pillarbox.queue.model import View
from pillarbox.testing import ManualClock, SmtpServer
from tests.conftest import Client, queued, run_async, serving, until
from tests.daemon import Daemon, wait_until

TICKET = r"^ticket-\d+@own\.test$"
COUNT = 1000
WAITS = "451 4.3.5 No handler matches: waits for a handler"


def down(item: Item) -> None:
    raise RuntimeError("the database is down")


def tickets(count: int) -> list[str]:
    return [f"ticket-{number}@own.test" for number in range(count)]


async def enqueue(server: MailServer, addresses: Sequence[str]) -> list[str]:
    """One message for each address."""
    content = b"From: a@b.test\r\nSubject: private\r\n\r\nx\r\n"
    return list(
        await asyncio.gather(
            *(server.enqueue(reverse_path="a@b.test", recipients=[to], content=content) for to in addresses)
        )
    )


def states(views: Sequence[View]) -> set[str]:
    return {r.state for view in views for r in view.recipients}


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_handler_registered_after_spawn_gets_all_queued_mail(store: str, tmp_path: Path, request: Any) -> None:
    """1,000 messages that a handler deferred; the next server delivers for some time before it has its handler."""
    own: dict[str, Any] = {"domains": ["own.test"], "retry_first_s": 0.01, "history_messages": 10_000}
    if store == "postgres":
        own["queue"] = request.getfixturevalue("database")

    async def main(sink: SmtpServer) -> None:
        own["relay"] = f"127.0.0.1:{sink.port}"
        async with serving(tmp_path, **own, handlers=[Handler(TICKET, down)]) as server:
            uids = set(await enqueue(server, tickets(COUNT)))
            await until(lambda: server._parts.context.counters.deferred >= 100)
        handled: list[str] = []
        async with serving(tmp_path, **own) as server:
            # Everything has been claimed once, and waits.
            hop = {"next_hop": "handler:", "limit": None}
            await until_async(lambda: server.mail_queue(**hop), lambda found: len(found) >= 200)
            assert not handled
            assert states(await server.mail_queue(limit=None)) <= {"queued", "deferred"}
            server.handler(TICKET)(lambda item: handled.append(item.uid))
            await until_async(lambda: server.mail_queue(limit=None), lambda found: not found)
            assert set(handled) == uids and len(handled) == COUNT
            assert states(await server.mail_queue(limit=None, is_all=True)) == {"delivered"}
        assert len(sink.inbox) == 0

    with SmtpServer() as sink:
        run_async(lambda: main(sink), timeout_s=120)


async def until_async(ask: Any, is_right: Any, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_right(await ask()):
            await asyncio.sleep(0.05)


KILLED = """
import asyncio, sys
from pillarbox import Handler, MailServer
data, relay, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def hang(item):
    await asyncio.sleep(600)

async def main():
    server = MailServer(port=0, data_dir=data, relay=relay, domains=["own.test"], handlers=[Handler("^ticket-", hang)])
    await server.start()
    for start in range(0, count, 100):
        await asyncio.gather(*(server.enqueue(reverse_path="a@b.test", recipients=[f"ticket-{n}@own.test"],
            content=b"From: a@b.test\\r\\n\\r\\nx\\r\\n") for n in range(start, start + 100)))
    print("queued", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_handler_registered_after_kill_gets_all_queued_mail(tmp_path: Path) -> None:
    async def main(sink: SmtpServer) -> None:
        handled: set[str] = set()
        async with serving(tmp_path / "data", domains=["own.test"], relay=f"127.0.0.1:{sink.port}") as server:
            await until_async(lambda: server.mail_queue(next_hop="handler:"), lambda found: len(found) >= 200)
            server.handler(TICKET)(lambda item: handled.update(item.recipients))
            await until_async(lambda: server.mail_queue(limit=None), lambda found: not found)
            assert handled == set(tickets(COUNT))
            assert states(await server.mail_queue(limit=None, is_all=True)) == {"delivered"}
        assert len(sink.inbox) == 0

    with SmtpServer() as sink:
        arguments = [str(tmp_path / "data"), f"127.0.0.1:{sink.port}", str(COUNT)]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"queued\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        run_async(lambda: main(sink), timeout_s=120)


MODULE = """
def down(item):
    raise RuntimeError("down")

def take(item):
    with open({taken!r}, "a") as file:
        file.write(item.recipients[0] + "\\n")
"""


def test_workers_without_the_handler_keep_its_mail_until_a_reload(tmp_path: Path) -> None:
    """Two workers of a daemon with a relay: the handler goes, comes back under another pattern; nothing is relayed."""
    (tmp_path / "code").mkdir()
    config, taken = tmp_path / "pillarbox.toml", tmp_path / "taken"
    (tmp_path / "code" / "own_handlers.py").write_text(MODULE.format(taken=str(taken)))
    taken.touch()

    def write(match: str | None, use: str = "down") -> None:
        text = f'retry_first_s = 0.01\ndomains = ["own.test"]\npython_path = ["{tmp_path / "code"}"]\n'
        if match is not None:
            text += f"[[handlers]]\nmatch = '{match}'\nuse = 'own_handlers:{use}'\n"
        config.write_text(text)

    def handled() -> list[str]:
        return taken.read_text().split()

    with SmtpServer() as sink:
        options = (f"--config={config}", "--workers=2", f"--relay=127.0.0.1:{sink.port}")
        folder = tmp_path / "server"
        write(TICKET)
        with Daemon(folder, *options) as daemon:
            for start in range(0, 100, 10):
                with smtplib.SMTP("127.0.0.1", daemon.port) as client:
                    for to in tickets(100)[start : start + 10]:
                        client.sendmail("a@b.test", [to], "Subject: x\n\nx\n")
            assert len(daemon.queue()) == 100
        write(None)
        with Daemon(folder, *options) as daemon:
            # Some mail is claimed by each worker, and returned.
            wait_until(lambda: len(daemon.queue("--next-hop=handler:")) >= 2, 30)
            rows = daemon.queue()
            assert len(rows) == 100 and {row["state"] for row in rows} <= {"queued", "deferred"}
            shown = json.loads(daemon.pillarbox("show", rows[0]["uid"], "--json").stdout)
            assert shown["waiting_for"] == "no handler matches; waits for a handler"
            write("^ticket-.*@own", "take")
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(handled()) == 100, 60)
            assert sorted(handled()) == sorted(tickets(100))
            wait_until(lambda: daemon.queue() == [], 30)
        assert len(sink.inbox) == 0


def test_unmatched_mail_counts_no_attempt_and_expires_on_time(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        options: dict[str, Any] = {"store": "memory", "domains": ["own.test"], "relay": "127.0.0.1:9", "clock": clock}
        async with serving(tmp_path, **options, expire_s=1000, handlers=[Handler("^other@", down)]) as server:
            [uid] = await enqueue(server, ["nobody@own.test"])
            await until(lambda: queued(server)[0].recipients[0].last_reply is not None)
            row = queued(server)[0].recipients[0]
            assert (row.state, row.attempts, row.next_hop, row.last_reply) == ("queued", 0, "handler:", WAITS)
            shown = await server.queue.show(uid)
            assert shown is not None and shown["waiting_for"] == "no handler matches; waits for a handler"
            found = await server.explain(uid=uid)
            assert found is not None and found["reason"].startswith("route: no handler matches; waits for a handler")
            [hop] = await server.queue.next_hops()
            assert (hop["next_hop"], hop["reason"]) == ("handler:", "no handler matches; waits for a handler")
            assert queued(server)[0].expires_at == queued(server)[0].received_at + 1000
            clock.advance(1001)
            await until(lambda: queued(server)[0].recipients[0].state == "expired")
            assert queued(server)[1].reverse_path is None, "its sender gets a DSN"

    run_async(main)


def test_unmatched_mail_without_any_handler_expires(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with serving(
            tmp_path, store="memory", domains=["own.test"], relay="127.0.0.1:9", clock=clock, expire_s=100
        ) as s:
            await enqueue(s, ["nobody@own.test", "other@own.test"])
            await until(lambda: any(v.recipients[0].last_reply for v in queued(s)))
            for _ in range(4):
                clock.advance(61)
                await asyncio.sleep(0.01)
            await until(lambda: [v.recipients[0].state for v in queued(s)[:2]] == ["expired"] * 2)

    run_async(main)


def test_handler_with_another_pattern_takes_what_it_matches(tmp_path: Path) -> None:
    async def main() -> None:
        own: dict[str, Any] = {"relay": "127.0.0.1:9", "retry_first_s": 0.01}
        async with serving(tmp_path, **own, handlers=[Handler("^(a|b)@", down)]) as server:
            await enqueue(server, ["a@foreign.test", "b@foreign.test"])
        handled: list[str] = []
        async with serving(
            tmp_path, **own, handlers=[Handler("^a@", lambda item: handled.extend(item.recipients))]
        ) as s:
            await until_async(lambda: s.mail_queue(next_hop="handler:"), lambda found: len(found) == 1)
            assert handled == ["a@foreign.test"]
            s.set_handlers([Handler("^b@", lambda item: handled.extend(item.recipients))])
            await until_async(s.mail_queue, lambda found: not found)
            assert handled == ["a@foreign.test", "b@foreign.test"]

    run_async(main)


def test_handler_that_goes_while_mail_waits_for_its_turn_counts_no_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        began, end = asyncio.Event(), asyncio.Event()

        async def slow(item: Item) -> None:
            began.set()
            await end.wait()

        async with serving(tmp_path, relay="127.0.0.1:9", handlers=[Handler("@d", slow, concurrency=1)]) as server:
            await enqueue(server, ["a@d.test", "b@d.test"])
            await began.wait()
            server.set_handlers([])
            end.set()
            await until_async(lambda: server.mail_queue(next_hop="handler:"), lambda found: len(found) == 1)
            [view] = await server.mail_queue()
            assert (view.recipients[0].address, view.recipients[0].attempts) == ("b@d.test", 0)

    run_async(main)


@pytest.mark.parametrize("own", ["own.test", ".own.test"])
def test_own_domain_without_a_handler_is_refused_and_never_relayed(own: str, tmp_path: Path) -> None:
    address = "x@sub.own.test" if own[0] == "." else "x@own.test"

    async def main(sink: SmtpServer) -> None:
        options: dict[str, Any] = {"domains": [own], "relay": f"127.0.0.1:{sink.port}"}
        async with serving(tmp_path, **options) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x")
            await client.ask(b"MAIL FROM:<a@b.test>")
            # A trusted client, too.
            assert await client.ask(b"RCPT TO:<" + address.encode() + b">") == "550 5.1.1 No such mailbox here"
            client.close()
            [uid] = await enqueue(server, [address])
            [other] = await enqueue(server, ["y@foreign.test"])
            await until_async(lambda: server.queue.show(other), lambda row: row["state"] == "delivered")
            await until_async(lambda: server.queue.show(uid), lambda row: row["recipients"][0]["last_reply"] == WAITS)
            assert [message.recipients for message in sink.inbox.messages()] == [["y@foreign.test"]]
            # The operator's decision: by the present options it still waits ...
            await until_async(lambda: server.reroute_message(uid), bool)
            await until_async(
                lambda: server.queue.show(uid), lambda row: row["recipients"][0]["next_hop"] == "handler:"
            )
        async with serving(tmp_path, **options, domains_via="relay") as server:
            # ... and once it was queued for handlers, other options alone do not send it on.
            await until_async(
                lambda: server.queue.show(uid), lambda row: row["recipients"][0]["next_hop"] == "handler:"
            )
            await until_async(lambda: server.reroute_message(uid), bool)
            await until_async(lambda: server.queue.show(uid), lambda row: row["state"] == "delivered")

    with SmtpServer() as sink:
        run_async(lambda: main(sink))


def test_own_domain_by_relay_is_relayed(tmp_path: Path) -> None:
    async def main(sink: SmtpServer) -> None:
        options: dict[str, Any] = {"domains": ["own.test"], "domains_via": "relay", "trust": []}
        async with serving(
            tmp_path, **options, relay=f"127.0.0.1:{sink.port}", handlers=[Handler("^h@", down)]
        ) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x")
            assert (await client.transaction(b"Subject: x\r\n\r\n", to=b"x@own.test")).startswith("250")
            client.close()
            await until_async(server.mail_queue, lambda found: not found)
            assert [message.recipients for message in sink.inbox.messages()] == [["x@own.test"]]

    with SmtpServer() as sink:
        run_async(lambda: main(sink))


@pytest.mark.parametrize("store", ["sqlite", "memory", "postgres"])
def test_rerouted_mail_leaves_for_the_relay(store: str, tmp_path: Path, request: Any) -> None:
    own: dict[str, Any] = {"retry_first_s": 0.01}
    own |= {"queue": request.getfixturevalue("database")} if store == "postgres" else {"store": store}

    async def main(sink: SmtpServer) -> None:
        async with serving(tmp_path, **own, handlers=[Handler("@d", down)], relay=f"127.0.0.1:{sink.port}") as server:
            uids = await enqueue(server, ["a@d.test", "b@d.test"])
            server.set_handlers([])
            await until_async(lambda: server.mail_queue(next_hop="handler:"), lambda found: len(found) == 2)
            await until_async(lambda: server.reroute_message(uids[0]), bool)
            assert not await server.reroute_message("nothing")
            await until_async(lambda: server.queue.show(uids[0]), lambda row: row["state"] == "delivered")
            assert [message.recipients for message in sink.inbox.messages()] == [["a@d.test"]]
            assert await server.cancel_message(uids[1])

    with SmtpServer() as sink:
        run_async(lambda: main(sink))


def test_retry_with_reroute_works_on_a_stopped_server(tmp_path: Path) -> None:
    async def leave() -> str:
        async with serving(tmp_path / "data", relay="127.0.0.1:9", handlers=[Handler("@d", down)]) as server:
            [uid] = await enqueue(server, ["a@d.test"])
            return uid

    uid = run_async(leave)
    with SmtpServer() as sink, Daemon(tmp_path, f"--relay=127.0.0.1:{sink.port}") as daemon:
        wait_until(lambda: daemon.queue("--next-hop=handler:^none") == [], 5)
        daemon.pillarbox("retry", uid)
        wait_until(lambda: len(daemon.queue("--next-hop=handler:")) == 1, 30)
        daemon.stop()
        assert "1 message due now" in daemon.pillarbox("retry", "--reroute", uid).stdout
    with SmtpServer() as sink, Daemon(tmp_path, f"--relay=127.0.0.1:{sink.port}") as daemon:
        wait_until(lambda: daemon.queue() == [], 30)
        assert [message.recipients for message in sink.inbox.messages()] == [["a@d.test"]]


def test_node_without_handlers_leaves_their_mail_to_the_node_that_has_them(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        handled: list[str] = []
        own: dict[str, Any] = {"queue": database, "relay": "127.0.0.1:9", "domains": ["own.test"]}
        async with serving(tmp_path / "front", **own) as front:
            await enqueue(front, tickets(50))
            await until_async(lambda: front.mail_queue(next_hop="handler:"), lambda found: len(found) == 50)
            async with serving(tmp_path / "back", **own) as back:
                back.handler(TICKET)(lambda item: handled.extend(item.recipients))
                await until_async(back.mail_queue, lambda found: not found)
                await enqueue(front, ["ticket-99@own.test"])
                await until_async(back.mail_queue, lambda found: not found)
        assert sorted(handled) == sorted([*tickets(50), "ticket-99@own.test"])

    run_async(main)
