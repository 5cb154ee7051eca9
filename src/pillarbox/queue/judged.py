"""What an attempt's results mean for the recipients' states, and whether anybody has to be told. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from ..smtp.reply import Reply
from .model import Settled
from .work import Result


@dataclass(slots=True)
class Judged:
    """A result and what it means for the recipient's state. `is_delay_report` asks for a delay DSN."""

    result: Result
    settled: Settled
    is_delay_report: bool = False


def calls_for_report(judged: list[Judged]) -> bool:
    """True when somebody may have to be told."""
    return any(
        one.settled.state in ("bounced", "expired")
        or one.is_delay_report
        or (one.settled.state == "delivered" and "SUCCESS" in one.result.recipient.notify)
        for one in judged
    )


def parse_kept(text: str | None) -> Reply:
    """The last reply, as the store kept it."""
    words = (text or "").split(" ", 2)
    if len(words) == 3 and words[0].isdigit() and 400 <= int(words[0]) <= 599:
        try:
            return Reply(int(words[0]), words[1], words[2])
        except ValueError:
            return Reply(int(words[0]), None, " ".join(words[1:]))
    return Reply(451, "4.4.7", text or "no attempt could be made")
