"""Every event as a typed class. The documentation's table is generated from CATALOGUE.

A plugin may change an event's fields in place; what it changed is what everyone after it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..mail.content import Content
from ..mail.envelope import Envelope
from ..smtp.reply import Reply
from .queued import MessageQueued
from .session import Endpoint, Event, Kind, Session

__all__ = ["CATALOGUE", "Custom", "Endpoint", "Event", "Kind", "MessageQueued", "Session"]


@dataclass(slots=True)
class Registered:
    """The server is up: its listeners are bound."""

    name: ClassVar[str] = "registered"
    kind: ClassVar[Kind] = Kind.SMTPD
    server: Any


@dataclass(slots=True)
class ListenerFailed:
    """A listener could not be bound."""

    name: ClassVar[str] = "listener_failed"
    kind: ClassVar[Kind] = Kind.SMTPD
    operation: str
    errno: int
    strerror: str
    address: str


@dataclass(slots=True)
class Connection:
    """A client connected. A Reply is the greeting: 220, or 554 or 421 to refuse."""

    name: ClassVar[str] = "connection"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    peer: Endpoint
    local: Endpoint
    tls: str = ""
    proxied: bool = False


@dataclass(slots=True)
class Disconnected:
    """A session is over. `reason` says who ended it and why."""

    name: ClassVar[str] = "disconnected"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    reason: str


@dataclass(slots=True)
class CmdEhlo:
    """EHLO; `address` is the name that the client gave."""

    name: ClassVar[str] = "cmd_ehlo"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    address: str


@dataclass(slots=True)
class CmdHelo:
    """HELO; `address` is the name that the client gave."""

    name: ClassVar[str] = "cmd_helo"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    address: str


@dataclass(slots=True)
class CmdLhlo:
    """LHLO, LMTP's greeting: refused, unless a program answers (RFC 2033)."""

    name: ClassVar[str] = "cmd_lhlo"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    address: str


@dataclass(slots=True)
class CmdMail:
    """MAIL; `address` is the reverse-path, None for the null reverse-path. Both fields may be changed."""

    name: ClassVar[str] = "cmd_mail"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    address: str | None
    parameters: dict[str, Any]


@dataclass(slots=True)
class CmdRcpt:
    """RCPT; `address` is the recipient. Both fields may be changed."""

    name: ClassVar[str] = "cmd_rcpt"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    address: str
    parameters: dict[str, Any]


@dataclass(slots=True)
class CmdData:
    """DATA, in order and with a recipient."""

    name: ClassVar[str] = "cmd_data"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdBdat:
    """BDAT, before its octets are read (RFC 3030)."""

    name: ClassVar[str] = "cmd_bdat"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    size_bytes: int
    is_last: bool


@dataclass(slots=True)
class CmdRset:
    """RSET."""

    name: ClassVar[str] = "cmd_rset"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdNoop:
    """NOOP."""

    name: ClassVar[str] = "cmd_noop"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdVrfy:
    """VRFY."""

    name: ClassVar[str] = "cmd_vrfy"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdExpn:
    """EXPN."""

    name: ClassVar[str] = "cmd_expn"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdHelp:
    """HELP."""

    name: ClassVar[str] = "cmd_help"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdQuit:
    """QUIT."""

    name: ClassVar[str] = "cmd_quit"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdStarttls:
    """STARTTLS, where it is offered and TLS is not on."""

    name: ClassVar[str] = "cmd_starttls"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str = ""


@dataclass(slots=True)
class CmdXclient:
    """XCLIENT or XFORWARD (`verb`): never offered, and refused unless a plugin answers. Nothing in it is believed."""

    name: ClassVar[str] = "cmd_xclient"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    verb: str


@dataclass(slots=True)
class CmdAuth:
    """AUTH under TLS with a mechanism that is offered. The secret is not among the fields; `args` is the mechanism."""

    name: ClassVar[str] = "cmd_auth"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    args: str
    mechanism: str


@dataclass(slots=True)
class Auth:
    """An AUTH exchange came to its end: who, and whether the credentials were right."""

    name: ClassVar[str] = "auth"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    username: str
    mechanism: str
    is_accepted: bool


@dataclass(slots=True)
class MessageReceived:
    """A message is complete and not queued yet: the last chance to change or refuse it.

    `envelope` and `content` may be changed (`content.set_header`, `content.replace`, `envelope.recipients`). A text in
    `hold` keeps it, once it is queued, until `queue release`; `queue show` tells the text.
    """

    name: ClassVar[str] = "message"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    envelope: Envelope
    content: Content
    hold: str = ""


