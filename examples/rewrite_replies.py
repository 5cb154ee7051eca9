"""A plugin that rewrites replies on their way out (the event `response`)."""

from __future__ import annotations

from typing import Any

from pillarbox import MailServer, Reply


class Courteous:
    """Says the same in kinder words; codes stay what they are."""

    def on_response(self, server: MailServer, event: Any) -> None:
        """Every reply passes here; replacing `event.reply` changes what the client reads."""
        reply: Reply = event.reply
        if reply.is_permanent:
            event.reply = Reply(reply.code, reply.enhanced, f"We are sorry: {reply.text}")


if __name__ == "__main__":
    MailServer.run(port=2525, data_dir="./mail", direct=False, plugins={"courteous": Courteous()})
