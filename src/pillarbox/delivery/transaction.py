"""From queued work to an SMTP transaction for one server: what its extensions allow, and what they forbid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..queue.model import Recipient as QueuedRecipient
from ..queue.work import Result, Work
from ..smtp.address import ascii_mailbox
from ..smtp.client import ClientProtocol, Outcome, Recipient, Stage, Transaction
from ..smtp.extension import format_utf8_xtext, format_xtext
from ..smtp.reply import Reply

# Asking a member for its value goes through a property.
_WORDS = {stage: stage.value for stage in Stage}
_NEEDS_UTF8 = Reply(553, "5.6.7", "The next hop does not know SMTPUTF8, which this message needs")
_NEEDS_8BIT = Reply(554, "5.6.3", "The next hop does not take 8-bit content, and conversion is not supported")
# After HELO nothing is known of the extensions, and EHLO may work next time.
_UNKNOWN_UTF8 = Reply(451, "4.6.7", "The next hop did not take EHLO, and this message needs SMTPUTF8")
_UNKNOWN_8BIT = Reply(451, "4.6.3", "The next hop did not take EHLO, and this message needs 8BITMIME")
# RFC 4954 section 6: log-in or encryption is wanted first.
_ABOUT_LOGIN = frozenset((530, 534, 535, 538))
# A refusal that may come of a session without TLS or EHLO is a verdict when it is repeated at this attempt.
_BELIEVED_FROM = 3


def build_transaction(work: Work, smtp: ClientProtocol, most_recipients: int = 0) -> Transaction | Reply:
    """The transaction for the first `most_recipients` of the recipients (0: all), or the refusal that stands for it.

    Never silently weaker than what was asked for.
    """
    message, has = work.message, smtp.extensions
    envelope, content = message.envelope, message.content
    words = []
    if "SIZE" in has:
        words.append(f"SIZE={content.size_bytes}")
    if envelope.body == "8BITMIME":
        if "8BITMIME" in has:
            words.append("BODY=8BITMIME")
        elif not all(piece.isascii() for piece in content.chunks()):
            return _UNKNOWN_8BIT if smtp.used_helo else _NEEDS_8BIT
    # A domain goes in A-labels where SMTPUTF8 is missing; a local-part and header fields have no such form.
    has_utf8_local_part = not all(ascii_mailbox(address).isascii() for address in _addresses(work))
    is_utf8 = "SMTPUTF8" in has and (envelope.is_smtputf8 or has_utf8_local_part)
    if is_utf8:
        words.append("SMTPUTF8")
    elif has_utf8_local_part or (envelope.is_smtputf8 and not content.header_section.isascii()):
        return _UNKNOWN_UTF8 if smtp.used_helo else _NEEDS_UTF8
    has_dsn = "DSN" in has
    if has_dsn:
        if envelope.ret:
            words.append(f"RET={envelope.ret}")
        if envelope.envid:
            words.append(f"ENVID={format_xtext(envelope.envid)}")
    recipients = []
    for r in work.recipients[:most_recipients] if most_recipients else work.recipients:
        address = r.address if is_utf8 else ascii_mailbox(r.address)
        recipients.append(Recipient(address, _rcpt_words(r.notify, r.orcpt, is_utf8=is_utf8) if has_dsn else ()))
    size, is_plain = content.size_bytes, content.is_plain
    # The very octets that were judged, whoever may change the content meanwhile.
    octets = (content.prefix,) if is_plain else content.chunks()
    reverse_path = envelope.reverse_path
    if reverse_path is not None and not is_utf8:
        reverse_path = ascii_mailbox(reverse_path)
    return Transaction(reverse_path, recipients, octets, tuple(words), work, size, is_plain)


def _addresses(work: Work) -> list[str]:
    return [work.message.envelope.reverse_path or "", *(r.address for r in work.recipients)]


def _rcpt_words(notify: tuple[str, ...], orcpt: str | None, *, is_utf8: bool) -> tuple[str, ...]:
    words = []
    if notify:
        words.append(f"NOTIFY={','.join(notify)}")
    if orcpt:
        kind, _, address = orcpt.partition(";")
        if kind.lower() != "utf-8":
            address = format_xtext(address)
        elif not is_utf8:
            # RFC 6533 section 3: without SMTPUTF8 only the form in ASCII may stand here.
            address = format_utf8_xtext(address)
        words.append(f"ORCPT={kind};{address}")
    return tuple(words)


@dataclass(frozen=True, slots=True)
class Session:
    """What a result depends on beside the reply. `is_fallback`: in clear after TLS failed; `is_relay`: a smart host's."""

    smtp: ClientProtocol
    remote: str
    is_lost: bool = False
    is_fallback: bool = False
    is_relay: bool = False


def result_of(session: Session, recipient: QueuedRecipient, outcome: Outcome) -> Result:
    """What a recipient's outcome means for the queue."""
    reply, stage, smtp = outcome.reply, _WORDS[outcome.stage], session.smtp
    has_dsn = "DSN" in smtp.extensions
    if outcome.is_delivered:
        return Result(recipient, reply, stage, True, False, False, True, None, session.remote, has_dsn)
    is_permanent = outcome.is_permanent
    if is_permanent and (why := _why_not_believed(session, recipient, reply)):
        reply, is_permanent = Reply(451, "4.7.0", f"{why}: {reply}"), False
    is_ours = session.is_lost and outcome.reply is smtp.last_reply
    is_ambiguous = is_ours and outcome.stage is Stage.FINAL and reply.code != 421
    if is_ours and not is_ambiguous:
        reply = Reply(reply.code, reply.enhanced, *reply.lines[:-1], f"{reply.lines[-1]} (at {stage})")
        stage = "connection"
    return Result(
        recipient,
        reply,
        stage,
        is_delivered=False,
        is_permanent=is_permanent,
        is_ambiguous=is_ambiguous,
        remote=session.remote,
        was_dsn_passed_on=has_dsn,
    )


def results_of(session: Session, recipients: Sequence[QueuedRecipient], transaction: Transaction) -> list[Result]:
    """The results of a transaction, which may have had the first of the recipients only."""
    return [
        result_of(session, recipient, outcome)
        for recipient, outcome in zip(recipients, transaction.outcomes, strict=False)
        if outcome is not None
    ]


def _why_not_believed(session: Session, recipient: QueuedRecipient, reply: Reply) -> str:
    """Why a 5yz is about this session and not about the message, so that the message waits; "" for a verdict."""
    if session.is_relay and reply.code in _ABOUT_LOGIN:
        return "The smart host wants a log-in or TLS"
    if not session.is_fallback and not session.smtp.used_helo:
        return ""
    status = reply.enhanced or ""
    if status.startswith(("5.1.", "5.2.")):
        # RFC 3463 sections 3.2 and 3.3: about the address or the mailbox.
        return ""
    is_about_us = reply.code in _ABOUT_LOGIN or status.startswith("5.7.")
    if not is_about_us and recipient.attempts + 1 >= _BELIEVED_FROM:
        return ""
    return "Refused without TLS" if session.is_fallback else "Refused after HELO"
