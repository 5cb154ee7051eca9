"""Mail into an application: what comes for ticket-<number>@... becomes a comment of that ticket, exactly as often as it should.

The handler gets the message from the queue. When it raises, the message comes again later, with the same uid: the table's
key makes a second hand-over harmless. Run it with `python examples/inbound_app.py`, then
`pillarbox send --server 127.0.0.1:2525 --to ticket-7@example.org`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

from pillarbox import Item, MailServer, Reject

TICKET = r"^ticket-(\d+)@"


class Tickets:
    """The application: tickets and their comments."""

    def __init__(self, path: str = ":memory:") -> None:
        self.db = sqlite3.connect(path)
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS comment (uid TEXT PRIMARY KEY, ticket INTEGER, author TEXT, text TEXT)"
        )
        self.open = {7, 8}

    def take(self, item: Item) -> None:
        """A message is a comment; a ticket that is not there bounces it."""
        ticket = int(item.match[1])
        if ticket not in self.open:
            raise Reject(550, "5.1.1", f"There is no ticket {ticket}")
        message = item.parsed()
        body = message.get_body(("plain", "html"))
        row = (item.uid, ticket, item.reverse_path or "", body.get_content().strip() if body else "")
        with self.db:
            self.db.execute("INSERT OR IGNORE INTO comment VALUES (?, ?, ?, ?)", row)


async def main(tickets: Tickets, **options: Any) -> None:
    """Serves until it is shut down."""
    server = MailServer(**{"port": 2525, "domains": ["example.org"], "data_dir": "./mail", **options})
    # Before the start: until a handler is there its mail is refused.
    server.handler(TICKET)(tickets.take)
    async with server:
        await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(Tickets("tickets.db")))
