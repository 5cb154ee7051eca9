"""ServerProtocol: the receiving side of SMTP as a machine without I/O (RFC 5321).

`receive_data(octets)`, then `next_event()` until it gives None, `respond(reply)` once for each command and each end of
content, `data_to_send()` when nothing more comes. No event is given while a reply is owed. Must not know sockets,
policy, plugins or the queue.
"""

from __future__ import annotations

from dataclasses import replace

from .checks import CHECKS, EARLY_CONTENT, Checks, too_large
from .command import Command, parse_command
from .device import LF_CONTENT, NO_GREETING
from .extension import Facts
from .framing import CRLF, DOT, END, NOTHING, OVERLONG, ChunkScanner, DataScanner, LineBuffer, LooseScanner, is_clean
from .given import BARE_CONTENT, WHOLE, AuthLine, EndOfContent
from .reply import Reply, format_reply
from .rules import LASTING, Rules
from .state import ORDER_HINTS, READY_MOVES, TRANSITIONS, State

Event = Command | EndOfContent | AuthLine | bytes

# Asking an enum for a member costs as much as a call.
_CONTENT, _CLOSED, _READY = State.CONTENT, State.CLOSED, State.READY
# The first octet of a TLS record that carries a handshake (RFC 8446 section 5.1).
TLS_RECORD = 0x16
# Not for the short way: what is no line, and BDAT, whose chunk may be empty, and then has its end at once.
_LONG_WAY = bytes((TLS_RECORD,)) + b"Bb"

_TOO_LONG = Reply(500, "5.5.2", "Line too long", reason="too-large")
_BARE_LF = Reply(500, "5.5.2", "Line ended by LF alone: end lines with CR LF", reason="bad-line-ends")
_FOREIGN = Reply(554, "5.5.0", "This is SMTP, not TLS; closing", reason="protocol-abuse")