@dataclass(slots=True)
class Data:
    """Content that the program asked for by `data_mode`: its lines, without CRLF. The final reply is the program's.

    `fault` is None, or what the client was answered already (too large, bare line ends): then there are no lines.
    """

    name: ClassVar[str] = "data"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    lines: list[bytes]
    fault: Reply | None = None


@dataclass(slots=True)
class DataFh:
    """Content that the program asked for by `data_mode` with a file: all of it is written. The final reply is the program's.

    `fault` is None, or what the client was answered already: then the file does not hold all of it.
    """

    name: ClassVar[str] = "data_fh"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    file: Any
    size_bytes: int
    fault: Reply | None = None


@dataclass(slots=True)
class Dnsbl:
    """What the DNS lists say of a client. `result` is "listed", "clean" or "unknown"; `reply` is what it is sent (None: goes on).

    `zone` is the list that decided (or failed), `codes` its answers, `reason` its text.
    """

    name: ClassVar[str] = "dnsbl"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    reply: Reply | None
    result: str
    reason: str
    zone: str
    codes: list[str]


@dataclass(slots=True)
class Fverify:
    """What sender verification found. `reply` is the refusal, or None; `error` says why there is no verdict or a refusal."""

    name: ClassVar[str] = "fverify"
    kind: ClassVar[Kind] = Kind.SMTPD
    client_id: str
    session: Session
    reply: Reply | None
    error: str
    domain: str


class Custom:
    """An event of the program's own: `name` as it was sent, `args` what came with it."""

    kind: ClassVar[Kind] = Kind.SMTPD
    __slots__ = ("args", "name")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args

    def __repr__(self) -> str:
        return f"Custom({self.name!r}, {self.args!r})"


@dataclass(slots=True)
class SendSuccess:
    """A delivery succeeded: these recipients of the message were taken over by the next hop."""

    name: ClassVar[str] = "send_success"
    kind: ClassVar[Kind] = Kind.SMTPD
    uid: str
    recipients: list[str]
    next_hop: str
    reply: Reply
    attempt: int


@dataclass(slots=True)
class SendFailed:
    """An attempt failed for these recipients. `next_attempt` is a unix time, None when there will be none."""

    name: ClassVar[str] = "send_failed"
    kind: ClassVar[Kind] = Kind.SMTPD
    uid: str
    recipients: list[str]
    next_hop: str
    stage: str
    reply: Reply
    is_permanent: bool
    next_attempt: float | None


@dataclass(slots=True)
class MessageStuck:
    """A delivery has been in hand for `seconds` without an end: a handler that hangs, most likely. Said again as it lasts."""

    name: ClassVar[str] = "message_stuck"
    kind: ClassVar[Kind] = Kind.SMTPD
    uid: str
    recipients: list[str]
    next_hop: str
    seconds: float


@dataclass(slots=True)
class PluginAdd:
    """A plugin entered the pipeline."""

    name: ClassVar[str] = "plugin_add"
    kind: ClassVar[Kind] = Kind.SMTPD
    alias: str
    plugin: Any


@dataclass(slots=True)
class PluginDel:
    """A plugin left the pipeline."""

    name: ClassVar[str] = "plugin_del"
    kind: ClassVar[Kind] = Kind.SMTPD
    alias: str
    plugin: Any


@dataclass(slots=True)
class PluginFailed:
    """A plugin raised, returned nonsense or overran its deadline on an event; never told of itself."""

    name: ClassVar[str] = "plugin_error"
    kind: ClassVar[Kind] = Kind.SMTPD
    alias: str
    plugin: Any
    event_name: str
    exception: BaseException


@dataclass(slots=True)
class Response:
    """A reply is about to be sent: `reply` may be replaced. `verb` is the command that it answers ("" for a greeting)."""

    name: ClassVar[str] = "response"
    kind: ClassVar[Kind] = Kind.SMTPC
    client_id: str
    session: Session
    reply: Reply
    verb: str = ""


CATALOGUE: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (
        Registered,
        ListenerFailed,
        Connection,
        Disconnected,
        CmdEhlo,
        CmdHelo,
        CmdLhlo,
        CmdMail,
        CmdRcpt,
        CmdData,
        CmdBdat,
        CmdRset,
        CmdNoop,
        CmdVrfy,
        CmdExpn,
        CmdHelp,
        CmdQuit,
        CmdStarttls,
        CmdXclient,
        CmdAuth,
        Auth,
        MessageReceived,
        Data,
        DataFh,
        Dnsbl,
        Fverify,
        MessageQueued,
        SendSuccess,
        SendFailed,
        MessageStuck,
        PluginAdd,
        PluginDel,
        PluginFailed,
        Response,
    )
}
