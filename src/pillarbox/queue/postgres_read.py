"""Looking into a queue on PostgreSQL: views, searches, counts, contents. Must not change anything."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from .casefold import casefold_sql
from .model import Attempt, Message, Query, Recipient, View, first_page
from .pgconnect import Connection
from .pgnode import SQL

_log = logging.getLogger("pillarbox.queue")
# The size of a piece of a content. What is no larger is held in memory, too.
PIECE_BYTES = 256 * 1024
# Messages whose recipients are fetched in one query.
_TOGETHER = 50
# So many that are due are looked through for one whose next hop is not skipped, before they are stepped over.
WITHIN = 2000
_COLUMNS = (
    "m.id, m.uid, m.reverse_path, m.size_bytes, m.received_at, m.expires_at, m.subject, m.facts, "
    "(SELECT f.finished_at FROM finished f WHERE f.message_id = m.id)"
)


class FetchedContent(Content):
    """A large content that somebody looks at: its file goes when nobody looks any more."""

    __slots__ = ("__weakref__",)


class PostgresReader:
    """The reading verbs of a Store. `connected()` lends a connection; `spool` is a folder for large contents."""

    def __init__(
        self,
        connected: Callable[[], AbstractContextManager[Connection]],
        spool: str,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._connected = connected
        self._spool = spool
        self._close = close

    def close(self) -> None:
        """Gives up what it holds."""
        self._close()

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a query, by text."""
        with self._connected() as connection:
            return connection.execute(sql.encode(), parameters or None).fetchall()

    def get(self, uid: str) -> View | None:
        """One message with all its recipients and attempts."""
        found = self.rows(f"SELECT {_COLUMNS} FROM message m WHERE uid = %(uid)s", {"uid": uid})
        for view in self._views(found):
            rows = self.rows(SQL["attempts_of"], {"id": found[0][0]})
            view.attempts = [Attempt(*row) for row in rows]
            return view
        return None

    def envelope(self, uid: str) -> Envelope | None:
        """Reverse-path and parameters, as they came."""
        sql = "SELECT reverse_path, body, smtputf8, ret, envid FROM message WHERE uid = %(uid)s"
        for reverse_path, body, smtputf8, ret, envid in self.rows(sql, {"uid": uid}):
            return Envelope(reverse_path, [], body, smtputf8, ret, envid)
        return None

    def search(self, query: Query) -> list[View]:
        """Messages, oldest first, with all their recipients."""
        where, given = _conditions(query)
        limit = f" LIMIT {int(query.limit)}" if query.limit is not None else ""
        order = "received_at DESC, id DESC" if query.is_newest_first else "received_at, id"
        rows = self.rows(f"SELECT {_COLUMNS} FROM message m WHERE {where} ORDER BY {order}{limit}", given)
        # The recipients of a few messages at a time: a page that is full early does not fetch those of the rest.
        parts = (rows[first : first + _TOGETHER] for first in range(0, len(rows), _TOGETHER))
        return first_page(query, (view for part in parts for view in self._views(part)))

    def count(self, query: Query) -> int:
        """Returns the number of messages that a query selects, whatever its limit."""
        where, given = _conditions(query)
        return int(self.rows(f"SELECT count(*) FROM message m WHERE {where}", given)[0][0])

    def ids(self, query: Query) -> list[tuple[int, str]]:
        """(id, uid) of what a query means."""
        where, given = _conditions(query)
        return [
            (row[0], row[1])
            for row in self.rows(f"SELECT id, uid FROM message m WHERE {where} ORDER BY received_at, id", given)
        ]

    def _views(self, rows: list[tuple[Any, ...]]) -> list[View]:
        recipients: dict[int, list[Recipient]] = {row[0]: [] for row in rows}
        if rows:
            for row in self.rows(SQL["recipients_of"], {"ids": list(recipients)}):
                recipients[row[0]].append(_recipient(row[1:]))
        return [
            View(
                uid,
                reverse_path,
                size_bytes,
                received_at,
                expires_at,
                subject,
                facts,
                recipients[key],
                finished_at=finished_at,
                position=(received_at, key),
            )
            for key, uid, reverse_path, size_bytes, received_at, expires_at, subject, facts, finished_at in rows
        ]

    def content(self, uid: str) -> Content | None:
        """The content of a message that is not final."""
        for (key,) in self.rows("SELECT id FROM message WHERE uid = %(uid)s", {"uid": uid}):
            parts = self.rows("SELECT count(*) FROM content WHERE message_id = %(id)s", {"id": key})[0][0]
            if parts <= 1:
                return next((Content(octets) for (octets,) in self._part(key, 0)), None)
            handle, path = tempfile.mkstemp(prefix="look-", dir=self._spool if os.path.isdir(self._spool) else None)
            os.close(handle)
            content = FetchedContent(b"", path=path, file_bytes=self.fetch(key, parts, path))
            weakref.finalize(content, _unlink, path)
            return content
        return None

    def _part(self, key: int, part: int) -> list[tuple[Any, ...]]:
        return self.rows(SQL["content_part"], {"id": key, "part": part})

    def fetch(self, key: int, parts: int, path: str) -> int:
        """Writes a large content into a file, piece by piece; how many octets it has. OSError where it cannot be written."""
        size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(path, flags, 0o600), "wb") as file:
                for part in range(parts):
                    for (octets,) in self._part(key, part):
                        size += file.write(octets)
        except BaseException:
            # A piece of it is of no use to anybody, and the room is wanted.
            _unlink(path)
            raise
        return size

    def counts(self) -> dict[str, int]:
        """Recipients by state."""
        return dict(self.rows(SQL["counts"]))

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """(next hop, state, recipients, earliest due time) of what is not final, the most first."""
        return [(row[0], row[1], row[2], row[3]) for row in self.rows(SQL["next_hops"], {"limit": limit})]

    def next_due(self, skip: Collection[str] = ()) -> tuple[float, float] | None:
        """When the next recipient is due that nobody has in hand: (by the database's clock, seconds from now)."""
        given = {"skip": list(skip), "within": WITHIN if skip else 1}
        rows = self.rows(SQL["next_due"], given) or (self.rows(SQL["next_due_behind"], given) if skip else [])
        return next(((row[0], row[1]) for row in rows), None)

    def flag(self, name: str) -> str | None:
        """A control flag."""
        return next((str(row[0]) for row in self.rows(SQL["get_flag"], {"name": name})), None)

    def spool_names(self) -> set[str]:
        """None: every content is in the database, and a file that a start finds is left over."""
        return set()

    def nodes(self) -> list[dict[str, Any]]:
        """Who works on this queue, for people."""
        names = ("id", "name", "version", "schema", "started_at", "beat_at", "alive_until", "in_hand")
        return [dict(zip(names, row, strict=True)) for row in self.rows(SQL["nodes"])]

    def health(self) -> dict[str, float]:
        """Dead rows of the hot table, the age of the oldest snapshot, how long what is due waits already."""
        dead_rows, snapshot_s, lag_s = self.rows(SQL["health"])[0]
        return {"dead_rows": dead_rows, "oldest_snapshot_seconds": snapshot_s, "due_lag_seconds": lag_s}

    def messages(
        self, recipients: dict[int, list[Recipient]], leased_until: float, tag: str, *, heads_only: bool = False
    ) -> tuple[list[Message], set[int]]:
        """Claimed messages, contents included, in the order given; without those whose content is gone (row 115).

        And which of those that are left out are so because the spool has no room for them. With `heads_only` a large content
        is its first piece, and no file.
        """
        found: dict[int, Message] = {}
        unwritten: set[int] = set()
        try:
            for row in self.rows(SQL["messages"], {"ids": list(recipients)}) if recipients else ():
                key, uid, reverse_path, body, smtputf8, ret, envid, subject, size, received_at, expires_at = row[:11]
                facts, octets, parts = row[11:]
                if octets is None:
                    continue
                content = Content(octets)
                if parts > 1 and heads_only:
                    # A report must not give half a content for the whole.
                    ret, size = "HDRS", content.size_bytes
                elif parts > 1:
                    path = os.path.join(self._spool, f"{uid}.{tag}")
                    try:
                        content = Content(b"", path=path, file_bytes=self.fetch(key, parts, path))
                    except OSError as error:
                        _log.error("%s waits: its content cannot be written to %s: %s", uid, path, error.strerror)
                        unwritten.add(key)
                        continue
                if content.size_bytes != size:
                    _forget([content])
                    continue
                mine = recipients[key]
                envelope = Envelope(reverse_path, [], body, smtputf8, ret, envid)
                envelope.recipients = [EnvelopeRecipient(r.address, r.notify, r.orcpt) for r in mine]
                found[key] = Message(
                    uid, envelope, content, received_at, expires_at, subject, facts, mine, key, leased_until
                )
        except BaseException:
            _forget([message.content for message in found.values()])
            raise
        return [found[key] for key in recipients if key in found], unwritten


