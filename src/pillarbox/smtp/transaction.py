"""A transaction of the sending side: one message for one next hop, its recipients, and what becomes of each. Values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from .reply import Reply


class Stage(Enum):
    """How far a transaction had come when its fate was decided."""

    LOOKUP = "lookup"
    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "ehlo"
    TLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    FINAL = "end of content"

    __hash__ = object.__hash__


_FINAL = Stage.FINAL


@dataclass(slots=True)
class Recipient:
    """A forward-path and its parameters as they go on the wire, for example ("NOTIFY=NEVER",)."""

    address: str
    parameters: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What became of one recipient: the remote reply, whole, and the stage at which it came."""

    reply: Reply
    stage: Stage

    @property
    def is_delivered(self) -> bool:
        """The next hop has taken responsibility."""
        return self.stage is _FINAL and 200 <= self.reply.code < 300

    @property
    def is_permanent(self) -> bool:
        """5yz, but for 552 to RCPT, which means "too many recipients" (RFC 5321 section 4.5.3.1.10)."""
        if self.stage is Stage.RCPT and self.reply.code == 552:
            return False
        return self.reply.is_permanent


@dataclass(slots=True)
class Transaction:
    """One message for one next hop. `content` gives octets piece by piece, CRLF line ends, not dot-stuffed.

    `outcomes[i]` belongs to `recipients[i]` and is None until decided. `size_bytes` is the content's; `parameters` are
    further MAIL parameters, filtered by what is offered before they come here. `is_plain`: the content is in memory, and
    goes out as it is (framing.is_plain).
    """

    reverse_path: str | None
    recipients: list[Recipient]
    content: Iterable[bytes]
    parameters: tuple[str, ...] = ()
    tag: object = None
    size_bytes: int = 0
    is_plain: bool = False
    # Ends with the reply to RCPT and sends no content. `outcomes` stay None for recipients that were accepted.
    is_probe: bool = False
    outcomes: list[Outcome | None] = field(init=False)
    is_content_sent: bool = False
    is_content_begun: bool = False
    _refused: Outcome | None = None

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.recipients)

    @property
    def has_accepted(self) -> bool:
        """True while a recipient stands that RCPT did not refuse."""
        return self._refused is None and None in self.outcomes

    def settle_rest(self, outcome: Outcome) -> None:
        """Gives the outcome to every recipient that has none yet."""
        outcomes = self.outcomes
        if len(outcomes) == 1:
            outcomes[0] = outcomes[0] or outcome
        else:
            self.outcomes = [known or outcome for known in outcomes]

    def forget_outcomes(self) -> None:
        """What was said of the recipients cannot be believed."""
        self.outcomes = [None] * len(self.recipients)
        self._refused = None
