"""A plugin of ten lines: nobody may write to an address that begins with "no-".

Run it with `python examples/refuse_recipient.py`, then
`pillarbox send --server 127.0.0.1:2525 --to no-one@example.org`.
"""

from __future__ import annotations

from typing import Any

from pillarbox import MailServer, Reply


class RefuseNo:
    """Answers RCPT with 550 where the local-part says so."""

    def on_cmd_rcpt(self, server: MailServer, event: Any) -> Reply | None:
        """A Reply answers the command; None lets it go on."""
        if event.address.lower().startswith("no-"):
            return Reply(550, "5.7.1", f"{event.address} takes no mail")
        return None


if __name__ == "__main__":
    MailServer.run(port=2525, data_dir="./mail", direct=False, plugins={"refuse": RefuseNo()})
