"""What an attempt's results mean for the recipients' states, and whether anybody has to be told. Values only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from ..smtp.reply import MAX_REPLY_TEXT, Reply, cut_reply
from .model import Message, Settled
from .retry import RetryPolicy, pause_s
from .work import Result, Work


@dataclass(slots=True)
class Judged:
    """A result and what it means for the recipient's state. `is_delay_report` asks for a delay DSN."""

    result: Result
    settled: Settled
    is_delay_report: bool = False


def judge(work: Work, result: Result, policy: RetryPolicy, rng: random.Random, now: float, seconds: float) -> Judged:
    """What a result means: delivered, bounced, expired, or deferred until when. `seconds`: how long the attempt took."""
    message, recipient = work.message, result.recipient
    # By place: one is made for each recipient, and names cost as much again.
    reply, hop = str(result.reply), work.next_hop or None
    if len(reply) > MAX_REPLY_TEXT:
        # The one bound for whatever text became a result: of a next hop, a handler, a webhook, a resolver.
        result.reply = cut_reply(result.reply)
        reply = str(result.reply)
    settled = Settled(
        recipient.number, "delivered", "delivered", None, reply, result.stage, hop, result.remote, work.started_at, seconds,
        result.is_attempt,
    )  # fmt: skip
    if result.is_delivered:
        return Judged(result, settled)
    if result.is_permanent:
        settled.state = settled.outcome = "bounced"
        return Judged(result, settled)
    if now >= message.expires_at:
        settled.state = settled.outcome = "expired"
        return Judged(result, settled)
    settled.state = "deferred" if result.is_attempt else recipient.state
    settled.outcome = "ambiguous" if result.is_ambiguous else "deferred"
    pause = pause_s(policy, recipient.attempts + 1, rng)
    due_at = result.retry_at if result.retry_at is not None else now + pause
    settled.due_at = min(due_at, max(message.expires_at, now + 1.0))
    after = policy.delay_notice_s
    if after is not None and not recipient.is_delay_reported and now - message.received_at >= after:
        settled.is_delay_reported = True
    return Judged(result, settled, is_delay_report=settled.is_delay_reported)


def calls_for_report(judged: list[Judged]) -> bool:
    """True when somebody may have to be told."""
    for one in judged:
        state = one.settled.state
        if state == "delivered":
            if "SUCCESS" in one.result.recipient.notify:
                return True
        elif state in ("bounced", "expired") or one.is_delay_report:
            return True
    return False


def parse_kept(text: str | None) -> Reply:
    """The last reply, as the store kept it."""
    words = (text or "").split(" ", 2)
    if len(words) == 3 and words[0].isdigit() and 400 <= int(words[0]) <= 599:
        try:
            return Reply(int(words[0]), words[1], words[2])
        except ValueError:
            return Reply(int(words[0]), None, " ".join(words[1:]))
    return Reply(451, "4.4.7", text or "no attempt could be made")


class Reporter(Protocol):
    """Makes the DSNs that outcomes call for (delivery.bounce)."""

    def __call__(self, message: Message, judged: list[Judged], now: float) -> list[Message]: ...
