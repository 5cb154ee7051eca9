"""The event that tells of a message on the disk: all of it at hand, but for what would have to be counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ..mail.content import Content
from .session import Kind


@dataclass(slots=True)
class MessageQueued:
    """A message is durable; its 250 leaves now. `client_id` is None for a message that did not come over SMTP.

    `lines` counts the content's line ends.
    """

    name: ClassVar[str] = "message_queued"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str | None
    reverse_path: str | None
    recipients: list[str]
    uid: str
    lines: int
    size_bytes: int
    subject: str
    _content: Content | None = field(default=None, init=False, repr=False, compare=False)

    def count_later(self, content: Content) -> None:
        """`lines` is what this has, counted when somebody asks: it costs as much as the rest of the event, and few do."""
        self._content = content
        del self.lines

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> int:
            content = self._content if name == "lines" else None
            if content is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            self.lines, self._content = content.count_lines(), None
            return self.lines
