"""Every option once: type, default, one line of help. Keyword arguments of `MailServer.spawn` are made from it.

Must not build anything: it only judges what was given, and says what is wrong and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from . import __version__
from .config.faults import fault_text, kind_of, unknown_text
from .config.networks import Network as Network
from .config.networks import is_network, parse_nameserver
from .config.networks import parse_networks as parse_networks
from .config.secrets import SECRET, SECRET_URL
from .config.together import contradictions, doubts
from .config.units import Octets, PathText, Seconds, SecondsOrNone, interval_s, none_of
from .errors import OptionError
from .places import default_data_dir, default_hostname, parse_endpoint
from .smtp.address import comparable_domain, is_address_literal, is_domain, is_mail_domain, is_mailbox

# Booleans as text: what pydantic takes for the other options.
_YES, _NO = ("true", "yes", "on", "1", "y", "t"), ("false", "no", "off", "0", "n", "f")
LOOPBACK = ("127.0.0.0/8", "::1/128")


_RATES = (
    "rate_per_next_hop", "messages_per_client", "recipients_per_client", "messages_per_account", "recipients_per_account",
)  # fmt: skip


class Options(BaseModel):
    """All options. Sizes in octets or as "10MB", times in seconds or as "5m".

    `model_fields` holds help and defaults for the documentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    # ---- listening
    alias: str = Field("pillarbox", description="a name for logs and for MailServer.find(alias)")
    address: str | list[str] = Field("127.0.0.1", description="IP address, name or unix:/path to listen on, or several")
    port: int = Field(
        25,
        ge=0,
        le=65535,
        description="port for every address, where listen is empty; 0: any free one; `pillarbox serve` without address, port and "
        "listen listens on 127.0.0.1:2525",
    )
    listen: list[str] = Field(
        default_factory=list,
        description="HOST:PORT, [IPV6]:PORT or unix:/PATH, instead of address; submission://HOST (port 587) is for clients "
        "that log in, device:// (port 25) is for old devices, whose mistakes are repaired; smtps://, submissions:// and "
        "devices:// (port 465) begin with TLS",
    )
    device_networks: list[str] = Field(
        default_factory=list,
        description="networks (CIDR) of printers, scanners and old programs: the server repairs their mistakes in commands "
        "and line ends, and offers them TLS 1.0",
    )
    proxy_from: list[str] = Field(
        default_factory=list,
        description="networks (CIDR) of load balancers: each connection of theirs begins with a PROXY header (v1 or v2)",
    )
    hostname: str = Field(default_factory=default_hostname, description="our name in greeting, Received and EHLO")
    version: str = Field(f"Pillarbox {__version__}", description="the text behind ESMTP in the greeting; empty: hidden")
    tls_cert: PathText | None = Field(None, description="PEM file with the certificate chain; enables STARTTLS")
    tls_key: PathText | None = Field(None, description="PEM file with the private key; default: the certificate's file")

    # ---- who may send what
    domains: list[str] = Field(
        default_factory=list, description="domains that strangers may send to; .example.org means every subdomain"
    )
    domains_via: Literal["handlers", "relay"] = Field(
        "handlers",
        description="where mail for domains goes when no handler matches: handlers: refused at RCPT, and queued mail waits "
        "for a handler; relay: to the relay (default of pillarbox serve)",
    )
    recipients: list[str] = Field(
        default_factory=list,
        description="addresses of domains that exist: USER@DOMAIN, PATTERN*@DOMAIN or @DOMAIN; all others of domains are "
        "refused at RCPT; empty: all exist",
    )
    verify_recipients: bool = Field(
        False, description="ask the relay at RCPT whether it takes a recipient in domains, and refuse what it refuses"
    )
    allow_untrusted_routing: bool = Field(
        False, description="strangers may send to u%host@DOMAIN, host!u@DOMAIN and the like, and a next hop gets them"
    )
    postmaster: str | None = Field(
        None,
        description="address that gets the mail to postmaster and abuse of domains, and DSNs that could not be delivered",
    )
    return_content: Literal["trusted", "always", "never"] = Field(
        "trusted",
        description="whose failure DSNs bring the whole message back, not only its header section: of trusted networks and "
        "authenticated sessions, of everybody, of nobody",
    )
    max_dsns_per_domain: int = Field(
        100, ge=0, description="DSNs an hour to addresses of one domain for mail of strangers; 0: none"
    )
    trust: list[str] = Field(
        default_factory=lambda: list(LOOPBACK), description="networks (CIDR) that may relay, without authentication"
    )
    authenticator: Callable[..., Any] | None = Field(
        None, description="(username, password) -> bool or Account, plain or async: offers AUTH under TLS"
    )
    auth_file: PathText | None = Field(
        None, description="file of accounts made by `pillarbox passwd`: offers AUTH under TLS"
    )
    auth_in_clear: bool = Field(False, description="offer AUTH without TLS, too: passwords are readable; for test nets")

    dnsbl_enable: bool = Field(False, description="ask the lists of dnsbl about every client, at connect")
    dnsbl: dict[str, float] = Field(
        default_factory=lambda: {"zen.spamhaus.org": 1.0},
        description="DNS list or lists, with weights (zone: 1.0); a client is refused when the sum reaches 1",
    )
    dnsbl_allow: list[str] = Field(default_factory=list, description="networks (CIDR) that no list is asked about")
    dnsbl_time_out: Seconds = Field(5.0, gt=0, description="a list that has not answered by then counts as clean")
    sender_verify: Literal[False, "mail", "rcpt"] = Field(
        False, description="refuse senders whose domain takes no mail, at MAIL (true) or at each RCPT"
    )
    origin: bool = Field(False, description="strip the Received fields of every message, and add none")

    # ---- the queue
    data_dir: PathText = Field(
        default_factory=default_data_dir, description="folder of the queue, the spool and the socket"
    )
    store: Literal["sqlite", "memory", "null"] = Field("sqlite", description="memory and null keep nothing: for tests")
    queue: str | None = Field(
        None,
        repr=False,
        json_schema_extra=SECRET_URL,
        description="a queue on PostgreSQL that many servers share: postgresql://USER@HOST/DATABASE; default: in data_dir",
    )
    node_lease_s: Seconds = Field(
        30.0,
        gt=0,
        description="with queue: so long after a server has died others have its mail, at the latest",
    )
    paused: bool = Field(False, description="start with the queue paused: mail is kept, until `queue resume`")
    capture: bool = Field(
        False, description="hold every message in the inbox, deliver none until it is released: for development"
    )
    capture_messages: int = Field(1000, ge=1, description="messages in that inbox at most; the oldest makes room")
    retry_first_s: Seconds = Field(300.0, gt=0, description="pause after the first failed attempt")
    retry_longest_s: Seconds = Field(4 * 3600.0, gt=0, description="longest pause between two attempts")
    expire_s: Seconds = Field(4 * 86400.0, gt=0, description="a message is given up after this, and bounced")
    delay_notice_s: SecondsOrNone = Field(None, gt=0, description="tell the sender of a delay after this; None: never")
    history_s: Seconds = Field(7 * 86400.0, ge=0, description="how long finished messages stay in `queue list --all`")
    history_messages: int = Field(10_000, ge=0, description="how many finished messages stay there at most")
    reserve_bytes: Octets = Field(
        64 << 20, ge=0, description="MAIL is refused (452) while the queue's disk has less room than this; 0: never"
    )
    spool_above_bytes: Octets = Field(128 * 1024, ge=0, description="content beyond this is streamed to a file")

    # ---- relaying
    relay: list[str] = Field(
        default_factory=list, description="smart hosts in order: HOST[:PORT], [IPV6]:PORT, smtp:// or smtps://"
    )
    relay_auth: Literal["PLAIN", "LOGIN", "SCRAM-SHA-256"] | None = Field(
        None, description="AUTH mechanism for the smart host; default: the best that it offers"
    )
    relay_user: str | None = Field(None, description="user name for AUTH at the smart host")
    relay_pass: str | None = Field(
        None, repr=False, json_schema_extra=SECRET, description="password for AUTH at the smart host"
    )
    relay_tls: Literal["none", "may", "encrypt", "verify"] | None = Field(
        None, description="TLS to the smart host; default: verify with relay_user, else may"
    )
    relay_ca: PathText | None = Field(
        None, description="PEM file of CAs that the smart host's certificate may come from"
    )
    relay_auth_in_clear: bool = Field(
        False, description="allow AUTH at the smart host without TLS: the password is readable"
    )
    relay_auth_unverified: bool = Field(
        False,
        description="allow AUTH at a smart host whose certificate is not verified: anybody in between reads the password",
    )
    outgoing_tls_oldest: Literal["1.0", "1.1", "1.2", "1.3"] = Field(
        "1.2", description="oldest TLS version towards other servers; 1.0 and 1.1 never under verify"
    )
    time_out: SecondsOrNone = Field(
        None, gt=0, description="ceiling of every step of sending; None: RFC 5321 section 4.5.3.2"
    )
    maxrelay: int = Field(100, ge=1, description="outgoing connections at once")
    maxrelay_per_next_hop: int = Field(20, ge=1, description="of which to one next hop")
    rate_per_next_hop: str | None = Field(
        None, description="messages to one next hop, evenly: 10/s, 600/m, 5000/h or 20000/d; None: no limit"
    )

    # ---- direct delivery
    direct: bool = Field(True, description="without relay: deliver to the MX of each domain; False: such mail waits")
    mx_port: int = Field(25, ge=1, le=65535, description="port of every MX (25 but in test nets)")
    mx_tls: Literal["none", "may", "encrypt", "verify"] = Field("may", description="TLS to an MX")
    mx_networks: list[str] = Field(
        default_factory=list, description="loopback or private networks (CIDR) that an MX may point to: for test nets"
    )
    mx_cname: bool = Field(False, description="use an MX whose name is a CNAME, against RFC 5321 section 5.1")
    ip_preference: Literal["ipv4", "ipv6", "ipv4-only", "ipv6-only"] = Field(
        "ipv4", description="which addresses of an MX are tried first, or alone"
    )
    nameservers: list[str] = Field(
        default_factory=list, description="ADDRESS[:PORT] or [IPV6]:PORT of nameservers; default: the system's"
    )
    resolver: Any = Field(None, description="an object of the Resolver protocol, instead of nameservers")

    # ---- bounds of the receiving side
    max_size_bytes: Octets = Field(64 << 20, ge=1024, description="largest message")
    max_recipients: int = Field(1000, ge=100, description="recipients of one message (RFC 5321: 100 or more)")
    max_line_bytes: Octets = Field(2048, ge=512, description="longest command line")
    max_header_bytes: Octets = Field(512 * 1024, ge=1024, le=8 << 20, description="largest header section")
    max_sessions: int = Field(
        10_000, ge=1, description="sessions at once, as far as the limit of file descriptors allows"
    )
    max_sessions_per_peer: int = Field(
        50, ge=1, description="sessions at once of one IPv4 address or IPv6 /64; /56: 4 times, /48: 16 times"
    )
    max_connections_per_minute: int = Field(
        600, ge=0, description="new connections of one IPv4 address or IPv6 /64 in a minute; 0: no bound"
    )
    messages_per_client: str | None = Field(
        None, description="accepted messages of one address that is not trusted: 1000/h"
    )
    recipients_per_client: str | None = Field(None, description="their recipients: 5000/h; None: no limit")
    messages_per_account: str | None = Field(
        None, description="accepted messages of one account: 1000/h; None: no limit"
    )
    recipients_per_account: str | None = Field("10000/h", description="their recipients; None: no limit")
    error_delay_s: Seconds = Field(
        1.0, ge=0, description="pause before the next command of a client not trusted after each refused one beyond 10"
    )
    max_errors: int = Field(20, ge=1, description="refused commands of one session, then 421")
    max_junk: int = Field(
        100, ge=1, description="NOOP, RSET, VRFY and such between two messages, then 421; EHLO counts a tenth"
    )
    client_time_out: Seconds = Field(
        300.0, gt=0, description="seconds for a command, and between two pieces of content"
    )
    min_rate_bytes_s: Octets = Field(100, ge=0, description="content must come at this rate on average; 0: no bound")
    bare_line_ends: Literal["refuse", "normalise"] = Field("refuse", description="content with a bare CR or LF")
    bare_lf_commands: Literal["refuse", "accept"] = Field("refuse", description="command lines that end in LF alone")
    local_parts: bool = Field(
        False, description="take addresses without a domain, such as MAIL FROM:<root>, as those of this host"
    )
    strict_envelope: bool = Field(False, description="refuse a space behind MAIL FROM: and RCPT TO:")
    max_received: int = Field(100, ge=1, description="Received fields, then it is a loop: 554 5.4.6")

    # ---- the program
    options: dict[str, bool] = Field(
        default_factory=dict, description="trace flags: {'trace': True} logs every line of every session and all events"
    )
    simple: bool = Field(True, description="False: no built-in answers, the program answers each command itself")
    handle_connects: bool = Field(True, description="False: no built-in greeting, the program sends the 220")
    handlers: list[Any] = Field(
        default_factory=list, description="Handler objects, or {'match': regex, 'callback': callable or 'event': name}"
    )
    plugins: dict[str, Any] = Field(default_factory=dict, description="plugins by alias, in order")
    control: bool = Field(True, description="open the control socket in the data directory, for `pillarbox queue`")

    @field_validator("hostname")
    @classmethod
    def _check_hostname(cls, value: str) -> str:
        if not (is_domain(value) or is_address_literal(value)):
            raise ValueError("give a domain such as mail.example.org, or an address literal such as [192.0.2.1]")
        return value

    @field_validator("alias", "version")
    @classmethod
    def _check_text(cls, value: str, info: Any) -> str:
        if any(not c.isprintable() for c in value) or (info.field_name == "alias" and not value):
            raise ValueError("give text of one line, without control characters")
        return value

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str | list[str]) -> str | list[str]:
        for text in [value] if isinstance(value, str) else value:
            if text.startswith("unix:"):
                parse_endpoint(text, 0)
            elif not text or any(c.isspace() or c in "[]/" for c in text):
                raise ValueError(f"{text!r}: give an IP address such as 127.0.0.1 or ::1, a name, or unix:/path")
        if not value:
            raise ValueError("give one address at least")
        return value

    @field_validator("options")
    @classmethod
    def _check_flags(cls, value: dict[str, bool]) -> dict[str, bool]:
        for key in value:
            if key != "trace":
                raise ValueError(f"there is no flag {key!r}: 'trace' is the only one")
        return value

    @field_validator("sender_verify", mode="before")
    @classmethod
    def _check_sender_verify(cls, value: Any) -> Any:
        known: dict[Any, Any] = {True: "mail", None: False, **dict.fromkeys(_YES, "mail"), **dict.fromkeys(_NO, False)}
        word = value.lower() if isinstance(value, str) else value
        return known.get(word, value) if isinstance(word, bool | str | None) else value

    @field_validator("dnsbl", mode="before")
    @classmethod
    def _check_dnsbl(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (Mapping, list, tuple)):
            raise ValueError("give a zone, a list of zones, or {zone: weight}")
        if not isinstance(value, Mapping):
            pairs = [item if isinstance(item, (tuple, list)) else (item, 1.0) for item in value]
            value = {pair[0]: pair[-1] for pair in pairs}
        for zone, weight in value.items():
            if not isinstance(zone, str) or not is_domain(zone):
                raise ValueError(f"{zone!r} is not a DNS list: give a domain such as zen.spamhaus.org")
            if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not weight > 0:
                raise ValueError(f"{zone}: the weight {weight!r} is not a number above 0")
        return value

    @field_validator(*_RATES, mode="before")
    @classmethod
    def _check_none(cls, value: Any) -> Any:
        return none_of(value)

    @field_validator(*_RATES)
    @classmethod
    def _check_rate(cls, value: str | None) -> str | None:
        if value is not None:
            interval_s(value)
        return value

    @field_validator("queue")
    @classmethod
    def _check_queue(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("give a URL such as postgresql://pillarbox@db.example.org/mail")
        return value

    @field_validator("resolver")
    @classmethod
    def _check_resolver(cls, value: Any) -> Any:
        if value is not None and not callable(getattr(value, "resolve", None)):
            raise ValueError("give an object with `async def resolve(name, kind)`: see pillarbox.dns.Resolver")
        return value

    @field_validator("nameservers", mode="after")
    @classmethod
    def _check_nameservers(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_nameserver(text)
        return value

    @field_validator(
        "relay", "listen", "domains", "trust", "nameservers", "mx_networks", "dnsbl_allow", "proxy_from", "device_networks",
        "recipients",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("trust", "mx_networks", "dnsbl_allow", "proxy_from", "device_networks")
    @classmethod
    def _check_trust(cls, value: list[str]) -> list[str]:
        wrong = [text for text in value if not is_network(text)]
        if wrong:
            are = "is not a network" if len(wrong) == 1 else "are no networks"
            raise ValueError(f"{', '.join(map(repr, wrong))} {are}: give CIDR such as 192.0.2.0/24")
        return value

    @field_validator("domains")
    @classmethod
    def _check_domains(cls, value: list[str]) -> list[str]:
        wrong = [text for text in value if not (is_mail_domain(text.removeprefix(".")) or is_address_literal(text))]
        if wrong:
            is_ = "is not a domain" if len(wrong) == 1 else "are no domains"
            raise ValueError(
                f"{', '.join(map(repr, wrong))} {is_}: give example.org, or .example.org for its subdomains"
            )
        return [("." if text.startswith(".") else "") + comparable_domain(text.removeprefix(".")) for text in value]

    @field_validator("recipients")
    @classmethod
    def _check_recipients(cls, value: list[str]) -> list[str]:
        for text in value:
            if not (text.startswith("@") and is_mail_domain(text[1:])) and not is_mailbox(text):
                raise ValueError(f"{text!r} is not a recipient: expected USER@DOMAIN, PATTERN*@DOMAIN or @DOMAIN")
        return value

    @field_validator("postmaster")
    @classmethod
    def _check_postmaster(cls, value: str | None) -> str | None:
        if value is not None and not is_mailbox(value):
            raise ValueError("expected an address such as admin@example.org")
        return value

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_endpoint(text, default_port=25, is_listener=True)
        return value

    @field_validator("relay")
    @classmethod
    def _check_relay(cls, value: list[str]) -> list[str]:
        for text in value:
            scheme, host, port = parse_endpoint(text, default_port=25)
            if scheme == "unix" or not port:
                raise ValueError(f"{text!r}: a smart host is HOST[:PORT], with a port from 1 to 65535")
            if not (is_mail_domain(host) or is_address_literal(f"[{host}]") or is_address_literal(f"[IPv6:{host}]")):
                raise ValueError(f"{text!r}: {host!r} is neither a domain nor an IP address")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Options:
        faults = list(contradictions(self))
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def doubts(self) -> list[str]:
        """What most likely is a mistake, though it can be meant so: a line each."""
        return list(doubts(self))

    @property
    def keeps_mail(self) -> bool:
        """False for stores that forget: nobody else can be asked about them, or steer them."""
        return self.store == "sqlite"

    @property
    def has_shards(self) -> bool:
        """True when the queue is in files of the data directory, one for each worker."""
        return self.store == "sqlite" and not self.queue

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """`trust`, parsed."""
        return parse_networks(self.trust)

    @property
    def listeners(self) -> list[tuple[str, str, int]]:
        """(scheme, host, port) of every listener."""
        if self.listen:
            return [parse_endpoint(text, default_port=25, is_listener=True) for text in self.listen]
        addresses = [self.address] if isinstance(self.address, str) else self.address
        return [
            parse_endpoint(address, 0) if address.startswith("unix:") else ("smtp", address, self.port)
            for address in addresses
        ]


def parse_options(given: Mapping[str, Any]) -> Options:
    """Options from keyword arguments. Raises OptionError with a line for each fault: option, value, expected form."""
    try:
        return Options(**given)
    except ValidationError as error:
        texts = dict.fromkeys(_explain(fault, given) for fault in error.errors())
        raise OptionError("; ".join(texts)) from None


# Options of the daemon alone, by name: daemon/config.py has them. A program that gives one learns where it belongs.
DAEMON_ALONE = frozenset(
    (
        "workers", "admin", "admin_hosts", "user", "grace_s", "log_level", "log_file", "log_format", "relay_pass_file",
        "python_path",
    )
)  # fmt: skip


def _explain(fault: Any, given: Mapping[str, Any]) -> str:
    if not fault["loc"]:
        return "; ".join(str(fault["msg"]).removeprefix("Value error, ").splitlines())
    name = str(fault["loc"][0])
    if fault["type"] != "extra_forbidden":
        return fault_text(fault, Options.model_fields[name], given[name])
    if name in DAEMON_ALONE:
        return (
            f"option {name!r} is one of the daemon: `pillarbox serve` and pillarbox.toml take it, MailServer does not"
        )
    return unknown_text("option", name, Options.model_fields)


def help_text() -> str:
    """A line for each option, with its type, default and meaning: what `help(MailServer)` shows."""
    rows = []
    for name, field in Options.model_fields.items():
        default = f", default {field.default!r}" if field.default_factory is None else ""
        rows.append(f"    {name} ({kind_of(field)}{default}): {field.description}")
    return "\n".join([*rows, ""])
