"""A plugin that changes a message before it is queued (the event `message`)."""

from __future__ import annotations

from typing import Any

from pillarbox import MailServer


class TagSubject:
    """Puts a tag in front of every subject."""

    def __init__(self, tag: str) -> None:
        self._tag = tag

    def on_message(self, server: MailServer, event: Any) -> None:
        """`event.content` and `event.envelope` may be changed; what is queued is what they are afterwards."""
        subject = event.content.header("Subject") or "(no subject)"
        if not subject.startswith(self._tag):
            event.content.set_header("Subject", f"{self._tag} {subject}")


if __name__ == "__main__":
    MailServer.run(port=2525, data_dir="./mail", direct=False, plugins={"tag": TagSubject("[example]")})
