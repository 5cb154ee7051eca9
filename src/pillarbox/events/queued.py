"""The event that tells of a message on the disk: all of it at hand, but for what would have to be counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .session import Kind


class _Uncounted:
    """Holds what is to be counted; no field of the event."""

    __slots__ = ("_octets",)
    _octets: bytes | None


@dataclass(slots=True)
class MessageQueued(_Uncounted):
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

    def count_later(self, octets: bytes) -> None:
        """`lines` is how many these have, counted when somebody asks: it costs as much as the rest of the event, and few do."""
        self._octets = octets  # type: ignore[misc]  # a slot of the class above
        del self.lines

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            octets = getattr(self, "_octets", None) if name == "lines" else None
            if octets is None:
                # It is not there; or it is by now, for another thread has asked, too.
                return object.__getattribute__(self, name)
            self.lines = lines = octets.count(b"\n")
            self._octets = None
            return lines
