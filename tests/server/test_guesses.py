"""Password guesses: limits per network and account, no lock, no oracle, threads of their own."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox.server import accounts, guesses, hashing
from pillarbox.server.guesses import Failures, Guesses, Try, Wait
from pillarbox.server.hashing import HashLineFull, HashPool
from tests.conftest import Client, run_async, serving, until


def begin(limits: Guesses, name: str, host: str, now: float = 0.0) -> Try:
    attempt = limits.begin(name, host, now)
    assert isinstance(attempt, Try), attempt
    return attempt


def fail(limits: Guesses, name: str, host: str, times: int = 1, now: float = 0.0) -> None:
    for _ in range(times):
        limits.fail(begin(limits, name, host, now), now)


def test_failures_end_with_their_window_and_are_bounded_in_memory() -> None:
    failures = Failures(max_keys=100)
    for n in range(3):
        failures.add("k", float(n))
    assert failures.count("k", 3.0) == 3 and failures.count("k", 2.0 + guesses.WINDOW_S) == 0
    for n in range(200):
        failures.add(str(n), 0.0)
    assert len(failures) == 100


def test_a_network_that_guesses_is_blocked_for_every_account() -> None:
    limits = Guesses()
    for n in range(guesses.MAX_OF_NETWORK):
        fail(limits, f"user{n}", "198.51.100.1")
    assert limits.begin("other", "198.51.100.1", 1.0) is Wait.BLOCKED
    assert limits.begin("other", "198.51.100.2", 1.0) is not Wait.BLOCKED
    assert isinstance(limits.begin("other", "198.51.100.1", 1.0 + guesses.WINDOW_S), Try)


def test_a_network_of_ipv6_is_bounded_by_56_and_48_as_well() -> None:
    limits = Guesses()
    for n in range(4):
        fail(limits, f"u{n}", f"2001:db8:1:{n}::1", guesses.MAX_OF_NETWORK)
    assert limits.begin("u9", "2001:db8:1:9::1", 0.0) is Wait.BLOCKED, "the /56 has had four times as many"
    assert limits.begin("u9", "2001:db8:1:109::1", 0.0) is not Wait.BLOCKED


def test_tries_at_the_same_time_cannot_pass_the_limit_together() -> None:
    limits = Guesses()
    tries = [limits.begin(f"u{n}", "198.51.100.1", 0.0) for n in range(40)]
    opened = [one for one in tries if isinstance(one, Try)]
    assert len(opened) == guesses.MAX_OF_NETWORK and tries[-1] is Wait.BUSY
    for one in opened:
        limits.fail(one, 0.0)
    assert limits.begin("u", "198.51.100.1", 0.0) is Wait.BLOCKED


def test_right_passwords_at_the_same_time_leave_no_trace() -> None:
    limits = Guesses()
    for n in range(40):
        limits.succeed(begin(limits, "user", f"198.51.100.{n}"), 0.0)
    assert begin(limits, "user", "203.0.113.1").delay_s == 0.0 and not limits._of_account._counts
    limits.take_back(Try("user", ("203.0.113.1",), False, 0.0))
    assert limits._open == {}


def test_no_stranger_locks_an_account() -> None:
    limits = Guesses()
    limits.succeed(begin(limits, "bob", "192.0.2.5"), 0.0)
    for n in range(50):
        fail(limits, "bob", f"198.51.100.{n}", times=2)
    # From where he has logged in lately nothing has changed; from elsewhere it takes longer.
    assert begin(limits, "bob", "192.0.2.5", 10.0).delay_s == 0.0
    assert begin(limits, "bob", "203.0.113.7", 10.0).delay_s == guesses.MAX_DELAY_S
    # A name that does not exist has the same delay.
    for n in range(50):
        fail(limits, "nobody", f"198.18.0.{n}", times=2)
    assert begin(limits, "nobody", "203.0.113.8", 10.0).delay_s == guesses.MAX_DELAY_S


def test_the_delay_of_an_account_grows_with_its_failures() -> None:
    limits, delays = Guesses(), []
    for n in range(30):
        attempt = begin(limits, "bob", f"198.51.100.{n}")
        delays.append(attempt.delay_s)
        limits.fail(attempt, 0.0)
    assert delays[:5] == [0.0] * 5 and delays[5] == 1.0 and delays[10] == 2.0 and delays[29] == guesses.MAX_DELAY_S
    assert delays == sorted(delays)


def test_delayed_tries_of_an_account_are_bounded_and_the_next_one_waits() -> None:
    limits = Guesses()
    for n in range(20):
        fail(limits, "bob", f"198.51.100.{n}")
    opened = [begin(limits, "bob", f"203.0.113.{n}") for n in range(guesses.MAX_WAITING)]
    assert limits.begin("bob", "192.0.2.1", 0.0) is Wait.BUSY
    limits.fail(opened[0], 0.0)
    assert isinstance(limits.begin("bob", "192.0.2.1", 0.0), Try)


def test_a_network_that_an_account_knows_is_blocked_for_that_account_alone() -> None:
    limits = Guesses()
    for name in ("bob", "eve"):
        limits.succeed(begin(limits, name, "192.0.2.5"), 0.0)
    fail(limits, "eve", "192.0.2.5", guesses.MAX_OF_PAIR)
    assert limits.begin("eve", "192.0.2.5", 0.0) is Wait.BLOCKED
    assert isinstance(limits.begin("bob", "192.0.2.5", 0.0), Try)
    assert isinstance(limits.begin("new", "192.0.2.5", 0.0), Try)


def test_workers_share_the_bounds_out() -> None:
    limits = Guesses(workers=5)
    fail(limits, "bob", "198.51.100.1", 3)
    assert limits.begin("bob", "198.51.100.1", 0.0) is Wait.BLOCKED


# ----------------------------------------------------------------------------- pool


def test_hash_pool_lets_likely_log_ins_go_first_and_its_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "MAX_OTHERS", 3)
    order: list[str] = []
    gate = threading.Event()

    async def main() -> None:
        pool = HashPool(threads=1)
        work = [asyncio.ensure_future(pool.run(gate.wait))]
        work += [asyncio.ensure_future(pool.run(order.append, f"other {n}")) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(HashLineFull):
            await pool.run(order.append, "one too many")
        gone = work.pop()
        gone.cancel()
        work.append(asyncio.ensure_future(pool.run(order.append, "known", goes_first=True)))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*work)
        assert order == ["known", "other 0", "other 1"]
        assert pool._free == 1
        pool.close()

    run_async(main)


# ---------------------------------------------------------------------------- hashes


def test_new_hashes_have_the_present_minimum_and_old_ones_verify() -> None:
    hashed = accounts.hash_password("secret")
    assert hashed.startswith("scrypt$16384$8$5$") and accounts.is_password("secret", hashed)
    old = "scrypt$16384$8$1$AAAAAAAAAAAAAAAAAAAAAA$" + _digest("secret", 1 << 14, 8, 1)
    large = "scrypt$131072$8$1$AAAAAAAAAAAAAAAAAAAAAA$" + _digest("secret", 1 << 17, 8, 1)
    for one in (old, large):
        assert accounts.is_password("secret", one) and not accounts.is_password("wrong", one)


def _digest(password: str, n: int, r: int, p: int) -> str:
    import hashlib

    digest = hashlib.scrypt(password.encode(), salt=bytes(16), n=n, r=r, p=p, maxmem=256 << 20, dklen=32)
    return base64.b64encode(digest).decode().rstrip("=")


def test_a_wrong_password_costs_the_same_work_for_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts with an old hash, with a new one, and names that do not exist."""
    path = tmp_path / "accounts"
    old = "scrypt$16384$8$1$AAAAAAAAAAAAAAAAAAAAAA$" + _digest("secret", 1 << 14, 8, 1)
    accounts.update_file(str(path), "old", accounts.format_line("old", old, ()))
    accounts.update_file(str(path), "new", accounts.format_line("new", accounts.hash_password("secret"), ()))
    file, work = accounts.AuthFile(str(path)), 0

    def counted(password: str, hashed: str) -> bool:
        nonlocal work
        work += accounts._cost(hashed)
        return False

    monkeypatch.setattr(accounts, "is_password", counted)
    costs = []
    for name in ("old", "new", "nobody"):
        before = work
        assert file(name, "wrong") is None
        costs.append(work - before)
    assert len(set(costs)) == 1


