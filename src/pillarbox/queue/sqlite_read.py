"""Looking into a SQLite queue: views, searches, counts. Works on any connection, also a read-only one.

Must not change anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import apsw

from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from .model import Attempt, Message, Query, Recipient, View, first_page
from .sql import named_queries

SQL = named_queries("sqlite")
# How long another process's lock is waited for.
BUSY_MS = 5000
# Compiled statements that are kept.
STATEMENTS = 256
# So many of the first in line are looked at for one whose next hop is not skipped, before the index of next hops is.
WITHIN = 10_000
_COLUMNS = "id, uid, reverse_path, size_bytes, received_at, expires_at, subject, facts, finished_at"


def connect(path: str, *, is_read_only: bool) -> apsw.Connection:
    """A connection with the pragmas that every one of ours has."""
    flags = apsw.SQLITE_OPEN_READONLY if is_read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    # SQLite refuses a link anywhere in the path; links above the data directory are the operator's own.
    folder, name = os.path.split(path)
    path = os.path.join(os.path.realpath(folder), name)
    connection = apsw.Connection(path, flags=flags | apsw.SQLITE_OPEN_NOFOLLOW, statementcachesize=STATEMENTS)
    connection.set_busy_timeout(BUSY_MS)
    # SQLite's own lower() knows ASCII only.
    connection.create_scalar_function("casefold", _casefold, 1, deterministic=True)
    return connection


def _casefold(*values: Any) -> str:
    return str(values[0]).casefold()


class SqliteReader:
    """The reading verbs of a Store over one connection; `spool` is the folder of the spool files."""

    def __init__(self, connection: apsw.Connection, spool: str) -> None:
        self._db = connection
        self._spool = spool
        # Where the next hops begin that have not had their turn, while those that are skipped are first in line.
        self._after = ""

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()

    def rows(self, sql: str, bindings: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, by text."""
        return self._db.execute(sql, tuple(bindings))

    def get(self, uid: str) -> View | None:
        """One message with all its recipients and attempts."""
        for row in self.rows(f"SELECT {_COLUMNS} FROM message WHERE uid = ?", (uid,)):
            view = self._view(row)
            view.attempts = [Attempt(*attempt) for attempt in self.rows(SQL["attempts_of"], (row[0],))]
            return view
        return None

    def envelope(self, uid: str) -> Envelope | None:
        """Reverse-path and parameters, as they came."""
        sql = "SELECT reverse_path, body, smtputf8, ret, envid FROM message WHERE uid = ?"
        for reverse_path, body, smtputf8, ret, envid in self.rows(sql, (uid,)):
            return Envelope(reverse_path, [], body, bool(smtputf8), ret, envid)
        return None

    def search(self, query: Query) -> list[View]:
        """Messages, oldest first, with all their recipients."""
        where, bindings = _conditions(query)
        limit = f" LIMIT {int(query.limit)}" if query.limit is not None else ""
        order = " DESC" if query.is_newest_first else ""
        sql = f"SELECT {_COLUMNS} FROM message WHERE {where} ORDER BY id{order}{limit}"
        return first_page(query, map(self._view, list(self.rows(sql, bindings))))

    def count(self, query: Query) -> int:
        """Returns the number of messages that a query selects, whatever its limit."""
        where, bindings = _conditions(query)
        return int(next(self.rows(f"SELECT count(*) FROM message WHERE {where}", bindings))[0])

    def ids(self, query: Query) -> list[tuple[int, str]]:
        """(id, uid) of what a query means."""
        where, bindings = _conditions(query)
        return [
            (row[0], row[1]) for row in self.rows(f"SELECT id, uid FROM message WHERE {where} ORDER BY id", bindings)
        ]

    def _view(self, row: tuple[Any, ...]) -> View:
        key, uid, reverse_path, size_bytes, received_at, expires_at, subject, facts, finished_at = row
        recipients = [recipient_of(r) for r in self.rows(SQL["recipients_of"], (key,))]
        return View(
            uid,
            reverse_path,
            size_bytes,
            received_at,
            expires_at,
            subject,
            _shown_facts(facts),
            recipients,
            finished_at=finished_at,
            position=(received_at, key),
        )

    def content(self, uid: str) -> Content | None:
        """The content of a message that is not final."""
        for key, spool, offset, size in self.rows(SQL["message_by_uid"], (uid,)):
            return self.content_of(key, spool, offset, size)
        return None

    def content_of(self, key: int, spool: str | None, offset: int, size: int) -> Content | None:
        """Content by the message's id and its spool columns."""
        for (octets,) in self.rows(SQL["content_by_id"], (key,)):
            if spool is None:
                return Content(octets)
            return Content(octets, path=os.path.join(self._spool, spool), offset=offset, file_bytes=size)
        return None

    def counts(self) -> dict[str, int]:
        """Recipients by state."""
        return dict(self._db.execute(SQL["counts"]))

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """(next hop, state, recipients, earliest due time) of what is not final, the most first."""
        return list(self.rows(SQL["next_hops"], (limit,)))

    def due(self, limit: int, now: float, skip: Collection[str]) -> list[int]:
        """The messages that are due first, by their ids."""
        skipped = json.dumps(list(skip))
        within = max(limit, WITHIN) if skip else limit
        keys = [key for key, _ in self.rows(SQL["due_messages"], (now, limit, skipped, within))]
        if keys or not skip:
            return keys
        # Next hop by next hop, and each has its turn.
        for after in dict.fromkeys((self._after, "")):
            found = list(self.rows(SQL["due_behind"], (now, limit, skipped, after)))
            if found:
                self._after = found[-1][1] + "\1"
                return list(dict.fromkeys(key for key, _ in found))
        self._after = ""
        return []

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """When the next recipient is due."""
        skipped = json.dumps(list(skip))
        found = list(self.rows(SQL["next_due"], (skipped, WITHIN if skip else 1)))
        if not found and skip:
            found = list(self.rows(SQL["next_due_behind"], (skipped,)))
        return float(found[0][0]) if found and found[0][0] is not None else None

    def nodes(self) -> list[dict[str, Any]]:
        """A file has one owner."""
        return []

    def health(self) -> dict[str, float]:
        """Nothing to watch."""
        return {}

    def flag(self, name: str) -> str | None:
        """A control flag."""
        for (value,) in self.rows(SQL["get_flag"], (name,)):
            return str(value)
        return None

    def spool_names(self) -> set[str]:
        """The spool files that unfinished messages need."""
        return {name for (name,) in self.rows(SQL["spool_names"])}

    def message(self, key: int, recipients: list[Recipient], leased_until: float) -> Message | None:
        """A claimed message, content included; None when its content is gone (a torn file: hostile row 115)."""
        for row in self.rows(SQL["message_by_id"], (key,)):
            (uid, reverse_path, body, smtputf8, ret, envid, subject, _, received_at, expires_at, facts) = row[:11]
            content = self.content_of(key, *row[11:])
            if content is None:
                return None
            envelope = Envelope(reverse_path, [], body, bool(smtputf8), ret, envid)
            envelope.recipients = [EnvelopeRecipient(r.address, r.notify, r.orcpt) for r in recipients]
            return Message(
                uid,
                envelope,
                content,
                received_at,
                expires_at,
                subject,
                json.loads(facts),
                recipients,
                key,
                leased_until,
            )
        return None


