"""The envelope: who sends, to whom, and the parameters that travel with the message (RFC 5321 section 2.3.1, RFC 3461)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class EnvelopeRecipient:
    """A forward-path and what its sender wants to be told (RFC 3461 section 4).

    `notify` is () (nothing said), ("NEVER",) or some of SUCCESS, FAILURE, DELAY. `orcpt` is "type;address", decoded.
    """

    address: str
    notify: tuple[str, ...] = ()
    orcpt: str | None = None


@dataclass(slots=True)
class Envelope:
    """`reverse_path` is None for the null reverse-path. `body` is "7BIT" or "8BITMIME"; `ret` "FULL", "HDRS" or None."""

    reverse_path: str | None = None
    recipients: list[EnvelopeRecipient] = field(default_factory=list)
    body: str = "7BIT"
    is_smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None

    @property
    def addresses(self) -> list[str]:
        """The recipients' addresses, in order."""
        return [recipient.address for recipient in self.recipients]

    def add(self, address: str, notify: tuple[str, ...] = (), orcpt: str | None = None) -> None:
        """Adds a recipient."""
        self.recipients.append(EnvelopeRecipient(address, notify, orcpt))

    def remove(self, address: str) -> bool:
        """Takes a recipient out; False if it was not there."""
        for index, recipient in enumerate(self.recipients):
            if recipient.address == address:
                del self.recipients[index]
                return True
        return False


class Addressed(Protocol):
    """A recipient of an envelope or of the queue."""

    address: str
    orcpt: str | None


def redirect(recipients: Iterable[Addressed], to: str) -> None:
    """Gives recipients another address. RFC 3461 section 5.2.1: DSNs still name the original one."""
    for one in recipients:
        if one.orcpt is None and one.address.isascii():
            one.orcpt = f"rfc822;{one.address}"
        one.address = to
