"""Direct delivery end to end: a real nameserver (dnslib), real smtp-sinks as MX, the real server between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.testing import ScriptedServer
from tests.conftest import free_port, run_async, serving, until
from tests.daemon import sink
from tests.dnsserver import SERVFAIL, SILENT, nameserver

BODY = "Subject: hello\r\n\r\nbody\r\n"


@asynccontextmanager
async def direct(folder: Path, ask: str, mx_port: int, **options: Any) -> AsyncIterator[MailServer]:
    """A server that delivers to MX at that port, in a test net."""
    given = {
        "nameservers": ask,
        "mx_port": mx_port,
        "mx_networks": ["127.0.0.0/8"],
        "direct": True,
        "store": "memory",
    }
    async with serving(folder, **{**given, "retry_first_s": 0.2, "retry_longest_s": 0.5, **options}) as server:
        yield server


@contextlib.contextmanager
def sinks(folder: Path, port: int, *hosts: str) -> Iterator[dict[str, Path]]:
    """smtp-sink on each of these addresses, at one port; a file for each message, in a folder for each."""
    with contextlib.ExitStack() as stack:
        folders = {}
        for host in hosts:
            where = folder / f"sink-{host}"
            stack.enter_context(sink(where, "-d", "%M.", port=port, host=host))
            folders[host] = where
        yield folders


def arrived(folder: Path) -> list[str]:
    """The recipients of the messages that came there."""
    return [
        match for entry in folder.iterdir() for match in re.findall(r"(?m)^X-Rcpt-Args: <(.*?)>", entry.read_text())
    ]


async def put(server: MailServer, *to: str) -> str:
    return await server.enqueue(reverse_path="a@sender.test", recipients=list(to), content=BODY)


async def settled(server: MailServer, uid: str) -> list[str]:
    """The states of the recipients, once none waits any more."""
    found: list[str] = []

    def look() -> bool:
        view = server._parts.store.get(uid)
        found[:] = [r.state for r in view.recipients] if view else []
        return bool(found) and not {"queued", "deferred"} & set(found)

    await until(look, 30)
    return found


def reply_of(server: MailServer, uid: str) -> str:
    view = server._parts.store.get(uid)
    assert view is not None
    return str(view.recipients[0].last_reply)


def mx(*hosts: tuple[int, str]) -> dict[str, Any]:
    return {"MX": list(hosts)}


def test_preference_order_and_the_first_host_dead(tmp_path: Path) -> None:
    port = free_port()
    records = {
        "d.test": mx((20, "two.test"), (10, "one.test")),
        "dead.test": mx((10, "gone.test"), (20, "two.test")),
        "one.test": {"A": ["127.0.0.11"]},
        "two.test": {"A": ["127.0.0.12"]},
        # Two addresses of one host, the first of them dead: both are tried in one attempt.
        "half.test": {"MX": [(10, "both.test")]},
        "both.test": {"A": ["127.0.0.99", "127.0.0.12"]},
        "gone.test": {"A": ["127.0.0.98"]},
    }

    async def main() -> None:
        with nameserver(records) as (address, _), sinks(tmp_path, port, "127.0.0.11", "127.0.0.12") as folders:
            async with direct(tmp_path, address, port) as server:
                for n in range(5):
                    assert await settled(server, await put(server, f"u{n}@d.test")) == ["delivered"]
                assert len(arrived(folders["127.0.0.11"])) == 5 and not arrived(folders["127.0.0.12"])
                uid = await put(server, "x@dead.test")
                assert await settled(server, uid) == ["delivered"]
                view = server._parts.store.get(uid)
                assert view is not None and len(view.attempts) == 1, "one attempt tried both"
                assert view.attempts[0].remote == f"two.test[127.0.0.12]:{port}"
                assert await settled(server, await put(server, "y@half.test")) == ["delivered"]
                assert sorted(arrived(folders["127.0.0.12"])) == ["x@dead.test", "y@half.test"]

    run_async(main)


def test_equals_share_the_load(tmp_path: Path) -> None:
    port = free_port()
    hosts = [f"127.0.0.{n}" for n in (21, 22, 23)]
    records = {
        # Each connection chooses anew, and a lane may need but one: many lanes, for the law of large numbers.
        **{f"d{d}.test": mx(*((10, f"h{n}.test") for n in range(3))) for d in range(75)},
        **{f"h{n}.test": {"A": [h]} for n, h in enumerate(hosts)},
    }

    async def main() -> None:
        with nameserver(records) as (address, _), sinks(tmp_path, port, *hosts) as folders:
            async with direct(tmp_path, address, port, paused=True) as server:
                uids = [await put(server, f"u{n}@d{n % 75}.test") for n in range(150)]
                await server.resume_queue()
                for uid in uids:
                    assert await settled(server, uid) == ["delivered"]
                counts = [len(arrived(folders[host])) for host in hosts]
                assert sum(counts) == 150 and all(count > 5 for count in counts), counts

    run_async(main)


def test_null_mx_implicit_mx_no_domain(tmp_path: Path) -> None:
    port = free_port()
    records = {"null.test": mx((0, ".")), "plain.test": {"A": ["127.0.0.31"]}, "loop.test": mx((5, "mx.test"), (9, "plain.test")), "private.test": {"A": ["10.0.0.1"]}, "mx.test": {"A": ["127.0.0.32"]}}  # fmt: skip

    async def main() -> None:
        with nameserver(records) as (address, _), sinks(tmp_path, port, "127.0.0.31") as folders:
            async with direct(tmp_path, address, port) as server:
                expected = {
                    "null.test": "556 5.1.10",
                    "nowhere.test": "550 5.1.2",
                    "loop.test": "554 5.4.6",
                    "private.test": "550 5.4.4",
                }
                for domain, start in expected.items():
                    uid = await put(server, f"u@{domain}")
                    assert await settled(server, uid) == ["bounced"], domain
                    assert reply_of(server, uid).startswith(start), reply_of(server, uid)
                assert await settled(server, await put(server, "u@plain.test")) == ["delivered"]
                assert await settled(server, await put(server, "v@[127.0.0.31]")) == ["delivered"]
                assert sorted(arrived(folders["127.0.0.31"])) == ["u@plain.test", "v@[127.0.0.31]"]
                dsns = [view for view in await server.mail_queue(is_all=True) if view.reverse_path is None]
                assert len(dsns) == 4 and all(v.recipients[0].address == "a@sender.test" for v in dsns)

    run_async(main)


def test_servfail_then_recovery(tmp_path: Path) -> None:
    port = free_port()
    records: dict[str, Any] = {"d.test": SERVFAIL, "mx1.test": {"A": ["127.0.0.41"]}}

    async def main() -> None:
        with nameserver(records) as (address, zone), sinks(tmp_path, port, "127.0.0.41") as folders:
            async with direct(tmp_path, address, port) as server:
                uid = await put(server, "u@d.test")
                await until(lambda: server._parts.store.get(uid).attempts)
                view = server._parts.store.get(uid)
                assert view.recipients[0].state == "deferred" and view.recipients[0].last_stage == "lookup"
                assert reply_of(server, uid).startswith("451 4.4.3")
                zone.records["d.test"] = mx((10, "mx1.test"))
                assert await settled(server, uid) == ["delivered"]
                assert arrived(folders["127.0.0.41"]) == ["u@d.test"]

    run_async(main)


def test_one_message_for_many_domains(tmp_path: Path) -> None:
    port = free_port()
    records: dict[str, Any] = {f"d{n}.test": {"A": [f"127.0.0.{50 + n % 2}"]} for n in range(5)}
    records |= {"null.test": mx((0, ".")), "stuck.test": SERVFAIL}

    async def main() -> None:
        with nameserver(records) as (address, _), sinks(tmp_path, port, "127.0.0.50", "127.0.0.51") as folders:
            async with direct(tmp_path, address, port, retry_first_s=60, retry_longest_s=60) as server:
                events: list[Any] = []
                server.register(events.append, "send_success", "send_failed")
                uid = await put(
                    server, *(f"{who}@d{n}.test" for n in range(5) for who in "ab"), "x@null.test", "y@stuck.test"
                )
                await until(lambda: len(events) >= 7)
                await until(lambda: sum(r.state == "queued" for r in server._parts.store.get(uid).recipients) == 0)
                states = {r.address: r.state for r in server._parts.store.get(uid).recipients}
                assert states.pop("x@null.test") == "bounced" and states.pop("y@stuck.test") == "deferred"
                assert set(states.values()) == {"delivered"} and len(states) == 10
                assert len(arrived(folders["127.0.0.50"])) + len(arrived(folders["127.0.0.51"])) == 10
                messages = len(list(folders["127.0.0.50"].iterdir())) + len(list(folders["127.0.0.51"].iterdir()))
                assert messages == 5, "recipients of one next hop share a transaction"
                assert {event.next_hop for event in events if event.uid == uid} == {
                    f"mx:d{n}.test" for n in range(5)
                } | {"mx:null.test", "mx:stuck.test"}

    run_async(main)


def test_connections_are_bounded_over_all_next_hops(tmp_path: Path) -> None:
    """`maxrelay` holds for the whole server, an idle connection makes room, and every lane has its turn."""
    records = {f"d{n}.test": {"A": ["127.0.0.61"]} for n in range(12)}

    async def main() -> None:
        peer = ScriptedServer()
        await peer.start(host="127.0.0.61")
        with nameserver(records) as (address, _):
            async with direct(tmp_path, address, peer.port, maxrelay=3, maxrelay_per_next_hop=2) as server:
                most = 0

                def watch(event: Any) -> None:
                    nonlocal most
                    most = max(most, server._parts.lanes.connections)

                server.register(watch, "send_success")
                uids = [await put(server, f"u{k}@d{n}.test") for k in range(4) for n in range(12)]
                for uid in uids:
                    assert await settled(server, uid) == ["delivered"]
                assert len(peer.messages) == 48 and 1 <= most <= 3
                assert server._parts.lanes.connections <= 3
        await peer.stop()

    run_async(main)


def test_a_domain_that_hangs_does_not_hold_up_others(tmp_path: Path) -> None:
    """Connections that say nothing: its lane fills up to its bound, and claims pass it by."""
    records: dict[str, Any] = {"slow.test": {"A": ["127.0.0.71"]}, "live.test": {"A": ["127.0.0.72"]}}

    async def main() -> None:
        port = free_port()
        mute = socket.create_server(("127.0.0.71", port), backlog=512)
        with nameserver(records) as (address, _), sinks(tmp_path, port, "127.0.0.72"):
            async with direct(tmp_path, address, port, store="sqlite") as server:
                for n in range(1500):
                    await put(server, f"u{n}@slow.test")
                assert "mx:slow.test" in server._parts.lanes.blocked()
                assert server._parts.scheduler.in_hand < 500, "the rest stays in the queue"
                started = time.monotonic()
                for n in range(20):
                    uid = await put(server, f"v{n}@live.test")
                    await until(lambda uid=uid: server._parts.store.get(uid).recipients[0].state == "delivered", 5)
                assert time.monotonic() - started < 10
                await server.pause_queue()
                mute.close()

    run_async(main)


@pytest.mark.alone
def test_a_dead_domain_beside_a_live_one(tmp_path: Path) -> None:
    """Thousands of messages for a dead domain; the live one's latency (median of 200) stays within two times."""
    count = 1000 if os.environ.get("CI") else 3000
    port = free_port()
    records: dict[str, Any] = {"live.test": {"A": ["127.0.0.81"]}, "dead.test": {"A": ["127.0.0.82"]}}

    async def latencies(server: MailServer, tag: str) -> float:
        waits: dict[str, tuple[float, asyncio.Event]] = {}
        took: list[float] = []

        def done(event: Any) -> None:
            started, flag = waits[event.recipients[0]]
            took.append(time.monotonic() - started)
            flag.set()

        server.register(done, "send_success")
        for n in range(200):
            address = f"{tag}{n}@live.test"
            waits[address] = (time.monotonic(), asyncio.Event())
            await put(server, address)
            await waits[address][1].wait()
        server.unregister(done)
        return statistics.median(took)

    async def main() -> None:
        with nameserver(records) as (address, _), sinks(tmp_path, port, "127.0.0.81"):
            async with direct(tmp_path, address, port, store="sqlite") as server:
                alone = await latencies(server, "a")
                for n in range(count):
                    await put(server, f"u{n}@dead.test")
                beside = await latencies(server, "b")
                queued = await server.mail_queue(limit=count + 10)
                assert sum(v.recipients[0].address.endswith("@dead.test") for v in queued) == count
                assert beside < 2 * alone + 0.002, f"{alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside"

    run_async(main, timeout_s=200)


