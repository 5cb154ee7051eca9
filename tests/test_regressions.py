"""Faults that reviews have found, each so that it cannot come back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, MailServer, Plugin, Reply
from pillarbox.errors import StoreError, StoreFullError
from pillarbox.mail.content import Content
from pillarbox.mail.headers import decode_value
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import Action, Query, Settlement
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import Client, Wire, cuts, lane_of, queued, run_async, serving, stored_content, until, wired
from tests.queue.test_delivery import free_port, in_state, put, relaying, view
from tests.queue.test_store_contract import NOW, accept, claim, done, message

WHOLE: Callable[[], Iterator[int]] = cuts(0)[0]
START = b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"


def test_a_message_between_the_spools_marks_does_not_stall(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            body = b"z" * 70 + b"\r\n"
            for size in (600_000, 900_000, 1_100_000, 1_300_000):
                reply = await client.transaction(b"Subject: x\r\n\r\n" + body * (size // len(body)))
                assert reply.startswith("250"), size
            client.close()

    run_async(main, timeout_s=30)


def test_reset_lifts_the_stop_of_an_aborted_spool_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            for _ in range(3):
                await client.ask(b"MAIL FROM:<a@b.test>")
                await client.ask(b"RCPT TO:<c@d.test>")
                client.send(b"BDAT 900000\r\n" + b"x" * 900_000 + b"RSET\r\nNOOP\r\n")
                assert [(await client.reply())[:3] for _ in range(3)] == ["250"] * 3
            client.close()

    run_async(main, timeout_s=30)


@pytest.mark.parametrize(
    "subject",
    [b"=?utf-8?b?a?=", b"=?\xc3\xa9?q?x?=", b"=?punycode?q?" + b"b" * 100 + b"-" + b"9a" * 50_000 + b"?=", b"\0\xff"],
)
def test_subjects_that_cannot_be_decoded(subject: bytes) -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            await wire.ask(START)
            await wire.ask(b"DATA\r\n")
            assert (await wire.ask(b"Subject: " + subject + b"\r\n\r\nx\r\n.\r\n"))[0].startswith("250")
            assert len(queued(server)[0].subject) <= 200

    run_async(main, timeout_s=10)
    assert decode_value(b"=?utf-8?b?a?=") == "a", "a word that carries nothing is shown as it stands"


def test_zones_in_address_literals() -> None:
    async def main() -> None:
        async with wired(WHOLE) as (_, wire):
            replies = await wire.ask(b"EHLO [IPv6:fe80::1%\x07]\r\nEHLO [IPv6:fe80::1%eth0]\r\nEHLO [IPv6:fe80::1]\r\n")
            assert [r[:3] for r in replies] == ["501", "250", "250"]
            assert (await wire.ask(b"MAIL FROM:<a@[IPv6:fe80::1%eth0]>\r\n"))[0].startswith("501")
            assert (await wire.ask(b"MAIL FROM:<a@[IPv6:fe80::1%x>y@z.test]>\r\n"))[0].startswith("501")

    run_async(main)


def auth_options(certificate: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"tls_cert": certificate["cert"], "tls_key": certificate["key"], "store": "memory", **more}


async def authenticated(server: MailServer, certificate: dict[str, str]) -> tuple[Client, str]:
    import ssl

    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    await client.ask(b"STARTTLS")
    await client.writer.start_tls(ssl.create_default_context(cafile=certificate["ca"]), server_hostname="mx.test")
    await client.ask(b"EHLO x.test")
    return client, await client.ask(b"AUTH PLAIN " + base64.b64encode(b"\0bob\0x"))


def test_an_authenticator_that_never_answers(tmp_path: Path, certificate: dict[str, str]) -> None:
    async def never(username: str, password: str) -> bool:
        await asyncio.Event().wait()
        return True

    async def main() -> None:
        async with serving(tmp_path, **auth_options(certificate, authenticator=never, client_time_out=0.2)) as server:
            client, reply = await authenticated(server, certificate)
            assert reply.startswith("454")
            client.close()

    run_async(main, timeout_s=20)


@pytest.mark.parametrize("name", ["on_auth", "on_response"])
def test_auth_fails_closed(tmp_path: Path, certificate: dict[str, str], name: str) -> None:
    class Judge(Plugin):
        pass

    def on_auth(server: Any, event: Any) -> None:
        raise RuntimeError("no answer from the audit log")

    def on_response(server: Any, event: Any) -> Reply | None:
        return Reply(535, "5.7.8", "no") if event.reply.code == 235 else None

    async def main() -> None:
        judge = Judge()
        setattr(judge, name, {"on_auth": on_auth, "on_response": on_response}[name])
        options = auth_options(
            certificate, authenticator=lambda u, p: True, plugins={"judge": judge}, trust=["192.0.2.0/24"]
        )
        async with serving(tmp_path, **options) as server:
            client, reply = await authenticated(server, certificate)
            assert reply[:3] in ("454", "535")
            await client.ask(b"MAIL FROM:<bob@mx.test>")
            assert (await client.ask(b"RCPT TO:<x@foreign.test>")).startswith("550 5.7.1")
            client.close()

    run_async(main, timeout_s=20)


def test_content_before_354_while_a_plugin_thinks() -> None:
    class Slow(Plugin):
        async def on_cmd_data(self, server: Any, event: Any) -> None:
            await asyncio.sleep(0.02)

    async def main() -> None:
        async with wired(WHOLE, plugins={"slow": Slow()}) as (server, wire):
            await wire.ask(START)
            await wire.send(b"DATA\r\n")
            await wire.send(b"MAIL FROM:<evil@x.test>\r\n.\r\n")
            await wire.settle()
            assert [r[:9] for r in wire.replies()] == ["503 5.5.0"] and queued(server) == []

    run_async(main)


def test_eat_client_on_bdat() -> None:
    class Quiet(Plugin):
        def on_cmd_bdat(self, server: Any, event: Any) -> Eat:
            return Eat.CLIENT

    async def main() -> None:
        async with wired(WHOLE, plugins={"quiet": Quiet()}) as (server, wire):
            replies = await wire.ask(START + b"BDAT 5 LAST\r\nabc\r\n")
            assert replies[-1].startswith("250") and stored_content(server).endswith(b"abc\r\n")

    run_async(main)


def test_deadlines_of_sessions(tmp_path: Path) -> None:
    class Eats(Plugin):
        def on_cmd_vrfy(self, server: Any, event: Any) -> Eat:
            return Eat.ALL

    async def main() -> None:
        clock = ManualClock()
        server = MailServer(
            clock=clock, port=0, data_dir=str(tmp_path), store="memory", hostname="mx.test", plugins={"eats": Eats()}
        )
        await server.start()
        wires = [Wire(server, WHOLE()) for _ in range(4)]
        owed, dripping, content, idle = wires
        for wire in wires:
            await wire.settle()
            wire.replies()
        await owed.send(b"VRFY x\r\n")
        await content.ask(START)
        await content.ask(b"DATA\r\n")
        for second in range(320):
            clock.advance(1)
            if second < 310:
                # Octets come, but never a whole line; and content far below the rate.
                dripping.connection.data_received(b"N")
                if second % 50 == 0:
                    owed.connection.data_received(b"N")
            if not content.transport.closed:
                content.connection.data_received(b"x")
            await asyncio.sleep(0)
        assert [r[:9] for r in owed.replies()] == ["451 4.3.0"] and not owed.transport.closed, "the session lives"
        assert [r[:9] for r in dripping.replies()] == ["421 4.4.2"]
        assert [r[:9] for r in idle.replies()] == ["421 4.4.2"]
        assert [r[:9] for r in content.replies()] == ["421 4.4.2"]
        for wire in wires:
            wire.lose()
        await server.shutdown(grace_s=0)

    run_async(main)


def test_the_verdict_on_a_tls_hello_does_not_depend_on_segments() -> None:
    async def main() -> None:
        for sizes in cuts(7):
            async with wired(sizes) as (_, wire):
                replies = await wire.ask(b"A" * 3000 + b"\x16zzz\r\nNOOP\r\n")
                assert [r[:3] for r in replies] == ["500", "250"]

    run_async(main)


def test_a_cancelled_future_and_a_reply_that_is_none() -> None:
    class Odd(Plugin):
        async def on_cmd_noop(self, server: Any, event: Any) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        def on_response(self, server: Any, event: Any) -> None:
            event.reply = "nonsense"

    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            server.plugin_add("odd", Odd())
            assert [r[:3] for r in await wire.ask(b"NOOP\r\nRSET\r\n")] == ["451", "250"]

    run_async(main)


# ------------------------------------------------------------------------------ queue


def test_a_memory_store_leaves_the_real_spool_alone(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "precious").write_text("mail")

    async def main() -> None:
        async with serving(tmp_path, store="memory"):
            pass

    run_async(main)
    assert (tmp_path / "spool" / "precious").read_text() == "mail"
    assert [p.name for p in tmp_path.iterdir()] == ["spool"]


def test_a_failed_settlement_is_tried_once_more_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = MemoryStore()
        real, failures = store.commit, [1]

        def flaky(accepts: Any, settles: Any) -> None:
            if settles and failures[0]:
                failures[0] -= 1
                raise StoreFullError("full")
            real(accepts, settles)

        monkeypatch.setattr(store, "commit", flaky)
        accept(store, message("A"))
        commit = GroupCommit(store)
        commit.start()
        commit.settle(Settlement(1, [done(0, "delivered")], NOW))
        await until(lambda: not failures[0])
        await commit.stop()
        assert store.counts() == {"delivered": 1}

    run_async(main)


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_renewal_does_not_revive(tmp_path: Path, kind: str) -> None:
    store: Any = SqliteStore(str(tmp_path)) if kind == "sqlite" else MemoryStore()
    store.open()
    accept(store, message("A"))
    (claimed,) = claim(store)
    with store.transaction():
        store.change(Action.CANCEL, Query(uids=["A"]), NOW)
        store.renew([claimed.key], NOW + 500)
    with store.transaction():
        store.recover(NOW + 1)
    assert claim(store, NOW + 1000) == [] and store.get("A").state == "cancelled"
    store.close()


def test_an_empty_memory_part(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "f").write_bytes(b"abc")
    store = SqliteStore(str(tmp_path))
    store.open()
    accept(store, message("A", content=Content(b"", path=str(tmp_path / "spool" / "f"), file_bytes=3)))
    content = store.content("A")
    assert content is not None and content.read() == b"abc"
    store.close()


@pytest.mark.parametrize(("action", "state", "reports"), [(Action.CANCEL, "cancelled", 0), (Action.HOLD, "bounced", 1)])
def test_steered_in_flight_then_refused(tmp_path: Path, action: Action, state: str, reports: int) -> None:
    async def main() -> None:
        async with (
            ScriptedServer(MAIL="silent", RCPT="silent", DATA="silent") as peer,
            relaying(tmp_path, peer.port) as (server, _),
        ):
            uid = put(server)
            await until(lambda: peer.lines[-1:] == ["DATA"])
            assert await server._parts.scheduler.change(action, Query(uids=[uid])) == [uid]
            for writer in peer._writers:
                writer.write(b"250 ok\r\n550 5.1.1 nobody\r\n503 no\r\n")
            await in_state(server, uid, state)
            await until(lambda: server._parts.scheduler.in_hand <= reports)
            assert sum(v.reverse_path is None for v in server._parts.store.search(Query(is_all=True))) == reports

    run_async(main)


def test_one_incident_is_one_step_of_back_off(tmp_path: Path) -> None:
    async def main() -> None:
        async with relaying(tmp_path, free_port()) as (server, _):
            for n in range(20):
                put(server, f"r{n}@d.test")
            await until(lambda: lane_of(server).is_down and server._parts.scheduler.in_hand == 0)
            assert lane_of(server)._back_off._downs == 1

    run_async(main)


def test_many_recipients_at_a_slow_next_hop(tmp_path: Path) -> None:
    """Each reply is progress: the whole group may take longer than one step's limit."""

    async def main() -> None:
        async with ScriptedServer(MAIL="silent", RCPT="silent", DATA="silent") as peer:
            async with relaying(tmp_path, peer.port, time_out=60.0) as (server, clock):
                uid = put(server, *(f"r{n}@d.test" for n in range(5)))
                await until(lambda: peer.lines[-1:] == ["DATA"])
                (writer,) = peer._writers
                for _ in range(6):
                    clock.advance(50)
                    writer.write(b"250 ok\r\n")
                    before = next(iter(lane_of(server)._connections)).smtp.replies
                    await until(lambda before=before: next(iter(lane_of(server)._connections)).smtp.replies > before)
                assert view(server, uid).recipients[0].attempts == 0, "still at it, five minutes later"

    run_async(main)


