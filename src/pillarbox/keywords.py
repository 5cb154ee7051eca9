"""Keyword arguments of MailServer's methods as types; `option_types.py`, which is generated, has those of its options."""

from __future__ import annotations

import random
from collections.abc import Sequence
from email.message import Message
from typing import IO, Literal, TypeAlias, TypedDict

from .clock import Clock
from .option_types import MailServerOptions
from .places import Slot

State: TypeAlias = Literal["queued", "deferred", "held", "delivered", "bounced", "expired", "cancelled"]
ContentSource: TypeAlias = str | bytes | Message | IO[bytes]


class ServerKeywords(MailServerOptions, total=False):
    """What `MailServer(...)` takes: the options, and for tests a clock, a random generator and a worker's place."""

    clock: Clock | None
    rng: random.Random | None
    slot: Slot | None


class QueryKeywords(TypedDict, total=False):
    """What narrows `mail_queue`: see `pillarbox.queue.model.Query`."""

    uids: Sequence[str] | None
    state: State | None
    sender: str | None
    recipient: str | None
    next_hop: str | None
    received_before: float | None
    is_all: bool


class HandlerKeywords(TypedDict, total=False):
    """What `@server.handler(match, ...)` takes beside the pattern: see `Handler`."""

    concurrency: int
    time_out_s: float | None
    in_thread: bool | None
    event: str | None


class EnqueueOptional(TypedDict, total=False):
    """What `enqueue` may be given."""

    uid: str | None
    ts: float | None
    hold: str


class EnqueueKeywords(EnqueueOptional):
    """What `enqueue` takes."""

    reverse_path: str | None
    recipients: str | Sequence[str]
    content: ContentSource
