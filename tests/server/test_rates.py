"""Rates of accepted mail per client and account, and the pause after refused commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import OptionError
from pillarbox.events.session import Endpoint, Session
from pillarbox.options import parse_options
from pillarbox.server.rates import MAX_KEYS, Rates, Window
from pillarbox.testing import ManualClock
from tests.conftest import Wire, cuts, run_async, serving
from tests.server.test_guesses import plain

WHOLE = cuts(1)[0]


def session_of(host: str = "198.51.100.1", user: str | None = None, *, is_trusted: bool = False) -> Session:
    session = Session("s", Endpoint(host, 1), Endpoint("192.0.2.25", 25))
    session.username, session.is_trusted = user, is_trusted
    return session


def rates_of(**options: Any) -> Rates:
    return Rates(parse_options(options))


def test_messages_of_a_client_are_bounded_in_each_window() -> None:
    rates, client = rates_of(messages_per_client="2/m"), session_of()
    assert rates.take(client, 1, 0.0) is None and rates.take(client, 1, 1.0) is None
    reply = rates.take(client, 1, 59.0)
    assert reply is not None and (reply.code, reply.enhanced, reply.reason) == (450, "4.7.1", "over-limit")
    assert rates.take(session_of("198.51.100.2"), 1, 59.0) is None
    assert rates.take(client, 1, 60.0) is None


def test_recipients_of_an_account_are_bounded_wherever_it_comes_from() -> None:
    rates = rates_of(recipients_per_account="10/h")
    assert rates.take(session_of("198.51.100.1", "Bob"), 6, 0.0) is None
    assert rates.take(session_of("198.51.100.2", "bob", is_trusted=True), 6, 0.0) is not None
    assert rates.take(session_of("198.51.100.2", "bob"), 4, 0.0) is None
    assert rates.take(session_of("198.51.100.2", "eve"), 4, 0.0) is None
    # More than the bound at once: once, for somebody who has sent nothing.
    assert (
        rates.take(session_of(user="amy"), 500, 0.0) is None and rates.take(session_of(user="amy"), 1, 0.0) is not None
    )


def test_trusted_networks_have_no_bound() -> None:
    rates = rates_of(messages_per_client="1/d", recipients_per_client="1/d")
    assert all(rates.take(session_of(is_trusted=True), 100, 0.0) is None for _ in range(5))


def test_rates_that_change_keep_the_counts_of_those_that_stay() -> None:
    rates = rates_of(messages_per_client="1/h", messages_per_account="1/h")
    rates.take(session_of(), 1, 0.0)
    rates.take(session_of(user="bob"), 1, 0.0)
    rates.change(parse_options({"messages_per_client": "1/h", "messages_per_account": "5/h"}))
    assert rates.take(session_of(), 1, 0.0) is not None and rates.take(session_of(user="bob"), 1, 0.0) is None


def test_window_is_bounded_in_memory_and_shared_out_to_workers() -> None:
    window = Window("10/h", workers=4)
    for n in range(MAX_KEYS + 5):
        window.add(str(n), 1, 0.0)
    assert len(window._counts) == MAX_KEYS
    window.add("k", 3, 0.0)
    assert not window.has_room("k", 1, 0.0)


@pytest.mark.parametrize("name", ["messages_per_client", "recipients_per_account"])
def test_rates_that_cannot_be_read_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=name):
        parse_options({name: "many"})
    assert parse_options({name: "none"}) is not None


def test_a_stolen_account_is_stopped_and_the_session_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        options = {
            "store": "memory",
            "authenticator": lambda name, password: True,
            "auth_in_clear": True,
            "messages_per_account": "2/d",
            "trust": ["192.0.2.0/24"],
            "paused": True,
        }
        async with serving(tmp_path, **options) as server:
            wire = Wire(server, WHOLE(), "198.51.100.1")
            await wire.ask(b"EHLO x.test\r\n")
            await wire.send(plain("bob@mx.test", "x") + b"\r\n")
            while not wire.transport.out.endswith(b"235 2.7.0 Authenticated\r\n"):
                await wire.settle()
            for expected in ("250", "250", "450 4.7.1", "450 4.7.1"):
                await wire.ask(b"MAIL FROM:<bob@mx.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
                assert (await wire.ask(b"Subject: x\r\n\r\nx\r\n.\r\n"))[-1].startswith(expected)
            wire.lose()

    run_async(main)


@pytest.mark.parametrize(("peer", "is_slowed"), [("198.51.100.1", True), ("127.0.0.1", False)])
def test_refused_commands_slow_a_stranger_down(tmp_path: Path, peer: str, is_slowed: bool) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(tmp_path, store="memory", clock=clock, max_errors=100) as server:
            wire = Wire(server, WHOLE(), peer)
            for _ in range(10):
                await wire.ask(b"BOGUS\r\n")
            assert not wire.transport.is_reading_paused
            assert (await wire.ask(b"BOGUS\r\n"))[-1].startswith("500"), "the reply itself does not wait"
            assert wire.transport.is_reading_paused == is_slowed
            clock.advance(1.0)
            assert not wire.transport.is_reading_paused
            wire.lose()

    run_async(main)