def _recipient(row: tuple[Any, ...]) -> Recipient:
    number, address, state, notify, orcpt, attempts, due_at, next_hop, last_reply, last_stage, delayed, leased = row
    words = tuple(notify.split(",")) if notify else ()
    return Recipient(
        number, address, state, words, orcpt, attempts, due_at, next_hop, last_reply, last_stage, delayed, leased
    )


def _forget(contents: list[Content]) -> None:
    for content in contents:
        if content.path:
            _unlink(content.path)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _conditions(query: Query) -> tuple[str, dict[str, Any]]:
    """WHERE and its parameters; parameters only, never text of the caller's."""
    parts: list[str] = []
    given: dict[str, Any] = {}
    if query.uids:
        parts.append("m.uid = ANY(%(uids)s)")
        given["uids"] = list(query.uids)
    elif not query.is_all and query.state is None:
        parts.append("NOT EXISTS (SELECT 1 FROM finished f WHERE f.message_id = m.id)")
    if query.after is not None:
        sign = "<" if query.is_newest_first else ">"
        parts.append(f"(m.received_at, m.id) {sign} (%(after_at)s, %(after_id)s)")
        given |= {"after_at": query.after[0], "after_id": query.after[1]}
    if query.received_before is not None:
        parts.append("m.received_at < %(before)s")
        given["before"] = query.received_before
    if query.sender == "<>":
        parts.append("m.reverse_path IS NULL")
    elif query.sender is not None:
        parts.append(f"position(%(sender)s IN {casefold_sql('m.reverse_path')}) > 0")
        given["sender"] = query.sender.casefold()
    inner = [
        sql.format(name)
        for name, sql in (
            ("state", "r.state = %({})s"),
            ("recipient", f"position(%({{}})s IN {casefold_sql('r.address')}) > 0"),
            ("next_hop", "r.next_hop = %({})s"),
        )
        if getattr(query, name) is not None
    ]
    given |= {"state": query.state, "next_hop": query.next_hop, "recipient": (query.recipient or "").casefold()}
    if inner:
        parts.append(f"EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = m.id AND {' AND '.join(inner)})")
    return " AND ".join(parts) or "TRUE", given
