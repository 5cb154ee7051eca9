"""A server without built-in answers: the program says every word itself (`simple=False`), as in the original.

It takes whatever comes, counts the lines, and keeps nothing. Framing, bounds and TLS are the server's all the same. Run it
with `python examples/raw_server.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pillarbox import MailServer

ANSWERS = {
    "cmd_helo": "250 Hello, tell me everything",
    "cmd_ehlo": "250 Hello, tell me everything",
    "cmd_mail": "250 Go on",
    "cmd_rcpt": "250 Them too",
    "cmd_rset": "250 Forgotten",
    "cmd_noop": "250 Indeed",
    "cmd_quit": "221 Come again",
}


def converse(server: MailServer) -> None:
    """Registers the program's side of the conversation."""

    def answer(event: Any) -> None:
        server.send_to_client(event.client_id, ANSWERS[event.name])

    def listen(event: Any) -> None:
        server.data_mode(event.client_id)
        server.send_to_client(event.client_id, "354 I am listening")

    def content(event: Any) -> None:
        server.send_to_client(event.client_id, f"250 That was {len(event.lines)} lines, and I have forgotten them all")

    def refuse(event: Any) -> None:
        server.send_to_client(event.client_id, "502 I do not do that")

    server.register(answer, list(ANSWERS))
    server.register(listen, "cmd_data")
    server.register(content, "data")
    server.register(refuse, "cmd_vrfy", "cmd_expn", "cmd_help", "cmd_bdat", "cmd_starttls", "cmd_xclient")


async def main(**options: Any) -> None:
    """Serves until it is shut down."""
    server = await MailServer.spawn(**{"port": 2525, "simple": False, "data_dir": "./mail", **options})
    converse(server)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
