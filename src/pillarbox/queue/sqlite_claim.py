"""Claims of a SQLite queue: what is due is leased. A message that is damaged is held, and the rest goes on.

A disk that fails gives back other octets than it was given: a row whose page cannot be read, a content that is gone, a spool
file that is cut off. Within a transaction of the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import apsw

from ..errors import StoreError
from . import sqlite_rows
from .model import Message, Recipient
from .sqlite_read import SQL, SqliteReader
from .sqlite_rows import as_json

_log = logging.getLogger("pillarbox.queue")
# What the driver and the parsers of rows raise for octets that nobody wrote.
_DAMAGE = (ValueError, TypeError, KeyError)
_UNREADABLE = (apsw.CorruptError, apsw.NotADBError)


@dataclass(frozen=True, slots=True)
class Terms:
    """Of a claim. `skip`: next hops that take no more; `only`: the next hops that are meant (None: all).

    `is_expiry`: the messages are given up; their senders hear of it also where a spool file cannot be read.
    """

    now: float
    lease_until: float
    max_content_bytes: int
    skip: Collection[str] = ()
    only: Collection[str] | None = None
    is_expiry: bool = False


class Claims:
    """Of one shard's connection."""

    def __init__(self, db: apsw.Connection, read: SqliteReader) -> None:
        self._db = db
        self._read = read
        # Messages on pages that cannot be read, and why: the next claim holds them. SQLite refuses every further change in a
        # transaction that has met such a page.
        self._damaged: dict[int, str] = {}
        # Those that cannot be held either: they are stepped over until the server starts anew.
        self._unreadable: set[int] = set()

    def due(self, limit: int, terms: Terms) -> list[int]:
        """The messages that are due first."""
        keys = self._read.due(limit + len(self._unreadable), terms.now, terms.skip)
        return [key for key in keys if key not in self._unreadable]

    def lease(self, keys: Sequence[int], terms: Terms) -> list[Message]:
        """Leases the due recipients of these messages, as long as their contents are within the bound."""
        if self._damaged:
            # In a transaction that reads no content: the next page that cannot be read would undo it.
            for key, why in list(self._damaged.items()):
                self._quarantine(key, why)
            self._damaged.clear()
            return []
        claimed: list[Message] = []
        size = 0
        for key in keys:
            if key in self._unreadable:
                continue
            message = self._lease_one(key, terms)
            if message is None:
                continue
            claimed.append(message)
            size += len(message.content.prefix)
            if size > terms.max_content_bytes:
                break
        return claimed

    def _lease_one(self, key: int, terms: Terms) -> Message | None:
        skipped, wanted = as_json(list(terms.skip)), as_json(list(terms.only or ()))
        bindings = (terms.lease_until, key, terms.now, skipped, int(terms.only is None), wanted)
        message: Message | None = None
        why = "the content is missing from the queue"
        try:
            rows = list(self._db.execute(SQL["lease_recipients"], bindings))
            recipients: list[Recipient] = [sqlite_rows.claimed_recipient(row, terms.lease_until) for row in rows]
            recipients.sort(key=lambda r: r.number)
            message = self._read.message(key, recipients, terms.lease_until)
            if message is not None:
                if not terms.is_expiry:
                    message.content.check()
                return message
        except _UNREADABLE as error:
            self._damaged[key] = why = f"damaged in the queue: {error}"
            raise StoreError(f"message {key} is {why}") from error
        except FileNotFoundError:
            why = "its spool file is missing"
        except OSError as error:
            # Rights, or a disk that is not mounted: the attempt says so, and is repeated.
            _log.error("queue: content of message %d cannot be read: %s", key, error)
            return message
        except _DAMAGE as error:
            why = f"damaged in the queue: {' '.join(str(error).split())[:200]}"
        self._quarantine(key, why)
        return None

    def _quarantine(self, key: int, why: str) -> None:
        """Holds a message that cannot be sent, visible, and reports it (hostile row 115)."""
        try:
            self._db.execute(SQL["quarantine"], (f"451 4.3.0 {why}", key))
        except _UNREADABLE as error:
            self._unreadable.add(key)
            self._damaged.pop(key, None)
            _log.error("queue: message %d cannot be read or held: %s; others go on; restore a backup", key, why)
            raise StoreError(f"message {key} is {why}") from error
        _log.error("queue: message %d held: %s; see `pillarbox queue list --state held`", key, why)
