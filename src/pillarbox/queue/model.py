"""Message, Recipient, Attempt and their states, as the queue knows them. Values only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..mail.content import Content
from ..mail.envelope import Envelope
from .casefold import contains

FINAL = frozenset(("delivered", "bounced", "expired", "cancelled"))
ACTIVE = frozenset(("queued", "deferred"))
# Why the capture inbox holds a message: `received.held_for`, which stays after a release.
CAPTURED = "the capture inbox"
STATES = ("queued", "deferred", "held", "delivered", "bounced", "expired", "cancelled")


@dataclass(slots=True)
class Recipient:
    """One recipient of a queued message. Times in unix seconds; `number` is its place in the envelope.

    `last_reply` is the last remote reply, or what stood in its place; `last_stage` how far that attempt came.
    """

    number: int
    address: str
    state: str = "queued"
    notify: tuple[str, ...] = ()
    orcpt: str | None = None
    attempts: int = 0
    due_at: float | None = None
    next_hop: str | None = None
    last_reply: str | None = None
    last_stage: str | None = None
    is_delay_reported: bool = False
    is_leased: bool = False


@dataclass(slots=True)
class Message:
    """One accepted message. `key` is the store's number for it, `facts` what is known of its coming (peer, helo, ...)."""

    uid: str
    envelope: Envelope
    content: Content
    received_at: float
    expires_at: float
    subject: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    recipients: list[Recipient] = field(default_factory=list)
    key: int = 0
    leased_until: float | None = None
    due_at: float | None = None
    # Of a message that another queue had before (Store.restore).
    attempts: list[Attempt] = field(default_factory=list)

    def hold(self, reason: str) -> None:
        """Before it is accepted: it will wait for a release."""
        self.facts["held_for"] = reason
        for r in self.recipients:
            r.state = "held"

    @property
    def is_held(self) -> bool:
        """True when it waits for somebody to release it; as a whole, before it is accepted."""
        return bool(self.recipients) and self.recipients[0].state == "held"

    def __post_init__(self) -> None:
        if not isinstance(self.facts, dict):
            # A row that another program wrote.
            self.facts = {}
        if not self.recipients:
            self.recipients = [
                Recipient(n, r.address, "queued", r.notify, r.orcpt) for n, r in enumerate(self.envelope.recipients)
            ]


@dataclass(slots=True)
class Settled:
    """What becomes of one recipient after an attempt (or without one: `is_attempt` False gives a lease back).

    `outcome` is "delivered", "deferred", "bounced", "expired" or "ambiguous" (the final reply never came, RFC 1047).
    """

    number: int
    state: str
    outcome: str
    due_at: float | None = None
    reply: str | None = None
    stage: str | None = None
    next_hop: str | None = None
    remote: str | None = None
    started_at: float = 0.0
    seconds: float = 0.0
    is_attempt: bool = True
    is_delay_reported: bool = False


@dataclass(slots=True)
class Settlement:
    """The outcomes of one message that one attempt brought."""

    key: int
    recipients: Sequence[Settled]
    at: float = 0.0
    # Of a shared store: the leases that it settles, since it was first tried. What is claimed anew meanwhile is another's.
    epochs: Sequence[int] | None = None

    def only(self, numbers: Collection[int]) -> Settlement:
        """Of these recipients."""
        epochs = self.epochs or [-1] * len(self.recipients)
        chosen = [(s, epoch) for s, epoch in zip(self.recipients, epochs, strict=True) if s.number in numbers]
        return Settlement(self.key, [s for s, _ in chosen], self.at, [epoch for _, epoch in chosen])


# The history of what its server had in hand when it stopped.
IN_HAND = "the server stopped with this in hand: it may have been sent"


class Action(Enum):
    """How a queue is steered."""

    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    # As RETRY, and routed as if it had just come: the next hop that the queue keeps is forgotten.
    REROUTE = "reroute"
    CANCEL = "cancel"


