"""A mailing list exploder: one message in, one out with every member as a recipient, bounces to the list's owner.

The copy gets a uid made of the original's: when the handler runs twice, after a crash between queueing and its return, the
second copy is refused, and nobody gets the message twice. Run it with `python examples/mailing_list.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pillarbox import Item, MailServer, Reject
from pillarbox.errors import DuplicateUidError

MEMBERS = {"friends@lists.example.org": ["ann@example.net", "bob@example.com"]}


class MailingList:
    """Hands messages for a list's address to its members."""

    def __init__(self, server: MailServer, members: dict[str, list[str]]) -> None:
        self.server = server
        self.members = members

    async def explode(self, item: Item) -> None:
        """The message for one list address (or several): queued anew for the members."""
        for address in item.recipients:
            name = address.lower()
            message = item.parsed()
            if name in (message.get("List-Post") or ""):
                raise Reject(554, "5.4.6", "This message has been through the list before")
            local_part, _, domain = name.partition("@")
            message["List-Post"] = f"<mailto:{name}>"
            message["List-Id"] = f"<{local_part}.{domain}>"
            try:
                await self.server.enqueue(
                    # What cannot be delivered is the owner's to know, not the writer's (RFC 5321 section 3.9.2).
                    reverse_path=f"{local_part}-owner@{domain}",
                    recipients=self.members[name],
                    content=message,
                    uid=f"{item.uid}-{local_part}",
                )
            except DuplicateUidError:
                pass

    def report(self, item: Item) -> None:
        """A bounce, for the owner of a list. Without a handler it would wait in the queue."""
        print(item.recipients[0], item.parsed()["Subject"])


async def main(members: dict[str, list[str]] = MEMBERS, **options: Any) -> None:
    """Serves until it is shut down."""
    domains = sorted({address.partition("@")[2] for address in members})
    server = MailServer(**{"port": 2525, "domains": domains, "data_dir": "./mail", **options})
    lists = MailingList(server, members)
    # Before the start: until a handler is there its mail is refused.
    for address in members:
        server.handler("(?i)^" + address.replace(".", r"\.") + "$")(lists.explode)
    server.handler("(?i)-owner@")(lists.report)
    async with server:
        await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
