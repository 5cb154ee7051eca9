"""DSNs that outcomes call for: failure, delay, relayed. They enter the queue by the same door, null reverse-path."""

from __future__ import annotations

from collections.abc import Callable

from ..log.kinds import DSN_UNSENT
from ..mail import dsn
from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from ..options import Options
from ..queue.judged import Judged
from ..queue.model import Message
from ..smtp.address import comparable_domain, domain_of


class DomainRate:
    """Counts DSNs by domain and hour. Bounded: the domain that was counted first is forgotten first."""

    MAX_DOMAINS = 4096
    WINDOW_S = 3600.0

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}

    def take(self, domain: str, limit: int, now: float) -> bool:
        """Counts one more; False, and nothing is counted, when the hour has its number."""
        began, count = self._counts.get(domain, (now, 0))
        if not 0 <= now - began < self.WINDOW_S:
            began, count = now, 0
        if count >= limit:
            return False
        if domain not in self._counts and len(self._counts) >= self.MAX_DOMAINS:
            del self._counts[next(iter(self._counts))]
        self._counts[domain] = (began, count + 1)
        return True


class BounceMaker:
    """queue.scheduler.Reporter. `options` gives the options of now, `new_uid` names the DSNs."""

    def __init__(self, options: Callable[[], Options], new_uid: Callable[[], str]) -> None:
        self._options = options
        self._new_uid = new_uid
        self._rate = DomainRate()

    def __call__(self, message: Message, judged: list[Judged], now: float) -> list[Message]:
        """The DSNs for one attempt's outcomes; to nobody but the postmaster for a null reverse-path (RFC 5321 section 6.1)."""
        to = message.envelope.reverse_path
        if to is None:
            return self._lost(message, judged, now) if "dsn" in message.facts else []
        groups: dict[dsn.Action, list[Judged]] = {}
        for one in judged:
            action = _action(one)
            if action is not None:
                groups.setdefault(action, []).append(one)
        # Nobody has vouched for a stranger's reverse-path: it may be a third party's.
        if groups and message.facts.get("stranger") and not self._may_send(to, now):
            for action in groups:
                _log_unsent(message, action.value, to, "over-limit")
            return []
        return [self._make(message, to, action, group, now) for action, group in groups.items()]

    def _may_send(self, to: str, now: float) -> bool:
        return self._rate.take(comparable_domain(domain_of(to)), self._options().max_dsns_per_domain, now)

    def _lost(self, message: Message, judged: list[Judged], now: float) -> list[Message]:
        """A DSN of ours that could not be delivered: a log line, and a report to the postmaster where there is one."""
        group = [one for one in judged if one.settled.state in ("bounced", "expired")]
        for one in group:
            _log_unsent(message, str(message.facts["dsn"]), one.result.recipient.address, "undeliverable")
        postmaster = self._options().postmaster
        if not group or postmaster is None or message.facts.get("to") == "postmaster":
            return []
        report = self._make(message, postmaster, dsn.Action.FAILED, group, now)
        # The last one: whatever becomes of it, no other follows.
        report.facts["to"] = "postmaster"
        return [report]

    def _returns_content(self, message: Message) -> bool:
        returns = self._options().return_content
        return returns == "always" or (returns == "trusted" and not message.facts.get("stranger"))

    def _make(self, message: Message, to: str, action: dsn.Action, group: list[Judged], now: float) -> Message:
        envelope, content, hostname = message.envelope, message.content, self._options().hostname
        uid = self._new_uid()
        # RFC 3461 section 6.2: RET decides for failures only; other reports bring the header section.
        # deviates: section 4.3 asks for the content where RET is not given. A stranger could have it sent to others.
        is_full = (
            action is dsn.Action.FAILED
            and envelope.ret != "HDRS"
            and content.size_bytes <= dsn.MAX_RETURNED_BYTES
            and self._returns_content(message)
        )
        original, is_full = _original(message, is_full=is_full)
        report = dsn.Report(
            action,
            message.uid,
            hostname,
            to,
            message.received_at,
            original,
            is_full,
            envelope.envid,
            [_describe(one, action, message) for one in group],
        )
        octets = dsn.format_dsn(report, uid, now)
        return Message(
            uid,
            Envelope(
                None,
                [EnvelopeRecipient(to, notify=("NEVER",))],
                "7BIT" if octets.isascii() else "8BITMIME",
                is_smtputf8=dsn.is_global_report(to),
            ),
            Content(octets),
            now,
            now + self._options().expire_s,
            dsn.SUBJECTS[action],
            {"dsn": action.value, "for": message.uid},
        )


def _log_unsent(message: Message, action: str, to: str, reason: str) -> None:
    DSN_UNSENT.write({"reason": reason, "queue_id": message.uid, "action": action, "to": to})


def _original(message: Message, *, is_full: bool) -> tuple[bytes, bool]:
    """What is given back; nothing, where the spool file cannot be read: the sender must hear of it all the same."""
    try:
        return (message.content.read(), True) if is_full else (message.content.header_section, False)
    except OSError:
        return b"", False


def _action(one: Judged) -> dsn.Action | None:
    """RFC 3461 section 4.1 and 5.2: what the sender asked to be told, or, having said nothing, is told."""
    notify = one.result.recipient.notify
    if "NEVER" in notify:
        return None
    state = one.settled.state
    if state in ("bounced", "expired"):
        return dsn.Action.FAILED if not notify or "FAILURE" in notify else None
    if state == "delivered":
        # Section 5.2.2: the next hop will not report, so that is reported.
        return dsn.Action.RELAYED if "SUCCESS" in notify and not one.result.was_dsn_passed_on else None
    if one.is_delay_report:
        return dsn.Action.DELAYED if not notify or "DELAY" in notify else None
    return None


def _describe(one: Judged, action: dsn.Action, message: Message) -> dsn.RecipientReport:
    result, settled = one.result, one.settled
    return dsn.RecipientReport(
        result.recipient.address,
        result.reply,
        result.recipient.orcpt,
        result.remote,
        settled.started_at or None,
        message.expires_at if action is dsn.Action.DELAYED else None,
        settled.state == "expired",
    )
