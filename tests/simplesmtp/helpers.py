"""What the tests of the table share: a server per test, by a decorator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pillarbox import MailServer
from tests.conftest import Client, run_async, serving

BODY = b"Subject: hello\r\nFrom: a@b.test\r\n\r\nbody\r\n"


def server_test(**options: Any) -> Callable[[Callable[[MailServer], Awaitable[None]]], Callable[[Path], None]]:
    """Runs the coroutine with a fresh memory-store server on port 0; `options` are spawn's."""

    def wrap(body: Callable[[MailServer], Awaitable[None]]) -> Callable[[Path], None]:
        def test(tmp_path: Path) -> None:
            async def main() -> None:
                async with serving(tmp_path, **{"store": "memory", **options}) as server:
                    await body(server)

            run_async(main)

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        return test

    return wrap


async def send(server: MailServer, content: bytes = BODY, to: bytes = b"c@d.test", sender: bytes = b"a@b.test") -> str:
    """One message over SMTP; the final reply."""
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    reply = await client.transaction(content, sender, to)
    client.close()
    return reply


def heard(server: MailServer, *names: str) -> asyncio.Queue[Any]:
    """A queue of the events of these names, from now on."""
    events: asyncio.Queue[Any] = asyncio.Queue()
    server.register(events.put_nowait, *names)
    return events


async def soon(events: asyncio.Queue[Any]) -> Any:
    """The next one."""
    async with asyncio.timeout(10):
        return await events.get()
