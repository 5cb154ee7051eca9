"""Random lives of a queue: SQLite and PostgreSQL answer every question as the store in memory does, which has no SQL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import ACTIVE, STATES, Action, Message, Query, Settled, Settlement
from pillarbox.queue.postgres import PostgresStore
from pillarbox.queue.sqlite import SqliteStore

NOW = 1_800_000_000.0
HOPS = ("relay", "mx:a.test", "mx:b.test")
STAGES = ("connect", "mail", "rcpt", "end of content")


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: Any = SqliteStore(str(tmp_path))
    if request.param == "postgres":
        made = PostgresStore(request.getfixturevalue("database"), str(tmp_path), has_own_clock=False)
    made.open()
    yield made
    made.close()


def is_open(recipient: Any) -> bool:
    """It waits for its time. Of what is leased, held or final the stores keep times of their own."""
    return recipient.state in ACTIVE and not recipient.is_leased


class Lives:
    """The same life in two stores. Times never repeat, so that the order of everything is known."""

    def __init__(self, store: Any, rng: random.Random) -> None:
        self.rng = rng
        self.stores = (store, MemoryStore())
        self.now = NOW
        self.keys: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.leased: list[tuple[str, int]] = []
        # For a failure: what was asked last.
        self.asked: Any = None

    def both(self, act: Any, *, in_order: bool = True) -> Any:
        """Does it in both; their answers are the same."""
        answers = []
        for number, one in enumerate(self.stores):
            with one.transaction():
                answers.append(act(one, self.keys[number]))
        if not in_order:
            answers = [sorted(answer) for answer in answers]
        assert answers[0] == answers[1], self.asked
        return answers[0]

    def accept(self) -> None:
        rng, uid = self.rng, f"M{len(self.keys[0])}"
        hops = [rng.choice(HOPS) for _ in range(rng.randint(1, 3))]
        sender = rng.choice([None, "Anna@A.test", "ben@b.test"])
        is_held, lease = rng.random() < 0.15, rng.random() < 0.4
        later = self.now + rng.choice([0.0, 50.0])

        def act(store: Any, keys: dict[str, int]) -> None:
            envelope = Envelope(sender, [], "8BITMIME", False, "HDRS", "id")
            for number, _ in enumerate(hops):
                envelope.add(f"r{number}@{'Far' if number else 'near'}.test", ("FAILURE",), "rfc822;o@d.test")
            message = Message(uid, envelope, Content(uid.encode()), self.now, self.now + 60, uid, {})
            for recipient, hop in zip(message.recipients, hops, strict=True):
                recipient.next_hop = hop
            if is_held:
                message.hold("looked at")
            elif lease:
                message.leased_until = self.now + 1000
            else:
                message.due_at = later
            store.accept([message])
            keys[uid] = message.key

        self.both(act)
        if lease and not is_held:
            self.leased += [(uid, number) for number in range(len(hops))]

    def claim(self) -> None:
        skip = self.rng.sample(HOPS, self.rng.choice([0, 0, 1, 2]))
        is_expired, only = self.rng.random() < 0.4, self.rng.choice([None, list(HOPS[:1]), [*HOPS]])

        def act(store: Any, keys: dict[str, int]) -> list[Any]:
            until = self.now + 1000
            if is_expired:
                found = store.claim_expired(50, self.now, until, only)
            else:
                found = store.claim(50, self.now, until, 1 << 20, skip)
            return [
                (m.uid, r.number, r.address, r.state, r.attempts, r.next_hop, r.last_reply, r.is_delay_reported)
                for m in found
                for r in m.recipients
            ]

        self.leased += [(row[0], row[1]) for row in self.both(act, in_order=False)]

    def settle(self) -> None:
        if not self.leased:
            return
        uid, number = self.leased.pop(self.rng.randrange(len(self.leased)))
        state = self.rng.choice(["delivered", "delivered", "deferred", "deferred", "bounced", "expired", "queued"])
        is_open = state in ("deferred", "queued")
        # What was steered meanwhile keeps its next hop, or gets that of the attempt: both are right.
        (kept,) = (r for r in self.stores[1].get(uid).recipients if r.number == number)
        hop = self.rng.choice([None, *HOPS]) if kept.state in ACTIVE else None
        settled = Settled(
            number, state, "deferred" if is_open else state, self.now + self.rng.choice([5, 60]) if is_open else None,
            f"{250 if state == 'delivered' else 451} 2.0.0 {state}", self.rng.choice(STAGES), hop,
            "mx.test:25", self.now - 0.5, 0.25, state != "queued", self.rng.random() < 0.2,
        )  # fmt: skip
        self.both(lambda store, keys: bool(store.settle([Settlement(keys[uid], [settled], self.now)])))

    def steer(self) -> None:
        action, rng = self.rng.choice(list(Action)), self.rng
        query = rng.choice(
            [
                Query(uids=[f"M{rng.randrange(max(len(self.keys[0]), 1))}"]),
                Query(state=rng.choice(STATES), recipient=rng.choice([None, "r1@"])),
                Query(next_hop=rng.choice(HOPS), received_before=self.now - 30),
            ]
        )
        self.asked = (action, query)
        self.both(lambda store, keys: sorted(store.change(action, query, self.now)))

    def wake(self) -> None:
        hop, stages = self.rng.choice(HOPS), self.rng.sample(STAGES, 2)
        self.both(lambda store, keys: store.wake(hop, stages, self.now))

    def renew(self) -> None:
        uids = {uid for uid, _ in self.leased[:3]}
        self.both(lambda store, keys: store.renew({keys[uid] for uid in uids}, self.now + 1000))

    def purge(self) -> None:
        before, keep = self.now - self.rng.choice([10, 100, 1000]), self.rng.choice([1, 5, 1000])
        self.both(lambda store, keys: sorted(store.purge(before, keep, 100)))

    def compare(self) -> None:
        """Every question that people and programs ask."""
        rng = self.rng
        queries = [
            Query(),
            Query(is_all=True),
            Query(is_all=True, is_newest_first=True, limit=3),
            Query(state=rng.choice(STATES), is_all=rng.random() < 0.5),
            Query(sender=rng.choice(["<>", "anna", "b.test", "nobody"])),
            Query(recipient=rng.choice(["far", "r0@", "R1@FAR.test"]), is_all=True),
            Query(next_hop=rng.choice(HOPS), state=rng.choice(["queued", "deferred"])),
            Query(received_before=self.now - 20, limit=2),
            Query(most_recipients=3),
        ]
        for query in queries:
            told = [[self.told(one, view) for view in one.search(query)] for one in self.stores]
            assert told[0] == told[1], query
        store, memory = self.stores
        assert store.counts() == memory.counts()
        assert sorted(store.next_hops(100)) == sorted(memory.next_hops(100))
        skip = rng.sample(HOPS, rng.choice([0, 1]))
        due = [
            r.due_at
            for view in memory.search(Query())
            for r in view.recipients
            if is_open(r) and r.next_hop not in skip
        ]
        if isinstance(store, PostgresStore) or due:
            # A lease's end is a due time in SQLite, and no due time of PostgreSQL.
            expected = min(due, default=None)
            found = store.next_due(skip)
            assert found == expected or (found is not None and found == memory.next_due(skip))
        for uid in self.keys[0]:
            views = [one.get(uid) for one in self.stores]
            assert (views[0] is None) is (views[1] is None), uid
            if views[0] is not None:
                assert self.told(store, views[0]) == self.told(memory, views[1])
                assert views[0].attempts == views[1].attempts, uid
            contents = [content and content.read() for content in (one.content(uid) for one in self.stores)]
            assert contents[0] == contents[1], uid

    @staticmethod
    def told(store: Any, view: Any) -> Any:
        recipients = [
            (
                r.number,
                r.address,
                r.state,
                r.attempts,
                is_open(r) and r.due_at,
                r.next_hop,
                r.last_reply,
                r.last_stage,
                r.is_leased,
            )
            for r in view.recipients
        ]
        return (view.uid, view.reverse_path, view.state, view.received_at, view.finished_at, recipients)


@pytest.mark.parametrize("seed", range(8))
def test_store_answers_as_the_store_in_memory(store: Any, seed: int) -> None:
    lives = Lives(store, random.Random(seed))
    acts = {
        lives.accept: 6, lives.claim: 5, lives.settle: 9, lives.steer: 3, lives.wake: 1, lives.renew: 1, lives.purge: 1,
    }  # fmt: skip
    for step in range(150):
        lives.now += lives.rng.choice([1.0, 3.0, 10.0])
        lives.rng.choices(list(acts), list(acts.values()))[0]()
        if step % 5 == 0:
            lives.compare()
    lives.compare()
    assert len(lives.keys[0]) > 15
