"""Scheduler, lanes and client against a server that says what a script tells it: outcomes, retries, back-off, DSNs."""

from __future__ import annotations

import asyncio
import email
import email.policy
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, MailServer
from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.queue.model import Action, Message, Query
from pillarbox.queue.retry import RetryPolicy, pause_s
from pillarbox.queue.scheduler import Scheduler
from pillarbox.queue.whole import ask_all
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import free_port, lane_of, run_async, serving, until

BODY = b"Subject: hello\r\nFrom: a@b.test\r\n\r\nbody\r\n"


@asynccontextmanager
async def relaying(folder: Path, port: int, *, clock: ManualClock | None = None, **options: Any) -> AsyncIterator[Any]:
    """A memory-store server with a smart host at that port and a manual clock."""
    clock = clock or ManualClock()
    given: dict[str, Any] = {"port": 0, "data_dir": str(folder), "hostname": "mx.test", "store": "memory"}
    given |= {"relay": f"127.0.0.1:{port}", **options}
    server = MailServer(clock=clock, rng=random.Random(1), **{"direct": False, **given})
    await server.start()
    try:
        yield server, clock
    finally:
        await server.shutdown(grace_s=0.5)


def put(
    server: MailServer, *recipients: Any, sender: str | None = "a@b.test", octets: bytes = BODY, **envelope: Any
) -> str:
    """Accepts a message as the intake does; its uid."""
    made = Envelope(sender, [], **envelope)
    for one in recipients or ("c@d.test",):
        if isinstance(one, str):
            made.add(one)
        else:
            made.recipients.append(one)
    now = server._parts.context.clock.time()
    uid = server._parts.context.new_uid()
    message = Message(uid, made, Content(octets), now, now + server.options.expire_s, "hello", {})
    server._parts.scheduler.prepare(message)
    server._parts.commit.accept(message, lambda error: server._parts.scheduler.accepted(message))
    return uid


def view(server: MailServer, uid: str) -> Any:
    return server._parts.store.get(uid)


def states(server: MailServer, uid: str) -> list[str]:
    found = view(server, uid)
    return [] if found is None else [r.state for r in found.recipients]


async def in_state(server: MailServer, uid: str, *wanted: str) -> None:
    try:
        await until(lambda: states(server, uid) == list(wanted), 10)
    except TimeoutError:
        raise AssertionError(f"{uid} is {states(server, uid)}, not {wanted}") from None


async def moved(
    server: MailServer, clock: ManualClock, uid: str, *wanted: str, step: float = 30.0, steps: int = 400
) -> None:
    """Advances the clock step by step until the message is in that state."""
    for _ in range(steps):
        for _ in range(40):
            if states(server, uid) == list(wanted):
                return
            await asyncio.sleep(0.0005)
        clock.advance(step)
    raise AssertionError(f"{uid} is {states(server, uid)}, not {wanted}")


def test_retry_policy() -> None:
    policy = RetryPolicy(jitter=0.0)
    rng = random.Random(1)
    assert [pause_s(policy, n, rng) for n in (1, 2, 3, 10, 1000)] == [300.0, 600.0, 1200.0, 14400.0, 14400.0]
    jittered = [pause_s(RetryPolicy(), 1, rng) for _ in range(1000)]
    assert 240 <= min(jittered) < 260 and 340 < max(jittered) <= 360


def test_delivers_and_reuses_connections(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port, maxrelay=2) as (server, clock):
            uids = [put(server, f"r{n}@d.test") for n in range(30)]
            await peer.wait_for(30)
            for uid in uids:
                await in_state(server, uid, "delivered")
            assert peer.connections <= 2
            assert all(content == BODY for _, _, content in peer.messages)
            assert sorted(r for _, rs, _ in peer.messages for r in rs) == sorted(
                f"RCPT TO:<r{n}@d.test>" for n in range(30)
            )
            assert any(line.startswith(f"MAIL FROM:<a@b.test> SIZE={len(BODY)}") for line in peer.lines)
            attempt = view(server, uids[0]).attempts[0]
            assert attempt.outcome == "delivered" and attempt.reply == "250 2.0.0 OK taken"
            # Idle connections are closed after a while.
            clock.advance(10)
            await until(lambda: not lane_of(server)._connections)

    run_async(main)


