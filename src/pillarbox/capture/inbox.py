"""The inbox of a server with `capture`: messages are held in its queue as soon as they are accepted, and looked at here.

It is the queue of every other server: what is captured is on the disk before its 250, and a release sends it on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any, Protocol

from ..mail.content import Content
from ..mail.emailmessage import read_email
from ..mail.readable import read
from ..queue.casefold import contains
from ..queue.model import CAPTURED, Action, Message, Query, View


class Queue(Protocol):
    """What the inbox needs of the queue."""

    async def search(self, query: Query) -> list[View]: ...

    async def content(self, uid: str) -> Content | None: ...

    async def change(self, action: Action, query: Query) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Captured:
    """A message in the inbox. `octets` is what would be sent (trace fields included), `received_at` in unix seconds.

    `reverse_path` is "" for a bounce. `facts`: peer, helo, session, tls and user, as far as they are known.
    """

    uid: str
    reverse_path: str
    recipients: list[str]
    subject: str
    size_bytes: int
    received_at: float
    facts: dict[str, Any]
    octets: bytes

    def parsed(self) -> EmailMessage:
        """Returns the message as the standard library's class. Never raises: what breaks the rules is mended in the object."""
        return read_email(self.octets)

    @property
    def text(self) -> str:
        """Its text/plain body, or ""."""
        return read(self.octets).text or ""

    @property
    def html(self) -> str:
        """Its text/html body, or ""."""
        return read(self.octets).html or ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which messages: each is a part of the text, in any case; None is every one."""

    to: str | None = None
    sender: str | None = None
    subject: str | None = None

    def matches(self, view: View) -> bool:
        """Held by the inbox, and as wanted."""
        return (
            view.facts.get("held_for") == CAPTURED
            and view.state == "held"
            and (self.to is None or any(contains(r.address, self.to) for r in view.recipients))
            and (self.sender is None or contains(view.reverse_path or "", self.sender))
            and (self.subject is None or contains(view.subject, self.subject))
        )

    def __str__(self) -> str:
        given = [f"{name}={value!r}" for name in self.__slots__ if (value := getattr(self, name)) is not None]
        return ", ".join(given) or "anything"


class Inbox:
    """See the module's text. `keep`: messages that stay; the oldest goes when one more comes."""

    def __init__(self, queue: Queue, keep: int) -> None:
        self._queue = queue
        self._keep = keep
        # What is there from before is counted when the first one comes.
        self._count = keep
        self._is_stale = False
        self._trimming: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Event] = set()

    def hear(self, message: Message) -> None:
        """A message is on the disk, and held; whoever it came from: SMTP, a program, or the server itself (a DSN)."""
        for waiting in self._waiting:
            waiting.set()
        self._count += 1
        self._is_stale = True
        if self._count > self._keep and self._trimming is None:
            self._trimming = asyncio.get_running_loop().create_task(self._trim())

    async def _trim(self) -> None:
        try:
            # Again, where more came while it was counted.
            while self._is_stale:
                self._is_stale = False
                views = await self.views()
                surplus = [view.uid for view in views[self._keep :]]
                if surplus:
                    await self._queue.change(Action.CANCEL, Query(uids=surplus, state="held"))
                self._count = len(views) - len(surplus)
        finally:
            self._trimming = None

    async def views(self, wanted: Wanted | None = None, *, limit: int | None = None) -> list[View]:
        """Messages as the queue shows them, newest first, without their content."""
        wanted = wanted or Wanted()
        found = await self._queue.search(Query(state="held", recipient=wanted.to, sender=wanted.sender or None))
        return [view for view in reversed(found) if wanted.matches(view)][:limit]

    async def messages(
        self,
        *,
        to: str | None = None,
        sender: str | None = None,
        subject: str | None = None,
        limit: int | None = None,
    ) -> list[Captured]:
        """Messages, newest first; each filter is a part of the text, in any case."""
        views = await self.views(Wanted(to, sender, subject), limit=limit)
        found = [await self._captured(view) for view in views]
        return [one for one in found if one is not None]

    async def get(self, uid: str) -> Captured | None:
        """One message, or None."""
        views = [v for v in await self._queue.search(Query(uids=[uid])) if Wanted().matches(v)]
        return await self._captured(views[0]) if views else None

    async def _captured(self, view: View) -> Captured | None:
        content = await self._queue.content(view.uid)
        if content is None:
            return None
        octets = await asyncio.to_thread(content.read) if content.path else content.read()
        return Captured(
            view.uid,
            view.reverse_path or "",
            [r.address for r in view.recipients],
            view.subject,
            view.size_bytes,
            view.received_at,
            view.facts,
            octets,
        )

    async def wait_for(
        self,
        *,
        to: str | None = None,
        sender: str | None = None,
        subject: str | None = None,
        timeout: float = 10.0,
        where: Callable[[Captured], bool] | None = None,
    ) -> Captured:
        """The first message that is like that: one that is there already, or one that comes within `timeout` seconds.

        `where` looks at the rest of it. TimeoutError says what was waited for, and what came instead.
        """
        wanted = Wanted(to, sender, subject)
        news = asyncio.Event()
        self._waiting.add(news)
        try:
            # What is there is found, however short the time is.
            if (found := await self._first(wanted, where)) is not None:
                return found
            async with asyncio.timeout(timeout):
                while True:
                    await news.wait()
                    news.clear()
                    if (found := await self._first(wanted, where)) is not None:
                        return found
        except TimeoutError:
            raise TimeoutError(await self._missed(wanted, timeout)) from None
        finally:
            self._waiting.discard(news)

    async def _first(self, wanted: Wanted, where: Callable[[Captured], bool] | None) -> Captured | None:
        for view in reversed(await self.views(wanted)):
            found = await self._captured(view)
            if found is not None and (where is None or where(found)):
                return found
        return None

    async def _missed(self, wanted: Wanted, timeout: float) -> str:
        views = await self.views(limit=10)
        there = "; ".join(
            f"to={','.join(r.address for r in v.recipients[:3])} subject={v.subject!r}" for v in reversed(views)
        )
        return f"no message with {wanted} within {timeout:g} s; the inbox has {there or 'none'}"

    async def delete(self, uids: Sequence[str] | None = None, *, wanted: Wanted | None = None) -> list[str]:
        """Deletes these messages, those that match, or all; returns the uids of those that were there."""
        here = [view.uid for view in await self.views(wanted)]
        gone = here if uids is None else [uid for uid in here if uid in set(uids)]
        return await self._queue.change(Action.CANCEL, Query(uids=gone, state="held")) if gone else []

    async def release(self, uid: str) -> bool:
        """Sends the message to the server's relay, without its Bcc fields; False when it is not in the inbox."""
        if uid not in [view.uid for view in await self.views()]:
            return False
        return bool(await self._queue.change(Action.RELEASE, Query(uids=[uid], state="held")))
