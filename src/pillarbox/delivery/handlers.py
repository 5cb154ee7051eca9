"""Handlers: recipients that match go to the user's Python, from the queue (DESIGN section 4).

A handler that returns has taken the message; one that raises gets it again later, with the same uid; `Reject` bounces.
Must not know SMTP sessions or the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import inspect
import io
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from email.message import EmailMessage
from typing import IO, Any

import regex

from ..clock import Clock
from ..errors import OptionError, PillarboxError
from ..mail.content import Content
from ..queue.work import Result, Work, give_back
from ..smtp.address import comparable_domain
from ..smtp.reply import Reply
from .waiting import WaitingLine

_log = logging.getLogger("pillarbox.handlers")
# A pattern that has not decided by then is at fault (hostile row 110); addresses are 254 octets at most.
MATCH_S = 0.05
WAITING = 200
WAITING_BYTES = 8 << 20
_DONE = Reply(250, "2.0.0", "Taken by the handler")


class Reject(PillarboxError):
    """Raised by a handler: the message bounces with this text. `code` is 5yz, `enhanced` its enhanced status code."""

    def __init__(self, text: str = "The message was refused", code: int = 550, enhanced: str = "5.7.1") -> None:
        super().__init__(text)
        if not 500 <= code <= 599:
            raise ValueError(f"reply code {code}: a rejection is 5yz; raise anything else to have it tried again")
        self.reply = Reply(code, enhanced, "".join(c if c.isprintable() else "?" for c in text) or "Refused")


class Defer(PillarboxError):
    """Raised by a handler: the message is tried again later, as after any exception, and the queue tells this text."""

    def __init__(self, text: str = "The handler wants it later", code: int = 451, enhanced: str = "4.3.0") -> None:
        super().__init__(text)
        if not 400 <= code <= 499:
            raise ValueError(f"reply code {code}: a deferral is 4yz; raise Reject for one that bounces")
        self.reply = Reply(code, enhanced, "".join(c if c.isprintable() else "?" for c in text) or "Later")


class Item:
    """What a handler gets. `recipients` are just the handler's own; `attempt` counts from 1; times in unix seconds.

    `content` is the octets as they are queued, read when asked for; `open()` gives them as a binary file, and `parsed()`
    as an `email.message.EmailMessage`. `name` is the event's, for a handler that names one.
    """

    __slots__ = (
        "_content",
        "attempt",
        "facts",
        "name",
        "received_at",
        "recipients",
        "reverse_path",
        "size_bytes",
        "uid",
    )

    def __init__(self, work: Work, name: str = "") -> None:
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
        """The message as Python's own class. ValueError where its parts are nested beyond all use; `content` still is there."""
        try:
            return email.message_from_bytes(self.content, policy=email.policy.default)
        except RecursionError:
            raise ValueError("the parts of this message are nested too deeply to be parsed") from None

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
        flags = match.flags if isinstance(match, re.Pattern) else 0
        text = match.pattern if isinstance(match, re.Pattern) else match
        if not isinstance(text, str) or not text:
            raise OptionError(f"'match': {match!r} is no pattern: give a regular expression such as r'@app\\.example$'")
        try:
            self._regex = regex.compile(text, _regex_flags(flags))
        except regex.error as error:
            raise OptionError(f"'match': {text!r} is no regular expression: {error}") from None
        if not callable(callback):
            raise OptionError(f"'callback': {callback!r} cannot be called: give a function")
        if not isinstance(concurrency, int) or concurrency < 1:
            raise OptionError(f"'concurrency': {concurrency!r} is not allowed: give a number from 1 on")
        self.match = text
        letters = "".join(letter for letter, ours, _ in _FLAGS if flags & ours)
        # What the queue keeps of it: the same pattern with other flags is another handler.
        self.name = f"{text}/{letters}" if letters else text
        self.callback = callback
        self.concurrency = concurrency
        self.time_out_s = time_out_s
        self.in_thread = bool(getattr(callback, "in_thread", False)) if in_thread is None else in_thread
        self.event = event

    def matches(self, address: str) -> bool:
        """True for an address (`local@domain`) of this handler's; False with a log line where the pattern takes too long."""
        try:
            return self._regex.search(address, timeout=MATCH_S) is not None
        except TimeoutError:
            _log.error("handler %r: the pattern takes too long on %r: rewrite it", self.match, address)
            return False

    def __repr__(self) -> str:
        return f"Handler({self.match!r}, {self.callback!r})"


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


