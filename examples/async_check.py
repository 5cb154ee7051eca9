"""An async plugin: it waits for somebody else's answer, and no other session waits with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pillarbox import MailServer, Reply


class AskFirst:
    """Asks a coroutine about every sender; while it thinks, only this one session is parked."""

    def __init__(self, ask: Callable[[str], Awaitable[bool]]) -> None:
        self._ask = ask

    async def on_cmd_mail(self, server: MailServer, event: Any) -> Reply | None:
        """The next pipelined command is not looked at before this has its answer."""
        if event.address is not None and not await self._ask(event.address):
            return Reply(550, "5.7.1", "This sender is not welcome")
        return None


async def slow_directory(address: str) -> bool:
    """Stands for a look-up in a directory or a database."""
    await asyncio.sleep(0.5)
    return not address.endswith("@spam.example")


if __name__ == "__main__":
    MailServer.run(port=2525, data_dir="./mail", direct=False, plugins={"ask": AskFirst(slow_directory)})
