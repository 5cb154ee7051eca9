"""States and transitions of an SMTP session, both sides, as literal tables (RFC 5321 section 4.1.4).

`TRANSITIONS[state][verb]` is the state after a positive reply. A verb that is missing from a state's row is out of
order there: 503 5.5.1. After a negative reply a session stays where it is.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where the receiving side stands between two commands."""

    OPEN = "before HELO or EHLO, and again after STARTTLS"
    READY = "greeted, no transaction"
    MAIL = "reverse-path given, no recipient yet"
    RCPT = "one recipient or more"
    CONTENT = "after 354: content until CRLF . CRLF"
    CHUNKS = "between two BDAT chunks of a message"
    CLOSED = "after QUIT, 421, or a fault that cannot be mended"

    __hash__ = object.__hash__  # identity: the enum's own hashes the name at each look-up


_S = State
_ANYWHERE = {"NOOP": None, "HELP": None, "VRFY": None, "EXPN": None, "XCLIENT": None, "XFORWARD": None, "LHLO": None}


def _row(state: State, **moves: State) -> dict[str, State]:
    return {**dict.fromkeys(_ANYWHERE, state), "QUIT": _S.CLOSED, **moves}


TRANSITIONS: dict[State, dict[str, State]] = {
    _S.OPEN: _row(_S.OPEN, EHLO=_S.READY, HELO=_S.READY, RSET=_S.OPEN),
    _S.READY: _row(
        _S.READY,
        EHLO=_S.READY,
        HELO=_S.READY,
        RSET=_S.READY,
        STARTTLS=_S.OPEN,
        AUTH=_S.READY,
        MAIL=_S.MAIL,
    ),
    _S.MAIL: _row(_S.MAIL, EHLO=_S.READY, HELO=_S.READY, RSET=_S.READY, RCPT=_S.RCPT),
    _S.RCPT: _row(_S.RCPT, EHLO=_S.READY, HELO=_S.READY, RSET=_S.READY, RCPT=_S.RCPT, DATA=_S.CONTENT, BDAT=_S.CHUNKS),
    _S.CHUNKS: _row(_S.CHUNKS, EHLO=_S.READY, HELO=_S.READY, RSET=_S.READY, BDAT=_S.CHUNKS),
    _S.CONTENT: {},
    _S.CLOSED: {},
}

# Before EHLO or HELO, where the session's rules do not insist on one (Rules.is_device).
READY_MOVES: dict[str, State] = {"MAIL": _S.MAIL, "AUTH": _S.READY, "STARTTLS": _S.OPEN}

# The same by verb: MOVES[verb].get(state) is None where it is out of order.
MOVES: dict[str, dict[State, State]] = {}
for _state, _moves in TRANSITIONS.items():
    for _verb, _following in _moves.items():
        MOVES.setdefault(_verb, {})[_state] = _following

# What to say for a verb out of order, where "bad sequence" alone would not help.
ORDER_HINTS: dict[tuple[State, str], str] = {
    (_S.OPEN, "MAIL"): "send EHLO or HELO first",
    (_S.OPEN, "STARTTLS"): "send EHLO first",
    (_S.OPEN, "AUTH"): "send EHLO first",
    (_S.MAIL, "MAIL"): "a transaction is open: nested MAIL",
    (_S.RCPT, "MAIL"): "a transaction is open: nested MAIL",
    (_S.READY, "RCPT"): "MAIL comes first",
    (_S.READY, "DATA"): "MAIL and RCPT come first",
    (_S.READY, "BDAT"): "MAIL and RCPT come first",
    (_S.MAIL, "DATA"): "no recipient was accepted",
    (_S.MAIL, "BDAT"): "no recipient was accepted",
    (_S.MAIL, "STARTTLS"): "not within a transaction",
    (_S.RCPT, "STARTTLS"): "not within a transaction",
    (_S.MAIL, "AUTH"): "not within a transaction",
    (_S.RCPT, "AUTH"): "not within a transaction",
    (_S.CHUNKS, "DATA"): "BDAT was used for this message: no DATA",
}


class ClientState(Enum):
    """Where the sending side stands; it only moves forward but for IDLE and BUSY."""

    WAIT_GREETING = "connected; the server has not said 220 yet"
    WAIT_HELLO = "EHLO or HELO sent"
    WAIT_TLS = "STARTTLS sent"
    HANDSHAKE = "220 to STARTTLS: TLS is the caller's work now"
    WAIT_AUTH = "AUTH sent"
    IDLE = "may send a transaction"
    BUSY = "a transaction waits for replies"
    CLOSED = "QUIT sent, refused, or broken: of no further use"

    __hash__ = object.__hash__


CLIENT_TRANSITIONS: dict[ClientState, frozenset[ClientState]] = {
    ClientState.WAIT_GREETING: frozenset((ClientState.WAIT_HELLO, ClientState.CLOSED)),
    ClientState.WAIT_HELLO: frozenset((ClientState.WAIT_HELLO, ClientState.IDLE, ClientState.CLOSED)),
    ClientState.IDLE: frozenset((ClientState.WAIT_TLS, ClientState.WAIT_AUTH, ClientState.BUSY, ClientState.CLOSED)),
    ClientState.WAIT_TLS: frozenset((ClientState.HANDSHAKE, ClientState.IDLE, ClientState.CLOSED)),
    ClientState.HANDSHAKE: frozenset((ClientState.WAIT_HELLO, ClientState.CLOSED)),
    ClientState.WAIT_AUTH: frozenset((ClientState.WAIT_AUTH, ClientState.IDLE, ClientState.CLOSED)),
    ClientState.BUSY: frozenset((ClientState.BUSY, ClientState.IDLE, ClientState.CLOSED)),
    ClientState.CLOSED: frozenset(),
}
