"""What passes between the scheduler and the delivering side: work, and what came of it. Values and one protocol."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..smtp.reply import Reply
from .model import Message, Recipient


@dataclass(slots=True)
class Result:
    """What an attempt brought for one recipient. `reply` is the remote one, or ours that stands in its place.

    `is_attempt` False: nothing was tried (the next hop is down); `retry_at` then says when. `was_dsn_passed_on` is True
    when the next hop took over the duty to report success (RFC 3461 section 5.2.1).
    """

    recipient: Recipient
    reply: Reply
    stage: str
    is_delivered: bool = False
    is_permanent: bool = False
    is_ambiguous: bool = False
    is_attempt: bool = True
    retry_at: float | None = None
    remote: str | None = None
    was_dsn_passed_on: bool = False


@dataclass(slots=True, eq=False)
class Work:
    """A claimed message on its way to one next hop, with those of its recipients that go there (default: all)."""

    message: Message
    next_hop: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    started_at: float = 0.0
    started_clock: float = 0.0
    is_cancelled: bool = False
    taken_at: float = 0.0
    results: list[Result] = field(default_factory=list)
    # Of the connection: TLS version and cipher, and how long it took to open, for the first message on it.
    tls: str | None = None
    connect_s: float = 0.0
    # What the delivering side knows of the attempt that is going on.
    course: Any = None

    def __post_init__(self) -> None:
        if not self.recipients:
            self.recipients = self.message.recipients


def part_of(work: Work, results: list[Result]) -> Work:
    """Work of its own for recipients that have their results, while others of the same work go on."""
    part = Work(work.message, work.next_hop, [result.recipient for result in results])
    part.started_at, part.started_clock, part.is_cancelled = work.started_at, work.started_clock, work.is_cancelled
    part.results, part.tls, part.connect_s = results, work.tls, work.connect_s
    return part


def give_back(work: Work, now: float) -> None:
    """Its results: nothing was tried, it is the queue's again; whoever has its lease by now goes on with it."""
    reply = Reply(451, "4.3.2", "This server had lost touch with the queue")
    work.results = [Result(r, reply, "lookup", is_attempt=False, retry_at=now) for r in work.recipients]


class Deliverer(Protocol):
    """The delivering side, as the scheduler sees it."""

    def next_hop(self, address: str, queued: str | None) -> str:
        """Returns the key of a recipient's next hop, decided by name alone. `queued` is the key that the queue keeps."""

    def deliver(self, work: Work) -> None:
        """Takes work for one next hop; ends with Scheduler.finished(work)."""

    def has_room(self, next_hop: str, *, is_memory_full: bool = False) -> bool:
        """False while this next hop takes no more: it is down, or enough waits for it (with little memory: anything)."""

    def blocked(self, *, is_memory_full: bool = False) -> list[str]:
        """The next hops that take no more now; with little memory left, those for which anything waits already."""

    def down(self) -> list[str]:
        """The next hops that are in trouble and take nothing, and "", where there is no way to go."""

    def retry_at(self, next_hop: str) -> float | None:
        """Unix time when a next hop that is down is tried again; None when it is not down."""

    def next_try(self, next_hop: str, due_at: float | None, last_stage: str | None = None) -> float | None:
        """Unix time of the next attempt for a recipient that is due then: the next probe's while its next hop is down."""

    def room(self) -> int:
        """How many messages it would take now; 0 when there is no route, or the only next hop is down."""

    def room_at(self) -> float | None:
        """Unix time when room should be asked again, or None: it will call Scheduler.wake by itself."""

    paused: set[str]
    """Next hops that take nothing because an operator said so."""

    def withdraw_from(self, next_hop: str) -> list[Work]:
        """Gives back what waits for that next hop and has not begun."""

    def withdraw(self, uids: Collection[str] | None) -> list[Work]:
        """Gives back work that has not begun (None: all of it)."""

    def retry_now(self) -> None:
        """The operator wants it tried at once: forget back-off."""

    def why_waiting(self, next_hops: Collection[str] | None = None) -> str | None:
        """Why queued mail (for these next hops) is not sent now, for people; None when it is."""
