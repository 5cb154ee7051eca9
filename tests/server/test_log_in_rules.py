"""Who is let in by AUTH, and what a guess costs: the verdicts of authenticators and plugins, the line of hashes, counts."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Account, Eat, Reply
from pillarbox.events.session import Endpoint, Session
from pillarbox.options import parse_options
from pillarbox.server import accounts, guesses, hashing
from pillarbox.server.accounts import AuthFile, hash_password, is_password
from pillarbox.server.guesses import Guesses, Try, Wait
from pillarbox.server.hashing import HashLineFull, HashPool
from pillarbox.server.limits import Admission
from pillarbox.server.rates import Rates
from tests.conftest import cuts, run_async, wired

PLAIN = b"AUTH PLAIN " + base64.b64encode(b"\0ann\0secret") + b"\r\n"


def log_in(authenticator: Any, plugin: Any = None) -> tuple[str, str | None]:
    """(reply to AUTH, whose session it is then)."""
    found: tuple[str, str | None] = ("", None)

    async def main() -> None:
        nonlocal found
        plugins = {} if plugin is None else {"p": plugin}
        async with wired(cuts(1)[0], authenticator=authenticator, auth_in_clear=True, plugins=plugins) as (
            server,
            wire,
        ):
            server._parts.context.guess_delay_s = 0.0
            await wire.ask(b"EHLO x.test\r\n")
            reply = (await wire.ask(PLAIN))[-1][:9].strip()
            (session,) = server._parts.context.sessions.values()
            assert session.protocol.facts.is_authenticated is (session.facts.username is not None)
            found = (reply, session.facts.username)

    run_async(main)
    return found


class Says:
    """A plugin with one answer to the event `auth`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def on_auth(self, server: Any, event: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def raising(name: str, password: str) -> bool:
    raise OSError("the directory service is away")


async def later(name: str, password: str) -> bool:
    await asyncio.sleep(0)
    return name == "ann" and password == "secret"


LETS_IN: list[Any] = [lambda n, p: True, lambda n, p: Account("ann", ("*",)), later]
REFUSES: list[Any] = [lambda n, p: False, lambda n, p: None, lambda n, p: p == "other"]
ODD: list[Any] = [
    lambda n, p: 1,
    lambda n, p: "yes",
    lambda n, p: [Account("ann")],
    lambda n, p: {"ann"},
    lambda n, p: 0,
    lambda n, p: "",
    raising,
]


@pytest.mark.parametrize("authenticator", LETS_IN)
def test_authenticator_that_says_yes_lets_in(authenticator: Any) -> None:
    assert log_in(authenticator) == ("235 2.7.0", "ann")


@pytest.mark.parametrize("authenticator", REFUSES)
@pytest.mark.parametrize(
    "answer", [None, Reply(235, "2.7.0", "Welcome"), Reply(250, "2.0.0", "OK"), Eat.ALL, Eat.PLUGIN, Eat.CLIENT]
)
def test_plugin_never_lets_in_whom_the_authenticator_refused(authenticator: Any, answer: Any) -> None:
    assert log_in(authenticator, Says(answer)) == ("535 5.7.8", None)


@pytest.mark.parametrize("authenticator", ODD)
def test_authenticator_that_fails_or_returns_anything_else_lets_nobody_in(authenticator: Any) -> None:
    assert log_in(authenticator) == ("454 4.7.0", None)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (Reply(535, "5.7.1", "Not from there"), "535 5.7.1"),
        ("550 5.7.1 No", "550 5.7.1"),
        (ValueError("a fault"), "454 4.7.0"),
        (Reply(451, "4.3.0", "Later"), "454 4.7.0"),
    ],
)
def test_plugin_may_refuse_whom_the_authenticator_let_in(answer: Any, reply: str) -> None:
    assert log_in(lambda n, p: True, Says(answer)) == (reply, None)


@pytest.mark.parametrize("answer", [None, Reply(235, "2.7.0", "Welcome")])
def test_plugin_that_does_not_object_changes_nothing(answer: Any) -> None:
    assert log_in(lambda n, p: True, Says(answer)) == ("235 2.7.0", "ann")


