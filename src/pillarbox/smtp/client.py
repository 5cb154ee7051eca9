"""ClientProtocol: the sending side of SMTP as a machine without I/O (RFC 5321, RFC 2920 PIPELINING).

What is to be said goes into a plan of commands; what is expected back stands in a queue, one entry per command. Under
PIPELINING MAIL, RCPT and DATA leave in one piece, and the next transaction's group may ride behind the content of the
one before. Must not know sockets, next hops, retries or the queue.

Use: `receive_data(octets)`, then `next_event()` until None, then `data_to_send()`. The caller acts on the events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .exchange import (
    STAGES,
    ClientFault,
    Expect,
    Happened,
    check_path,
    check_word,
    format_words,
    parse_extensions,
    parse_limits,
)
from .framing import DotStuffer
from .reply import MAX_EHLO_TEXT, MAX_REPLY_TEXT, Reply, ReplyReader, cut_reply, format_reply
from .sasl import ClientMechanism, SaslFault, decode_base64, encode_base64
from .state import CLIENT_TRANSITIONS, ClientState
from .transaction import Outcome, Recipient, Stage, Transaction

__all__ = ["ClientFault", "ClientProtocol", "Happened", "Outcome", "Recipient", "Stage", "Transaction", "format_reply"]


# Asking an enum for a member costs as much as a call.
_MAIL, _RCPT, _DATA, _FINAL = Expect.MAIL, Expect.RCPT, Expect.DATA, Expect.FINAL
_DONE, _WANTS_CONTENT, _FINAL_STAGE = Happened.DONE, Happened.WANTS_CONTENT, Stage.FINAL
_IDLE, _BUSY, _HANDSHAKE, _CLOSED = ClientState.IDLE, ClientState.BUSY, ClientState.HANDSHAKE, ClientState.CLOSED

_Entry = tuple[Expect, "Transaction | None", int]


class ClientProtocol:
    """One connection to one server. `hello_name` is our own name; `extensions` what EHLO offered (keyword -> text).

    To be looked at, for a lane does so again and again: `is_idle` is True while no transaction is open, `can_start` when
    start_transaction may be called (idle, or under PIPELINING with the last message's content all sent), and
    `is_content_wanted` from WANTS_CONTENT until content_to_send has given the end.
    """

    def __init__(self, hello_name: str) -> None:
        self.hello_name = check_word(hello_name)
        self._reader = ReplyReader()
        self._out: list[bytes] = []
        self._expected: deque[_Entry] = deque([(Expect.GREETING, None, 0)])
        # What next_event gives; who is in a hurry takes from the left.
        self.events: deque[Happened] = deque()
        self._done: deque[Transaction] = deque()
        self._open: deque[Transaction] = deque()
        self._content_for: Transaction | None = None
        self._pieces: Iterator[bytes] | None = None
        self._stuffer = DotStuffer()
        self._mechanism: ClientMechanism | None = None
        # The connection ended without a word from the server.
        self.was_cut = False
        # The server did not keep to its mechanism: it must not have the password in another.
        self.has_broken_auth = False
        # The server did not take EHLO: nothing is known of its extensions.
        self.used_helo = False
        self.state = ClientState.WAIT_GREETING
        self.extensions: dict[str, str] = {}
        # RFC 9422: what the server says of its limits; MAIL commands that were sent.
        self.limits: dict[str, int] = {}
        self._mails = 0
        self.last_reply: Reply | None = None
        self.stage = Stage.GREETING
        self.is_tls = False
        self.replies = 0
        self._is_pipelining = False
        self.is_idle = True
        self.can_start = self.is_content_wanted = self._is_last = self._may_quit = False

    # ------------------------------------------------------------------- state

    def _enter(self, state: ClientState) -> None:
        assert state is self.state or state in CLIENT_TRANSITIONS[self.state], (self.state, state)
        self.state = state
        self.can_start = state is _IDLE

    def has(self, keyword: str) -> bool:
        """True when the server offers the extension."""
        return keyword in self.extensions

    @property
    def open_transactions(self) -> list[Transaction]:
        """Those without all their outcomes, oldest first."""
        return list(self._open)

    # ------------------------------------------------------------------- input

    def receive_data(self, data: bytes) -> None:
        """Octets from the server. Faults become CLOSED."""
        if self.state is _CLOSED:
            return
        if self.state is _HANDSHAKE:
            self._injected()
            return
        replies = self._reader.feed(data)
        expected = self._expected
        self.replies += len(replies)
        for reply in replies:
            if self._is_pipelining and expected and 200 <= reply.code < 300:
                kind = expected[0][0]
                if kind is _RCPT or kind is _MAIL:
                    # Taken, as nearly all: nothing follows from that before the reply to DATA.
                    expected.popleft()
                    continue
            self._take(reply)
            if not expected and self.state is _CLOSED:
                return
        if self.state is _HANDSHAKE and self._reader.has_rest:
            self._injected()
        elif self._reader.fault is not None and self.state is not _CLOSED:
            self._break(Reply(451, "4.5.0", f"Protocol error by the server: {self._reader.fault}"))

    def receive_eof(self) -> None:
        """The server closed the connection."""
        if self.state is not ClientState.CLOSED:
            self.was_cut = True
            self._break(Reply(451, "4.4.2", "Connection lost"))

    def fail(self, reply: Reply) -> None:
        """The caller gives the connection up (a time-out, a failed handshake): CLOSED with this reply."""
        if self.state is not ClientState.CLOSED:
            self._break(reply)

    def _injected(self) -> None:
        # CVE-2021-38371: octets behind the 220 would be read as if they had come under TLS.
        self._break(Reply(451, "4.7.0", "The server sent more than its reply to STARTTLS"))

    def next_event(self) -> Happened | None:
        """The next thing that happened, or None."""
        return self.events.popleft() if self.events else None

    def pop_done(self) -> Transaction:
        """The transaction of a DONE event."""
        return self._done.popleft()

    def _take(self, reply: Reply) -> None:
        if not self._expected:
            # Unasked for: 421 before the server leaves is legal at any time (RFC 5321 section 3.8).
            self._break(reply if reply.code == 421 else Reply(451, "4.5.0", f"Reply to no command: {reply}"))
            return
        kind, transaction, index = self._expected.popleft()
        self.last_reply = reply
        stage, taker = _TAKERS[kind]
        self.stage = stage or self.stage
        if reply.code == 421:
            self._expected.appendleft((kind, transaction, index))
            self._break(reply)
            return
        taker(self, reply, transaction, index)

    # ------------------------------------------------------------ hello and TLS

    def _take_greeting(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code != 220:
            self._refused(reply)
        else:
            self._hello("EHLO")

    def _refused(self, reply: Reply) -> None:
        """The server does not want this session."""
        self._break(reply)
        self._may_quit = True

    def _hello(self, verb: str) -> None:
        self._reader.max_text = MAX_EHLO_TEXT
        self.used_helo = verb == "HELO"
        self._out.append(f"{verb} {self.hello_name}\r\n".encode())
        self._expected.append((Expect.HELLO, None, 0))
        self._enter(ClientState.WAIT_HELLO)

    def _take_hello(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        self._reader.max_text = MAX_REPLY_TEXT
        if reply.code == 250:
            self.extensions = {} if self.used_helo else parse_extensions(reply)
            self.limits = parse_limits(self.extensions.get("LIMITS", ""))
            self._is_pipelining = "PIPELINING" in self.extensions
            self._enter(ClientState.IDLE)
            self.events.append(Happened.READY)
        elif reply.is_permanent and not self.used_helo and not self.is_tls:
            # RFC 5321 section 3.2: an old server, try HELO.
            self._hello("HELO")
        else:
            self._refused(cut_reply(reply))

    def start_tls(self) -> None:
        """Sends STARTTLS; WANTS_HANDSHAKE or TLS_REFUSED follows. Only while IDLE."""
        self._out.append(b"STARTTLS\r\n")
        self._expected.append((Expect.TLS, None, 0))
        self._enter(ClientState.WAIT_TLS)

    def _take_tls(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code == 220:
            self._enter(ClientState.HANDSHAKE)
            self.events.append(Happened.WANTS_HANDSHAKE)
        else:
            self._enter(ClientState.IDLE)
            self.events.append(Happened.TLS_REFUSED)

    def tls_started(self, *, greeted: bool = True) -> None:
        """TLS is on. After STARTTLS what the server said before is forgotten and EHLO said anew (RFC 3207 section 4.2)."""
        self.is_tls = True
        self.extensions = {}
        if greeted:
            self._hello("EHLO")

    # -------------------------------------------------------------------- AUTH

    def start_auth(self, mechanism: ClientMechanism) -> None:
        """Sends AUTH; AUTHENTICATED or AUTH_REFUSED follows. Only while IDLE; the caller sees to TLS."""
        self._mechanism = mechanism
        initial = mechanism.initial()
        line = f"AUTH {mechanism.name}" + (f" {encode_base64(initial) or '='}" if initial is not None else "")
        self._out.append(line.encode() + b"\r\n")
        self._expected.append((Expect.AUTH, None, 0))
        self._enter(ClientState.WAIT_AUTH)

    def _take_auth(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code == 334 and self._mechanism is not None:
            mechanism = self._mechanism
            try:
                # draft-murchison-sasl-login: the prompts of LOGIN are for people, in any form, and are not read.
                challenge = reply.text.encode()
                if mechanism.reads_challenge:
                    challenge = decode_base64(challenge)
                answer = encode_base64(mechanism.respond(challenge))
            except (SaslFault, UnicodeError):
                answer, self.has_broken_auth = "*", True
            self._out.append(answer.encode() + b"\r\n")
            self._expected.append((Expect.AUTH, None, 0))
            return
        # A mechanism in which the server proves itself, too, is not over before it has.
        is_proven = self._mechanism is None or self._mechanism.is_proven
        self._mechanism = None
        if reply.code == 235 and not is_proven:
            self.has_broken_auth = True
            self.last_reply = Reply(535, "5.7.8", "The server has not proven that it knows the password")
        self._enter(ClientState.IDLE)
        is_in = reply.code == 235 and is_proven
        self.events.append(Happened.AUTHENTICATED if is_in else Happened.AUTH_REFUSED)

    # ------------------------------------------------------------- transactions

    def start_transaction(self, transaction: Transaction) -> None:
        """Sends MAIL (and RCPT and DATA with it under PIPELINING). Raises ClientFault before anything is sent."""
        assert self.can_start, self.state
        path = "" if transaction.reverse_path is None else check_path(transaction.reverse_path)
        words = format_words(transaction.parameters) if transaction.parameters else ""
        lines = [f"MAIL FROM:<{path}>{words}\r\n"]
        for recipient in transaction.recipients:
            words = format_words(recipient.parameters) if recipient.parameters else ""
            lines.append(f"RCPT TO:<{check_path(recipient.address)}>{words}\r\n")
        self.state = _BUSY
        self.is_idle = self.can_start = False
        self._mails += 1
        self._open.append(transaction)
        if transaction.is_probe:
            # A connection for probes only: each reply decides whether there is a next command.
            self._is_pipelining = False
        expected = self._expected
        expected.append((_MAIL, transaction, 0))
        if self._is_pipelining:
            for number in range(len(lines) - 1):
                expected.append((_RCPT, transaction, number))
            expected.append((_DATA, transaction, 0))
            lines.append("DATA\r\n")
            self._out.append("".join(lines).encode())
        else:
            self._out.append(lines[0].encode())

    def _send_rcpt(self, transaction: Transaction, index: int) -> None:
        recipient = transaction.recipients[index]
        self._out.append(f"RCPT TO:<{recipient.address}>{format_words(recipient.parameters)}\r\n".encode())
        self._expected.append((_RCPT, transaction, index))

    def _send_data(self, transaction: Transaction) -> None:
        self._out.append(b"DATA\r\n")
        self._expected.append((Expect.DATA, transaction, 0))

    @property
    def expected_stage(self) -> Stage:
        """The stage of the reply that comes next."""
        return STAGES.get(self._expected[0][0], Stage.FINAL) if self._expected else Stage.CONTENT

    def _take_mail(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        if 300 <= reply.code < 400:
            self._out_of_step(reply, transaction, _MAIL)
            return
        if not 200 <= reply.code < 300:
            transaction._refused = Outcome(reply, Stage.MAIL)
            transaction.settle_rest(transaction._refused)
            if not self._is_pipelining:
                self._finish(transaction)
        elif not self._is_pipelining:
            self._send_rcpt(transaction, 0)

    def _take_rcpt(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        if 300 <= reply.code < 400:
            self._out_of_step(reply, transaction, _RCPT)
            return
        if not 200 <= reply.code < 300 and transaction.outcomes[index] is None:
            transaction.outcomes[index] = Outcome(reply, Stage.RCPT)
        if self._is_pipelining:
            return
        if index + 1 < len(transaction.recipients):
            self._send_rcpt(transaction, index + 1)
        elif transaction.is_probe:
            self._finish(transaction)
        elif transaction.has_accepted:
            self._send_data(transaction)
        else:
            self._rset(transaction)

    def _take_data(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        if reply.code == 354:
            if transaction.has_accepted:
                self._content_for = transaction
                self.is_content_wanted = True
                self.events.append(_WANTS_CONTENT)
            else:
                # RFC 2920 section 3.1: nobody was accepted, yet it wants content: an empty message, and ignore its reply.
                self._out.append(b".\r\n")
                self._expected.appendleft((Expect.IGNORED, transaction, 0))
            return
        if reply.code < 400:
            self._out_of_step(reply, transaction, _DATA)
            return
        transaction.settle_rest(Outcome(reply, Stage.DATA))
        self._rset(transaction)

    def _out_of_step(self, reply: Reply, transaction: Transaction, kind: Expect) -> None:
        """A reply that cannot belong to its command: an earlier one had two. What the transaction was told is not its own."""
        text = f"Replies out of order: {reply}"
        transaction.forget_outcomes()
        transaction.settle_rest(Outcome(Reply(451, "4.5.0", text), STAGES[kind]))
        self._break(Reply(451, "4.5.0", text))

    def _rset(self, transaction: Transaction) -> None:
        """Back to a known state on both sides before the next MAIL."""
        self._out.append(b"RSET\r\n")
        self._expected.append((Expect.IGNORED, transaction, 0))

    def _take_ignored(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code == 354:
            # The reply to an earlier DATA: the server reads content now, and would take our commands for it.
            if transaction is not None:
                self._out_of_step(reply, transaction, _DATA)
            else:
                self._break(Reply(451, "4.5.0", f"Replies out of order: {reply}"))
        elif transaction is not None:
            self._finish(transaction)

    def content_to_send(self) -> bytes | None:
        """The next piece of the content that WANTS_CONTENT asked for, dot-stuffed; None when its end was given before."""
        transaction = self._content_for
        if transaction is None:
            return None
        if transaction.is_plain:
            transaction.is_content_begun = True
            self._content_given(transaction)
            return b"".join((*transaction.content, b".\r\n"))
        if self._pieces is None:
            self._pieces = iter(transaction.content)
            self._stuffer = DotStuffer()
            transaction.is_content_begun = True
        for piece in self._pieces:
            if stuffed := self._stuffer.feed(piece):
                return stuffed
        self._content_given(transaction)
        return self._stuffer.finish()

    def _content_given(self, transaction: Transaction) -> None:
        self._pieces = None
        self._content_for = None
        self.is_content_wanted = False
        transaction.is_content_sent = True
        self.can_start = self._is_pipelining and len(self._open) == 1 and self._has_mail_left()
        # Behind whatever is expected already there can be nothing: content ends a group.
        self._expected.append((_FINAL, transaction, 0))

    def _take_final(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        if 300 <= reply.code < 400:
            # A second 354: the server has the content, and its verdict comes yet.
            self._expected.appendleft((_FINAL, transaction, index))
            return
        transaction.settle_rest(Outcome(reply, _FINAL_STAGE))
        self._finish(transaction)

    def _finish(self, transaction: Transaction) -> None:
        self._open.remove(transaction)
        self._done.append(transaction)
        self.events.append(_DONE)
        if not self._open:
            self.state = _IDLE
            self.is_idle = True
            self.can_start = self._has_mail_left()
            if self._is_last:
                self._break(Reply(451, "4.4.2", "Connection ended"))

    def _has_mail_left(self) -> bool:
        """RFC 9422 section 3.1: no more transactions than MAILMAX says."""
        return "MAILMAX" not in self.limits or self._mails < self.limits["MAILMAX"]

    def take_back(self) -> Transaction | None:
        """The transaction whose commands went ahead of another's final reply, while that is all that went; else None.

        It may go another way. The connection ends with that reply: the server would wait for content that does not come.
        """
        if len(self._open) < 2 or self._open[-1].is_content_begun:
            return None
        transaction = self._open.pop()
        self._expected = deque(entry for entry in self._expected if entry[1] is not transaction)
        self._is_last = True
        return transaction

    # --------------------------------------------------------------------- end

    def quit(self) -> None:
        """Says QUIT where the server waits for a command, nothing anywhere else; no reply is expected.

        RFC 5321 section 4.1.1.10: a session that the server has refused ends with QUIT as well.
        """
        if self.state is _IDLE or self._may_quit:
            self._out.append(b"QUIT\r\n")
            self._may_quit = False
            self._enter(ClientState.CLOSED)

    def _break(self, reply: Reply) -> None:
        """The session is over: open transactions keep what they know, the rest of their recipients get this reply."""
        self.last_reply = reply
        stages = {id(t): STAGES.get(kind, Stage.FINAL) for kind, t, _ in reversed(self._expected) if t is not None}
        for transaction in self._open:
            stage = stages.get(id(transaction), Stage.CONTENT)
            transaction.settle_rest(Outcome(reply, stage))
            self._done.append(transaction)
            self.events.append(Happened.DONE)
        self._open.clear()
        self._expected.clear()
        done = sum(event is _DONE for event in self.events)
        self.events.clear()
        self.events.extend([_DONE] * done)
        self._content_for = self._pieces = None
        self.is_idle, self.is_content_wanted = True, False
        self._enter(ClientState.CLOSED)
        self.events.append(Happened.CLOSED)

    def data_to_send(self) -> bytes:
        """Commands since the last call, as one piece for one write."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data


# What takes a reply, and the stage that it is of.
_TAKERS = {
    expect: (STAGES.get(expect), taker)
    for expect, taker in (
        (Expect.GREETING, ClientProtocol._take_greeting),
        (Expect.HELLO, ClientProtocol._take_hello),
        (Expect.TLS, ClientProtocol._take_tls),
        (Expect.AUTH, ClientProtocol._take_auth),
        (Expect.MAIL, ClientProtocol._take_mail),
        (Expect.RCPT, ClientProtocol._take_rcpt),
        (Expect.DATA, ClientProtocol._take_data),
        (Expect.FINAL, ClientProtocol._take_final),
        (Expect.IGNORED, ClientProtocol._take_ignored),
    )
}
