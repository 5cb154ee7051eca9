"""What is written to a queue on PostgreSQL, as columns: the parameters of the named queries. Values only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..mail.content import Content
from .model import Message, Recipient, Settled, Settlement
from .postgres_read import PIECE_BYTES

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# As the database takes them: the octets of a statement's contents are held in memory several times over.
_STATEMENT_BYTES = 8 * PIECE_BYTES


def text_of(text: str | None) -> str | None:
    # PostgreSQL's text knows no NUL.
    return text.replace("\0", "\ufffd") if text is not None and "\0" in text else text


def message_columns(batch: Sequence[Message]) -> dict[str, list[Any]]:
    """The parameters of insert_messages."""
    return {
        "id": [m.key for m in batch],
        "uid": [m.uid for m in batch],
        "reverse_path": [m.envelope.reverse_path for m in batch],
        "body": [m.envelope.body for m in batch],
        "smtputf8": [m.envelope.is_smtputf8 for m in batch],
        "ret": [m.envelope.ret for m in batch],
        "envid": [m.envelope.envid for m in batch],
        "subject": [text_of(m.subject) for m in batch],
        "size": [m.content.size_bytes for m in batch],
        "recipients": [len(m.recipients) for m in batch],
        "received_at": [m.received_at for m in batch],
        "expires_at": [m.expires_at for m in batch],
        "facts": [_json(m.facts).replace("\\u0000", "\\ufffd") for m in batch],
    }


def attempt_columns(tried: list[tuple[Settlement, Settled, int]]) -> dict[str, list[Any]]:
    """The parameters of insert_attempts."""
    return {
        "id": [one.key for one, _, _ in tried],
        "number": [s.number for _, s, _ in tried],
        "epoch": [epoch for _, _, epoch in tried],
        "at": [s.started_at for _, s, _ in tried],
        "seconds": [s.seconds for _, s, _ in tried],
        "outcome": [s.outcome for _, s, _ in tried],
        "next_hop": [s.next_hop for _, s, _ in tried],
        "remote": [s.remote for _, s, _ in tried],
        "stage": [s.stage for _, s, _ in tried],
        "reply": [text_of(s.reply) for _, s, _ in tried],
    }


def recipient_columns(recipients: Sequence[tuple[Message, Recipient]]) -> dict[str, list[Any]]:
    """The parameters of insert_recipients."""
    return {
        "id": [m.key for m, _ in recipients],
        "number": [r.number for _, r in recipients],
        "address": [r.address for _, r in recipients],
        "state": [r.state for _, r in recipients],
        "attempts": [r.attempts for _, r in recipients],
        "next_hop": [r.next_hop for _, r in recipients],
        "notify": [",".join(r.notify) or None for _, r in recipients],
        "orcpt": [r.orcpt for _, r in recipients],
    }


def kept_columns(recipients: Sequence[tuple[Message, Recipient]]) -> dict[str, list[Any]]:
    """The parameters of restore_recipients."""
    return {
        "id": [m.key for m, _ in recipients],
        "number": [r.number for _, r in recipients],
        "reply": [text_of(r.last_reply) for _, r in recipients],
        "stage": [r.last_stage for _, r in recipients],
        "delayed": [r.is_delay_reported for _, r in recipients],
    }


def history_columns(batch: Sequence[Message]) -> dict[str, list[Any]]:
    """The parameters of restore_attempts."""
    rows = [(m, a) for m in batch for a in m.attempts]
    names = ("number", "at", "seconds", "outcome", "next_hop", "remote", "stage")
    columns = {name: [getattr(a, name) for _, a in rows] for name in names}
    return {**columns, "id": [m.key for m, _ in rows], "reply": [text_of(a.reply) for _, a in rows]}


def settled_columns(rows: Sequence[tuple[Settlement, Settled]]) -> dict[str, list[Any]]:
    """The parameters of settle that are the outcomes' own."""
    return {
        "state": [s.state for _, s in rows],
        "is_attempt": [s.is_attempt for _, s in rows],
        "next_hop": [s.next_hop for _, s in rows],
        "reply": [text_of(s.reply) for _, s in rows],
        "stage": [s.stage for _, s in rows],
        "delayed": [s.is_delay_reported for _, s in rows],
    }


def pieces_of(batch: Sequence[Message]) -> Iterator[dict[str, list[Any]]]:
    """The parameters of insert_contents, at most a few MB at a time. OSError for a spool file that is short."""
    some: list[tuple[int, int, bytes]] = []
    size = 0
    for message in batch:
        for part, octets in enumerate(_parts(message.content)):
            some.append((message.key, part, octets))
            size += len(octets)
            if size >= _STATEMENT_BYTES:
                yield _columns(some)
                some, size = [], 0
    if some:
        yield _columns(some)


def _columns(pieces: list[tuple[int, int, bytes]]) -> dict[str, list[Any]]:
    return {"id": [p[0] for p in pieces], "part": [p[1] for p in pieces], "octets": [p[2] for p in pieces]}


def _parts(content: Content) -> Iterator[bytes]:
    if not content.path and len(content.prefix) <= PIECE_BYTES:
        yield content.prefix
        return
    held = b""
    for octets in content.chunks():
        held += octets
        while len(held) >= PIECE_BYTES:
            yield held[:PIECE_BYTES]
            held = held[PIECE_BYTES:]
    if held:
        yield held