def test_unreadable_spool_files_defer_and_bounce(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            ScriptedServer(EHLO="250 plain.test", RCPT="250 ok") as peer,
            relaying(tmp_path, peer.port) as (server, clock),
        ):
            gone = Content(b"Subject: x\r\n\r\n", path=str(tmp_path / "gone"), file_bytes=10)
            from pillarbox.mail.envelope import Envelope
            from pillarbox.queue.model import Message

            envelope = Envelope("a@b.test", [], "8BITMIME")
            envelope.add("c@d.test")
            now = clock.time()
            lost = Message("LOST", envelope, gone, now, now + 9e5, leased_until=now + 3600.0)
            server._parts.commit.accept(lost, lambda error: server._parts.scheduler.accepted(lost))
            await in_state(server, "LOST", "deferred")
            peer.script("RCPT", lambda line: "550 no" if "c@d" in line else "250 ok")
            lost2 = Message("LOST2", Envelope("a@b.test", list(envelope.recipients)), gone, now, now + 9e5)
            server._parts.commit.accept(lost2, lambda error: server._parts.scheduler.accepted(lost2))
            await in_state(server, "LOST2", "bounced")
            await peer.wait_for(1)

    run_async(main)


def test_the_lock_is_given_up_when_opening_fails(tmp_path: Path) -> None:
    """A queue that cannot be opened must not stay locked by who failed to open it."""
    store = SqliteStore(str(tmp_path))
    store.open()
    store.close()
    path = tmp_path / "queue-0.db"
    good = path.read_bytes()
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError):
        SqliteStore(str(tmp_path)).open()
    path.write_bytes(good)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"queue-0.db{suffix}").unlink(missing_ok=True)
    again = SqliteStore(str(tmp_path))
    again.open()
    again.close()