def _shown_facts(text: str) -> dict[str, Any]:
    """The facts of a row; a damaged one is still shown."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def recipient_of(row: tuple[Any, ...]) -> Recipient:
    """A Recipient from the columns of recipients_of."""
    number, address, state, notify, orcpt, attempts, due_at, next_hop, last_reply, last_stage, delayed, leased = row
    return Recipient(
        number,
        address,
        state,
        tuple(notify.split(",")) if notify else (),
        orcpt,
        attempts,
        due_at,
        next_hop,
        last_reply,
        last_stage,
        bool(delayed),
        bool(leased),
    )


def _conditions(query: Query) -> tuple[str, list[Any]]:
    """WHERE and its bindings; parameters only, never text of the caller's."""
    parts: list[str] = []
    bindings: list[Any] = []

    def add(sql: str, *values: Any) -> None:
        parts.append(sql)
        bindings.extend(values)

    if query.uids:
        add("uid IN (SELECT value FROM json_each(?))", json.dumps(list(query.uids)))
    elif not query.is_all and query.state is None:
        add("finished_at IS NULL")
    if query.after is not None:
        # Ids grow in the order of arrival.
        add("id < ?" if query.is_newest_first else "id > ?", query.after[1])
    if query.received_before is not None:
        add("received_at < ?", query.received_before)
    if query.sender == "<>":
        add("reverse_path IS NULL")
    elif query.sender is not None:
        add("instr(casefold(coalesce(reverse_path, '')), ?)", query.sender.casefold())
    inner: list[str] = []
    if query.state is not None:
        inner.append("r.state = ?")
        bindings.append(query.state)
    if query.recipient is not None:
        inner.append("instr(casefold(r.address), ?)")
        bindings.append(query.recipient.casefold())
    if query.next_hop is not None:
        inner.append("r.next_hop = ?")
        bindings.append(query.next_hop)
    if inner:
        parts.append(f"EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = message.id AND {' AND '.join(inner)})")
    return " AND ".join(parts) or "1", bindings
