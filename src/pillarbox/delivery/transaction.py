"""From queued work to an SMTP transaction for one server: what its extensions allow, and what they forbid."""

from __future__ import annotations

from ..queue.work import Result, Work
from ..smtp.address import ascii_mailbox
from ..smtp.client import ClientProtocol, Outcome, Recipient, Stage, Transaction
from ..smtp.extension import format_utf8_xtext, format_xtext
from ..smtp.reply import Reply

# Asking a member for its value goes through a property.
_WORDS = {stage: stage.value for stage in Stage}
_NEEDS_UTF8 = Reply(553, "5.6.7", "The next hop does not know SMTPUTF8, which this message needs")
_NEEDS_8BIT = Reply(554, "5.6.3", "The next hop does not take 8-bit content, and conversion is not supported")


def build_transaction(work: Work, smtp: ClientProtocol) -> Transaction | Reply:
    """The transaction, or the permanent refusal that stands for it: never silently weaker than what was asked for."""
    message, has = work.message, smtp.extensions
    envelope, content = message.envelope, message.content
    words = []
    if "SIZE" in has:
        words.append(f"SIZE={content.size_bytes}")
    if envelope.body == "8BITMIME":
        if "8BITMIME" in has:
            words.append("BODY=8BITMIME")
        elif not all(piece.isascii() for piece in content.chunks()):
            return _NEEDS_8BIT
    # A domain goes in A-labels where SMTPUTF8 is missing; a local-part and header fields have no such form.
    has_utf8_local_part = not all(ascii_mailbox(address).isascii() for address in _addresses(work))
    is_utf8 = "SMTPUTF8" in has and (envelope.is_smtputf8 or has_utf8_local_part)
    if is_utf8:
        words.append("SMTPUTF8")
    elif has_utf8_local_part or (envelope.is_smtputf8 and not content.header_section.isascii()):
        return _NEEDS_UTF8
    has_dsn = "DSN" in has
    if has_dsn:
        if envelope.ret:
            words.append(f"RET={envelope.ret}")
        if envelope.envid:
            words.append(f"ENVID={format_xtext(envelope.envid)}")
    recipients = []
    for r in work.recipients:
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


def result_of(smtp: ClientProtocol, remote: str, recipient: object, outcome: Outcome, *, is_lost: bool) -> Result:
    """What a recipient's outcome means for the queue; `is_lost` when the connection went with it."""
    reply, stage = outcome.reply, _WORDS[outcome.stage]
    if outcome.is_delivered and not is_lost:
        dsn = "DSN" in smtp.extensions
        return Result(recipient, reply, stage, True, False, False, True, None, remote, dsn)  # type: ignore[arg-type]
    is_delivered = outcome.is_delivered
    is_ours = is_lost and outcome.reply is smtp.last_reply
    is_ambiguous = is_ours and outcome.stage is Stage.FINAL and reply.code != 421
    if is_ours and not is_ambiguous:
        reply = Reply(reply.code, reply.enhanced, *reply.lines[:-1], f"{reply.lines[-1]} (at {stage})")
        stage = "connection"
    return Result(
        recipient,  # type: ignore[arg-type]
        reply,
        stage,
        is_delivered=is_delivered,
        is_permanent=not is_delivered and outcome.is_permanent,
        is_ambiguous=is_ambiguous,
        remote=remote,
        was_dsn_passed_on="DSN" in smtp.extensions,
    )
