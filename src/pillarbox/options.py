"""Every option once: type, default, one line of help. Keyword arguments of `MailServer.spawn` are made from it.

Must not build anything: it only judges what was given, and says what is wrong and what is allowed.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from . import __version__
from .errors import OptionError
from .smtp.address import comparable_domain, is_address_literal, is_domain

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK = ("127.0.0.0/8", "::1/128")


def default_data_dir() -> str:
    """/var/lib/pillarbox for root, else $XDG_STATE_HOME/pillarbox (~/.local/state/pillarbox)."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return "/var/lib/pillarbox"
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "pillarbox")


def default_hostname() -> str:
    """The machine's full name, or its short one, or localhost: whatever is a domain."""
    for name in (socket.getfqdn(), socket.gethostname()):
        if is_domain(name):
            return name
    return "localhost"


class Options(BaseModel):
    """All options. Sizes in octets, times in seconds. `model_fields` holds help and defaults for the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    # ---- listening
    alias: str = Field("pillarbox", description="a name for logs and for MailServer.find(alias)")
    address: str | list[str] = Field("127.0.0.1", description="IP address or name to listen on, or several")
    port: int = Field(25, ge=0, le=65535, description="port for every address; 0: any free one")
    listen: list[str] = Field(
        default_factory=list,
        description="HOST:PORT, [IPV6]:PORT or smtps://HOST:PORT (TLS from the first octet), instead of address and port",
    )
    hostname: str = Field(default_factory=default_hostname, description="our name in greeting, Received and EHLO")
    version: str = Field(f"Pillarbox {__version__}", description="the text behind ESMTP in the greeting; empty: hidden")
    tls_cert: str | None = Field(None, description="PEM file with the certificate chain; enables STARTTLS")
    tls_key: str | None = Field(None, description="PEM file with the private key; default: the certificate's file")

    # ---- who may send what
    domains: list[str] = Field(
        default_factory=list, description="domains that strangers may send to; .example.org means every subdomain"
    )
    trust: list[str] = Field(
        default_factory=lambda: list(LOOPBACK), description="networks (CIDR) that may relay, without authentication"
    )
    authenticator: Callable[..., Any] | None = Field(
        None, description="(username, password) -> bool or Account, plain or async: offers AUTH under TLS"
    )
    auth_file: str | None = Field(
        None, description="file of accounts made by `pillarbox passwd`: offers AUTH under TLS"
    )

    # ---- the queue
    data_dir: str = Field(default_factory=default_data_dir, description="folder of the queue, the spool and the socket")
    store: Literal["sqlite", "memory", "null"] = Field("sqlite", description="memory and null keep nothing: for tests")
    paused: bool = Field(False, description="start with the queue paused: mail is kept, until `queue resume`")
    retry_first_s: float = Field(300.0, gt=0, description="pause after the first failed attempt")
    retry_longest_s: float = Field(4 * 3600.0, gt=0, description="longest pause between two attempts")
    expire_s: float = Field(4 * 86400.0, gt=0, description="a message is given up after this, and bounced")
    delay_notice_s: float | None = Field(None, gt=0, description="tell the sender of a delay after this; None: never")
    history_s: float = Field(7 * 86400.0, ge=0, description="how long finished messages stay in `queue list --all`")
    history_messages: int = Field(10_000, ge=0, description="how many finished messages stay there at most")
    spool_above_bytes: int = Field(128 * 1024, ge=0, description="content beyond this is streamed to a file")

    # ---- relaying
    relay: list[str] = Field(
        default_factory=list, description="smart hosts in order: HOST[:PORT], [IPV6]:PORT, smtp:// or smtps://"
    )
    relay_user: str | None = Field(None, description="user name for AUTH at the smart host")
    relay_pass: str | None = Field(None, repr=False, description="password for AUTH at the smart host")
    relay_tls: Literal["none", "may", "encrypt", "verify"] | None = Field(
        None, description="TLS to the smart host; default: verify with relay_user, else may"
    )
    relay_ca: str | None = Field(None, description="PEM file of CAs that the smart host's certificate may come from")
    relay_auth_in_clear: bool = Field(
        False, description="allow AUTH at the smart host without TLS: the password is readable"
    )
    time_out: float | None = Field(
        None, gt=0, description="ceiling of every step of sending; None: RFC 5321 section 4.5.3.2"
    )
    maxrelay: int = Field(100, ge=1, description="outgoing connections at once")
    maxrelay_per_next_hop: int = Field(20, ge=1, description="of which to one next hop")

    # ---- bounds of the receiving side
    max_size_bytes: int = Field(64 << 20, ge=1024, description="largest message")
    max_recipients: int = Field(1000, ge=100, description="recipients of one message (RFC 5321: 100 or more)")
    max_line_bytes: int = Field(2048, ge=512, description="longest command line")
    max_header_bytes: int = Field(128 * 1024, ge=1024, le=128 * 1024, description="largest header section")
    max_sessions: int = Field(10_000, ge=1, description="sessions at once")
    max_sessions_per_peer: int = Field(50, ge=1, description="sessions at once of one IPv4 address or IPv6 /64")
    max_errors: int = Field(20, ge=1, description="refused commands of one session, then 421")
    max_junk: int = Field(100, ge=1, description="NOOP, RSET, VRFY and the like between two messages, then 421")
    client_time_out: float = Field(300.0, gt=0, description="seconds for a command, and between two pieces of content")
    min_rate_bytes_s: int = Field(100, ge=0, description="content must come at this rate on average; 0: no bound")
    bare_line_ends: Literal["refuse", "normalise"] = Field("refuse", description="content with a bare CR or LF")
    bare_lf_commands: Literal["refuse", "accept"] = Field("refuse", description="command lines that end in LF alone")
    strict_envelope: bool = Field(False, description="refuse a space behind MAIL FROM: and RCPT TO:")
    max_received: int = Field(100, ge=1, description="Received fields, then it is a loop: 554 5.4.6")

    # ---- the program
    plugins: dict[str, Any] = Field(default_factory=dict, description="plugins by alias, in order")
    control: bool = Field(True, description="open the control socket in the data directory, for `pillarbox queue`")

    @field_validator("hostname")
    @classmethod
    def _check_hostname(cls, value: str) -> str:
        if not (is_domain(value) or is_address_literal(value)):
            raise ValueError("give a domain such as mail.example.org, or an address literal such as [192.0.2.1]")
        return value

    @field_validator("relay", "listen", "domains", "trust", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("trust")
    @classmethod
    def _check_trust(cls, value: list[str]) -> list[str]:
        for text in value:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text!r} is not a network: give CIDR such as 192.0.2.0/24") from None
        return value

    @field_validator("domains")
    @classmethod
    def _check_domains(cls, value: list[str]) -> list[str]:
        for text in value:
            if not (is_domain(text.removeprefix(".")) or is_address_literal(text)):
                raise ValueError(f"{text!r} is not a domain: give example.org, or .example.org for its subdomains")
        return [("." if text.startswith(".") else "") + comparable_domain(text.removeprefix(".")) for text in value]

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_endpoint(text, default_port=25)
        return value

    @field_validator("relay")
    @classmethod
    def _check_relay(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_endpoint(text, default_port=25)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Options:
        if self.tls_key and not self.tls_cert:
            raise ValueError("tls_key is given without tls_cert: give both")
        if bool(self.relay_user) != bool(self.relay_pass):
            raise ValueError("relay_user and relay_pass belong together: give both or none")
        if self.relay_user and self.relay_tls in ("none", "may") and not self.relay_auth_in_clear:
            raise ValueError(
                "relay_user with relay_tls none or may could send the password in clear: "
                "use relay_tls encrypt or verify, or allow it with relay_auth_in_clear"
            )
        if self.authenticator is not None and self.auth_file:
            raise ValueError("authenticator and auth_file are both given: one of them decides")
        if any(text.startswith("smtps://") for text in self.listen) and not self.tls_cert:
            raise ValueError("listen has smtps:// but there is no tls_cert: give a certificate")
        return self

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """`trust`, parsed."""
        return tuple(ipaddress.ip_network(text, strict=False) for text in self.trust)

    @property
    def listeners(self) -> list[tuple[str, str, int]]:
        """(scheme, host, port) of every listener."""
        if self.listen:
            return [parse_endpoint(text, default_port=25) for text in self.listen]
        addresses = [self.address] if isinstance(self.address, str) else self.address
        return [("smtp", address, self.port) for address in addresses]


def parse_endpoint(text: str, default_port: int) -> tuple[str, str, int]:
    """(scheme, host, port) of HOST[:PORT], [IPV6][:PORT], smtp://... or smtps://... ValueError says what is wrong."""
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "smtp", text
    if scheme not in ("smtp", "smtps"):
        raise ValueError(f"{text!r}: the scheme is smtp:// or smtps://")
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r}: an IPv6 address is written [2001:db8::1]:25")
        port = port[1:]
    else:
        host, _, port = rest.partition(":")
        if ":" in port:
            raise ValueError(f"{text!r}: an IPv6 address wants brackets, [2001:db8::1]:25")
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r}: the port is a number from 0 to 65535")
    if not host or any(c.isspace() or c in "/@" for c in host):
        raise ValueError(f"{text!r}: give HOST:PORT")
    return scheme, host, int(port) if port else (465 if scheme == "smtps" else default_port)


def parse_options(given: Mapping[str, Any]) -> Options:
    """Options from keyword arguments. Raises OptionError with a line for each fault: option, value, what is allowed."""
    try:
        return Options(**given)
    except ValidationError as error:
        raise OptionError("; ".join(_explain(fault) for fault in error.errors())) from None


def _explain(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"][:1]) or "options"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, Options.model_fields, 1)
        return f"option {path!r} is not known" + (f"; did you mean {near[0]!r}?" if near else "")
    if not fault["loc"]:
        return str(fault["msg"]).removeprefix("Value error, ")
    text = str(fault["msg"]).removeprefix("Value error, ")
    secret = path in ("relay_pass",)
    return f"option {path!r}: {'***' if secret else repr(fault['input'])} is not allowed: {text}"
