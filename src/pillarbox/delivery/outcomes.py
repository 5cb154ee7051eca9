"""What an attempt brought, told: events, counters, log lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..events import catalogue as e
from ..events.dispatch import Dispatcher
from ..log.counts import DELIVERY_S, count_outcome, observe
from ..log.kinds import DEFERRED, OUTCOMES
from ..queue.judged import Judged
from ..queue.work import Work


def log_outcomes(work: Work, state: str, group: list[Judged], now: float) -> None:
    """One line for each recipient."""
    kind = OUTCOMES.get(state, DEFERRED)
    if not kind.is_enabled:
        return
    message = work.message
    delay = max(0.0, now - message.received_at)
    sender, size = message.envelope.reverse_path or "", message.content.size_bytes
    for one in group:
        result, settled = one.result, one.settled
        recipient, reply = result.recipient, result.reply
        sending = settled.seconds
        waited = max(0.0, work.started_clock - work.taken_at - work.connect_s) if work.started_clock else 0.0
        before = max(0.0, delay - waited - work.connect_s - sending)
        kind.write(
            {
                "queue_id": message.uid,
                "status": _STATUS.get(state, state),
                "relay": result.remote,
                "next_hop": work.next_hop or None,
                "delay": round(delay, 3),
                "delays": f"{before:.3g}/{waited:.3g}/{work.connect_s:.3g}/{sending:.3g}",
                "dsn": reply.enhanced or f"{reply.code // 100}.0.0",
                "tls": work.tls,
                "size": size,
                "attempt": recipient.attempts + 1,
                "due_in": None if settled.due_at is None else round(max(0.0, settled.due_at - now), 1),
                "stage": None if state == "delivered" else result.stage,
                "from": sender,
                "to": recipient.address,
                "orig_to": _original(recipient.orcpt, recipient.address),
                "reply": f"{reply.code} {reply.text[:200]}",
            }
        )


def _original(orcpt: str | None, address: str) -> str | None:
    """The address of ORCPT, where it is another one."""
    original = orcpt.partition(";")[2] if orcpt else ""
    return original if original and original != address else None


_STATUS = {"delivered": "sent"}


class Counts(Protocol):
    """Who counts."""

    delivered: int
    deferred: int
    bounced: int
    delivery_s: float
    delivered_tls: int
    delivery_delays: list[float]
    by_next_hop: dict[str, list[float]]
    by_domain: dict[str, list[float]]


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
            self._count_delivered(work)
            self._count(work, judged[0])
            self._tell(work, "delivered", judged)
            return
        groups: dict[tuple[str, str], list[Judged]] = {}
        for one in judged:
            state = one.settled.state
            if state == "delivered":
                self._count_delivered(work)
            self._count(work, one)
            counters.deferred += state == "deferred"
            counters.bounced += state in ("bounced", "expired")
            groups.setdefault((state, one.settled.reply or ""), []).append(one)
        for (state, _), group in groups.items():
            self._tell(work, state, group)

    def _count_delivered(self, work: Work) -> None:
        counters, delay_s = self._counters, max(0.0, self._now() - work.message.received_at)
        counters.delivered += 1
        counters.delivered_tls += work.tls is not None
        counters.delivery_s += delay_s
        observe(counters.delivery_delays, DELIVERY_S, delay_s)

    def _count(self, work: Work, one: Judged) -> None:
        counters, state = self._counters, one.settled.state
        count_outcome(counters.by_next_hop, work.next_hop, state)
        count_outcome(counters.by_domain, one.result.recipient.address.rpartition("@")[2].lower(), state)

    def stuck(self, work: Work, seconds: float) -> None:
        """The scheduler's `on_stuck`."""
        if self._dispatcher.listens("message_stuck"):
            recipients = [r.address for r in work.recipients]
            self._dispatcher.post(e.MessageStuck(work.message.uid, recipients, work.next_hop, seconds))

    def _tell(self, work: Work, state: str, group: list[Judged]) -> None:
        is_delivered = state == "delivered"
        log_outcomes(work, state, group, self._now())
        if not self._dispatcher.heard["send_success" if is_delivered else "send_failed"]:
            return
        uid, first = work.message.uid, group[0]
        recipients = [one.result.recipient.address for one in group]
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
