"""ClientProtocol: the sending side of SMTP as a machine without I/O (RFC 5321, RFC 2920 PIPELINING).

What is to be said goes into a plan of commands; what is expected back stands in a queue, one entry per command. Under
PIPELINING MAIL, RCPT and DATA leave in one piece, and the next transaction's group may ride behind the content of the
one before. Must not know sockets, next hops, retries or the queue.

Use: `receive_data(octets)`, then `next_event()` until None, then `data_to_send()`. The caller acts on the events.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache

from .address import is_mailbox
from .framing import DotStuffer
from .reply import Reply, ReplyFault, ReplyReader, format_reply
from .sasl import ClientMechanism, SaslFault, decode_base64, encode_base64
from .state import CLIENT_TRANSITIONS, ClientState
from .transaction import Outcome, Recipient, Stage, Transaction

__all__ = ["ClientFault", "ClientProtocol", "Happened", "Outcome", "Recipient", "Stage", "Transaction", "format_reply"]


class Happened(Enum):
    """What a ClientProtocol tells: see ClientProtocol.next_event."""

    READY = "greeted, EHLO done: transactions may begin"
    WANTS_HANDSHAKE = "220 to STARTTLS: begin TLS, then call tls_started"
    TLS_REFUSED = "STARTTLS was refused; the session goes on in clear if the caller wants"
    AUTHENTICATED = "AUTH succeeded"
    AUTH_REFUSED = "AUTH failed; `last_reply` says why"
    WANTS_CONTENT = "354: take pieces from content_to_send until it ends"
    DONE = "the oldest transaction has all its outcomes: take it with pop_done"
    CLOSED = "the server refused or said 421, or broke the rules; `last_reply` and `stage` say more"

    __hash__ = object.__hash__


class ClientFault(ValueError):
    """A caller's text would break the protocol (CR or LF in an address or name)."""


class _Expect(Enum):
    GREETING = 1
    HELLO = 2
    TLS = 3
    AUTH = 4
    MAIL = 5
    RCPT = 6
    DATA = 7
    FINAL = 8
    IGNORED = 9

    __hash__ = object.__hash__


_STAGES = {
    _Expect.GREETING: Stage.GREETING,
    _Expect.HELLO: Stage.HELLO,
    _Expect.TLS: Stage.TLS,
    _Expect.AUTH: Stage.AUTH,
    _Expect.MAIL: Stage.MAIL,
    _Expect.RCPT: Stage.RCPT,
    _Expect.DATA: Stage.DATA,
    _Expect.FINAL: Stage.FINAL,
}

# Asking an enum for a member costs as much as a call.
_MAIL, _RCPT, _DATA, _FINAL = _Expect.MAIL, _Expect.RCPT, _Expect.DATA, _Expect.FINAL
_DONE, _WANTS_CONTENT, _FINAL_STAGE = Happened.DONE, Happened.WANTS_CONTENT, Stage.FINAL
_IDLE, _BUSY, _HANDSHAKE, _CLOSED = ClientState.IDLE, ClientState.BUSY, ClientState.HANDSHAKE, ClientState.CLOSED

_Entry = tuple[_Expect, "Transaction | None", int]


# A blank would make two words of one, anything else here two lines.
_BREAKS = re.compile(r"[\x00-\x20\x7f]")


def _check(text: str) -> str:
    """A word of a command line."""
    if _BREAKS.search(text):
        raise ClientFault(f"{text!r} has characters that would break the command line")
    return text


def _words(parameters: tuple[str, ...]) -> str:
    """Parameters, as they stand behind a path."""
    return " ".join(("", *map(_check, parameters))) if parameters else ""


@lru_cache(maxsize=2048)
def _check_path(address: str) -> str:
    """A path: by the grammar, so that no ">" of its own can end it (in a quoted local-part one may stand)."""
    if not is_mailbox(address) and address.lower() != "postmaster":
        raise ClientFault(f"{address!r} is no address that could go on the wire")
    return address


