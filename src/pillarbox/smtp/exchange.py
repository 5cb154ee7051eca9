"""The vocabulary of the sending side: its events, the replies that it waits for, and the words that may go on the wire.

Must not know the state machine that uses them (smtp.client).
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

from .address import is_mailbox
from .reply import Reply
from .transaction import Stage


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


class Expect(Enum):
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


STAGES = {
    Expect.GREETING: Stage.GREETING,
    Expect.HELLO: Stage.HELLO,
    Expect.TLS: Stage.TLS,
    Expect.AUTH: Stage.AUTH,
    Expect.MAIL: Stage.MAIL,
    Expect.RCPT: Stage.RCPT,
    Expect.DATA: Stage.DATA,
    Expect.FINAL: Stage.FINAL,
}

# A blank would make two words of one, anything else here two lines.
_BREAKS = re.compile(r"[\x00-\x20\x7f]")


def check_word(text: str) -> str:
    """A word of a command line."""
    if _BREAKS.search(text):
        raise ClientFault(f"{text!r} has characters that would break the command line")
    return text


def format_words(parameters: tuple[str, ...]) -> str:
    """Parameters, as they stand behind a path."""
    return " ".join(("", *map(check_word, parameters))) if parameters else ""


@lru_cache(maxsize=2048)
def check_path(address: str) -> str:
    """A path: by the grammar, so that no ">" of its own can end it (in a quoted local-part one may stand)."""
    if not is_mailbox(address) and address.lower() != "postmaster":
        raise ClientFault(f"{address!r} is no address that could go on the wire")
    return address


# Servers of old, and Microsoft's, write AUTH=LOGIN beside or in place of AUTH LOGIN.
_OLD_AUTH = "AUTH="


def parse_extensions(reply: Reply) -> dict[str, str]:
    """What an EHLO reply offers: keyword -> text. Several AUTH lines, in the old form or the new, add up."""
    offered: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, text = line.strip().partition(" ")
        keyword = keyword.upper()
        if keyword.startswith(_OLD_AUTH):
            keyword, text = "AUTH", f"{keyword.removeprefix(_OLD_AUTH)} {text}"
        if keyword == "AUTH" and keyword in offered:
            text = f"{offered[keyword]} {text}"
        offered[keyword] = text.strip()
    return offered


_LIMIT = re.compile(r"([A-Z]+)=([1-9][0-9]{0,5})\Z")


def parse_limits(text: str) -> dict[str, int]:
    """RFC 9422 section 3: name -> number of the LIMITS keyword; what is not a limit there is left out."""
    found = (_LIMIT.match(word) for word in text.upper().split())
    return {one[1]: int(one[2]) for one in found if one is not None}
