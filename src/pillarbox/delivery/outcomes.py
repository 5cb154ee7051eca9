"""What an attempt brought, told: events, counters, log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from ..events import catalogue as e
from ..events.dispatch import Dispatcher
from ..queue.judged import Judged
from ..queue.work import Work

_log = logging.getLogger("pillarbox")


class Counts(Protocol):
    """Who counts."""

    delivered: int
    deferred: int
    bounced: int
    delivery_s: float


class Outcomes:
    """The scheduler's `on_outcome`."""

    def __init__(self, dispatcher: Dispatcher, counters: Counts, now: Callable[[], float]) -> None:
        self._dispatcher = dispatcher
        self._counters = counters
        self._now = now

    def __call__(self, work: Work, judged: list[Judged]) -> None:
        """One event and one log line for recipients that have the same state by the same reply."""
        counters = self._counters
        if len(judged) == 1 and judged[0].settled.state == "delivered":
            # As nearly all.
            counters.delivered += 1
            counters.delivery_s += max(0.0, self._now() - work.message.received_at)
            self._tell(work, "delivered", judged)
            return
        groups: dict[tuple[str, str], list[Judged]] = {}
        for one in judged:
            state = one.settled.state
            if state == "delivered":
                counters.delivered += 1
                counters.delivery_s += max(0.0, self._now() - work.message.received_at)
            counters.deferred += state == "deferred"
            counters.bounced += state in ("bounced", "expired")
            groups.setdefault((state, one.settled.reply or ""), []).append(one)
        for (state, _), group in groups.items():
            self._tell(work, state, group)

    def stuck(self, work: Work, seconds: float) -> None:
        """The scheduler's `on_stuck`."""
        if self._dispatcher.listens("message_stuck"):
            recipients = [r.address for r in work.recipients]
            self._dispatcher.post(e.MessageStuck(work.message.uid, recipients, work.next_hop, seconds))

    def _tell(self, work: Work, state: str, group: list[Judged]) -> None:
        is_delivered = state == "delivered"
        level = logging.INFO if is_delivered else logging.WARNING
        is_heard = self._dispatcher.heard["send_success" if is_delivered else "send_failed"]
        is_logged = _log.isEnabledFor(level)
        if not is_heard and not is_logged:
            return
        uid, first = work.message.uid, group[0]
        recipients = [one.result.recipient.address for one in group]
        if is_logged:
            to, reply = ",".join(recipients[:5]), first.result.reply
            stage, hop = first.result.stage, work.next_hop
            told = {"queue_id": uid, "state": state, "next_hop": hop, "reason": str(reply)}
            _log.log(level, "%s %s to=%s next_hop=%s stage=%s: %s", state, uid, to, hop, stage, reply, extra=told)
        if not is_heard:
            return
        event: Any
        if is_delivered:
            attempt = first.result.recipient.attempts + 1
            event = e.SendSuccess(uid, recipients, work.next_hop, first.result.reply, attempt)
        else:
            is_permanent = state in ("bounced", "expired")
            due_at = None if is_permanent else first.settled.due_at
            event = e.SendFailed(
                uid, recipients, work.next_hop, first.result.stage, first.result.reply, is_permanent, due_at
            )
        self._dispatcher.post(event)
