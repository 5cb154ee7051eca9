"""What is written to a queue on SQLite, as rows: the parameters of the named queries. Values only.

The rows of several commits can be made one (`merged`): what came and was done with between them leaves its history only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from .model import ACTIVE, FINAL, Message, Recipient, Settlement

Row = tuple[Any, ...]

# Places in a row of `messages`.
_UID, SPOOL = 1, 12
# Places in a row of `recipients`, which has the columns of import_recipients.
_KEY, _NUMBER, _STATE, _LEASED = 0, 1, 3, 5


@dataclass(slots=True)
class Rows:
    """What one commit writes: messages (insert_messages), contents, recipients (import_recipients), and outcomes:
    settled (settle_recipients), attempts, and finished: (id, now) of messages that may be final now.

    `over`, of merged rows only: messages that are new and final by these very rows, with when (insert_final_messages)."""

    messages: list[Row] = field(default_factory=list)
    contents: list[tuple[int, bytes]] = field(default_factory=list)
    recipients: list[Row] = field(default_factory=list)
    settled: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    finished: list[tuple[int, float]] = field(default_factory=list)
    over: list[Row] = field(default_factory=list)

    def head(self) -> bytes:
        """All but the octets of the contents, as JSON in UTF-8; `parse_rows` reads it."""
        lengths = [(key, len(octets)) for key, octets in self.contents]
        return orjson.dumps((self.messages, lengths, self.recipients, self.settled, self.attempts, self.finished))


def as_json(value: object) -> str:
    """JSON for a column, or a query's parameter. Text of messages has no surrogates: it is judged where it enters."""
    return orjson.dumps(value).decode()


def parse_rows(head: bytes, octets: memoryview) -> Rows:
    """What Rows.head() said, and the contents behind it. ValueError when they do not belong together."""
    messages, lengths, recipients, settled, attempts, finished = json.loads(head)
    contents, at = [], 0
    for key, length in lengths:
        contents.append((key, bytes(octets[at : at + length])))
        at += length
    if at != len(octets):
        raise ValueError("the contents have another length than was said")
    if any(row[SPOOL] is not None and row[SPOOL] != os.path.basename(row[SPOOL]) for row in messages):
        raise ValueError("a spool file is not in the spool")
    return Rows(
        [tuple(row) for row in messages],
        contents,
        [tuple(row) for row in recipients],
        [tuple(row) for row in settled],
        [tuple(row) for row in attempts],
        [(key, at) for key, at in finished],
    )


def message_row(message: Message) -> Row:
    """The columns of insert_messages."""
    envelope, content = message.envelope, message.content
    return (
        message.key,
        message.uid,
        envelope.reverse_path,
        envelope.body,
        int(envelope.is_smtputf8),
        envelope.ret,
        envelope.envid,
        message.subject,
        content.size_bytes,
        message.received_at,
        message.expires_at,
        as_json(message.facts),
        os.path.basename(content.path) if content.path else None,
        content.offset,
        content.file_bytes,
    )


def recipient_row(key: int, r: Recipient, due_at: float | None, *, is_leased: bool) -> Row:
    """The columns of import_recipients."""
    row = (key, r.number, r.address, r.state, due_at, is_leased, r.attempts, r.next_hop, r.last_reply)
    return (*row, r.last_stage, ",".join(r.notify) or None, r.orcpt, r.is_delay_reported)


def claimed_recipient(row: Row, lease_until: float) -> Recipient:
    """What lease_recipients gives back of one."""
    number, address, state, attempts, notify, orcpt, hop, reply, stage, delayed = row
    told = tuple(notify.split(",")) if notify else ()
    return Recipient(
        number, address, state, told, orcpt, attempts, lease_until, hop, reply, stage, bool(delayed), is_leased=True
    )


def take_messages(rows: Rows, batch: Sequence[Message]) -> None:
    """The rows of new messages, which have their keys."""
    for message in batch:
        key = message.key
        rows.messages.append(message_row(message))
        rows.contents.append((key, message.content.prefix))
        leased = message.leased_until is not None
        due_at = message.leased_until if leased else message.due_at or message.received_at
        if message.is_held:
            due_at = None
        rows.recipients += [recipient_row(key, r, due_at, is_leased=leased) for r in message.recipients]