class ServerProtocol(Checks):
    """One session's protocol. `state` is where it stands; `facts` decides what EHLO offers."""

    # Defaults stand in the class: a new session sets only what it has of its own, or is often asked for.
    _next_state = State.OPEN
    _auth = False
    _tls_wait = False
    _swallow = 0
    _chunk_left = -1
    _size = 0
    _is_last = True
    _ended = False
    _too_large = False

    def __init__(self, facts: Facts, rules: Rules | None = None) -> None:
        self.facts = facts
        self.rules = rules or Rules()
        # Of most sessions every segment is taken at once.
        self._input = NOTHING
        self._out: list[bytes] = []
        self.state = State.OPEN
        self._owed: Command | EndOfContent | AuthLine | None = None
        self._scanner: DataScanner | LooseScanner | ChunkScanner | None = None

    # ------------------------------------------------------------------ input

    @property
    def is_in_content(self) -> bool:
        """True between 354 (or an accepted BDAT) and the end of content."""
        return self.state is _CONTENT or (self._scanner is not None and self._chunk_left >= 0)

    @property
    def is_in_auth(self) -> bool:
        """True while lines belong to an AUTH exchange."""
        return self._auth

    def receive_data(self, data: bytes) -> None:
        """Octets from the wire; call next_event afterwards. Ignored once the session is closed."""
        if self.state is not State.CLOSED:
            self._push(data)

    def _push(self, data: bytes) -> None:
        if self._input is NOTHING:
            self._input = LineBuffer(accept_bare_lf=self.rules.accept_bare_lf_commands)
        self._input.push(data)

    def next_event(self) -> Event | None:
        """The next command, piece of content (bytes), end of content, or AUTH line; None: a reply is owed or more is needed."""
        if self._owed is not None:
            return None
        if self.state is _CONTENT:
            return self._next_data()
        if self._scanner is not None and self._chunk_left >= 0:
            return self._next_chunk()
        if self._input.is_empty or self._tls_wait or self.state is State.CLOSED:
            return None
        if self._swallow and not self._drain():
            return None
        if self._auth:
            return self._next_auth()
        return self._next_command()

    def take_command(self, data: bytes) -> Command | None:
        """The command in a segment that is one whole line with nothing before it, as nearly all are: the short way.

        None, and nothing is taken, where it is anything else: then `receive_data` and `next_event` know what it is.
        """
        if not self.is_between:
            return None
        known = self.rules.known.get(data)
        if known is not None:
            following = TRANSITIONS[self.state].get(known.verb)
            if following is not None:
                self._owed, self._next_state = known, following
                return known
        if (
            data[-2:] != CRLF
            or data.find(b"\n") != len(data) - 1
            or len(data) > self.rules.max_line_bytes
            or data[0] in _LONG_WAY
            or self.state is State.CLOSED
        ):
            return None
        command = self._judge(data[:-2])
        if command.error is None and command.verb in LASTING and not command.parameters and not command.repairs:
            self.rules.remember(data, command)
        return command

    def _drain(self) -> bool:
        """Octets of a refused BDAT chunk: counted and forgotten (RFC 3030 section 2)."""
        self._swallow -= len(self._input.take(self._swallow))
        return self._swallow == 0

    # ---------------------------------------------------------------- commands

    def _next_command(self) -> Command | None:
        if self.state is State.OPEN and self._input.peek() == TLS_RECORD and not self._input.is_dropping:
            # A TLS record has no CRLF to wait for.
            return self._owe(self._fault("", _FOREIGN, is_abuse=True), State.CLOSED)
        limit = self.rules.max_line_bytes
        if len(self._input) > limit and self._input.begins_with(b"AUTH "):
            # RFC 4954 section 4: the initial response makes the line longer.
            limit = self.rules.max_auth_line_bytes
        line = self._input.take_line(limit)
        if line is None:
            return None
        if line.__class__ is not bytes:
            return self._owe(self._fault("", _TOO_LONG if line is OVERLONG else _BARE_LF), self.state)
        return self._judge(line)

    def _judge(self, line: bytes) -> Command:
        """Grammar, then order, then what only this session can know."""
        command, row = parse_command(line, self.rules.grammar)
        self._owed = command
        self._next_state = state = self.state
        if row is not None:
            verb = command.verb
            following = TRANSITIONS[state].get(verb)
            if following is not None:
                self._next_state = following
            elif self.rules.is_device and state is State.OPEN and verb in READY_MOVES:
                self._next_state = READY_MOVES[verb]
                command.repairs = (*command.repairs, NO_GREETING)
            elif not command.is_abuse:
                hint = ORDER_HINTS.get((state, verb), "bad sequence of commands")
                command.error = Reply(503, "5.5.1", f"{verb}: {hint}")
            check = CHECKS.get(verb)
            if check is not None and (command.error is None or verb == "BDAT"):
                check(self, command)
            if command.repairs:
                self.note_repairs(*command.repairs)
        return command

    def _owe(self, command: Command, following: State) -> Command:
        self._owed = command
        self._next_state = following
        return command

    @staticmethod
    def _fault(verb: str, reply: Reply, *, is_abuse: bool = False) -> Command:
        command = Command(verb, "")
        command.error, command.is_abuse = reply, is_abuse
        return command

    # ----------------------------------------------------------------- content

    def take_whole(self, data: bytes) -> bytes | None:
        """All of DATA's content, where the segment behind the 354 is that and its end, and plain (framing.is_plain): as it is.

        None, and nothing is taken, where it is anything else. Its end is owed a reply then, like any other.
        """
        if (
            self.state is not _CONTENT
            or self._scanner is not None
            or self._owed is not None
            or not self._input.is_empty
        ):
            return None
        end = len(data) - 3
        # The end is there, and no line before it has a dot in front.
        if data[-5:] != END or data.find(b"\r\n.") != end - 2 or data[0] == DOT:
            return None
        content = data[:end]
        if end > self.facts.max_size_bytes or not is_clean(content):
            return None
        self._owed = WHOLE
        self._next_state = _READY
        return content

    def take_content(self, data: bytes) -> tuple[bytes, EndOfContent | None] | None:
        """A segment within DATA's content: what is kept of it, and the end if it is there. The short way, as take_command.

        None, and nothing is taken, where it is anything else. What stands behind the end waits for next_event.
        """
        if self.state is not _CONTENT or self._owed is not None or self._ended or not self._input.is_empty:
            return None
        scanner = self._data_scanner()
        piece, rest = scanner.feed(data)
        piece = self._keep(piece)
        if rest:
            self._push(rest)
        return piece, None if rest is None else self._end_of_content(by_bdat=False)

    def _data_scanner(self) -> DataScanner | LooseScanner:
        """Made when the first octets of content are there that it is needed for."""
        scanner = self._scanner
        if scanner is None:
            if self.rules.normalise_bare:
                # A client whose commands end in LF alone is no server that passes on the content of others.
                scanner = LooseScanner(ends_by_lf=self.rules.is_device and self._input.bare_lines > 0)
            else:
                scanner = DataScanner()
            self._scanner = scanner
        assert not isinstance(scanner, ChunkScanner)
        return scanner

    def _next_data(self) -> bytes | EndOfContent | None:
        scanner = self._data_scanner()
        if self._ended:
            return self._end_of_content(by_bdat=False)
        if self._input.is_empty:
            return None
        piece, rest = scanner.feed(self._input.take_all())
        wanted = self._keep(piece)
        if rest is None:
            return wanted or None
        self._input.push(rest)
        if wanted:
            self._ended = True
            return wanted
        return self._end_of_content(by_bdat=False)

    def _keep(self, piece: bytes) -> bytes:
        """A piece, or nothing once the message is too large or refused: it is read to its end, but not kept."""
        self._size += len(piece)
        if self._size > self.facts.max_size_bytes:
            self._too_large = True
        scanner = self._scanner
        if self._too_large or (scanner is not None and scanner.has_bare and not scanner.normalise):
            return b""
        return piece

    def _next_chunk(self) -> bytes | EndOfContent | None:
        scanner = self._scanner
        assert isinstance(scanner, ChunkScanner)
        if self._chunk_left and len(self._input):
            octets = self._input.take(self._chunk_left)
            self._chunk_left -= len(octets)
            self._size += len(octets)
            # Bounded by the sizes of the BDAT commands. Line ends that become longer do not count.
            if wanted := scanner.feed(octets):
                return wanted
        if self._chunk_left:
            return None
        if self._is_last and (wanted := scanner.finish()):
            return wanted
        return self._end_of_content(by_bdat=True)

    def _end_of_content(self, *, by_bdat: bool) -> EndOfContent:
        scanner = self._scanner
        assert scanner is not None
        fault = None
        if self._is_last and self._too_large:
            fault = too_large(self.facts)
        elif self._is_last and scanner.has_bare and not scanner.normalise:
            fault = BARE_CONTENT
        is_plain = isinstance(scanner, DataScanner) and scanner.is_plain
        if scanner.has_bare and self.rules.is_device:
            self.note_repairs(LF_CONTENT)
        end = EndOfContent(self._size, fault, is_last=self._is_last, by_bdat=by_bdat, is_plain=is_plain)
        self._owed = end
        self._chunk_left = -1
        self._ended = False
        if end.is_last:
            self._scanner = None
            self._next_state = State.READY
        else:
            self._next_state = State.CHUNKS
        return end

    def _forget_chunks(self) -> None:
        self._scanner = None
        self._chunk_left = -1
        self._chunk_total = 0
        self._small_chunks = 0
        self._is_last = True
        self._ended = False
        self._too_large = False
        self._size = 0

    # -------------------------------------------------------------------- AUTH

    def _next_auth(self) -> AuthLine | None:
        line = self._input.take_line(self.rules.max_auth_line_bytes)
        if line is None:
            return None
        # A bare LF within an exchange: the line is bad base64 whatever it holds.
        event = AuthLine(line if isinstance(line, bytes) else (None if line is OVERLONG else b"\n"))
        self._owed = event
        self._next_state = self.state
        return event

    # ----------------------------------------------------------------- replies

    def respond(self, reply: Reply, *, is_sent: bool = True) -> None:
        """The one final reply to the command, AUTH line or end of content that is owed; moves the state.

        `is_sent` False moves the state alone, for a reply that a plugin has eaten.
        """
        owed = self._owed
        assert owed is not None, "no reply is owed"
        self._owed = None
        if reply.code == 354 and isinstance(owed, Command) and len(self._input):
            # What came while a plugin thought about DATA was sent before the 354 just the same. The command itself may be
            # other sessions', too (Rules.known).
            reply = EARLY_CONTENT
            owed = self._fault(owed.verb, reply, is_abuse=True)
        if is_sent:
            self._out.append(reply.wire or format_reply(reply))
        code = reply.code
        if owed.__class__ is Command:
            if code >= 400 or owed.error is not None or owed.verb == "BDAT":
                self._after_refusal(owed)
            elif owed.verb in _PLAIN:
                self.state = self._next_state
            else:
                self._move(owed.verb, reply)
        elif owed.__class__ is AuthLine:
            self._after_auth(reply)
        elif isinstance(owed, EndOfContent):
            # RFC 5321 section 4.1.1.4: whatever the reply, the transaction is over; a refused chunk ends it, too.
            if owed.is_last or code >= 400:
                self._forget_chunks()
                self._next_state = State.READY
            self.state = self._next_state
            if owed.is_abuse:
                self.close()
        if code == 421:
            self.close()

    def answer(self, reply: Reply) -> bytes:
        """`respond` and `data_to_send` in one: a positive reply to a command or to a message's end, without fault.

        Only where nothing else waits to be sent or to be looked at (`is_quiet`).
        """
        owed = self._owed
        self._owed = None
        if isinstance(owed, Command):
            if owed.verb in _PLAIN:
                self.state = self._next_state
            else:
                self._move(owed.verb, reply)
        elif owed is WHOLE:
            # Of that nothing was kept here.
            self.state = _READY
        else:
            assert isinstance(owed, EndOfContent) and owed.is_last, "no reply is owed"
            self._forget_chunks()
            self.state = _READY
        return reply.wire or format_reply(reply)

    def owe(self, command: Command, following: State) -> None:
        """`pass_to` for a command whose reply is not known yet, or not simple: `respond` gives it."""
        self._owed, self._next_state = command, following

    def pass_to(self, state: State, reply: Reply) -> bytes:
        """`take_command` and `answer` in one, for a command of `rules.known` that leads there by a positive reply.

        Only where `is_between` holds; to DATA the reply is 354.
        """
        self.state = state
        if state is _CLOSED:
            self.close()
        return reply.wire or format_reply(reply)

    @property
    def is_between(self) -> bool:
        """True between two commands, when nothing waits on either side, and nothing but a command can come."""
        waiting = self._input
        return (
            waiting.is_empty
            and not waiting.is_dropping
            and self._owed is None
            and self._scanner is None
            and self.state is not _CONTENT
            and not (self._auth or self._tls_wait or self._swallow or self._chunk_total or self._small_chunks)
        )

    @property
    def is_quiet(self) -> bool:
        """True when nothing waits to be looked at, and no reply to be sent."""
        return self._input.is_empty and not self._out

    def accept_chunk(self) -> None:
        """Answers an owed BDAT by taking its octets; the reply comes due at their end (RFC 3030 section 2)."""
        command = self._owed
        assert isinstance(command, Command) and command.verb == "BDAT" and command.error is None
        self._owed = None
        if self._scanner is None:
            self._scanner = ChunkScanner(normalise=True)
        self._chunk_left = command.size_bytes
        self._chunk_total += command.size_bytes
        self._is_last = command.is_last
        self.state = State.CHUNKS

    def _after_refusal(self, command: Command) -> None:
        """Also of a BDAT that somebody else than `accept_chunk` has answered with 250: its octets are not taken."""
        if command.is_abuse:
            self.close()
        elif command.verb == "BDAT":
            # Refused: the octets follow all the same, and the message is lost with them.
            self._swallow = command.size_bytes
            if self.state in (State.CHUNKS, State.RCPT) and self._next_state is State.CHUNKS:
                self._forget_chunks()
                self.state = State.READY

    def _move(self, verb: str, reply: Reply) -> None:
        if verb == "DATA":
            if reply.code == 354:
                self.state = State.CONTENT
        elif verb == "AUTH":
            self._after_auth(reply)
        else:
            self.state = self._next_state
            if verb == "QUIT":
                self.close()
            elif verb == "STARTTLS":
                self._tls_wait = True
            elif self._chunk_total or self._small_chunks:
                # RSET, EHLO and HELO between two chunks, or the MAIL behind them.
                self._forget_chunks()

    def _after_auth(self, reply: Reply) -> None:
        self._auth = reply.code == 334
        if reply.code == 235:
            self.facts = replace(self.facts, is_authenticated=True)

    def say(self, reply: Reply) -> None:
        """A reply that answers no command: the greeting, or 421 when the server leaves (RFC 5321 section 3.8)."""
        self._out.append(format_reply(reply))
        if reply.code in (421, 554):
            self.close()

    def reset_transaction(self) -> None:
        """Back to where no transaction is open, from MAIL, RCPT or between chunks."""
        if self.state in (State.MAIL, State.RCPT, State.CHUNKS):
            self._forget_chunks()
            self.state = State.READY

    def tls_started(self) -> None:
        """RFC 3207 section 4.2: all knowledge of the time before TLS is forgotten, octets that were buffered too."""
        self._input.clear()
        self._tls_wait = False
        self._forget_chunks()
        self._auth = False
        self.facts = replace(self.facts, is_tls=True, is_authenticated=False)
        self.state = State.OPEN

    def close(self) -> None:
        """Nothing more is read: commands behind QUIT in the same segment are not obeyed."""
        self.state = State.CLOSED
        self._input.clear()

    @property
    def is_closed(self) -> bool:
        """True when the connection should be closed once data_to_send is written."""
        return self.state is State.CLOSED

    def data_to_send(self) -> bytes:
        """All replies since the last call, as one piece for one write."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data


# Positive replies to these do no more than move the state.
_PLAIN = frozenset(("RCPT", "NOOP", "HELP", "VRFY", "EXPN", "XCLIENT", "XFORWARD", "LHLO"))
__all__ = ["AuthLine", "EndOfContent", "Event", "Rules", "ServerProtocol"]