# ---------------------------------------------------------------------- on the wire


def plain(name: str, password: str) -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(f"\0{name}\0{password}".encode())


async def log_in(server: Any, source: str, name: str, password: str) -> str:
    client = await Client.connect(server, local_addr=(source, 0))
    await client.ask(b"EHLO x.test")
    reply = await client.ask(plain(name, password))
    client.close()
    return reply


def test_guesses_at_the_same_time_do_not_hold_other_log_ins_up(tmp_path: Path) -> None:
    """48 guesses from 48 addresses; an authenticator that takes a tenth of a second."""
    verified: list[str] = []

    def authenticator(name: str, password: str) -> bool:
        verified.append(name)
        time.sleep(0.1)
        return password == "right"

    async def main() -> None:
        options = {"store": "memory", "authenticator": authenticator, "auth_in_clear": True}
        async with serving(tmp_path, **options) as server:
            server._parts.context.hashing = HashPool(threads=1)
            assert (await log_in(server, "127.0.0.5", "bob", "right")).startswith("235")
            work = [asyncio.ensure_future(log_in(server, f"127.0.1.{n + 1}", f"name{n}", "wrong")) for n in range(48)]
            await until(lambda: len(verified) > 2)
            began = time.monotonic()
            # In front of those that wait, and other work of the loop's threads does not wait at all.
            assert (await log_in(server, "127.0.0.5", "bob", "right")).startswith("235")
            assert verified.index("bob", 1) < 8, verified
            assert time.monotonic() - began < 1.5
            replies = await asyncio.gather(*work)
            assert {reply[:9] for reply in replies} == {"535 5.7.8", "454 4.7.0"}
            assert sum(reply.startswith("535") for reply in replies) >= hashing.MAX_OTHERS

    run_async(main)


def test_an_application_that_logs_in_many_times_at_once_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        options = {
            "store": "memory",
            "authenticator": lambda name, password: password == "right",
            "auth_in_clear": True,
        }
        async with serving(tmp_path, **options) as server:
            replies = await asyncio.gather(*(log_in(server, "127.0.0.5", "app", "right") for _ in range(40)))
            assert all(reply.startswith("235") for reply in replies), replies

    run_async(main)


def test_a_blocked_guess_leaves_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        options = {"store": "memory", "authenticator": lambda name, password: False, "auth_in_clear": True}
        async with serving(tmp_path, **options) as server:
            server._parts.context.guess_delay_s = 0.0
            for n in range(guesses.MAX_OF_NETWORK):
                assert (await log_in(server, "127.0.0.5", f"u{n}", "x")).startswith("535")
            assert (await log_in(server, "127.0.0.5", "u", "x")).startswith("454 4.7.0")

    run_async(main)
    words = [getattr(record, "reason", "") for record in caplog.records]
    assert words.count("bad-credentials") == guesses.MAX_OF_NETWORK and words.count("auth-blocked") == 1
