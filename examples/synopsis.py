"""The original's synopsis: a mail server in a few lines, that takes mail and sends it on.

Run it with `python examples/synopsis.py`; `pillarbox send --server 127.0.0.1:2525 --to you@example.org` hands it a message.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pillarbox import MailServer

# A smart host, if one is needed: None sends to the MX of each domain.
RELAY = None


async def main(**options: Any) -> None:
    """Serves until it is shut down."""
    given = {"hostname": "mymailserver.local", "port": 2525, "relay": RELAY, **options}
    server = await MailServer.spawn(**given)
    server.register(lambda event: print(event.name, event.uid), "message_queued", "send_success", "send_failed")
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
