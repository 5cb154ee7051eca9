"""`verify_recipients`: the relay is asked at RCPT, once for each address, and a recipient that it refuses is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pillarbox.delivery.client import ClientSettings
from pillarbox.delivery.probe import MAX_PROBES, REFUSED_S, TAKEN_S, UNKNOWN_S, UNREACHABLE_S, Prober
from pillarbox.delivery.route import Target
from pillarbox.delivery.tlspolicy import TlsPolicy, client_context
from pillarbox.testing import ManualClock, ScriptedServer
from pillarbox.testing.scripted import CLOSE, SILENT
from tests.conftest import Wire, cuts, run_async, until
from tests.queue.test_delivery import relaying

OPTIONS: dict[str, Any] = {"domains": ["us.test"], "domains_via": "relay", "verify_recipients": True}
STRANGER = "192.0.2.7"


def says(line: str) -> str:
    if "unknown" in line:
        return "550 5.1.1 no such user"
    return "451 4.2.0 greylisted" if "later" in line else "250 ok"


async def rcpt(server: Any, *recipients: str, sender: str = "a@b.test") -> list[str]:
    """The first nine characters of each reply to RCPT."""
    wire = Wire(server, cuts(1)[0](), STRANGER)
    await wire.ask(f"EHLO x.test\r\nMAIL FROM:<{sender}>\r\n".encode())
    found = [reply[:9] for one in recipients for reply in await wire.ask(f"RCPT TO:<{one}>\r\n".encode())]
    wire.lose()
    return found


def asked(peer: ScriptedServer) -> list[str]:
    return [line for line in peer.lines if line.startswith("RCPT")]


def test_recipient_that_the_relay_refuses_is_refused_at_rcpt_and_asked_about_once(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with (
            ScriptedServer(RCPT=says) as peer,
            relaying(tmp_path, peer.port, clock=clock, **OPTIONS) as (server, _),
        ):
            found = await rcpt(server, "unknown@us.test", "ann@us.test", "later@us.test")
            assert found == ["550 5.1.1", "250 2.1.5", "450 4.1.1"]
            assert len(asked(peer)) == 3 and peer.messages == []
            assert "MAIL FROM:<>" in peer.lines and "DATA" not in peer.lines
            await until(lambda: peer.lines.count("QUIT") == 3)
            assert await rcpt(server, "unknown@us.test", "ann@US.test") == ["550 5.1.1", "250 2.1.5"]
            # The relay is not asked about foreign domains and roles.
            assert await rcpt(server, "x@far.test", "postmaster@us.test") == ["550 5.7.1", "250 2.1.5"]
            assert len(asked(peer)) == 3
            clock.advance(REFUSED_S + 1)
            assert await rcpt(server, "unknown@us.test", "ann@us.test") == ["550 5.1.1", "250 2.1.5"]
            assert len(asked(peer)) == 4

    run_async(main)


def test_recipient_is_deferred_while_the_relay_is_unreachable_unless_its_verdict_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with ScriptedServer() as peer, relaying(tmp_path, peer.port, clock=clock, **OPTIONS) as (server, _):
            assert await rcpt(server, "known@us.test") == ["250 2.1.5"]
            peer.script("CONNECT", CLOSE)
            before = peer.connections
            assert await rcpt(server, "ann@us.test", "bob@us.test", "known@us.test") == [
                "450 4.1.1",
                "450 4.1.1",
                "250 2.1.5",
            ]
            assert peer.connections == before + 1
            peer.script("CONNECT", "220 hello")
            clock.advance(max(UNREACHABLE_S, UNKNOWN_S) + 1)
            assert await rcpt(server, "ann@us.test") == ["250 2.1.5"]

    run_async(main)


@pytest.mark.parametrize(
    ("replies", "reply"),
    [
        ({"MAIL": "550 5.7.1 no bounces"}, "250 2.1.5"),
        ({"MAIL": "451 4.3.0 later"}, "450 4.1.1"),
        ({"RCPT": "530 5.7.0 log in first"}, "450 4.1.1"),
        ({"RCPT": "552 5.2.2 too many"}, "450 4.1.1"),
        ({"RCPT": "421 4.3.2 closing"}, "450 4.1.1"),
        ({"RCPT": CLOSE}, "450 4.1.1"),
        ({"RSET": CLOSE, "QUIT": CLOSE}, "250 2.1.5"),
        ({"EHLO": "550 5.7.1 not you", "HELO": "550 5.7.1 not you"}, "450 4.1.1"),
        ({"EHLO": "250-x\r\n250 STARTTLS", "STARTTLS": "454 4.7.0 no"}, "250 2.1.5"),
        ({"EHLO": "250-x\r\n250 STARTTLS", "STARTTLS": "220 go"}, "250 2.1.5"),
    ],
)
def test_recipient_verification_believes_only_what_is_about_the_recipient(
    tmp_path: Path, replies: dict[str, str], reply: str
) -> None:
    async def main() -> None:
        async with ScriptedServer(**replies) as peer, relaying(tmp_path, peer.port, **OPTIONS) as (server, _):
            assert await rcpt(server, "ann@us.test") == [reply]

    run_async(main)


def test_recipients_beyond_the_bound_of_probes_are_undecided() -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT=SILENT) as peer:
            settings = ClientSettings("mx.test", TlsPolicy.MAY, client_context(TlsPolicy.MAY, None, "1.2"))
            prober = Prober(lambda: [Target("127.0.0.1", peer.port)], lambda: settings, ManualClock())
            tasks = [asyncio.ensure_future(prober.verify(f"u{n}@us.test")) for n in range(MAX_PROBES)]
            await until(lambda: len(asked(peer)) == MAX_PROBES)
            more = await prober.verify("more@us.test")
            assert more is not None and more.is_transient and peer.connections == MAX_PROBES
            # The same address shares its probe.
            tasks.append(asyncio.ensure_future(prober.verify("u0@US.test")))
            await peer.stop()
            assert all(said is not None and said.is_transient for said in await asyncio.gather(*tasks))

    run_async(main)


def test_verdicts_about_unknown_recipients_never_displace_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.delivery.probe.MAX_VERDICTS", 3)

    async def main() -> None:
        async with ScriptedServer(RCPT=says) as peer:
            settings = ClientSettings("mx.test", TlsPolicy.NONE, None)
            prober = Prober(lambda: [Target("127.0.0.1", peer.port)], lambda: settings, ManualClock())
            assert await prober.verify("ann@us.test") is None
            for n in range(5):
                assert await prober.verify(f"unknown{n}@us.test") is not None
            assert await prober.verify("ann@us.test") is None
            assert len(asked(peer)) == 6
            assert await prober.verify("unknown0@us.test") is not None
            assert len(asked(peer)) == 7

    run_async(main)


def test_explain_names_what_the_relay_says_of_a_recipient(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT=says) as peer, relaying(tmp_path, peer.port, **OPTIONS) as (server, _):
            story = await server.explain("unknown@us.test", peer=STRANGER)
            assert "550 5.1.1 no such user" in str(story)

    run_async(main)


def test_verdict_of_a_refusal_lasts_less_long() -> None:
    assert UNKNOWN_S < REFUSED_S < TAKEN_S
