"""What steers a queue on PostgreSQL: the operator's verbs, connections and permits of next hops, times. In a transaction."""

from __future__ import annotations

from typing import Any

from .clocks import AHEAD_S, EARLIEST, Bounds
from .model import Action
from .pgconnect import Connection
from .pgnode import SQL
from .slots import HORIZON_S, REFRESH_S, Wants


def bound_times(db: Connection, bounds: Bounds, now: float | None) -> int:
    """See Store.bound_times; `now` None is the database's clock.

    The steps of this node's clock do not matter: due times are the database's.
    """
    given = {"now": now, "longest": bounds.latest_due_at - bounds.now, "ahead": AHEAD_S, "earliest": EARLIEST}
    row = db.execute(SQL["bound_times"], given).fetchone()
    assert row is not None
    late, aged = row
    if aged:
        db.execute(SQL["copy_expiry"], {"ids": aged})
    if late:
        db.execute(SQL["notify"], {"what": "due"})
    return int(late) + len(aged)


def change(db: Connection, found: list[tuple[int, str]], action: Action, now: float | None) -> list[str]:
    """Steers these messages, (id, uid), and notifies the nodes that have leased them. Returns the uids that changed."""
    ids = [key for key, _ in found]
    db.execute(SQL["lock_all_messages"], {"ids": ids})
    db.execute(SQL["lock_all_due"], {"ids": ids})
    given = {"ids": ids, "now": now}
    changed = {row[0] for row in db.execute(SQL[action.value], given).fetchall()}
    if action in (Action.HOLD, Action.CANCEL):
        db.execute(SQL["withdraw_due"], given)
    if action is Action.CANCEL:
        db.execute(SQL["finish"], given)
    if changed:
        db.execute(SQL["notify"], {"what": "changed"})
    return [uid for key, uid in found if key in changed]


def lease_slots(db: Connection, me: int, wants: Wants, limit: int) -> dict[str, int]:
    """See queue.slots.Lender."""
    given = {
        "next_hop": list(wants),
        "wanted": [wanted for wanted, _ in wants.values()],
        "used": [used for _, used in wants.values()],
    }
    db.execute(SQL["lock_slots"])
    return dict(db.execute(SQL["lease_slots"], {**given, "me": me, "limit": limit}).fetchall())


def lease_turns(db: Connection, me: int, wants: dict[str, int], interval_s: float) -> dict[str, tuple[float, int]]:
    """See queue.slots.Lender; behind lease_slots, whose lock it needs."""
    given: dict[str, Any] = {"next_hop": list(wants), "wanted": list(wants.values()), "me": me}
    given |= {"interval": interval_s, "horizon": HORIZON_S, "every": REFRESH_S}
    rows = db.execute(SQL["lease_turns"], given).fetchall()
    return {hop: (early, turns) for hop, early, turns in rows}
