"""The event stream: what happens, as server-sent events (the HTML standard's text/event-stream), with filters.

A watcher that reads slowly gets fewer events and is told how many were left out; the server never waits for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..app import MailServer
from ..events.catalogue import CATALOGUE
from ..events.session import Endpoint, Session
from ..mail.content import Content
from ..mail.envelope import Envelope
from ..smtp.reply import Reply

BUFFER = 1000
# Events a second, unless somebody wants more.
RATE = 100
GATHER_S = 0.05
# Something is sent in any case, so that a connection that is gone is found out.
PING_S = 15.0
# What a page wants that names none: commands of sessions are many, and left out.
USUAL = ("connection", "disconnected", "message_queued", "send_success", "send_failed", "auth", "plugin_error")


def wanted_events(text: str) -> list[str]:
    """The names in `a,b` or `all`, or the usual ones. ValueError names the one that is unknown."""
    names = [name for name in text.split(",") if name]
    if names == ["all"]:
        return [name for name in CATALOGUE if name != "response"]
    for name in names:
        if name not in CATALOGUE:
            raise ValueError(f"there is no event {name!r}: there are {', '.join(CATALOGUE)}")
    return names or [name for name in USUAL if name in CATALOGUE]


def as_json(event: Any) -> dict[str, Any]:
    """An event's fields, those that are text, numbers or lists of them."""
    fields = {one.name: getattr(event, one.name) for one in dataclasses.fields(event)}
    return {"event": event.name, **{name: _plain(value) for name, value in fields.items() if not name.startswith("_")}}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value[:1000] if isinstance(value, str) else value
    if isinstance(value, Reply | Endpoint):
        return str(value) if isinstance(value, Reply) else value.host
    if isinstance(value, Session):
        return value.client_id
    if isinstance(value, Envelope):
        return {"reverse_path": value.reverse_path, "recipients": [r.address for r in value.recipients[:100]]}
    if isinstance(value, Content):
        return value.size_bytes
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value[:100]]
    return type(value).__name__


class _Watcher:
    """What one stream has heard and not sent yet; hears `rate` events a second at most, if that is not 0.

    Nobody reads thousands of events a second, and each that is told costs as much as a command: a watcher that has had its
    share hears nothing at all until the second is over.
    """

    def __init__(self, server: MailServer, names: list[str], text: str, rate: int) -> None:
        self._server = server
        self._names = names
        self._needle = text.lower()
        self._rate = rate
        self._left = rate
        self._began = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._is_over = False
        self._waiting: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._is_cut = False
        self.ready = asyncio.Event()

    def start(self) -> None:
        """From now on."""
        self._server.register(self._hear, self._names)

    def stop(self) -> None:
        """No more."""
        self._is_over = True
        if self._resume is not None:
            self._resume.cancel()
        self._server.unregister(self._hear)

    def _hear(self, event: Any) -> None:
        if self._is_over:
            return
        if self._rate and self._resume is not None:
            # On its way already when the share was used up.
            self._is_cut = True
            return
        told = as_json(event)
        if self._needle and self._needle not in json.dumps(told, ensure_ascii=False).lower():
            return
        if len(self._waiting) >= BUFFER:
            self._dropped += 1
        else:
            self._waiting.append(told)
        self.ready.set()
        # With a text to look for, all is looked at: what fits is little.
        if self._rate and not self._needle:
            self._use_share()

    def _use_share(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._began >= 1.0:
            self._began, self._left = now, self._rate
        self._left -= 1
        if self._left <= 0:
            self._server.unregister(self._hear)
            self._resume = loop.call_later(max(0.0, self._began + 1.0 - now), self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        if not self._is_over:
            # Whether anything was missed meanwhile nobody counted; it is likely.
            self._is_cut = True
            self.start()

    def take(self) -> bytes:
        """What waits, as the stream's lines."""
        self.ready.clear()
        pieces = []
        while self._waiting:
            pieces.append(f"data: {json.dumps(self._waiting.popleft(), ensure_ascii=False)}\n\n")
        if self._dropped:
            pieces.append(f"data: {json.dumps({'event': 'dropped', 'count': self._dropped})}\n\n")
            self._dropped = 0
        elif self._is_cut and pieces:
            told = {
                "event": "dropped",
                "count": None,
                "why": f"more than {self._rate} events a second: ask with rate=0",
            }
            pieces.append(f"data: {json.dumps(told)}\n\n")
        self._is_cut = False
        return "".join(pieces).encode()


async def stream(
    server: MailServer,
    names: list[str],
    text: str,
    rate: int = RATE,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> AsyncIterator[bytes]:
    """The octets of the stream. `text`: only events that have it somewhere, in any case; `rate`: at most, 0 for no bound.

    `is_over` is asked before anything is sent.
    """
    watcher = _Watcher(server, names, text, rate)
    watcher.start()
    try:
        yield b": the events of this server from now on\n\n"
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    await watcher.ready.wait()
            except TimeoutError:
                if is_over():
                    return
                yield b": still here\n\n"
                continue
            if is_over():
                return
            yield watcher.take()
            # What comes within a moment leaves together.
            await asyncio.sleep(GATHER_S)
    finally:
        watcher.stop()
