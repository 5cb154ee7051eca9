"""The event stream: what happens, as server-sent events (the HTML standard's text/event-stream), with filters.

A watcher that reads slowly gets fewer events and is told how many were left out; the server never waits for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from ..app import MailServer
from ..events.catalogue import CATALOGUE
from ..events.session import Endpoint, Session
from ..mail.content import Content
from ..mail.envelope import Envelope
from ..smtp.reply import Reply

BUFFER = 1000
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


async def stream(server: MailServer, names: list[str], text: str) -> AsyncIterator[bytes]:
    """The octets of the stream. `text`: only events that have it somewhere, in any case."""
    waiting: deque[dict[str, Any]] = deque()
    ready = asyncio.Event()
    dropped = 0
    needle = text.lower()

    def hear(event: Any) -> None:
        nonlocal dropped
        told = as_json(event)
        if needle and needle not in json.dumps(told, ensure_ascii=False).lower():
            return
        if len(waiting) >= BUFFER:
            dropped += 1
        else:
            waiting.append(told)
        ready.set()

    server.register(hear, names)
    try:
        yield b": the events of this server from now on\n\n"
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    await ready.wait()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            ready.clear()
            pieces = []
            while waiting:
                told = waiting.popleft()
                pieces.append(f"data: {json.dumps(told, ensure_ascii=False)}\n\n")
            if dropped:
                pieces.append(f"data: {json.dumps({'event': 'dropped', 'count': dropped})}\n\n")
                dropped = 0
            yield "".join(pieces).encode()
    finally:
        server.unregister(hear)