# ------------------------------------------------------------------------- what a guess costs


def test_wrong_guess_costs_a_second_whatever_the_name_and_the_form() -> None:
    delays: list[float] = []

    async def main() -> None:
        async with wired(cuts(1)[0], authenticator=lambda n, p: False, auth_in_clear=True) as (server, wire):
            clock = server._parts.context.clock
            real = clock.call_later

            def noting(delay_s: float, call: Any, *arguments: Any) -> Any:
                delays.append(delay_s)
                return real(0.0 if delay_s <= 1.0 else delay_s, call, *arguments)

            clock.call_later = noting
            assert server._parts.context.guess_delay_s == 1.0
            await wire.ask(b"EHLO x.test\r\n")
            for line in (PLAIN, b"AUTH PLAIN AA==\r\n"):
                delays.clear()
                assert (await wire.ask(line))[-1].startswith("535")
                assert any(0.5 < delay_s <= 1.0 for delay_s in delays), (line, delays)

    run_async(main)


def test_right_password_forgives_the_failures_of_its_pair_alone() -> None:
    found = Guesses()
    for number in range(guesses.MAX_OF_NETWORK - 1):
        one = found.begin(f"u{number}", "198.51.100.1", 0.0)
        assert isinstance(one, Try)
        found.fail(one, 0.0)
    right = found.begin("ann", "198.51.100.1", 0.0)
    assert isinstance(right, Try)
    found.succeed(right, 0.0)
    wrong = found.begin("other", "198.51.100.1", 0.0)
    assert isinstance(wrong, Try)
    found.fail(wrong, 0.0)
    # One account that is the guesser's own gives it no new guesses.
    assert found.begin("other", "198.51.100.1", 0.0) is Wait.BLOCKED


@pytest.mark.parametrize(("after_s", "is_known"), [(guesses.KNOWN_S - 1, True), (guesses.KNOWN_S, False)])
def test_network_that_an_account_knows_is_forgotten_after_thirty_days(after_s: float, is_known: bool) -> None:
    found = Guesses()
    first = found.begin("ann", "198.51.100.1", 0.0)
    assert isinstance(first, Try) and not first.is_known
    found.succeed(first, 0.0)
    second = found.begin("ann", "198.51.100.1", after_s)
    assert isinstance(second, Try) and second.is_known is is_known
    assert guesses.KNOWN_S == 30 * 86400


def test_networks_that_an_account_knows_are_bounded() -> None:
    found = Guesses()
    for number in range(guesses.MAX_KNOWN + 1):
        one = found.begin("ann", f"198.51.100.{number}", 0.0)
        assert isinstance(one, Try)
        found.succeed(one, 0.0)
    first, second = (found.begin("ann", f"198.51.100.{number}", 1.0) for number in (0, 1))
    assert isinstance(first, Try) and not first.is_known and isinstance(second, Try) and second.is_known


