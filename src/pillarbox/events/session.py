"""What events have in common, and a session's public side: what plugins may know of it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ..mail.envelope import Envelope

if TYPE_CHECKING:
    from collections.abc import Sequence


class Kind(Enum):
    """SMTPD: something happened. SMTPC: a reply is about to be sent."""

    SMTPD = "SMTPD"
    SMTPC = "SMTPC"


class Event(Protocol):
    """What all events have in common."""

    name: ClassVar[str]
    kind: ClassVar[Kind]


class Endpoint(NamedTuple):
    """One end of a connection. `host` is an IP address as text, or the path of a unix socket (then `port` is 0)."""

    host: str
    port: int


class Session:
    """What is known of a session, for plugins: read it; the server keeps it true.

    `client_id` names the session in every event and log line. `helo` is what EHLO or HELO said, `username` who
    authenticated, `envelope` the transaction that is open (None between two). `data` is yours: whatever your plugin
    wants to remember for this session.
    """

    __slots__ = (
        "client_id",
        "data",
        "envelope",
        "helo",
        "is_esmtp",
        "is_trusted",
        "local",
        "peer",
        "profile",
        "senders",
        "talked_early",
        "tls",
        "username",
        "wants_login",
    )

    def __init__(self, client_id: str, peer: Endpoint, local: Endpoint) -> None:
        self.client_id = client_id
        self.peer = peer
        self.local = local
        # "device" where the client's mistakes are repaired, else empty.
        self.profile: str = ""
        self.tls: str = ""
        self.helo: str = ""
        self.is_esmtp = False
        self.is_trusted = False
        self.talked_early = False
        # It came in at a listener for submission: nobody sends before AUTH.
        self.wants_login = False
        self.username: str | None = None
        self.senders: Sequence[str] = ()
        self.envelope: Envelope | None = None
        self.data: dict[str, Any] = {}

    @property
    def is_submission(self) -> bool:
        """True for who may relay: trusted networks and authenticated sessions."""
        return self.is_trusted or self.username is not None
