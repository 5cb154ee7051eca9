"""Handlers: recipients that match go to the user's Python, from the queue (DESIGN section 4).

A handler that returns has taken the message; one that raises gets it again later, with the same uid; `Reject` bounces.
Must not know SMTP sessions or the store.
"""

from __future__ import annotations

import inspect
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from email.message import EmailMessage
from typing import IO, Any

import regex

from ..errors import OptionError, StateError
from ..mail.content import Content
from ..mail.emailmessage import read_email
from ..queue.work import Work
from ..smtp.address import comparable_domain

_log = logging.getLogger("pillarbox.handlers")
# A pattern that has not decided by then is at fault (hostile row 110); addresses are 254 octets at most.
MATCH_S = 0.05


class Item:
    """What a handler gets. `recipients` are just the handler's own; `attempt` counts from 1; times in unix seconds.

    `content` is the octets as they are queued, read when asked for; `open()` gives them as a binary file, and `parsed()`
    as an `email.message.EmailMessage`. `match` is the match of the handler's pattern in the first recipient's address,
    `matches` those of all recipients, in their order. `name` is the event's, for a handler that names one.
    """

    __slots__ = (
        "_content",
        "_search",
        "attempt",
        "facts",
        "name",
        "received_at",
        "recipients",
        "reverse_path",
        "size_bytes",
        "uid",
    )

    def __init__(self, work: Work, name: str, search: Callable[[str], regex.Match[str] | None]) -> None:
        self._search = search
        message = work.message
        self.uid = message.uid
        self.reverse_path = message.envelope.reverse_path
        self.recipients = [r.address for r in work.recipients]
        self.received_at = message.received_at
        self.size_bytes = message.content.size_bytes
        self.attempt = max(r.attempts for r in work.recipients) + 1
        self.facts = dict(message.facts)
        self.name = name
        self._content: Content = message.content

    @property
    def match(self) -> regex.Match[str]:
        """The match in the first recipient's address: `item.match[1]`, `item.match["token"]`."""
        return self.matches[0]

    @property
    def matches(self) -> list[regex.Match[str]]:
        """The matches, in the order of `recipients`. StateError if the handler was replaced and does not match any more."""
        found = [self._search(address) for address in self.recipients]
        if None in found:
            raise StateError(f"{self!r}: the pattern of the handler does not match a recipient any more")
        return [one for one in found if one is not None]

    @property
    def content(self) -> bytes:
        """All octets, CRLF line ends."""
        return self._content.read()

    def open(self) -> IO[bytes]:
        """The octets as a binary file, for content that is too large to hold; close it."""
        content = self._content
        if content.path is None:
            return io.BytesIO(content.prefix)
        return io.BufferedReader(_Pieces(content))

    def parsed(self) -> EmailMessage:
        """Returns the message as the standard library's class. Never raises: what breaks the rules is mended in the object.

        `content` has the octets as they were sent.
        """
        return read_email(self.content)

    def __repr__(self) -> str:
        return f"Item({self.uid!r}, to={self.recipients!r}, attempt={self.attempt})"


class _Pieces(io.RawIOBase):
    """Content as a raw stream: its pieces, one after the other."""

    def __init__(self, content: Content) -> None:
        self._pieces = content.chunks()
        self._rest = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As much as fits."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Handler:
    """Recipients that `match` (a regular expression, searched in `local@domain`, domain in lower case) go to `callback(item)`.

    `callback` is plain or async. A plain one runs in the server's loop; with `in_thread` (an argument, or an attribute of
    the callback) in a thread, for one that blocks. `concurrency` bounds how many run at once, `time_out_s` how long one may
    take (then the message is tried again). OptionError names what is wrong with an argument.
    """

    def __init__(
        self,
        match: str | re.Pattern[str],
        callback: Callable[[Item], Any],
        *,
        concurrency: int = 10,
        time_out_s: float | None = None,
        in_thread: bool | None = None,
        event: str | None = None,
    ) -> None:
        text, flags = check_match(match)
        try:
            self._regex = regex.compile(text, _regex_flags(flags))
        except regex.error as error:
            raise OptionError(f"'match': {text!r} is no regular expression: {error}") from None
        _check_callback(callback)
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise OptionError(f"'concurrency': {concurrency!r} is not allowed: give a number from 1 on")
        if time_out_s is not None and (
            not isinstance(time_out_s, (int, float)) or isinstance(time_out_s, bool) or not time_out_s > 0
        ):
            raise OptionError(f"'time_out_s': {time_out_s!r} is not allowed: give seconds, or None")
        self.match = text
        letters = "".join(letter for letter, ours, _ in _FLAGS if flags & ours)
        # What the queue keeps of it: the same pattern with other flags is another handler.
        self.name = f"{text}/{letters}" if letters else text
        self.callback = callback
        self.concurrency = concurrency
        self.time_out_s = time_out_s
        self.in_thread = bool(getattr(callback, "in_thread", False)) if in_thread is None else in_thread
        self.event = event

    def search(self, address: str) -> regex.Match[str] | None:
        """Returns the match in an address (`local@domain`); None with a log line where the pattern takes too long."""
        try:
            return self._regex.search(address, timeout=MATCH_S)
        except TimeoutError:
            _log.error("handler %r: the pattern takes too long on %r: rewrite it", self.match, address)
            return None

    def matches(self, address: str) -> bool:
        """True for an address of this handler's."""
        return self.search(address) is not None

    def __repr__(self) -> str:
        return f"Handler({self.match!r}, {self.callback!r})"