def test_without_pipelining(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(EHLO="250 plain.test") as peer, relaying(tmp_path, peer.port) as (server, _):
            uid = put(server, "x@d.test", "y@d.test")
            await in_state(server, uid, "delivered", "delivered")
            assert peer.lines[:5] == [
                "EHLO mx.test",
                "MAIL FROM:<a@b.test>",
                "RCPT TO:<x@d.test>",
                "RCPT TO:<y@d.test>",
                "DATA",
            ]
            peer.script("RCPT", "550 5.1.1 no")
            again = put(server, "z@d.test")
            await in_state(server, again, "bounced")
            peer.script("MAIL", "451 4.7.1 later")
            third = put(server, "z@d.test")
            await in_state(server, third, "deferred")

    run_async(main)


def test_helo_only_server(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(EHLO="502 5.5.1 what?") as peer, relaying(tmp_path, peer.port) as (server, _):
            await in_state(server, put(server), "delivered")
            assert peer.lines[:2] == ["EHLO mx.test", "HELO mx.test"]

    run_async(main)


@pytest.mark.parametrize(
    ("verb", "reply", "state", "stage"),
    [
        ("MAIL", "451 4.7.1 greylisted", "deferred", "mail"),
        ("MAIL", "550 5.7.1 not you", "bounced", "mail"),
        ("RCPT", "450 4.2.1 busy", "deferred", "rcpt"),
        ("RCPT", "550 5.1.1 unknown", "bounced", "rcpt"),
        ("RCPT", "552 5.2.2 too many", "deferred", "rcpt"),
        ("DATA", "451 4.3.0 not now", "deferred", "data"),
        ("DATA", "554 5.7.1 no", "bounced", "data"),
        ("DATA", "250 what?", "deferred", "data"),
        (".", "452 4.3.1 full", "deferred", "end of content"),
        (".", "554 5.7.1 spam", "bounced", "end of content"),
    ],
)
def test_replies_are_classified(tmp_path: Path, verb: str, reply: str, state: str, stage: str) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port) as (server, _):
            peer.script(verb, reply)
            uid = put(server)
            await in_state(server, uid, state)
            found = view(server, uid)
            assert found.recipients[0].last_stage == stage
            assert reply[:3] in found.recipients[0].last_reply and found.attempts[0].remote == f"127.0.0.1:{peer.port}"
            peer.script(verb, {"DATA": "354 go", ".": "250 2.0.0 OK"}.get(verb, "250 OK"))
            # The session goes on, or a new one does, for the next message.
            await in_state(server, put(server, "next@d.test"), "delivered")

    run_async(main)


def test_per_recipient(tmp_path: Path) -> None:
    def rcpt(line: str) -> str:
        return "550 5.1.1 no" if "bad" in line else "450 4.2.1 later" if "busy" in line else "250 OK"

    async def main() -> None:
        async with ScriptedServer(RCPT=rcpt) as peer, relaying(tmp_path, peer.port) as (server, clock):
            uid = put(server, "good@d.test", "bad@d.test", "busy@d.test")
            await in_state(server, uid, "delivered", "bounced", "deferred")
            peer.script("RCPT", "250 OK")
            await moved(server, clock, uid, "delivered", "bounced", "delivered")
            to = [rs for _, rs, content in peer.messages if b"Auto-Submitted" not in content]
            assert to == [["RCPT TO:<good@d.test>"], ["RCPT TO:<busy@d.test>"]]

    run_async(main)


def test_all_recipients_refused_but_354(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.1 later") as peer, relaying(tmp_path, peer.port) as (server, _):
            uid = put(server)
            await in_state(server, uid, "deferred")
            assert peer.messages == []
            peer.script("RCPT", "250 OK")
            await in_state(server, put(server, "two@d.test"), "delivered")
            assert len(peer.messages) == 1

    run_async(main)


@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("reply", ["close", "421 4.3.2 going down"])
def test_connection_faults_defer_and_recover(tmp_path: Path, verb: str, reply: str) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port) as (server, clock):
            peer.script(verb, reply)
            uid = put(server)
            await in_state(server, uid, "deferred")
            found = view(server, uid)
            is_ambiguous = verb == "." and reply == "close"
            assert found.attempts[0].outcome == ("ambiguous" if is_ambiguous else "deferred")
            peer.script(verb, {"CONNECT": "220 hello", "EHLO": "250 hello", "DATA": "354 go"}.get(verb, "250 OK"))
            await moved(server, clock, uid, "delivered")
            assert [len(rs) for _, rs, _ in peer.messages] == [1]

    run_async(main)


def test_next_hop_is_down_then_back(tmp_path: Path) -> None:
    """Back-off: one message probes, the rest waits without attempts; the first success wakes all."""

    async def main() -> None:
        port = free_port()
        peer = ScriptedServer()
        async with relaying(tmp_path, port) as (server, clock):
            uids = [put(server, f"r{n}@d.test") for n in range(50)]
            await until(lambda: view(server, uids[0]) and lane_of(server).is_down)
            await until(lambda: server._parts.scheduler.in_hand == 0)
            for _ in range(20):
                clock.advance(60)
                await asyncio.sleep(0.005)
            attempts = [view(server, uid).recipients[0].attempts for uid in uids]
            assert sum(attempts) <= 21, "only probes count"
            assert "refused" in (server._parts.lanes.why_waiting() or "")
            late = put(server, "late@d.test")
            await until(lambda: view(server, late) is not None)
            assert states(server, late) in (["queued"], ["deferred"])
            await peer.start(port)
            for _ in range(40):
                clock.advance(30)
                await asyncio.sleep(0.005)
                if len(peer.messages) == 51:
                    break
            await peer.wait_for(51)
            for uid in [*uids, late]:
                await in_state(server, uid, "delivered")
            assert len(peer.messages) == 51, "none twice"
            assert server._parts.lanes.why_waiting() is None
            await peer.stop()

    run_async(main)


def test_a_lone_message_goes_out_when_its_next_hop_is_back(tmp_path: Path) -> None:
    """Its own next attempt is minutes away: a connection alone finds out."""

    async def main() -> None:
        port = free_port()
        peer = ScriptedServer()
        async with relaying(tmp_path, port) as (server, clock):
            uid = put(server)
            await in_state(server, uid, "deferred")
            start = clock.time()
            await peer.start(port)
            await moved(server, clock, uid, "delivered", step=1.0)
            assert clock.time() - start < 60 and view(server, uid).recipients[0].attempts == 2
            await peer.stop()

    run_async(main)


def test_retry_now_forgets_back_off(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        peer = ScriptedServer()
        async with relaying(tmp_path, port) as (server, _):
            uid = put(server)
            await in_state(server, uid, "deferred")
            await peer.start(port)
            assert await server._parts.scheduler.change(Action.RETRY, Query(uids=[uid])) == [uid]
            await in_state(server, uid, "delivered")
            await peer.stop()

    run_async(main)


def test_failover(tmp_path: Path) -> None:
    async def main() -> None:
        dead = free_port()
        async with ScriptedServer(CONNECT="554 5.3.2 not here") as refusing, ScriptedServer() as good:
            relay = [f"127.0.0.1:{dead}", f"127.0.0.1:{refusing.port}", f"127.0.0.1:{good.port}"]
            async with relaying(tmp_path, 0, relay=relay) as (server, _):
                uid = put(server)
                await in_state(server, uid, "delivered")
                assert view(server, uid).recipients[0].attempts == 1
                assert view(server, uid).attempts[0].remote == f"127.0.0.1:{good.port}"

    run_async(main)


def test_schedule_and_expiry_with_dsn(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT=lambda line: "450 4.2.2 full" if "c@d" in line else "250 OK") as peer:
            async with relaying(tmp_path, peer.port, delay_notice_s=4 * 3600.0) as (server, clock):
                start = clock.time()
                uid = put(server)
                await in_state(server, uid, "deferred")
                due = view(server, uid).recipients[0].due_at
                assert 240 <= due - start <= 360
                # A step of the wall clock expires nothing by itself and is survived.
                await moved(server, clock, uid, "expired", step=900, steps=500)
                assert 4 * 86400 - 900 <= clock.time() - start <= 4 * 86400 + 5 * 3600
                attempts = view(server, uid).attempts
                pauses = [b.at - a.at for a, b in zip(attempts, attempts[1:], strict=False)]
                assert pauses[0] < 600 + 900 and max(pauses) < 4 * 3600 * 1.3 + 900 and len(attempts) > 20
                await peer.wait_for(2)
                delayed, failed = (
                    email.message_from_bytes(c, policy=email.policy.default) for _, _, c in peer.messages
                )
                assert "Delayed" in delayed["Subject"] and "Undelivered" in failed["Subject"]
                status = failed.get_payload()[1].as_string()
                assert "Action: failed" in status and "Status: 5.4.7" in status and "450 4.2.2 full" in status
                assert "Action: delayed" in delayed.get_payload()[1].as_string()
                assert "Will-Retry-Until:" in delayed.get_payload()[1].as_string()
                assert all(
                    sender == "MAIL FROM:<>" or sender.startswith("MAIL FROM:<> ") for sender, _, _ in peer.messages
                )

    run_async(main)


def test_expires_while_the_next_hop_is_down_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        async with relaying(tmp_path, free_port(), expire_s=3600.0) as (server, clock):
            uids = [put(server, sender=None) for _ in range(20)]
            await until(lambda: server._parts.scheduler.in_hand == 0 and view(server, uids[-1]) is not None)
            for _ in range(100):
                clock.advance(60)
                await asyncio.sleep(0.002)
            assert [states(server, uid) for uid in uids] == [["expired"]] * 20
            assert len(server._parts.store.search(Query(is_all=True))) == 20, "no DSN for a null reverse-path"

    run_async(main)


def dsns(peer: ScriptedServer) -> list[Any]:
    return [
        email.message_from_bytes(c, policy=email.policy.default)
        for s, _, c in peer.messages
        if s.startswith("MAIL FROM:<>")
    ]


def test_bounce(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(
            RCPT=lambda line: "550-5.1.1 No such\r\n550 5.1.1 user" if "c@d" in line else "250 OK"
        ) as peer:
            async with relaying(tmp_path, peer.port) as (server, _):
                from pillarbox.mail.envelope import EnvelopeRecipient

                to = EnvelopeRecipient("c@d.test", ("FAILURE",), "rfc822;original@e.test")
                uid = put(server, to, envid="QQ 314", ret="FULL")
                await in_state(server, uid, "bounced")
                await peer.wait_for(1)
                (report,) = dsns(peer)
                assert (
                    report.get_content_type() == "multipart/report"
                    and report.get_param("report-type") == "delivery-status"
                )
                text, status, original = report.get_payload()
                assert "<c@d.test>" in text.get_content() and "No such" in text.get_content()
                fields = status.as_string()
                for field in (
                    "Original-Envelope-Id: QQ 314",
                    "Reporting-MTA: dns; mx.test",
                    "Original-Recipient: rfc822; original@e.test",
                    "Final-Recipient: rfc822; c@d.test",
                    "Action: failed",
                    "Status: 5.1.1",
                    "Diagnostic-Code: smtp; 550 5.1.1 No such user",
                ):
                    assert field in fields, (field, fields)
                assert original.get_content_type() == "message/rfc822" and b"body" in original.as_bytes()
                assert report["Auto-Submitted"] == "auto-replied" and "a@b.test" in report["To"]
                sender, recipients, _ = peer.messages[0]
                assert recipients == ["RCPT TO:<a@b.test> NOTIFY=NEVER"]

    run_async(main)


@pytest.mark.parametrize(
    ("sender", "notify", "ret", "expected"),
    [
        (None, (), None, None),
        ("a@b.test", ("NEVER",), None, None),
        ("a@b.test", ("SUCCESS",), None, None),
        ("a@b.test", ("DELAY",), None, None),
        ("a@b.test", (), None, "message/rfc822"),
        ("a@b.test", ("FAILURE", "SUCCESS"), "HDRS", "text/rfc822-headers"),
    ],
)
def test_who_gets_a_bounce(
    tmp_path: Path, sender: str | None, notify: tuple[str, ...], ret: str | None, expected: str | None
) -> None:
    async def main() -> None:
        from pillarbox.mail.envelope import EnvelopeRecipient

        async with ScriptedServer(RCPT=lambda line: "550 no" if "c@d" in line else "250 OK") as peer:
            async with relaying(tmp_path, peer.port) as (server, _):
                uid = put(server, EnvelopeRecipient("c@d.test", notify), sender=sender, ret=ret)
                await in_state(server, uid, "bounced")
                await in_state(server, put(server, "end@d.test"), "delivered")
                await until(
                    lambda: all(
                        r.state in ("delivered", "bounced")
                        for v in server._parts.store.search(Query(is_all=True))
                        for r in v.recipients
                    )
                )
                found = dsns(peer)
                assert [r.get_payload()[2].get_content_type() for r in found] == ([expected] if expected else [])

    run_async(main)


def test_a_bounce_that_bounces(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT="550 5.1.1 nobody") as peer, relaying(tmp_path, peer.port) as (server, _):
            await in_state(server, put(server), "bounced")
            await until(lambda: len(server._parts.store.search(Query(is_all=True))) == 2)
            await until(lambda: server._parts.store.counts() == {"bounced": 2})
            assert len(server._parts.store.search(Query(is_all=True))) == 2

    run_async(main)


@pytest.mark.parametrize("has_dsn", [True, False])
def test_success_reports(tmp_path: Path, has_dsn: bool) -> None:
    async def main() -> None:
        from pillarbox.mail.envelope import EnvelopeRecipient

        hello = "250-x.test\r\n250-PIPELINING\r\n250 DSN" if has_dsn else "250 x.test"
        async with ScriptedServer(EHLO=hello) as peer, relaying(tmp_path, peer.port) as (server, _):
            to = EnvelopeRecipient("c@d.test", ("SUCCESS", "FAILURE"), "rfc822;o+r@d.test")
            uid = put(server, to, envid="a b", ret="HDRS")
            await in_state(server, uid, "delivered")
            if has_dsn:
                assert "MAIL FROM:<a@b.test> RET=HDRS ENVID=a+20b" in peer.lines
                assert "RCPT TO:<c@d.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o+2Br@d.test" in peer.lines
                assert dsns(peer) == []
            else:
                assert "MAIL FROM:<a@b.test>" in peer.lines and "RCPT TO:<c@d.test>" in peer.lines
                await until(lambda: len(dsns(peer)) == 1)
                assert "Action: relayed" in dsns(peer)[0].get_payload()[1].as_string()

    run_async(main)


def test_extensions_that_are_missing(tmp_path: Path) -> None:
    """Never silently weaker: no SMTPUTF8 and no 8BITMIME bounce what needs them, and pass what does not."""

    async def main() -> None:
        async with (
            ScriptedServer(EHLO="250-x.test\r\n250 PIPELINING") as peer,
            relaying(tmp_path, peer.port) as (server, _),
        ):
            utf8 = put(server, "ü@d.test", is_smtputf8=True, sender=None)
            await in_state(server, utf8, "bounced")
            assert "5.6.7" in view(server, utf8).recipients[0].last_reply
            eight = put(server, body="8BITMIME", octets="Subject: x\r\n\r\nü\r\n".encode(), sender=None)
            await in_state(server, eight, "bounced")
            assert "5.6.3" in view(server, eight).recipients[0].last_reply
            await in_state(server, put(server, is_smtputf8=True, body="8BITMIME"), "delivered")
        async with ScriptedServer() as peer, relaying(tmp_path / "2", peer.port) as (server, _):
            await in_state(server, put(server, "ü@d.test", is_smtputf8=True, body="8BITMIME"), "delivered")
            assert any(line.endswith(" BODY=8BITMIME SMTPUTF8") for line in peer.lines)

    run_async(main)


def test_pause_hold_cancel(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port, paused=True) as (server, _):
            uids = [put(server, f"r{n}@d.test") for n in range(4)]
            await until(lambda: view(server, uids[3]) is not None)
            assert server.paused() and peer.connections == 0
            assert await server._parts.scheduler.change(Action.HOLD, Query(uids=uids[:1])) == uids[:1]
            assert await server._parts.scheduler.change(Action.CANCEL, Query(uids=uids[1:2])) == uids[1:2]
            await server.resume_queue()
            await peer.wait_for(2)
            await in_state(server, uids[2], "delivered")
            assert states(server, uids[0]) == ["held"] and states(server, uids[1]) == ["cancelled"]
            assert await server._parts.scheduler.change(Action.RELEASE, Query()) == uids[:1]
            await in_state(server, uids[0], "delivered")
            assert len(peer.messages) == 3
            await server.pause_queue()
            late = put(server)
            await until(lambda: view(server, late) is not None)
            assert states(server, late) == ["queued"] and not view(server, late).recipients[0].is_leased

    run_async(main)


def test_cancel_while_it_waits_in_the_lane(tmp_path: Path) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        async with (
            ScriptedServer(MAIL="silent", RCPT="silent", DATA="silent") as peer,
            relaying(tmp_path, peer.port, maxrelay=1) as (server, _),
        ):
            uids = [put(server, f"r{n}@d.test") for n in range(5)]
            await until(lambda: any(line.startswith("MAIL") for line in peer.lines))
            assert set(await server._parts.scheduler.change(Action.CANCEL, Query(uids=uids[2:]))) == set(uids[2:])
            await until(lambda: all(view(server, u).finished_at for u in uids[2:]))
            assert server._parts.scheduler.in_hand == 2
            gate.set()

    run_async(main)


def test_time_outs(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            ScriptedServer(RCPT="silent", DATA="silent") as peer,
            relaying(tmp_path, peer.port, time_out=60.0) as (server, clock),
        ):
            uid = put(server)
            await until(lambda: any(line.startswith("DATA") for line in peer.lines))
            clock.advance(70)
            await in_state(server, uid, "deferred")
            assert "in time" in view(server, uid).recipients[0].last_reply
            assert not lane_of(server)._connections, "never used again"

    run_async(main)


def test_greeting_time_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(CONNECT="silent") as peer, relaying(tmp_path, peer.port, time_out=0.1) as (server, _):
            uid = put(server)
            await in_state(server, uid, "deferred")
            assert view(server, uid).recipients[0].last_stage == "greeting"

    run_async(main)


@pytest.mark.parametrize(
    "reply",
    ["this is no reply", "250-first\r\n550 second", "999 x", "250-" + "x" * 100_000, "250-x\r\n" * 2000 + "250 x"],
)
def test_malformed_replies(tmp_path: Path, reply: str) -> None:
    async def main() -> None:
        async with ScriptedServer(MAIL=reply) as peer, relaying(tmp_path, peer.port) as (server, _):
            uid = put(server)
            await in_state(server, uid, "deferred")
            assert "Protocol error" in view(server, uid).recipients[0].last_reply

    run_async(main)


def test_auth_at_the_smart_host(tmp_path: Path, certificate: dict[str, str]) -> None:
    """Against ourselves: a real server with TLS and accounts."""

    async def main() -> None:
        accounts = {"relay@mx.test": "secret"}
        upstream = MailServer(
            port=0, data_dir=str(tmp_path / "up"), hostname="mx.test", direct=False, store="memory", trust=["192.0.2.0/24"],
            tls_cert=certificate["cert"], tls_key=certificate["key"], authenticator=lambda u, p: accounts.get(u) == p, alias="up",
        )  # fmt: skip
        await upstream.start()
        port = upstream.getsockname()[1]
        secure = {"relay_ca": certificate["ca"], "relay_user": "relay@mx.test", "relay_pass": "secret"}
        async with relaying(tmp_path, port, relay=f"localhost:{port}", **secure) as (server, _):
            await in_state(server, put(server, sender="relay@mx.test"), "delivered")
            content = upstream._parts.store.content(upstream._parts.store.search(Query())[0].uid)
            assert b" with ESMTPSA " in content.read()
        async with relaying(tmp_path / "bad", port, **{**secure, "relay_pass": "wrong"}, relay=f"localhost:{port}") as (
            server,
            _,
        ):
            upstream._parts.context.guess_delay_s = 0.0
            uid = put(server)
            await in_state(server, uid, "deferred")
            assert (
                view(server, uid).recipients[0].last_stage == "auth"
                and "535" in view(server, uid).recipients[0].last_reply
            )
        # A certificate of nobody we know: no mail, no password.
        strict = {"relay_user": "relay@mx.test", "relay_pass": "secret", "relay": f"localhost:{port}"}
        async with relaying(tmp_path / "ca", port, **strict) as (server, _):
            uid = put(server)
            await in_state(server, uid, "deferred")
            assert view(server, uid).recipients[0].last_stage == "starttls"
        await upstream.shutdown(grace_s=0)

    run_async(main)


def test_smtps_and_login(tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        upstream = MailServer(
            listen=["smtps://127.0.0.1:0"], data_dir=str(tmp_path / "up"), hostname="mx.test", store="memory", alias="up",
            tls_cert=certificate["cert"], tls_key=certificate["key"],
        )  # fmt: skip
        await upstream.start()
        relay = f"smtps://localhost:{upstream.getsockname()[1]}"
        async with relaying(tmp_path, 0, relay=relay, relay_tls="verify", relay_ca=certificate["ca"]) as (server, _):
            await in_state(server, put(server), "delivered")
        await upstream.shutdown(grace_s=0)
        dialogue = iter(["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 2.7.0 ok"])
        hello = "250-x.test\r\n250 AUTH LOGIN"
        async with ScriptedServer(EHLO=hello, AUTH=lambda line: next(dialogue), dTFzZXI="") as peer:
            peer.script("DTFZZXI=", "")
            peer.script("VTE=", lambda line: next(dialogue))
            peer.script("CDE=", lambda line: next(dialogue))
            given = {"relay_user": "U1", "relay_pass": "p1", "relay_auth_in_clear": True}
            async with relaying(tmp_path / "login", peer.port, **given) as (server, _):
                await in_state(server, put(server), "delivered")
                assert peer.lines[1:4] == ["AUTH LOGIN", "VTE=", "cDE="]

    run_async(main)


def test_opportunistic_tls_falls_back_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(EHLO="250-x.test\r\n250 STARTTLS", STARTTLS="220 go") as peer:
            # The script speaks no TLS: the handshake fails, and "may" means that mail goes all the same.
            peer.script("STARTTLS", "220 go")
            async with relaying(tmp_path, peer.port, time_out=0.3) as (server, _):
                await in_state(server, put(server), "delivered")
                await in_state(server, put(server), "delivered")
                assert peer.lines.count("STARTTLS") == 1, "remembered"

    run_async(main)


def test_address_that_would_break_the_command(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port) as (server, _):
            uid = put(server, "x@d.test>\r\nRCPT TO:<victim@d.test", sender=None)
            await in_state(server, uid, "bounced")
            assert not any("victim" in line for line in peer.lines)
            await in_state(server, put(server), "delivered")

    run_async(main)


def test_wall_clock_steps(tmp_path: Path) -> None:
    """Hostile row 116: a day forward or back loses nothing and expires nothing that has days left."""

    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.1 later") as peer, relaying(tmp_path, peer.port) as (server, clock):
            uid = put(server)
            await in_state(server, uid, "deferred")
            clock.step_wall(-86400)
            peer.script("RCPT", "250 OK")
            assert await server._parts.scheduler.change(Action.RETRY, Query(uids=[uid])) == [uid]
            await in_state(server, uid, "delivered")
            peer.script("RCPT", "450 4.2.1 later")
            two = put(server)
            await in_state(server, two, "deferred")
            clock.step_wall(2 * 86400)
            peer.script("RCPT", "250 OK")
            await moved(server, clock, two, "delivered")

    run_async(main)


def test_what_is_in_hand_is_not_given_up_by_a_clock_that_steps(tmp_path: Path) -> None:
    """Its lease has run out by that clock, and its time: but somebody is at it, and tells what becomes of it."""

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        peer = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with relaying(tmp_path, peer.sockets[0].getsockname()[1]) as (server, clock):
            put(server)
            parts = server._parts
            await until(lambda: parts.scheduler.in_hand == 1)
            clock.step_wall(5 * 86400)
            now = clock.time()
            expired = await parts.commit.run(lambda store: store.claim_expired(10, now, now + 100))
            assert [len(message.recipients) for message in expired] == [1]
            parts.scheduler._expire(expired)
            assert parts.scheduler.in_hand == 1
            await parts.commit.run(lambda store: None)
            assert parts.store.counts() == {"queued": 1}
        peer.close()

    run_async(main)


def test_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.queue.scheduler.MEMORY_MESSAGES", 10)
    monkeypatch.setattr("pillarbox.queue.scheduler.CLAIM_MESSAGES", 4)

    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port, maxrelay=3) as (server, _):
            for n in range(100):
                put(server, f"r{n}@d.test")
            await peer.wait_for(100)
            await until(lambda: server._parts.store.counts() == {"delivered": 100})
            assert len(peer.messages) == 100

    run_async(main)


def test_a_claim_that_fails_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port, paused=True) as (server, clock):
            put(server)
            await until(lambda: server._parts.store.counts() == {"queued": 1})
            real, failures = server._parts.store.claim, [2]

            def flaky(*args: Any) -> Any:
                if failures[0]:
                    failures[0] -= 1
                    raise OSError("the disk is away")
                return real(*args)

            monkeypatch.setattr(server._parts.store, "claim", flaky)
            await server.resume_queue()
            for _ in range(20):
                clock.advance(2)
                await asyncio.sleep(0.005)
            await peer.wait_for(1)

    run_async(main)


def test_leases_are_renewed_and_history_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pillarbox.smtp.client import Stage

    monkeypatch.setattr("pillarbox.delivery.client.STEP_S", dict.fromkeys(Stage, 1e9))
    monkeypatch.setattr("pillarbox.delivery.client.TRANSACTION_S", 1e9)

    async def main() -> None:
        async with ScriptedServer(MAIL="silent", RCPT="silent", DATA="silent") as peer:
            async with relaying(tmp_path, peer.port, history_s=60.0) as (server, clock):
                uid = put(server)
                await until(lambda: peer.lines[-1:] == ["DATA"])
                before = view(server, uid).recipients[0].due_at
                for _ in range(20):
                    # Well past the lease: it is renewed, and nobody else claims it.
                    clock.advance(500)
                    await asyncio.sleep(0.002)
                assert view(server, uid).recipients[0].due_at > before
                assert peer.lines.count("DATA") == 1 and states(server, uid) == ["queued"]

    run_async(main)


def test_history_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with relaying(tmp_path, 1, history_s=60.0, paused=True) as (server, clock):
            uid = put(server)
            await until(lambda: view(server, uid) is not None)
            assert await server._parts.scheduler.change(Action.CANCEL, Query(uids=[uid])) == [uid]
            assert states(server, uid) == ["cancelled"]
            for _ in range(10):
                clock.advance(100)
                await asyncio.sleep(0.002)
            await until(lambda: view(server, uid) is None)

    run_async(main)


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_one_next_hop_is_paused_and_the_others_go_on(tmp_path: Path, store: str) -> None:
    async def main() -> None:
        taken: dict[str, list[str]] = {"one": [], "two": []}

        def keep(name: str) -> Any:
            return lambda item: taken[name].append(item.uid)

        handlers = [Handler("@one", keep("one")), Handler("@two", keep("two"))]
        given: dict[str, Any] = {"store": store, "handlers": handlers}
        async with serving(tmp_path, **given) as server:
            hop = server._parts.router.next_hop("c@one.test")
            await server.pause_queue(hop)
            status = await server.queue.status()
            assert status["paused_next_hops"] == [hop] and not status["paused"]
            paused = await server.enqueue(reverse_path="a@b.test", recipients=["c@one.test"], content="x")
            mixed = await server.enqueue(reverse_path="a@b.test", recipients=["c@one.test", "c@two.test"], content="x")
            other = await server.enqueue(reverse_path="a@b.test", recipients=["c@two.test"], content="x")
            await until(lambda: len(taken["two"]) == 2)
            assert set(taken["two"]) == {mixed, other} and taken["one"] == []
            found = await server.queue.show(paused)
            assert found is not None and f"{hop} is paused" in found["waiting_for"]
            assert found["recipients"][0]["attempts"] == 0
            assert (await server.queue.live())["lanes"] is not None
            if store == "memory":
                await server.resume_queue(hop)
                await until(lambda: set(taken["one"]) == {paused, mixed})
                return
        # It outlives a restart, and ends on a stopped server, too.
        async with serving(tmp_path, **given) as server:
            await until(lambda: not server._parts.scheduler._claiming)
            assert (await server.queue.status())["paused_next_hops"] == [hop] and taken["one"] == []
        await asyncio.to_thread(ask_all, str(tmp_path), {"verb": "resume", "next_hop": hop})
        async with serving(tmp_path, **given) as server:
            await until(lambda: set(taken["one"]) == {paused, mixed})

    run_async(main)


def test_a_paused_next_hop_is_not_looked_at_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = 0
    claim = Scheduler._claim

    async def counted(self: Scheduler, room: int, skip: list[str]) -> None:
        nonlocal claims
        claims += 1
        await claim(self, room, skip)

    monkeypatch.setattr(Scheduler, "_claim", counted)

    async def main() -> None:
        nonlocal claims
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port) as (server, clock):
            await server.pause_queue(server._parts.router.next_hop("c@d.test"))
            uid = put(server)
            await until(lambda: view(server, uid) is not None)
            claims = 0
            # Ten seconds in pieces as small as a busy loop's.
            for _ in range(500):
                clock.advance(0.02)
                await asyncio.sleep(0)
                scheduler = server._parts.scheduler
                await until(lambda: scheduler._claiming is None)
            assert claims <= 2, claims
            assert peer.connections == 0
            await server.resume_queue(server._parts.router.next_hop("c@d.test"))
            await peer.wait_for(1)

    run_async(main)
