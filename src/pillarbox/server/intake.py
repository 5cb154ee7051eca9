"""From pieces of content to a queued message: memory or spool, checks, trace fields, the `message` event, the queue.

One Intake serves one session, one transaction after the other. Must not write to the wire: verdicts go back to the
session as replies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from ..errors import StoreError, StoreFullError
from ..events.catalogue import MessageQueued, MessageReceived
from ..events.dispatch import Parked, Verdict
from ..events.pipeline import SIMPLE
from ..log.counts import ACCEPT_S, observe
from ..mail import headers, trace
from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from ..queue.company import Expected
from ..queue.lines import log_queued
from ..queue.model import Message
from ..queue.spool import SpoolWriter
from ..smtp.address import parse_mailbox
from ..smtp.reply import Reply
from .diverted import Diverted

if TYPE_CHECKING:
    from .context import ServerContext
    from .session import SmtpSession

_log = logging.getLogger("pillarbox.session")
_FULL = Reply(452, "4.3.1", "No room left for mail: try again later", reason="no-room")
_FAULT = Reply(451, "4.3.0", "The message could not be stored: try again later", reason="queue-unavailable")
_LOOP = Reply(554, "5.4.6", "Too many Received fields: this message goes round in a circle", reason="mail-loop")
_NO_RECIPIENT = Reply(554, "5.5.1", "No recipients are left", reason="no-recipients")
_HEADER_TOO_LARGE = Reply(552, "5.3.4", "Header section too large", reason="header-too-large")
_MAILBOX_LINE = b"X-Mailbox-Line: "


class _Seen:
    """What a look at content found, for as long as the content is the same."""

    __slots__ = ("_content", "_offset", "_path", "_prefix", "_scan")

    def __init__(self, content: Content, scan: headers.Scan) -> None:
        self._content, self._scan = content, scan
        # Whatever changes content makes other octets of its prefix, or moves where the file's part begins.
        self._prefix, self._path, self._offset = content.prefix, content.path, content.offset

    def scan_of(self, content: Content) -> headers.Scan:
        """The same, or what another look finds."""
        if (
            content is self._content
            and content.prefix is self._prefix
            and content.path is self._path
            and content.offset == self._offset
        ):
            return self._scan
        return headers.Scan(content.section_start())


class Intake:
    """Collects content; `finish` makes a message of it and gives the session its reply."""

    __slots__ = ("_context", "_diverted", "_expected", "_pieces", "_session", "_size", "_writer")

    def __init__(self, context: ServerContext, session: SmtpSession) -> None:
        self._context = context
        self._session = session
        self._pieces: list[bytes] = []
        self._size = 0
        self._writer: SpoolWriter | None = None
        self._diverted: Diverted | None = None
        # Where it is counted as one from whom a message will come. Who comes has mail, nearly always.
        self._expected: Expected | None = context.commit.company.latest
        self._expected.sessions += 1

    def expect(self) -> None:
        """A message will want to be committed soon: a client has come, or a transaction is open."""
        latest = self._context.commit.company.latest
        expected = self._expected
        if expected is not latest:
            if expected is not None:
                expected.sessions -= 1
            self._expected = latest
            latest.sessions += 1

    def forget_expected(self) -> None:
        """It is here, or will not come so soon."""
        if self._expected is not None:
            self._expected.sessions -= 1
            self._expected = None

    def divert(self, file: IO[bytes] | None) -> bool:
        """The content of this transaction goes to the program (`data_mode`), not to the queue. False: some is here already."""
        if self._size or self._writer is not None:
            return False
        self._diverted = Diverted(file)
        return True

    def divert_unless_asked(self) -> None:
        """Without built-in behaviour content goes to the program in any case: as lines, if it did not give a file."""
        if self._diverted is None:
            self._diverted = Diverted()

    def piece(self, octets: bytes) -> None:
        """Content, as it arrives."""
        self._size += len(octets)
        if self._writer is not None:
            self._writer.write(octets)
            return
        if self._diverted is not None:
            self._diverted.write(octets)
            return
        self._pieces.append(octets)
        context = self._context
        if self._size > context.options.spool_above_bytes and context.spool is not None:
            self._writer = context.spool.create(context.new_uid(), self._session.wants_reading)
            self._writer.write(b"".join(self._pieces))
            self._pieces.clear()

    def has_any(self) -> bool:
        """True when something of a transaction is here, or was asked for it (`divert`)."""
        return self._size > 0 or self._diverted is not None or self._writer is not None

    def takes_whole(self, size: int) -> bool:
        """True when content of that size that is here as a whole may go the short way (`take_whole`)."""
        context = self._context
        return (
            not self._pieces
            and self._diverted is None
            and self._writer is None
            and size <= context.options.spool_above_bytes
            and context.wiretap is None
        )

    def take_whole(self, envelope: Envelope, octets: bytes) -> None:
        """`piece` and `finish` for content that came whole, and plain (framing.is_plain), where `takes_whole` holds."""
        content = Content(octets)
        content.mark_plain()
        try:
            self._judge(envelope, content)
        except Exception:
            self._give_up()

    def reset(self) -> None:
        """The transaction is over without a message: what was collected goes."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        self._pieces.clear()
        self._size = 0
        self._diverted = None
        self.forget_expected()

    def part(self) -> None:
        """Its session has ended, and waits for nothing."""
        del self._session

    # ------------------------------------------------------------------- finish

    def finish(self, envelope: Envelope, *, is_plain: bool = False) -> None:
        """All content is there; the session gets exactly one `intake_decided(reply)`, perhaps later."""
        if self._diverted is not None:
            diverted, self._diverted = self._diverted, None
            self._guarded(lambda: self._tell_program(diverted))
        elif self._writer is None:
            pieces = self._pieces
            content = Content(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self._pieces = []
            self._size = 0
            if is_plain:
                content.mark_plain()
            try:
                self._judge(envelope, content)
            except Exception:
                self._give_up()
        else:
            self._writer.finish(lambda error: self._spooled(envelope, error))

    def _tell_program(self, diverted: Diverted) -> None:
        """`data` or `data_fh`; the reply is the program's, by a plugin's Reply or by send_to_client."""
        session = self._session
        event = diverted.finish(session.facts)
        self.reset()
        if event.fault is not None:
            self._context.dispatcher.post(event)
            session.intake_decided(event.fault)
            return
        session.expect_program()

        def decided(verdict: Verdict) -> None:
            if isinstance(verdict, Reply):
                session.intake_decided(verdict)
            else:
                session.await_program()

        verdict = self._context.dispatcher.dispatch(event, decided)
        if not isinstance(verdict, Parked):
            decided(verdict)

    def tell_fault(self, fault: Reply) -> None:
        """Content that was the program's is refused for what it is: the program hears of its end, too."""
        if self._diverted is not None:
            self._context.dispatcher.post(self._diverted.finish(self._session.facts, fault))

    def _spooled(self, envelope: Envelope, error: StoreError | None) -> None:
        writer = self._writer
        if writer is None:
            return
        if error is not None:
            told = {"session": self._session.facts.client_id, "reason": str(error)}
            _log.error("session %s: %s", told["session"], error, extra=told)
            self.reset()
            self._session.intake_decided(_FULL if isinstance(error, StoreFullError) else _FAULT)
            return
        self._guarded(lambda: self._judge(envelope, writer.content()))

    def _guarded(self, step: Callable[[], None]) -> None:
        """Whatever goes wrong outside the session's own turn, the client hears of it, and the session goes on."""
        try:
            step()
        except Exception:
            self._give_up()

    def _give_up(self) -> None:
        session = self._session.facts.client_id
        _log.exception("session %s: the message could not be taken", session, extra={"session": session})
        self.reset()
        self._session.intake_decided(_FAULT)

    def _judge(self, envelope: Envelope, content: Content) -> None:
        """The checks that need the header section, then the plugins."""
        options = self._context.options
        limit = options.max_header_bytes
        start = content.prefix if content.path is None else content.section_start(limit + 1)
        scan = headers.Scan(start)
        if not scan.end and start[:80].lstrip(b">").startswith(b"From "):
            # The first line of a message in an mbox file. As a field, as in Postfix, it does not end the header section.
            content.prepend(_MAILBOX_LINE)
            start = content.section_start(limit + 1)
            scan = headers.Scan(start)
        is_cut = content.size_bytes > len(start) and headers.goes_on(start, scan.end)
        if scan.end > limit or is_cut:
            self._refuse(_HEADER_TOO_LARGE)
            return
        # RFC 5321 section 6.3
        if scan.received > options.max_received:
            self._refuse(_LOOP)
            return
        dispatcher = self._context.dispatcher
        if not dispatcher.heard["message"]:
            self._accept(envelope, content, scan)
            return
        session = self._session.facts
        content.is_smtputf8 = envelope.is_smtputf8
        event = MessageReceived(session.client_id, session, envelope, content)
        seen = _Seen(content, scan)
        verdict = dispatcher.dispatch(event, lambda later: self._guarded(lambda: self._decided(event, seen, later)))
        if not isinstance(verdict, Parked):
            self._decided(event, seen, verdict)

    def _decided(self, event: MessageReceived, seen: _Seen, verdict: Verdict) -> None:
        if isinstance(verdict, Reply):
            if verdict.is_positive:
                # A plugin that answers 2yz has taken the message over: nothing is queued.
                self.reset()
                self._session.intake_decided(verdict)
            else:
                self._refuse(verdict)
        else:
            # An Eat says who else may see the event; the message is queued all the same.
            self._accept(event.envelope, event.content, seen.scan_of(event.content), event.hold)

    def _refuse(self, reply: Reply) -> None:
        self.reset()
        self._session.intake_decided(reply)

    # ------------------------------------------------------------------- accept

    def _mend_recipients(self, envelope: Envelope) -> bool:
        """Addresses that a plugin put into the envelope as text become recipients; False, and refused, for what is none."""
        # A plugin may be untyped.
        found: Any = envelope.recipients
        recipients = []
        for given in [found] if isinstance(found, str) else found:
            if isinstance(given, str) and parse_mailbox(given) is not None:
                recipients.append(EnvelopeRecipient(given))
            elif isinstance(given, EnvelopeRecipient):
                recipients.append(given)
            else:
                plugins = [alias for alias in self._context.dispatcher.pipeline.list() if alias != SIMPLE]
                words = "session %s: invalid envelope.recipients %r: expected mailboxes or EnvelopeRecipient; set by one of %s"
                _log.error(words, self._session.facts.client_id, given, ", ".join(map(repr, plugins)))
                self._refuse(_FAULT)
                return False
        envelope.recipients = recipients
        return True

    def _accept(self, envelope: Envelope, content: Content, scan: headers.Scan, hold: str = "") -> None:
        if not envelope.recipients:
            self._refuse(_NO_RECIPIENT)
            return
        for recipient in envelope.recipients:
            if recipient.__class__ is not EnvelopeRecipient:
                if not self._mend_recipients(envelope):
                    return
                break
        if self._session.is_lost:
            # Nobody is there to hear 250: the client will send it again, so it must not be here already.
            self.reset()
            return
        context = self._context
        if context.rates is not None:
            refusal = context.rates.take(self._session.facts, len(envelope.recipients), context.clock.monotonic())
            if refusal is not None:
                self._refuse(refusal)
                return
        if context.redirect is not None:
            context.redirect(envelope.recipients)
        uid = context.new_uid()
        now = context.clock.time()
        self._stamp(uid, envelope, content, now, scan)
        message = Message(
            uid,
            envelope,
            content,
            now,
            now + context.options.expire_s,
            scan.subject,
            self._facts(),
        )
        if hold:
            message.hold(str(hold))
        context.scheduler.prepare(message)
        writer, self._writer = self._writer, None
        self._size = 0
        if writer is not None and content.path is None:
            # A plugin has replaced the content: the file is of no use.
            writer.abort()
        # It has come, however long ago its session was expected: others that are expected now are not taken for it.
        self.expect()
        context.commit.accept(message, lambda error: self._committed(message, error))

    def _stamp(self, uid: str, envelope: Envelope, content: Content, now: float, scan: headers.Scan) -> None:
        """Trace fields, and what a submission lacks."""
        hostname, session = self._context.options.hostname, self._session.facts
        if scan.lacks_end and scan.end:
            content.end_section()
        # An inbox for development keeps what was sent: a field that is missing, or should not be there, is to be seen.
        is_kept = self._context.options.capture
        added = trace.complete(content, scan, uid, hostname, now) if session.is_submission and not is_kept else b""
        if b"authentication-results" in scan.names and not is_kept:
            # RFC 8601 section 5: what claims to be our own judgement is not, when it comes from outside.
            content.remove_claims("Authentication-Results", hostname)
        if b"return-path" in scan.names and not is_kept:
            # RFC 5321 section 4.4: Return-Path is made at final delivery, nowhere before.
            content.remove_header("Return-Path")
        if scan.lacks_end and not scan.end:
            # Text without a header section: an empty line keeps it apart from ours.
            added += b"\r\n"
        if self._context.options.origin:
            # Where the message came from is nobody's business: no trace of it stays.
            content.remove_header("Received")
            content.prepend(added)
            return
        kind = session.is_esmtp, envelope.is_smtputf8, bool(session.tls), session.username is not None
        common = trace.received_from(session.helo, session.peer.host, hostname, trace.PROTOCOLS[kind], session.tls)
        recipient = envelope.recipients[0].address if len(envelope.recipients) == 1 else None
        content.prepend(trace.format_received(common, uid, recipient, now) + added)

    def _facts(self) -> dict[str, object]:
        session = self._session.facts
        facts: dict[str, object] = {"peer": session.peer.host, "helo": session.helo, "session": session.client_id}
        if session.tls:
            facts["tls"] = session.tls
        if session.username is not None:
            facts["user"] = session.username
        elif not session.is_trusted:
            facts["stranger"] = True
        return facts

    def _committed(self, message: Message, error: BaseException | None) -> None:
        context, session = self._context, self._session
        self.forget_expected()
        if error is not None:
            told = {"session": session.facts.client_id, "queue_id": message.uid, "reason": str(error)}
            _log.error("session %s: message %s was not stored: %s", told["session"], message.uid, error, extra=told)
            if message.content.path and context.spool is not None:
                context.spool.remove([message.content.path])
            session.intake_decided(_FULL if isinstance(error, StoreFullError) else _FAULT)
            return
        counters = context.counters
        counters.accepted += 1
        counters.accepted_tls += bool(session.facts.tls)
        observe(counters.accept_delays, ACCEPT_S, context.clock.time() - message.received_at)
        announce(context, message, session.facts.client_id)
        # RFC 5321 section 4.2.5: with this 250 the responsibility is ours, and the message is on the disk.
        session.intake_decided(Reply.accepted(f"{message.uid} Message accepted for delivery"))
        context.scheduler.accepted(message)


def announce(context: ServerContext, message: Message, client_id: str | None) -> None:
    """The `message_queued` event and its log line."""
    envelope = message.envelope
    log_queued(message)
    dispatcher = context.dispatcher
    if dispatcher.heard["message_queued"]:
        content = message.content
        recipients = [r.address for r in message.recipients]
        event = MessageQueued(
            client_id, envelope.reverse_path, recipients, message.uid, 0, content.size_bytes, message.subject
        )
        if content.path or dispatcher.subscribers.by_name:
            # A file may be gone when somebody asks; and subscribers hear of it later: their events must not hold content.
            event.lines = content.count_lines()
        else:
            event.count_later(content.prefix)
        dispatcher.post(event)
