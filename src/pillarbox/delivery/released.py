"""A message that the capture inbox has released: the inbox keeps it as it was sent, and its copy goes without Bcc."""

from __future__ import annotations

import copy
import dataclasses

from ..queue.model import Message


def without_bcc(message: Message) -> Message:
    """Returns the message with content of its own that has no Bcc fields; the queue keeps its content."""
    content = copy.copy(message.content)
    # RFC 6409 section 8: a submission server takes Bcc out. `capture` left that undone when the message came.
    for name in ("Bcc", "Resent-Bcc"):
        content.remove_header(name)
    return dataclasses.replace(message, content=content)