class ClientProtocol:
    """One connection to one server. `hello_name` is our own name; `extensions` what EHLO offered (keyword -> text).

    To be looked at, for a lane does so again and again: `is_idle` is True while no transaction is open, `can_start` when
    start_transaction may be called (idle, or under PIPELINING with the last message's content all sent), and
    `is_content_wanted` from WANTS_CONTENT until content_to_send has given the end.
    """

    def __init__(self, hello_name: str) -> None:
        self._name = _check(hello_name)
        self._reader = ReplyReader()
        self._out: list[bytes] = []
        self._expected: deque[_Entry] = deque([(_Expect.GREETING, None, 0)])
        # What next_event gives; who is in a hurry takes from the left.
        self.events: deque[Happened] = deque()
        self._done: deque[Transaction] = deque()
        self._open: deque[Transaction] = deque()
        self._content_for: Transaction | None = None
        self._pieces: Iterator[bytes] | None = None
        self._stuffer = DotStuffer()
        self._mechanism: ClientMechanism | None = None
        self._used_helo = False
        self.state = ClientState.WAIT_GREETING
        self.extensions: dict[str, str] = {}
        self.last_reply: Reply | None = None
        self.stage = Stage.GREETING
        self.is_tls = False
        self.replies = 0
        self._is_pipelining = False
        self.is_idle = True
        self.can_start = self.is_content_wanted = self._is_last = False

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
        try:
            replies = self._reader.feed(data)
        except ReplyFault as fault:
            self._break(Reply(451, "4.5.0", f"Protocol error by the server: {fault}"))
            return
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

    def receive_eof(self) -> None:
        """The server closed the connection."""
        if self.state is not ClientState.CLOSED:
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
            self._break(reply)
        else:
            self._hello("EHLO")

    def _hello(self, verb: str) -> None:
        self._used_helo = verb == "HELO"
        self._out.append(f"{verb} {self._name}\r\n".encode())
        self._expected.append((_Expect.HELLO, None, 0))
        self._enter(ClientState.WAIT_HELLO)

    def _take_hello(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code == 250:
            self.extensions = {} if self._used_helo else _extensions(reply)
            self._is_pipelining = "PIPELINING" in self.extensions
            self._enter(ClientState.IDLE)
            self.events.append(Happened.READY)
        elif reply.is_permanent and not self._used_helo and not self.is_tls:
            # RFC 5321 section 3.2: an old server, try HELO.
            self._hello("HELO")
        else:
            self._break(reply)

    def start_tls(self) -> None:
        """Sends STARTTLS; WANTS_HANDSHAKE or TLS_REFUSED follows. Only while IDLE."""
        self._out.append(b"STARTTLS\r\n")
        self._expected.append((_Expect.TLS, None, 0))
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
        self._expected.append((_Expect.AUTH, None, 0))
        self._enter(ClientState.WAIT_AUTH)

    def _take_auth(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code == 334 and self._mechanism is not None:
            try:
                answer = encode_base64(self._mechanism.respond(decode_base64(reply.text.encode())))
            except (SaslFault, UnicodeError):
                answer = "*"
            self._out.append(answer.encode() + b"\r\n")
            self._expected.append((_Expect.AUTH, None, 0))
            return
        # A mechanism in which the server proves itself, too, is not over before it has.
        is_proven = self._mechanism is None or self._mechanism.is_proven
        self._mechanism = None
        if reply.code == 235 and not is_proven:
            self.last_reply = Reply(535, "5.7.8", "The server has not proven that it knows the password")
        self._enter(ClientState.IDLE)
        is_in = reply.code == 235 and is_proven
        self.events.append(Happened.AUTHENTICATED if is_in else Happened.AUTH_REFUSED)

    # ------------------------------------------------------------- transactions

    def start_transaction(self, transaction: Transaction) -> None:
        """Sends MAIL (and RCPT and DATA with it under PIPELINING). Raises ClientFault before anything is sent."""
        assert self.can_start, self.state
        path = "" if transaction.reverse_path is None else _check_path(transaction.reverse_path)
        words = _words(transaction.parameters) if transaction.parameters else ""
        lines = [f"MAIL FROM:<{path}>{words}\r\n"]
        for recipient in transaction.recipients:
            words = _words(recipient.parameters) if recipient.parameters else ""
            lines.append(f"RCPT TO:<{_check_path(recipient.address)}>{words}\r\n")
        self.state = _BUSY
        self.is_idle = self.can_start = False
        self._open.append(transaction)
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
        self._out.append(f"RCPT TO:<{recipient.address}>{_words(recipient.parameters)}\r\n".encode())
        self._expected.append((_RCPT, transaction, index))

    def _send_data(self, transaction: Transaction) -> None:
        self._out.append(b"DATA\r\n")
        self._expected.append((_Expect.DATA, transaction, 0))

    @property
    def expected_stage(self) -> Stage:
        """The stage of the reply that comes next."""
        return _STAGES.get(self._expected[0][0], Stage.FINAL) if self._expected else Stage.CONTENT

    def _take_mail(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        if not 200 <= reply.code < 300:
            transaction._refused = Outcome(_classed(reply), Stage.MAIL)
            transaction.settle_rest(transaction._refused)
            if not self._is_pipelining:
                self._finish(transaction)
        elif not self._is_pipelining:
            self._send_rcpt(transaction, 0)

    def _take_rcpt(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        if not 200 <= reply.code < 300 and transaction.outcomes[index] is None:
            transaction.outcomes[index] = Outcome(_classed(reply), Stage.RCPT)
        if self._is_pipelining:
            return
        if index + 1 < len(transaction.recipients):
            self._send_rcpt(transaction, index + 1)
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
                self._expected.appendleft((_Expect.IGNORED, transaction, 0))
            return
        transaction.settle_rest(Outcome(_classed(reply), Stage.DATA))
        self._rset(transaction)

    def _rset(self, transaction: Transaction) -> None:
        """Back to a known state on both sides before the next MAIL."""
        self._out.append(b"RSET\r\n")
        self._expected.append((_Expect.IGNORED, transaction, 0))

    def _take_ignored(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        if reply.code == 354:
            # The reply to an earlier DATA: the server reads content now, and would take our commands for it.
            self._break(Reply(451, "4.5.0", f"Reply out of order: {reply}"))
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
        self.can_start = self._is_pipelining and len(self._open) == 1
        # Behind whatever is expected already there can be nothing: content ends a group.
        self._expected.append((_FINAL, transaction, 0))

    def _take_final(self, reply: Reply, transaction: Transaction | None, index: int) -> None:
        assert transaction is not None
        transaction.settle_rest(Outcome(_classed(reply), _FINAL_STAGE))
        self._finish(transaction)

    def _finish(self, transaction: Transaction) -> None:
        self._open.remove(transaction)
        self._done.append(transaction)
        self.events.append(_DONE)
        if not self._open:
            self.state = _IDLE
            self.is_idle = self.can_start = True
            if self._is_last:
                self._break(Reply(451, "4.4.2", "Connection ended"))

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
        """Says QUIT; nothing more is expected. Only while IDLE."""
        self._out.append(b"QUIT\r\n")
        self._enter(ClientState.CLOSED)

    def _break(self, reply: Reply) -> None:
        """The session is over: open transactions keep what they know, the rest of their recipients get this reply."""
        self.last_reply = reply
        stages = {id(t): _STAGES.get(kind, Stage.FINAL) for kind, t, _ in reversed(self._expected) if t is not None}
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


def _classed(reply: Reply) -> Reply:
    """A reply where 2yz or 354 was no possible answer counts as a fault of the moment, not as success (row F96)."""
    return reply if not 300 <= reply.code < 400 else Reply(451, "4.5.0", f"Unexpected reply: {reply}")


def _extensions(reply: Reply) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, text = line.strip().partition(" ")
        found[keyword.upper()] = text
    return found


# What takes a reply, and the stage that it is of.
_TAKERS = {
    expect: (_STAGES.get(expect), taker)
    for expect, taker in (
        (_Expect.GREETING, ClientProtocol._take_greeting),
        (_Expect.HELLO, ClientProtocol._take_hello),
        (_Expect.TLS, ClientProtocol._take_tls),
        (_Expect.AUTH, ClientProtocol._take_auth),
        (_Expect.MAIL, ClientProtocol._take_mail),
        (_Expect.RCPT, ClientProtocol._take_rcpt),
        (_Expect.DATA, ClientProtocol._take_data),
        (_Expect.FINAL, ClientProtocol._take_final),
        (_Expect.IGNORED, ClientProtocol._take_ignored),
    )
}
