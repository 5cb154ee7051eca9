"""Faults of the queue's stores: SQLite and PostgreSQL queries, and what they have in common."""

from __future__ import annotations

from tests.mutants.model import fault

_SQLITE = "queue/sql/sqlite/queries.sql"
_POSTGRES = "queue/sql/postgres/queries.sql"
_MEMORY = "tests/queue/test_store_against_memory.py::test_store_answers_as_the_store_in_memory"

FAULTS = (
    fault(
        "held mail is claimed",
        _SQLITE,
        "UPDATE recipient SET state = 'held', due_at = NULL\nWHERE message_id",
        "UPDATE recipient SET state = 'held'\nWHERE message_id",
        _MEMORY,
    ),
    fault(
        "a message is finished before its last recipient",
        _SQLITE,
        "(state IN ('queued', 'deferred', 'held') OR leased)",
        "(state IN ('queued', 'held') OR leased)",
        _MEMORY,
    ),
    fault(
        "held mail is finished",
        _SQLITE,
        "(state IN ('queued', 'deferred', 'held') OR leased)",
        "(state IN ('queued', 'deferred') OR leased)",
        _MEMORY,
    ),
    fault(
        "what was cancelled in flight and deferred comes back",
        _SQLITE,
        "WHERE message_id = s.column1 AND recipient.number = s.column2 AND recipient.state IN ('queued', 'deferred');",
        "WHERE message_id = s.column1 AND recipient.number = s.column2 AND recipient.state <> 'held';",
        _MEMORY,
    ),
    fault(
        "cancel forgets what is held",
        _SQLITE,
        "WHERE message_id = ? AND state IN ('queued', 'deferred', 'held');\n\n-- name: wake",
        "WHERE message_id = ? AND state IN ('queued', 'deferred');\n\n-- name: wake",
        _MEMORY,
    ),
    fault(
        "a retry of what is leased",
        _SQLITE,
        "UPDATE recipient SET due_at = ?1 WHERE message_id = ?2 AND state IN ('queued', 'deferred') AND NOT leased;",
        "UPDATE recipient SET due_at = ?1 WHERE message_id = ?2 AND state IN ('queued', 'deferred');",
        _MEMORY,
    ),
    fault(
        "a paused next hop is claimed",
        _SQLITE,
        "  AND coalesce(next_hop, '') NOT IN (SELECT value FROM json_each(?))\n",
        "  AND ? IS NOT NULL\n",
        _MEMORY,
    ),
    fault(
        "attempts are not counted",
        _SQLITE,
        "SET state = s.column3, due_at = s.column4, leased = 0, attempts = attempts + s.column5,",
        "SET state = s.column3, due_at = s.column4, leased = 0, attempts = attempts + min(s.column5, 0),",
        _MEMORY,
    ),
    fault(
        "expired mail of a next hop that works is given up",
        _SQLITE,
        "  AND (? OR coalesce(next_hop, '') IN (SELECT value FROM json_each(?)))\nRETURNING",
        "  AND (? OR ? IS NOT NULL)\nRETURNING",
        _MEMORY,
    ),
    fault(
        "wake ignores the stage",
        _SQLITE,
        "(last_stage IN (SELECT value FROM json_each(?3)) OR (last_stage IS NULL AND attempts = 0))",
        "(?3 IS NOT NULL)",
        _MEMORY,
    ),
    fault(
        "search by sender ignores the null reverse-path",
        "queue/sqlite_read.py",
        '    if query.sender == "<>":\n        add("reverse_path IS NULL")\n    elif',
        "    if",
        _MEMORY,
    ),
    fault(
        "search filters are for any recipient each",
        "queue/sqlite_read.py",
        "{' AND '.join(inner)}",
        "{' OR '.join(inner)}",
        _MEMORY,
    ),
    fault(
        "a finished message is shown among the waiting",
        "queue/sqlite_read.py",
        '        add("finished_at IS NULL")\n',
        "        pass\n",
        _MEMORY,
    ),
    fault(
        "history goes too early",
        _SQLITE,
        "WHERE finished_at < ? ORDER BY finished_at LIMIT ?",
        "WHERE finished_at < ? + 100 ORDER BY finished_at LIMIT ?",
        _MEMORY,
    ),
    fault(
        "PostgreSQL: outcomes of a lease that is lost are settled",
        _POSTGRES,
        "d.number = s.number AND d.owner = %(me)s AND d.epoch = s.epoch\n  JOIN recipient",
        "d.number = s.number AND d.owner = %(me)s\n  JOIN recipient",
        "tests/hostile/test_h_shared_queue.py::test_an_outcome_that_is_repeated_does_not_end_a_later_lease",
        "tests/hostile/test_h_shared_queue.py",
    ),
    fault(
        "PostgreSQL: a message is finished while a recipient is leased",
        _POSTGRES,
        "    AND NOT EXISTS (SELECT 1 FROM due d WHERE d.message_id = u.id)\n",
        "",
        _MEMORY,
    ),
    fault(
        "PostgreSQL: held mail is finished",
        _POSTGRES,
        "r.state IN ('queued', 'deferred', 'held'))\n    AND NOT EXISTS",
        "r.state IN ('queued', 'deferred'))\n    AND NOT EXISTS",
        _MEMORY,
    ),
    fault(
        "PostgreSQL: leases of every node are renewed",
        _POSTGRES,
        "WHERE owner = %(me)s AND message_id = ANY(%(ids)s);\n\n-- name: dead_nodes",
        "WHERE message_id = ANY(%(ids)s);\n\n-- name: dead_nodes",
        "tests/queue/test_postgres_leases.py",
    ),
    fault(
        "PostgreSQL: what is leased by another node is claimed",
        _POSTGRES,
        "    AND d.owner IS NULL AND d.due_at <= c.now AND d.next_hop <> ALL (%(skip)s::text[])\n  FOR UPDATE",
        "    AND d.due_at <= c.now + 1000 AND d.next_hop <> ALL (%(skip)s::text[])\n  FOR UPDATE",
        _MEMORY,
    ),
)