@pytest.mark.parametrize("goes_first", [False, True])
def test_line_of_hashes_has_an_end(goes_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "MAX_OTHERS", 2)
    monkeypatch.setattr(hashing, "MAX_FIRST", 3)
    gate = threading.Event()

    async def main() -> None:
        pool = HashPool(threads=1)
        work = [asyncio.ensure_future(pool.run(gate.wait, goes_first=goes_first)) for _ in range(6)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = [one for one in work if one.done()]
        assert len(refused) == (2 if goes_first else 3)
        assert all(isinstance(one.exception(), HashLineFull) for one in refused)
        gate.set()
        await asyncio.wait(work)
        assert pool._free == 1
        pool.close()

    run_async(main)


def test_log_in_that_is_cancelled_in_the_line_gives_its_thread_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        gate, pool = threading.Event(), HashPool(threads=1)
        first = asyncio.ensure_future(pool.run(gate.wait))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(pool.run(lambda: "done")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        # The second one has its turn, and is cancelled before it could use it.
        pool._next()
        waiting[1].cancel()
        await asyncio.sleep(0)
        pool._free = 0
        gate.set()
        await first
        assert await asyncio.wait_for(waiting[2], 10) == "done"
        pool.close()

    run_async(main)


def test_unknown_name_costs_a_real_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "accounts"
    file.write_text(f"ann:{hash_password('secret')}\n")
    worked: list[int] = []
    real = accounts.hashlib.scrypt

    def noting(password: bytes, **more: Any) -> bytes:
        worked.append(more["n"] * more["r"] * more["p"])
        return real(password, **more)

    found = AuthFile(str(file))
    monkeypatch.setattr(accounts.hashlib, "scrypt", noting)
    costs = []
    for name, password, is_right in (
        ("ann", "secret", True),
        ("ann", "wrong", False),
        ("nobody", "secret", False),
        ("", "", False),
    ):
        worked.clear()
        assert (found(name, password) is not None) is is_right
        costs.append(sum(worked))
    assert len(set(costs)) == 1 and costs[0] > 0


@pytest.mark.parametrize(
    "hashed",
    [
        "",
        "scrypt",
        "plain$1$1$1$eA$eA",
        "scrypt$2$8$1$eA$",
        "scrypt$x$8$1$eA$eA",
        "scrypt$3$8$1$eA$eA",
        "scrypt$16$8$1$?$eA",
        "secret",
    ],
)
def test_hash_that_cannot_be_read_fits_no_password(hashed: str) -> None:
    assert not is_password("secret", hashed) and not is_password("", hashed)
    good = hash_password("secret")
    assert (
        is_password("secret", good)
        and not is_password("Secret", good)
        and not is_password("", good)
        and hash_password("secret") != good
    )


# ------------------------------------------------------------------------- rates and refusals


def _session(host: str, username: str | None = None) -> Session:
    session = Session("s1", Endpoint(host, 4000), Endpoint("192.0.2.1", 25))
    session.username = username
    return session


def test_rate_is_of_a_network_or_of_an_account_in_any_case() -> None:
    rates = Rates(parse_options({"messages_per_client": "2/h", "messages_per_account": "3/h"}))
    taken = [rates.take(_session(f"2001:db8::{number}"), 1, 0.0) for number in range(3)]
    assert [reply and reply.code for reply in taken] == [None, None, 450]
    assert rates.take(_session("2001:db8:0:1::1"), 1, 0.0) is None
    trusted = _session("192.0.2.9", "Ann")
    trusted.is_trusted = True
    taken = [
        rates.take(_session("192.0.2.7", "ann"), 1, 0.0),
        rates.take(_session("192.0.2.8", "ANN"), 1, 0.0),
        rates.take(trusted, 1, 0.0),
    ]
    assert taken == [None] * 3
    assert (reply := rates.take(trusted, 1, 0.0)) is not None and reply.code == 450


def test_refused_message_uses_no_rate_up() -> None:
    rates = Rates(parse_options({"messages_per_client": "3/h", "recipients_per_client": "4/h"}))
    client = _session("192.0.2.7")
    assert rates.take(client, 3, 0.0) is None
    assert [rates.take(client, 2, 0.0) is None for _ in range(9)] == [False] * 9
    assert rates.take(client, 1, 0.0) is None
    # The third message is still there, its recipients are not.
    assert rates.take(client, 1, 0.0) is not None


def test_rate_begins_anew_with_its_window_and_is_shared_out() -> None:
    rates = Rates(parse_options({"messages_per_client": "4/m"}), workers=2)
    client = _session("192.0.2.7")
    assert [rates.take(client, 1, 0.0) is None for _ in range(3)] == [True, True, False]
    assert rates.take(client, 1, 59.9) is not None and rates.take(client, 1, 60.0) is None


def test_refusals_of_an_address_count_within_one_second() -> None:
    admission = Admission(parse_options({"max_sessions_per_peer": 2}))
    assert [admission.count_refusal("192.0.2.7") for _ in range(5)] == [1, 2, 3, 4, 5]
    assert admission.may_speak(4) and not admission.may_speak(5)
    assert admission.count_refusal("192.0.2.8") == 1
    admission.sweep(1.0)
    assert admission.count_refusal("192.0.2.7") == 1