def take_outcomes(rows: Rows, batch: Sequence[Settlement]) -> None:
    """The rows of outcomes and their history."""
    for settlement in batch:
        key = settlement.key
        for s in settlement.recipients:
            delayed = s.is_delay_reported
            rows.settled.append((key, s.number, s.state, s.due_at, s.is_attempt, s.next_hop, s.reply, s.stage, delayed))
            if s.is_attempt:
                tried = (key, s.number, s.started_at, s.seconds, s.outcome, s.next_hop, s.remote, s.stage)
                rows.attempts.append((*tried, s.reply))
        # Also after a mere deferral: the message may have been cancelled meanwhile.
        rows.finished.append((key, settlement.at))


def merged(commits: Iterable[Rows]) -> list[Rows]:
    """The same in as few writes as can be. In each, outcomes are of messages that were there before it.

    An outcome of a message that is new here is seen to in its row, as settle_recipients would; the content of a message
    that is final by that is not written at all.
    """
    made = [Rows()]
    fresh: dict[tuple[int, int], Row] = {}
    seen: set[tuple[int, int]] = set()
    for commit in commits:
        last = made[-1]
        last.messages += commit.messages
        last.contents += commit.contents
        for row in commit.recipients:
            fresh[row[_KEY], row[_NUMBER]] = row
        for row in commit.settled:
            place = (row[0], row[1])
            recipient = fresh.get(place)
            if recipient is not None and recipient[_STATE] in ACTIVE:
                fresh[place] = _settled(recipient, row)
                continue
            if place in seen or recipient is not None:
                # Twice the same recipient: one after the other.
                last.recipients = list(fresh.values())
                made.append(last := Rows())
                fresh.clear()
                seen.clear()
            seen.add(place)
            last.settled.append(row)
        last.attempts += commit.attempts
        last.finished += commit.finished
    made[-1].recipients = list(fresh.values())
    for rows in made:
        _part_finished(rows)
    return made


def rename(commits: Iterable[Rows], known: Collection[str]) -> list[str]:
    """Messages whose uid another one has get a uid with their key behind it: which ones. They have their 250."""
    seen = set(known)
    renamed = []
    for commit in commits:
        for place, row in enumerate(commit.messages):
            if row[_UID] in seen:
                renamed.append(row[_UID])
                commit.messages[place] = (row[_KEY], f"{row[_UID]}-{row[_KEY]}", *row[_UID + 1 :])
            seen.add(row[_UID])
    return renamed


def _settled(recipient: Row, row: Row) -> Row:
    """The row of a recipient behind an outcome, as settle_recipients would leave it."""
    key, number, address, _, _, _, tries, hop, reply, stage, notify, orcpt, delayed = recipient
    _, _, state, due_at, is_attempt, next_hop, last_reply, last_stage, is_delayed = row
    if next_hop is not None:
        hop = next_hop
    if last_reply is not None:
        reply = last_reply
    if last_stage is not None:
        stage = last_stage
    tries, delayed = tries + is_attempt, delayed or is_delayed
    return (key, number, address, state, due_at, False, tries, hop, reply, stage, notify, orcpt, delayed)


def _part_finished(rows: Rows) -> None:
    """Messages that are new here, and final already: as such they are written, and their contents not at all."""
    alive = {row[_KEY] for row in rows.recipients if row[_STATE] not in FINAL or row[_LEASED]}
    # Of each message the last word.
    told = dict(rows.finished)
    rows.contents = [(key, octets) for key, octets in rows.contents if key in alive or key not in told]
    messages, rows.messages = rows.messages, []
    for row in messages:
        key = row[_KEY]
        if key in told and key not in alive:
            rows.over.append((*row, told.pop(key)))
        else:
            rows.messages.append(row)
    rows.finished = list(told.items())