def test_shutdown_with_a_store_that_fails(tmp_path: Path) -> None:
    """An outcome that cannot be written leaves its lease: shutting down ends all the same, and the next start takes it up."""

    async def main() -> None:
        async with ScriptedServer(RCPT="550 5.1.1 no") as peer:
            server = MailServer(
                port=0, data_dir=str(tmp_path), hostname="mx.test", direct=False, relay=f"127.0.0.1:{peer.port}"
            )
            await server.start()
            real = server._parts.store.accept

            def broken(batch: Any) -> None:
                if any(one.envelope.reverse_path is None for one in batch):
                    raise StoreFullError("the disk is full")
                real(batch)

            server._parts.store.accept = broken  # type: ignore[method-assign]
            await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x")
            await until(lambda: server._parts.commit.last_error is not None)
            async with asyncio.timeout(20):
                await server.shutdown(grace_s=0.5)
        async with serving(tmp_path, paused=True) as server:
            (left,) = await server.mail_queue()
            assert left.recipients[0].state in ("queued", "deferred") and left.recipients[0].attempts == 1

    run_async(main, timeout_s=40)


def test_a_hang_up_right_behind_the_reply_to_ehlo(tmp_path: Path) -> None:
    """READY and CLOSED in one segment: the connection is of no use, and is not taken for an open one."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 x\r\n")
            await reader.readline()
            writer.write(b"250 x\r\n")
            writer.close()

        peer = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with relaying(tmp_path, peer.sockets[0].getsockname()[1]) as (server, _):
            uid = put(server)
            await until(lambda: view(server, uid) and view(server, uid).attempts)
            assert view(server, uid).attempts[0].outcome == "deferred"
            assert not lane_of(server)._connections and server._parts.lanes.connections == 0
        peer.close()

    run_async(main)


def test_a_wake_up_during_the_sweep_for_expired_mail(tmp_path: Path) -> None:
    """What comes while the store is swept for expired messages is claimed afterwards, not at the next timer."""

    async def main() -> None:
        async with ScriptedServer() as peer:
            async with relaying(tmp_path, peer.port) as (server, clock):
                scheduler = server._parts.scheduler
                lane = lane_of(server)
                lane._back_off.retry_at, lane._back_off.is_on = clock.monotonic() + 3600, True
                scheduler._next_sweep = 0.0
                real = server._parts.store.claim_expired
                woken = []

                def sweep(*args: Any) -> Any:
                    # In the middle of the sweep the next hop is back, and says so.
                    lane._back_off.pass_over()
                    scheduler.next_hop_is_back(lane.key, ())
                    woken.append(True)
                    return real(*args)

                server._parts.store.claim_expired = sweep  # type: ignore[method-assign]
                uid = put(server)
                await until(lambda: woken)
                await peer.wait_for(1, 5)
                await in_state(server, uid, "delivered")

    run_async(main)


def test_a_session_from_before_a_reload_does_not_answer_for_those_behind(tmp_path: Path) -> None:
    """EHLO is remembered; what an old session is told must not become what new ones are told."""

    async def main() -> None:
        given: dict[str, Any] = {"store": "memory", "max_size_bytes": 100_000}
        async with serving(tmp_path, **given) as server:
            old = await Client.connect(server)
            server.reload(
                **{**server.options.model_dump(exclude={"plugins", "handlers", "resolver"}), "max_size_bytes": 200_000}
            )
            assert "SIZE 100000" in await old.ask(b"EHLO x.test")
            new = await Client.connect(server)
            assert "SIZE 200000" in await new.ask(b"EHLO x.test")
            old.close()
            new.close()

    run_async(main)


def test_a_plugin_that_changes_parameters_changes_them_for_its_own_session() -> None:
    seen = []

    class Marks:
        def on_cmd_mail(self, server: MailServer, event: Any) -> None:
            seen.append(dict(event.parameters))
            event.parameters["RET"] = "HDRS"

    async def main() -> None:
        async with wired(WHOLE, plugins={"marks": Marks()}) as (server, wire):
            for _ in range(2):
                await wire.ask(b"EHLO a.test\r\n")
                await wire.ask(b"MAIL FROM:<a@b.test>\r\n")
                assert wire.connection.session.facts.envelope.ret == "HDRS"
                await wire.ask(b"RSET\r\n")

    run_async(main)
    assert seen == [{}, {}]


def test_who_was_sent_away_within_content_has_sent_nothing() -> None:
    async def main() -> None:
        async with wired(WHOLE) as (server, wire):
            for line in (b"HELO a.test\r\n", b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n"):
                await wire.ask(line)
            session = wire.connection.session
            wire.connection.data_received(b"begin\r\n")
            session.leave(Reply(421, "4.3.2", "Shutting down"), "shutdown", at_once=True)
            # What was on its way already.
            wire.connection.data_received(b"end\r\n.\r\n")
            await wire.settle()
            assert session.protocol.is_closed and queued(server) == []
            assert [reply[:3] for reply in wire.replies()][-1] == "421"

    run_async(main)