def test_ourselves_by_address(tmp_path: Path) -> None:
    """An MX that is this very listener: never a connection to ourselves."""
    port = free_port()
    records: dict[str, Any] = {"d.test": mx((1, "other-name.test")), "other-name.test": {"A": ["127.0.0.1"]}}

    async def main() -> None:
        with nameserver(records) as (address, _):
            async with direct(tmp_path, address, port, port=port) as server:
                uid = await put(server, "u@d.test")
                assert await settled(server, uid) == ["bounced"] and reply_of(server, uid).startswith("554 5.4.6")
                assert server._parts.context.counters.sessions == 0

    run_async(main)


def test_resolver_dead_defers(tmp_path: Path) -> None:
    async def main() -> None:
        records = {"d.test": SILENT}
        with nameserver(records) as (address, _):
            from pillarbox.dns import DnsResolver

            resolver = DnsResolver([address], time_out_s=0.3)
            async with direct(tmp_path, address, 25, resolver=resolver, nameservers=[]) as server:
                uid = await put(server, "u@d.test")
                await until(lambda: server._parts.store.get(uid).attempts)
                assert reply_of(server, uid).startswith("451 4.4.3")

    run_async(main)


def test_a_listener_on_every_address_is_not_everybody(tmp_path: Path) -> None:
    """0.0.0.0:25 and MX at port 25, as on every mail server: other hosts' MX are not taken for ourselves."""

    async def main() -> None:
        port = free_port()
        records = {"d.test": mx((1, "mx.d.test")), "mx.d.test": {"A": ["192.0.2.77"]}, "me.test": {"A": ["127.0.0.1"]}}
        with nameserver(records) as (address, _):
            nets = ["127.0.0.0/8", "192.0.2.0/24"]
            async with direct(tmp_path, address, port, address="0.0.0.0", port=port, mx_networks=nets) as server:
                lookup = server._parts.lanes._ways.mx
                assert lookup is not None
                found = await lookup.targets("d.test")
                assert isinstance(found, list) and [target.address for target in found] == ["192.0.2.77"]
                ours = await lookup.targets("me.test")
                assert not isinstance(ours, list) and ours.enhanced == "5.4.6", "an address of this machine"

    run_async(main)
