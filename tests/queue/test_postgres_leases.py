"""Leases of a queue that several nodes share: only the owner renews, settles and keeps them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pillarbox.queue.pgnode import SILENCE, free
from pillarbox.queue.postgres import PostgresStore
from tests.queue.test_store_contract import NOW, accept, claim, done, message, settle


@pytest.fixture
def nodes(tmp_path: Path, database: str) -> Iterator[tuple[PostgresStore, PostgresStore]]:
    made = [PostgresStore(database, str(tmp_path / name), has_own_clock=False) for name in ("one", "two")]
    for store in made:
        store.open()
    yield made[0], made[1]
    for store in made:
        store.close()


def leases(store: PostgresStore) -> list[Any]:
    with psycopg.connect(store.url, autocommit=True) as db:
        return db.execute("SELECT owner, lease_until, epoch FROM due ORDER BY message_id, number").fetchall()


def test_due_message_is_leased_by_one_node_only(nodes: Any) -> None:
    one, two = nodes
    accept(one, message("A"), message("B"))
    assert [m.uid for m in claim(one, limit=1)] == ["A"]
    assert [m.uid for m in claim(two)] == ["B"]
    assert claim(one) == [] and claim(two) == []
    assert [owner for owner, _, _ in leases(one)] == [one.heart.me, two.heart.me]


def test_lease_is_renewed_by_its_owner_only(nodes: Any) -> None:
    one, two = nodes
    accept(one, message("A"))
    (mine,) = claim(one)
    before = leases(one)
    with two.transaction():
        two.renew({mine.key}, NOW + 5000)
    assert leases(one) == before
    with one.transaction():
        one.renew({mine.key}, NOW + 5000)
    assert leases(one)[0][1] > before[0][1]


def test_outcome_of_a_lease_that_another_node_has_taken_over_changes_nothing(nodes: Any) -> None:
    one, two = nodes
    accept(one, message("A"))
    (mine,) = claim(one)
    with psycopg.connect(one.url, autocommit=True) as db:
        assert free(db, [one.heart.me], 0, NOW) == 1
    (theirs,) = claim(two)
    assert theirs.key == mine.key and theirs.recipients[0].attempts == 1
    settle(one, mine.key, done(0, "bounced"))
    view = two.get("A")
    assert view.recipients[0].state in ("queued", "deferred") and view.recipients[0].is_leased
    settle(two, mine.key, done(0, "delivered"))
    assert two.get("A").recipients[0].state == "delivered"


def test_leases_of_living_nodes_are_not_freed_with_those_of_the_dead(nodes: Any) -> None:
    one, two = nodes
    accept(one, message("A"), message("B"))
    claim(one, limit=1), claim(two, limit=1)
    with psycopg.connect(one.url, autocommit=True) as db:
        assert free(db, [one.heart.me], two.heart.me, NOW) == 1
    assert [owner for owner, _, _ in leases(two)] == [None, two.heart.me]
    view = two.get("A")
    assert [attempt.outcome for attempt in view.attempts] == ["ambiguous"] and not two.get("B").attempts


def test_operator_holds_what_another_node_has_leased_and_its_outcome_stands(nodes: Any) -> None:
    from pillarbox.queue.model import Action, Query

    one, two = nodes
    accept(one, message("A"), message("B"))
    mine = claim(one)
    with two.transaction():
        assert sorted(two.change(Action.HOLD, Query(), NOW)) == ["A", "B"]
    settle(one, mine[0].key, done(0, "delivered"))
    settle(one, mine[1].key, done(0, "deferred", NOW + 5))
    assert [two.get(uid).recipients[0].state for uid in ("A", "B")] == ["delivered", "held"]
    assert claim(two, now=NOW + 10**6) == []


def test_node_that_has_not_beaten_in_time_takes_itself_for_dead(nodes: Any) -> None:
    """Before the others do: they wait for the whole lease, it begins nothing after three quarters of it."""
    heart = nodes[0].heart
    left = heart._alive_until - time.monotonic()
    assert heart.is_alive and 0 < left <= heart.lease_s * SILENCE < heart.lease_s
    for seconds, expected in ((5.0, True), (-0.001, False), (-60.0, False)):
        heart._alive_until = time.monotonic() + seconds
        assert heart.is_alive is expected
