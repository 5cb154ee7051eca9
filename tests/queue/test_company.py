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
    company.latest.sessions = 5000
    waited = {now for now in range(100) if company.is_worth_waiting(20, now / 50) or company.begin(20)}
    # Each 20 ms a commit of 20 messages: those who came within the first of them are waited for twice EXPECTED_S at most.
    assert waited and max(waited) / 50 <= 2 * EXPECTED_S
    assert company.expected == 0


def test_thousands_of_silent_sessions_keep_no_message_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(tmp_path, paused=True, max_sessions=1000, max_sessions_per_peer=1000) as server:
            clock = 1000.0
            monkeypatch.setattr("pillarbox.queue.commit.time", SimpleNamespace(monotonic=lambda: clock))
            company = server._parts.commit.company
            worth, asked = company.is_worth_waiting, 0

            def counted(messages: int, now: float) -> bool:
                nonlocal asked
                asked += (is_worth := worth(messages, now))
                return is_worth

            monkeypatch.setattr(Company, "is_worth_waiting", lambda self, messages, now: counted(messages, now))
            silent = [await Client.connect(server) for _ in range(300)]
            half_way = await opened(server)
            await until(lambda: company.expected == 301)
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            for _ in range(20):
                clock += EXPECTED_S / 2
                assert (await client.transaction(b"hello\r\n")).startswith("250")
            # Within the first 2 * EXPECTED_S they may be waited for; then nobody asks whether to.
            assert company.expected == 0 and asked <= 4
            for other in (client, half_way, *silent):
                other.close()
            await until(lambda: not server._parts.context.sessions)
            assert company.expected == 0

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


def test_twenty_sessions_share_commits(tmp_path: Path) -> None:
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
    "QUIT": b"QUIT",
    "refused": b"half a line end\nis refused\r\n.",
    "another transaction": b"RSET\r\nMAIL FROM:<a@b.test>\r\nRSET",
    "hung up": b"",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_transaction_that_ends_without_a_message_is_not_waited_for(tmp_path: Path, end: bytes) -> None:
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
