"""DSNs for mail of strangers: the header section only, and so many an hour to one domain. DSNs that cannot be delivered."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pillarbox.delivery.bounce import DomainRate
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import Wire, cuts, queued, run_async, until
from tests.queue.test_delivery import relaying

SPAM = b"Subject: BUY\r\n\r\nhttp://spam.test/\r\n"


def refuses(line: str) -> str:
    return "250 ok" if "third.test" in line or "admin" in line else "550 5.1.1 no such user"


async def offer(server: Any, peer: str, *senders: str) -> None:
    wire = Wire(server, cuts(1)[0](), peer)
    await wire.ask(b"EHLO x.test\r\n")
    for sender in senders:
        await wire.ask(f"MAIL FROM:<{sender}>\r\nRCPT TO:<nobody@us.test>\r\n".encode())
        await wire.ask(b"DATA\r\n")
        assert (await wire.ask(SPAM + b".\r\n"))[0].startswith("250")
    wire.lose()


@pytest.mark.parametrize(
    ("peer", "options", "is_full"),
    [
        ("192.0.2.7", {}, False),
        ("192.0.2.7", {"return_content": "always"}, True),
        ("127.0.0.1", {}, True),
        ("127.0.0.1", {"return_content": "never"}, False),
    ],
)
def test_dsn_returns_content_to_trusted_senders_only(
    tmp_path: Path, peer: str, options: dict[str, Any], is_full: bool
) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT=refuses) as peer_server:
            async with relaying(tmp_path, peer_server.port, domains=["us.test"], domains_via="relay", **options) as (
                server,
                _,
            ):
                await offer(server, peer, "victim@third.test")
                await peer_server.wait_for(1)
                content = peer_server.messages[0][2]
                assert b"Subject: BUY" in content and (b"http://spam.test/" in content) is is_full

    run_async(main)


def test_dsns_for_strangers_are_bounded_by_domain_and_hour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        clock = ManualClock()
        options = {"domains": ["us.test"], "domains_via": "relay", "max_dsns_per_domain": 3}
        async with ScriptedServer(RCPT=refuses) as peer_server:
            async with relaying(tmp_path, peer_server.port, clock=clock, **options) as (server, _):
                with caplog.at_level(logging.WARNING, "pillarbox.delivery"):
                    await offer(server, "192.0.2.7", *[f"v{n}@third.test" for n in range(10)])
                    await until(lambda: sum("dsn-unsent" in r.getMessage() for r in caplog.records) == 7, 10)
                await peer_server.wait_for(3)
                assert "reason=over-limit" in next(
                    r.getMessage() for r in caplog.records if "dsn-unsent" in r.getMessage()
                )
                # Trusted clients know who they are.
                await offer(server, "127.0.0.1", *[f"t{n}@third.test" for n in range(5)])
                await peer_server.wait_for(8)

    run_async(main)


def test_domain_rate_begins_anew_and_is_bounded_in_memory() -> None:
    rate = DomainRate()
    assert [rate.take("a", 2, 0.0), rate.take("a", 2, 1.0), rate.take("a", 2, 2.0), rate.take("b", 2, 2.0)] == [
        True,
        True,
        False,
        True,
    ]
    assert rate.take("a", 2, 3600.0) and not rate.take("a", 0, 9999.0)
    # A clock that was set back does not block for ever.
    assert rate.take("a", 2, -1e6)
    for n in range(10_000):
        rate.take(f"d{n}", 1, 0.0)
    assert len(rate._counts) <= DomainRate.MAX_DOMAINS


def test_dsn_that_is_refused_is_logged_and_reported_to_the_postmaster_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT=lambda line: "250 ok" if "admin" in line else "550 5.1.1 no") as peer_server:
            async with relaying(tmp_path, peer_server.port, postmaster="admin@home.test") as (server, _):
                with caplog.at_level(logging.WARNING, "pillarbox.delivery"):
                    await offer(server, "127.0.0.1", "gone@away.test")
                    await peer_server.wait_for(1)
                sender, recipients, content = peer_server.messages[0]
                assert "<>" in sender and "admin@home.test" in recipients[0] and b"gone@away.test" in content
                lines = [r.getMessage() for r in caplog.records if "dsn-unsent" in r.getMessage()]
                assert len(lines) == 1 and "reason=undeliverable" in lines[0] and "gone@away.test" in lines[0]
                # And when the postmaster refuses it, too, it ends there.
                peer_server.script("RCPT", "550 5.1.1 no")
                await offer(server, "127.0.0.1", "gone@away.test")
                await until(lambda: [bool(one.finished_at) for one in queued(server)] == [True] * 6, 10)
                assert len(peer_server.messages) == 1

    run_async(main)
