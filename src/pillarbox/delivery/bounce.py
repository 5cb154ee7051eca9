"""DSNs that outcomes call for: failure, delay, relayed. They enter the queue by the same door, null reverse-path."""

from __future__ import annotations

from collections.abc import Callable

from ..mail import dsn
from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from ..queue.judged import Judged
from ..queue.model import Message


class BounceMaker:
    """queue.scheduler.Reporter. `new_uid` names the DSNs."""

    def __init__(self, hostname: str, expire_s: float, new_uid: Callable[[], str]) -> None:
        self._hostname = hostname
        self._expire_s = expire_s
        self._new_uid = new_uid

    def __call__(self, message: Message, judged: list[Judged], now: float) -> list[Message]:
        """The DSNs for one attempt's outcomes; none for a null reverse-path (RFC 5321 section 6.1)."""
        if message.envelope.reverse_path is None:
            return []
        groups: dict[dsn.Action, list[Judged]] = {}
        for one in judged:
            action = _action(one)
            if action is not None:
                groups.setdefault(action, []).append(one)
        return [self._make(message, action, group, now) for action, group in groups.items()]

    def _make(self, message: Message, action: dsn.Action, group: list[Judged], now: float) -> Message:
        envelope, content = message.envelope, message.content
        assert envelope.reverse_path is not None
        uid = self._new_uid()
        # RFC 3461 section 6.2: RET decides for failures only; other reports bring the header section.
        is_full = (
            action is dsn.Action.FAILED and envelope.ret != "HDRS" and content.size_bytes <= dsn.MAX_RETURNED_BYTES
        )
        original, is_full = _original(message, is_full=is_full)
        report = dsn.Report(
            action,
            message.uid,
            self._hostname,
            envelope.reverse_path,
            message.received_at,
            original,
            is_full,
            envelope.envid,
            [_describe(one, action, message) for one in group],
        )
        octets = dsn.format_dsn(report, uid, now)
        to = envelope.reverse_path
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
            now + self._expire_s,
            dsn.SUBJECTS[action],
            {"dsn": action.value, "for": message.uid},
        )


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
