"""A mail server inside an asyncio program: say what arrives, hand everything on to a smart host."""

from __future__ import annotations

import asyncio

from pillarbox import MailServer


async def main() -> None:
    """Serves until it is cancelled."""
    async with MailServer(port=2525, relay="127.0.0.1:2526", data_dir="./mail") as server:
        async for event in server.events("message_queued"):
            print(event.uid, event.reverse_path, "->", *event.recipients)


if __name__ == "__main__":
    asyncio.run(main())
