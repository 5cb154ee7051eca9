"""What goes on within one attempt: another transaction, another connection, or another server. Decisions without I/O.

An attempt ends with an outcome for each recipient. It goes on

- in a further transaction, for recipients beyond what the next hop takes in one (RFC 5321 section 4.5.3.1.10);
- on another connection, where a server that has taken mail in this session wants no more of it: nothing was refused;
- at the next server, where this one took no content (RFC 5321 section 5.1).

Once content was sent, and the final reply did not come, nothing goes on: the message may have been taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ..queue.model import Recipient
from ..queue.work import Result
from ..smtp.client import Outcome, Stage, Transaction
from .route import Target

# So often may a message be put on another connection before that counts as an attempt.
MOST_MOVES = 10
_TOO_MANY = (452, 552)


class Way(Enum):
    """How an attempt goes on."""

    ENDS = "every recipient has its outcome"
    AGAIN = "the rest of the recipients go into a further transaction"
    MOVES = "on another connection: nothing was refused"
    IN_CLEAR = "the server hangs up on the first command under TLS: TLS is left out"
    NEXT_SERVER = "this server takes no mail: the next one is tried"

    __hash__ = object.__hash__


@dataclass(slots=True)
class Course:
    """What an attempt has come to: servers tried, with their results; moves; recipients of a transaction (0: all)."""

    tried: set[Target] = field(default_factory=set)
    moves: int = 0
    most_recipients: int = 0
    results: dict[int, Result] = field(default_factory=dict)

    def keep(self, results: Sequence[Result]) -> None:
        """What stands if no other server can be reached."""
        self.results.update((result.recipient.number, result) for result in results)

    def results_for(self, recipients: Sequence[Recipient]) -> list[Result] | None:
        """The results of the servers tried so far; None when a recipient has none."""
        found = [self.results.get(recipient.number) for recipient in recipients]
        known = [result for result in found if result is not None]
        return known if len(known) == len(found) and known else None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a transaction ended, and on what session."""

    transaction: Transaction
    results: Sequence[Result]
    is_lost: bool
    # The server closed the connection, or it broke, without a reply that says so.
    was_cut: bool
    # Messages that the session has taken.
    taken: int
    # TLS that may be left out.
    has_optional_tls: bool
    # It was ended here, for another lane's mail.
    gave_way: bool = False


def is_too_many(outcome: Outcome) -> bool:
    """RFC 5321 section 4.5.3.1.10: 452 to RCPT, and 552 of old servers, mean too many recipients, unless about a mailbox."""
    status = outcome.reply.enhanced or ""
    return outcome.stage is Stage.RCPT and outcome.reply.code in _TOO_MANY and status[1:3] != ".2"


def way_on(ended: Ended, course: Course | None, has_other_server: bool) -> tuple[Way, Collection[int]]:
    """How it goes on, and the places of the recipients that go on."""
    outcomes = [outcome for outcome in ended.transaction.outcomes if outcome is not None]
    if not ended.transaction.is_content_begun:
        left = [n for n, result in enumerate(ended.results) if not result.is_permanent]
        may_move = left and (course is None or course.moves < MOST_MOVES)
        is_refused_at_mail = any(o.stage is Stage.MAIL and o.reply.is_transient for o in outcomes)
        is_over = ended.is_lost and any(result.stage == "connection" for result in ended.results)
        if may_move and ended.gave_way:
            return Way.MOVES, left
        if may_move and ended.taken and (is_over or is_refused_at_mail):
            return Way.MOVES, left
        if may_move and ended.was_cut and ended.has_optional_tls and all(o.stage is Stage.MAIL for o in outcomes):
            return Way.IN_CLEAR, left
        if left and has_other_server and (is_over or _takes_none(outcomes)):
            return Way.NEXT_SERVER, left
    accepted = sum(outcome.stage is not Stage.RCPT and outcome.stage is not Stage.MAIL for outcome in outcomes)
    if accepted and not ended.is_lost:
        return Way.AGAIN, [n for n, outcome in enumerate(outcomes) if is_too_many(outcome)]
    return Way.ENDS, ()


def _takes_none(outcomes: Sequence[Outcome]) -> bool:
    """True when no recipient got as far as content, and the server may be at fault: 4yz to MAIL, to DATA, or to all RCPT."""
    if any(o.stage in (Stage.MAIL, Stage.DATA) and o.reply.is_transient for o in outcomes):
        return True
    return all(o.stage is Stage.RCPT for o in outcomes) and any(not o.is_permanent for o in outcomes)


def most_recipients(limits: dict[str, int], course: Course | None, recipients: Sequence[Recipient]) -> int:
    """How many of the recipients, from the first, go into the next transaction. RFC 9422 sections 3.2 and 3.3."""
    most = min(limits.get("RCPTMAX", len(recipients)), len(recipients))
    if course is not None and course.most_recipients:
        most = min(most, course.most_recipients)
    if "RCPTDOMAINMAX" in limits:
        domains: set[str] = set()
        for number, recipient in enumerate(recipients[:most]):
            domains.add(recipient.address.rpartition("@")[2].lower())
            if len(domains) > limits["RCPTDOMAINMAX"]:
                return number
    return most