def check_match(match: Any) -> tuple[str, int]:
    """Returns pattern and flags. OptionError for what is not a pattern."""
    text, flags = (match.pattern, match.flags) if isinstance(match, re.Pattern) else (match, 0)
    if isinstance(text, str) and text:
        return text, flags
    if callable(match) and not isinstance(match, type):
        name = getattr(match, "__name__", "function")
        raise OptionError(
            f"'match': {match!r} is no pattern: give a regular expression; did you mean "
            f"@server.handler(r'@app\\.example$') above {name}, or Handler(match, {name})?"
        )
    raise OptionError(f"'match': {match!r} is no pattern: give a regular expression such as r'@app\\.example$'")


def _check_callback(callback: Any) -> None:
    if isinstance(callback, type):
        raise OptionError(
            f"'callback': {callback!r} is a class: give a function; did you mean a method of {callback.__name__}(...)?"
        )
    if inspect.isgeneratorfunction(callback) or inspect.isasyncgenfunction(callback):
        raise OptionError(f"'callback': {callback!r} has a yield, and would never run: give a function without")
    if not callable(callback):
        if inspect.iscoroutine(callback):
            name = callback.__name__
            callback.close()
            raise OptionError(f"'callback': {name}() was called already: give a function; did you mean {name}?")
        raise OptionError(f"'callback': {callback!r} cannot be called: give a function")


def _regex_flags(flags: int) -> int:
    """The flags of a compiled pattern, as the package regex has them."""
    return sum(theirs for _, ours, theirs in _FLAGS if flags & ours)


# letter, re's flag, regex's flag
_FLAGS = (
    ("i", int(re.IGNORECASE), int(regex.IGNORECASE)),
    ("m", int(re.MULTILINE), int(regex.MULTILINE)),
    ("s", int(re.DOTALL), int(regex.DOTALL)),
    ("x", int(re.VERBOSE), int(regex.VERBOSE)),
    ("a", int(re.ASCII), int(regex.ASCII)),
)
_KEYS = ("match", "callback", "event", "concurrency", "time_out_s", "in_thread")


def parse_handlers(given: Sequence[Any], for_event: Callable[[str], Callable[[Item], Any]]) -> list[Handler]:
    """Handlers from what the option `handlers` holds. OptionError names index, key and reason.

    `for_event(name)` gives the callback that calls whoever is registered for that event.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise OptionError(f"option 'handlers': {given!r} is no list: give [{{'match': ..., 'callback': ...}}]")
    found = []
    for index, one in enumerate(given):
        try:
            found.append(one if isinstance(one, Handler) else _parse_handler(one, for_event))
        except OptionError as error:
            raise OptionError(f"option 'handlers', item {index}: {error}") from None
    return found


def _parse_handler(one: Any, for_event: Callable[[str], Callable[[Item], Any]]) -> Handler:
    if not isinstance(one, Mapping):
        raise OptionError(f"{one!r} is neither a Handler nor a dict with 'match' and 'callback' or 'event'")
    for key in one:
        # The original's third key: there is no session here that an event would be sent to.
        if key not in _KEYS:
            raise OptionError(f"key {key!r} is not known: there are {', '.join(_KEYS)}")
    if "match" not in one:
        raise OptionError("key 'match' is missing: give a regular expression")
    if ("callback" in one) == ("event" in one):
        raise OptionError("give either key 'callback' or key 'event'")
    more = {key: one[key] for key in ("concurrency", "time_out_s", "in_thread") if key in one}
    if "callback" in one:
        return Handler(one["match"], one["callback"], **more)
    event = one["event"]
    if not isinstance(event, str) or not event:
        raise OptionError(f"key 'event': {event!r} is no name of an event")
    return Handler(one["match"], for_event(event), event=event.removeprefix("smtpd_"), **more)


class Handlers:
    """The handlers of a server, in order: the first that matches takes the recipient. Live: `replace` at any time."""

    def __init__(self, handlers: Sequence[Handler] = (), hostname: str = "localhost") -> None:
        self._handlers = list(handlers)
        self._hostname = hostname

    def list(self) -> list[Handler]:
        """A copy."""
        return list(self._handlers)

    def replace(self, handlers: Sequence[Handler]) -> None:
        """These, and no others."""
        self._handlers = list(handlers)

    def add(self, handler: Handler) -> None:
        """One more, behind the others."""
        self._handlers.append(handler)

    def find(self, address: str) -> str | None:
        """The name of the handler that takes this address, or None."""
        if not self._handlers:
            return None
        address = self._searched(address)
        for handler in self._handlers:
            if handler.matches(address):
                return handler.name
        return None

    def match(self, handler: Handler, address: str) -> regex.Match[str] | None:
        """The match of a handler's pattern in a recipient's address."""
        return handler.search(self._searched(address))

    def _searched(self, address: str) -> str:
        """The form of an address that patterns are searched in."""
        local_part, at, domain = address.rpartition("@")
        # RFC 5321 section 4.5.1: a postmaster without a domain is this host's.
        return f"{local_part}@{comparable_domain(domain)}" if at else f"{address}@{self._hostname}"

    def get(self, name: str) -> Handler | None:
        """The handler of that name."""
        return next((handler for handler in self._handlers if handler.name == name), None)