def _in_thread(callback: Callable[[Item], Any], item: Item) -> asyncio.Future[Any]:
    """Runs it in a thread of its own, that no shutdown has to wait for; what it raises comes back, whatever it is."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def hand_back(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if isinstance(error, StopIteration):
            error = RuntimeError("the handler raised StopIteration")
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def work() -> None:
        value, error = None, None
        try:
            value = callback(item)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(hand_back, value, error)

    threading.Thread(target=work, name="pillarbox-handler", daemon=True).start()
    return future


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
        local_part, at, domain = address.rpartition("@")
        # RFC 5321 section 4.5.1: a postmaster without a domain is this host's.
        address = f"{local_part}@{comparable_domain(domain)}" if at else f"{address}@{self._hostname}"
        for handler in self._handlers:
            if handler.matches(address):
                return handler.name
        return None

    def get(self, name: str) -> Handler | None:
        """The handler of that name."""
        return next((handler for handler in self._handlers if handler.name == name), None)


class HandlerLane:
    """One handler's work: what waits, what runs, never more than its concurrency. Beside `delivery.lane.Lane`."""

    def __init__(
        self,
        key: str,
        find: Callable[[], Handler | None],
        clock: Clock,
        finished: Callable[[Work], None],
        wake: Callable[[], None],
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        self._may_begin = may_begin
        self.key = key
        self._find = find
        self._clock = clock
        self._finished = finished
        self._waiting = WaitingLine(WAITING, WAITING_BYTES, wake)
        self._running: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        # Threads and tasks that went on when their time was over: they have their place until they end.
        self._left_behind = 0

    @property
    def waiting(self) -> int:
        """Messages that wait for their turn."""
        return len(self._waiting)

    def has_room(self) -> bool:
        """False while enough waits."""
        return self._waiting.has_room() and not self._is_stopping

    def describe(self) -> dict[str, Any]:
        """The lane as JSON, as delivery.lane.Lane does it."""
        return {
            "next_hop": self.key,
            "state": "busy" if self._running else "idle",
            "waiting": len(self._waiting),
            "busy": len(self._running),
            "connections": 0,
            "retry_at": None,
            "reason": None,
        }

    @property
    def is_idle(self) -> bool:
        """Nothing waits or runs."""
        return not (self._waiting or self._running or self._left_behind)

    def push(self, work: Work) -> None:
        """Takes work."""
        self._waiting.push(work)
        self._feed()

    def withdraw(self, uids: Collection[str] | None) -> list[Work]:
        """Work that has not begun."""
        return self._waiting.take(uids)

    def _feed(self) -> None:
        while self._waiting and not self._is_stopping:
            handler = self._find()
            if handler is not None and len(self._running) + self._left_behind >= handler.concurrency:
                return
            work = self._waiting.pop()
            if not self._may_begin():
                give_back(work, self._clock.time())
                self._finished(work)
                continue
            task = asyncio.get_running_loop().create_task(self._run(handler, work))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._feed()

    async def _run(self, handler: Handler | None, work: Work) -> None:
        work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
        reply, is_delivered = await self._call(handler, work)
        work.results = [
            Result(
                r, reply, "handler", is_delivered=is_delivered, is_permanent=reply.is_permanent, remote=work.next_hop
            )
            for r in work.recipients
        ]
        self._finished(work)

    def _limit(self, handler: Handler, work: Work) -> float:
        """Its own bound, else what is left of the message's time: nothing is in hand for ever (hostile row 112)."""
        if handler.time_out_s is not None:
            return handler.time_out_s
        return max(60.0, work.message.expires_at - self._clock.time())

    async def _bounded(self, awaitable: Awaitable[Any], limit_s: float) -> None:
        """Waits for it so long; TimeoutError then, also when it does not let itself be cancelled."""
        inner = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait([inner], timeout=limit_s)
        except asyncio.CancelledError:
            self._leave_behind(inner)
            raise
        if not inner.done():
            self._leave_behind(inner)
            raise TimeoutError
        answer = inner.result()
        if inspect.isawaitable(answer):
            await self._bounded(answer, limit_s)

    def _leave_behind(self, inner: asyncio.Future[Any]) -> None:
        self._left_behind += 1

        def ended(future: asyncio.Future[Any]) -> None:
            self._left_behind -= 1
            if not future.cancelled():
                future.exception()
            self._feed()

        # A thread's future ends with the thread, whatever is asked of it.
        if isinstance(inner, asyncio.Task):
            inner.cancel()
        inner.add_done_callback(ended)

    async def _call(self, handler: Handler | None, work: Work) -> tuple[Reply, bool]:
        if handler is None:
            return Reply(451, "4.3.5", "The handler of this recipient is gone"), False
        try:
            item = Item(work, handler.event or "")
            answer = _in_thread(handler.callback, item) if handler.in_thread else handler.callback(item)
            if inspect.isawaitable(answer):
                await self._bounded(answer, self._limit(handler, work))
        except (Reject, Defer) as answered:
            return answered.reply, False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return Reply(451, "4.3.2", "The server stopped while the handler ran"), False
            return Reply(451, "4.3.0", "The handler cancelled itself"), False
        except TimeoutError:
            _log.error("handler %r took too long on %s", handler.match, work.message.uid)
            return Reply(451, "4.3.0", "The handler took too long"), False
        except Exception as error:
            _log.exception("handler %r failed on %s", handler.match, work.message.uid)
            # The text stays here: what a handler says may be nobody else's business.
            return Reply(451, "4.3.0", f"The handler failed: {type(error).__name__}"), False
        return _DONE, True

    async def stop(self, grace_s: float) -> None:
        """What runs may finish within the grace; what is cut off is tried again."""
        self._is_stopping = True
        running = set(self._running)
        if running:
            _, late = await asyncio.wait(running, timeout=max(grace_s, 0.001))
            for task in late:
                task.cancel()
            if late:
                # A handler may refuse to be cancelled: the server goes down all the same.
                await asyncio.wait(late, timeout=1.0)
