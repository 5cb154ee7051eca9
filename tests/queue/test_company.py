"""When a commit begins: alone at once, with others once they have come, and in which thread."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.errors import StoreError
from pillarbox.mail.content import Content
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.company import (
    EXPECTED_S,
    LONGEST_WAIT_S,
    MOST_BYTES,
    MOST_MESSAGES,
    MOST_ROWS,
    MOST_SKIPPED,
    PAUSE_FACTOR,
    SLOW_COMMITS,
    SLOW_PAUSE_S,
    SLOW_S,
    STALLED_S,
    Company,
)
from pillarbox.queue.sqlite import SqliteStore
from tests.conftest import Client, run_async, serving, until
from tests.queue.test_commit_spool import accepted
from tests.queue.test_store_contract import message


def test_alone_is_at_once() -> None:
    company = Company()
    assert not company.is_worth_waiting(1, 0.0)
    company.latest.sessions = 1
    assert not company.is_worth_waiting(1, 0.0)


def test_others_are_waited_for_until_they_have_come() -> None:
    company = Company()
    company.latest.sessions = 3
    assert company.is_worth_waiting(1, 0.0) and company.is_worth_waiting(2, 0.0)
    assert not company.is_worth_waiting(3, 0.0)


def test_a_quiet_loop_ends_the_wait() -> None:
    company = Company()
    company.latest.sessions = 9
    assert company.is_worth_waiting(1, 0.0) and not company.is_worth_waiting(1, 0.0)
    company = Company()
    company.latest.sessions = 9
    assert company.is_worth_waiting(1, 0.0)
    # Somebody was answered, or has brought a message.
    company.moved += 1
    assert (
        company.is_worth_waiting(1, 0.0) and company.is_worth_waiting(2, 0.0) and not company.is_worth_waiting(2, 0.0)
    )


def test_nobody_waits_long_nor_for_many() -> None:
    company = Company()
    company.latest.sessions = 10 * MOST_MESSAGES
    assert company.is_worth_waiting(1, 7.0)
    company.moved += 1
    assert not company.is_worth_waiting(1, 7.0 + LONGEST_WAIT_S)
    company.begin(2)
    assert company.is_worth_waiting(1, 7.05) and not company.is_worth_waiting(MOST_MESSAGES, 7.05)


def test_who_waits_in_vain_waits_less_and_less() -> None:
    company = Company()
    company.latest.sessions = 2
    waits = []
    for _ in range(2 + 3 + 5 + 9):
        waits.append(company.is_worth_waiting(1, 0.0))
        company.begin(1)
    assert [n for n, waited in enumerate(waits) if waited] == [0, 2, 5, 10]
    for _ in range(10 * MOST_SKIPPED):
        company.is_worth_waiting(1, 0.0)
        company.begin(1)
    skipped = 0
    while not company.is_worth_waiting(1, 0.0):
        skipped += 1
        company.begin(1)
    assert skipped <= MOST_SKIPPED
    # Outcomes alone are no commit that somebody waited for; and one who came makes it worth while again.
    company.begin(2)
    assert company.is_worth_waiting(1, 0.0)


def test_a_message_waits_asleep_for_those_who_have_just_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So long that no machine is too slow for it: what ends the wait is that everybody has come.
    monkeypatch.setattr("pillarbox.queue.commit.LOOK_S", 5.0)
    monkeypatch.setattr("pillarbox.queue.company.LONGEST_WAIT_S", 10.0)

    async def main() -> None:
        async with serving(tmp_path, paused=True) as server:
            parts = server._parts
            company, before = parts.commit.company, parts.commit.commits
            first, second = await Client.connect(server), await Client.connect(server)
            await until(lambda: company.expected == 2)
            for client in (first, second):
                await client.ask(b"EHLO x.test")
            both = await asyncio.gather(first.transaction(b"a\r\n"), second.transaction(b"b\r\n"))
            assert all(reply.startswith("250") for reply in both)
            assert parts.commit.commits == before + 1 and company.expected == 0
            first.close()
            second.close()
            await until(lambda: not parts.context.sessions)
            assert company.expected == 0

    run_async(main)


def test_who_is_silent_is_soon_not_expected_any_more() -> None:
    company = Company()
    company.age(0.0)
    company.latest.sessions = 5000
    counted = []
    for now in range(1, 100):
        # Each 20 ms a commit of twenty messages.
        company.is_worth_waiting(20, now / 50)
        company.begin(20)
        counted.append(company.expected)
    gone_at = (counted.index(0) + 1) / 50
    assert EXPECTED_S <= gone_at <= 2 * EXPECTED_S and not any(counted[counted.index(0) :])


def test_on_a_quiet_server_the_sweep_forgets_the_silent(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as server:
            company = server._parts.commit.company
            silent = await Client.connect(server)
            await silent.ask(b"EHLO x.test")
            assert company.expected == 1
            await until(lambda: company.expected == 0)
            # It speaks again: from now on a message is to be expected, and it is counted once.
            await silent.ask(b"MAIL FROM:<a@b.test>")
            assert company.expected == 1
            silent.close()
            await until(lambda: company.expected == 0)

    run_async(main)


def test_who_speaks_again_is_expected_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(tmp_path, paused=True) as server:
            company = server._parts.commit.company
            client = await Client.connect(server)

            def twice_older() -> None:
                for _ in range(2):
                    company.age(company._latest_until)

            twice_older()
            assert company.expected == 0
            for line in (b"EHLO x.test", b"MAIL FROM:<a@b.test>"):
                await client.ask(line)
                assert company.expected == 1
                twice_older()
            for line in (b"RCPT TO:<c@d.test>", b"DATA"):
                await client.ask(line)
            # Its message has taken its time; while it waits for its commit it counts all the same.
            seen: list[tuple[int, int]] = []
            real = Company.is_complete

            def is_complete(self: Company, messages: int) -> bool:
                seen.append((messages, self.expected))
                return real(self, messages)

            monkeypatch.setattr(Company, "is_complete", is_complete)
            assert (await client.ask(b"hello\r\n.")).startswith("250")
            assert seen and all(messages == 1 == expected for messages, expected in seen) and company.expected == 0
            client.close()

    run_async(main)


def test_thousands_of_silent_sessions_keep_no_message_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(tmp_path, paused=True, max_sessions=1000, max_sessions_per_peer=1000) as server:
            clock = time.monotonic()
            monkeypatch.setattr("pillarbox.queue.commit.time", SimpleNamespace(monotonic=lambda: clock))
            company = server._parts.commit.company
            worth: list[bool] = []
            real = Company.is_worth_waiting

            def is_worth_waiting(self: Company, messages: int, now: float) -> bool:
                worth.append(real(self, messages, now))
                return worth[-1]

            monkeypatch.setattr(Company, "is_worth_waiting", is_worth_waiting)
            silent = [await Client.connect(server) for _ in range(300)]
            half_way = await opened(server)
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            for number in range(20):
                clock += EXPECTED_S / 2
                if number == 6:
                    # Those who came are twice EXPECTED_S old, and more.
                    assert company.expected == 0
                    worth.clear()
                assert (await client.transaction(b"hello\r\n")).startswith("250")
            assert not any(worth)
            for other in (client, half_way, *silent):
                other.close()
            await until(lambda: not server._parts.context.sessions)

    run_async(main)


def test_large_batches_and_slow_disks_are_not_for_the_loop() -> None:
    company = Company()
    assert company.suits_loop(MOST_BYTES, MOST_ROWS, 0.0)
    assert not company.suits_loop(MOST_BYTES + 1, 1, 0.0) and not company.suits_loop(1, MOST_ROWS + 1, 0.0)
    for seconds in (SLOW_S / 2, SLOW_S * 2, SLOW_S / 2, SLOW_S * 2):
        # One hiccup is no slow disk.
        company.took(seconds, 1.0)
        assert company.suits_loop(0, 0, 1.0)
    company.took(SLOW_S * 2, 1.0)
    assert not company.suits_loop(0, 0, 1.1) and company.suits_loop(0, 0, 1.0 + SLOW_PAUSE_S)


def test_a_stall_is_worse_than_a_hiccup() -> None:
    company = Company()
    company.took(2 * STALLED_S, 1.0)
    assert not company.suits_loop(0, 0, 1.0 + SLOW_PAUSE_S)
    assert company.suits_loop(0, 0, 1.0 + 2 * STALLED_S * PAUSE_FACTOR)


def test_which_thread_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        threads: list[str] = []
        real = store.commit

        def commit_(accepts: Any, settles: Any) -> None:
            threads.append(threading.current_thread().name)
            real(accepts, settles)

        monkeypatch.setattr(store, "commit", commit_)
        commit = GroupCommit(store)
        commit.start()
        await accepted(commit, message("small"))
        await accepted(commit, message("large", content=Content(b"x" * (MOST_BYTES + 1))))
        await accepted(commit, message("many", *(f"u{n}@d.test" for n in range(MOST_ROWS + 1))))
        for _ in range(SLOW_COMMITS):
            commit.company.took(SLOW_S * 2, time.monotonic())
        await accepted(commit, message("behind a slow one"))
        assert threads == ["MainThread", *["pillarbox-writer"] * 3]
        await commit.stop()
        store.close()

    run_async(main)


def test_what_fails_is_tried_again_in_the_writer_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        threads: list[str] = []
        real = store.commit

        def flaky(accepts: Any, settles: Any) -> None:
            threads.append(threading.current_thread().name)
            if len(threads) == 1:
                raise StoreError("a hiccup")
            real(accepts, settles)

        monkeypatch.setattr(store, "commit", flaky)
        commit = GroupCommit(store)
        commit.start()
        assert await accepted(commit, message("A"), message("B")) == [None, None]
        assert threads == ["MainThread", "pillarbox-writer"] and store.counts() == {"queued": 2}
        await commit.stop()
        store.close()

    run_async(main)


def test_one_that_cannot_be_told_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        heard: list[BaseException | None] = []
        commit.accept(message("A"), lambda error: 1 // 0)  # type: ignore[arg-type, return-value]
        commit.accept(message("B"), heard.append)
        await commit.stop()
        assert heard == [None] and store.counts() == {"queued": 2}
        store.close()

    run_async(main)


async def opened(server: MailServer) -> Client:
    """A client with a transaction that waits for its content."""
    client = await Client.connect(server)
    for line in (b"EHLO x.test", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
        assert (await client.ask(line))[0] in "23"
    return client


def test_twenty_sessions_share_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine is too slow for it.
    monkeypatch.setattr("pillarbox.queue.company.EXPECTED_S", 600.0)

    async def main() -> None:
        async with serving(tmp_path) as server:
            clients = await asyncio.gather(*(opened(server) for _ in range(20)))
            commit = server._parts.commit
            assert commit.company.expected == 20
            before = commit.commits
            replies = await asyncio.gather(*(client.ask(b"Subject: x\r\n\r\nhello\r\n.") for client in clients))
            assert all(reply.startswith("250") for reply in replies)
            assert commit.commits - before <= 4 and commit.company.expected == 0
            for client in clients:
                client.close()

    run_async(main)


ENDS = {
    "RSET": b"RSET",
    "EHLO": b"EHLO again.test",
    "QUIT": b"QUIT",
    "refused": b"half a line end\nis refused\r\n.",
    "another transaction": b"RSET\r\nMAIL FROM:<a@b.test>\r\nRSET",
    "hung up": b"",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_transaction_that_ends_without_a_message_is_not_waited_for(
    tmp_path: Path, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not end.startswith(b"EHLO"):
        # Not by age. (Who greets anew is expected anew, and then is silent: the sweep's work.)
        monkeypatch.setattr("pillarbox.queue.company.EXPECTED_S", 600.0)

    async def main() -> None:
        async with serving(tmp_path) as server:
            company = server._parts.commit.company
            client = await Client.connect(server)
            for line in (b"EHLO x.test", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>"):
                await client.ask(line)
            assert company.expected == 1
            if end.endswith(b"."):
                assert (await client.ask(b"DATA")).startswith("354")
            if end:
                client.send(end + b"\r\n")
            else:
                client.close()
            await until(lambda: company.expected == 0)
            client.close()

    run_async(main)