@dataclass(slots=True)
class Query:
    """Selects messages; a field that is None does not narrow. An address matches in whole or in part, in any case.

    `is_all` includes messages in a final state. `after` is the `View.position` of the last row of the previous page.
    A search stops at `limit` messages, or behind the message that reaches `most_recipients` recipients in all, so that a
    page has a bounded size. `is_newest_first` turns the order around, for `after` as well.
    """

    uids: Sequence[str] = ()
    state: str | None = None
    sender: str | None = None
    recipient: str | None = None
    next_hop: str | None = None
    received_before: float | None = None
    is_all: bool = False
    limit: int | None = None
    after: tuple[float, int] | None = None
    most_recipients: int | None = None
    is_newest_first: bool = False

    @property
    def is_narrow(self) -> bool:
        """True when it names messages, and does not mean all there are."""
        named = (self.state, self.sender, self.recipient, self.next_hop, self.received_before)
        return bool(self.uids) or any(one is not None for one in named)


@dataclass(slots=True)
class Attempt:
    """One try for one recipient, as the history keeps it."""

    number: int
    at: float
    seconds: float
    outcome: str
    next_hop: str | None
    remote: str | None
    stage: str | None
    reply: str | None


@dataclass(slots=True)
class View:
    """A message as people and programs look at it: no content, all recipients, and (from `get`) all attempts.

    `position` is its place in the order of a search, oldest first: (received_at, the store's number).
    """

    uid: str
    reverse_path: str | None
    size_bytes: int
    received_at: float
    expires_at: float
    subject: str
    facts: dict[str, Any]
    recipients: list[Recipient]
    attempts: list[Attempt] = field(default_factory=list)
    finished_at: float | None = None
    position: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.facts, dict):
            self.facts = {}

    @property
    def state(self) -> str:
        """The state that says most: the first of held, queued, deferred, bounced, expired, cancelled, delivered."""
        present = {recipient.state for recipient in self.recipients}
        order = ("held", "queued", "deferred", "bounced", "expired", "cancelled", "delivered")
        return next((state for state in order if state in present), "queued")


def view_as_json(view: View) -> dict[str, Any]:
    """The documented JSON form of `pillarbox queue list|show --json`; times in unix seconds."""
    return {
        "uid": view.uid,
        "state": view.state,
        "reverse_path": view.reverse_path,
        "subject": view.subject,
        "size_bytes": view.size_bytes,
        "received_at": view.received_at,
        "expires_at": view.expires_at,
        "finished_at": view.finished_at,
        "received": view.facts,
        "recipients": [
            {
                "address": r.address,
                "state": r.state,
                "attempts": r.attempts,
                "due_at": r.due_at,
                "in_flight": r.is_leased,
                "next_hop": r.next_hop,
                "last_reply": r.last_reply,
                "last_stage": r.last_stage,
                "notify": list(r.notify),
                "orcpt": r.orcpt,
            }
            for r in view.recipients
        ],
        "attempts": [
            {
                "recipient": view.recipients[a.number].address if a.number < len(view.recipients) else "",
                "at": a.at,
                "seconds": a.seconds,
                "outcome": a.outcome,
                "next_hop": a.next_hop,
                "remote": a.remote,
                "stage": a.stage,
                "reply": a.reply,
            }
            for a in view.attempts
        ],
    }


def first_page(query: Query, views: Iterable[View]) -> list[View]:
    """Returns the views up to the bounds of `query` (`limit`, `most_recipients`)."""
    page: list[View] = []
    recipients = 0
    for view in views:
        if query.limit is not None and len(page) >= query.limit:
            break
        page.append(view)
        recipients += len(view.recipients)
        if query.most_recipients is not None and recipients >= query.most_recipients:
            break
    return page


def matches(query: Query, view: View) -> bool:
    """The meaning of a Query, for stores without SQL."""
    if query.after is not None:
        is_behind = view.position < query.after if query.is_newest_first else view.position > query.after
        if not is_behind:
            return False
    if query.uids and view.uid not in query.uids:
        return False
    if not query.is_all and not query.uids and query.state is None and view.finished_at is not None:
        return False
    if query.received_before is not None and view.received_at >= query.received_before:
        return False
    if query.sender is not None and not address_matches(query.sender, view.reverse_path or ""):
        return False
    return any(
        (query.state is None or r.state == query.state)
        and (query.recipient is None or address_matches(query.recipient, r.address))
        and (query.next_hop is None or r.next_hop == query.next_hop)
        for r in view.recipients
    )


def address_matches(pattern: str, address: str) -> bool:
    """`<>` means the null reverse-path; otherwise a part of the address, in any case."""
    return address == "" if pattern == "<>" else contains(address, pattern)
