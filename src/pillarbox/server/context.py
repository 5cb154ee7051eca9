"""What all sessions of a server share. app.py builds it; sessions only use it."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..clock import Clock, UidSource
from ..events.catalogue import Session
from ..events.dispatch import Dispatcher
from ..log.counts import ACCEPT_S, DELIVERY_S, new_histogram
from ..mail.envelope import Addressed
from ..options import Network, Options, parse_networks
from ..queue.commit import GroupCommit
from ..queue.scheduler import Scheduler
from ..queue.spool import Spool
from ..smtp.extension import Facts
from ..smtp.sasl import MECHANISMS
from ..smtp.server import Rules
from .accounts import Account
from .guesses import Guesses
from .hashing import HashPool
from .limits import Admission
from .rates import Rates
from .room import Room

# Session.profile of clients whose mistakes are repaired.
DEVICE = "device"

if TYPE_CHECKING:
    from .connection import Outbox
    from .session import SmtpSession


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    sessions: int = 0
    accepted: int = 0
    refused: int = 0
    # By reason word (log.reasons).
    refusals: dict[str, int] = field(default_factory=dict)
    # Log-ins: "ok", or why not.
    logins: dict[str, int] = field(default_factory=dict)
    delivered: int = 0
    deferred: int = 0
    bounced: int = 0
    # Seconds from acceptance to delivery, of all that were delivered.
    delivery_s: float = 0.0
    accepted_tls: int = 0
    delivered_tls: int = 0
    accept_delays: list[float] = field(default_factory=lambda: new_histogram(ACCEPT_S))
    delivery_delays: list[float] = field(default_factory=lambda: new_histogram(DELIVERY_S))
    # Outcomes by next hop and by domain (log.counts).
    by_next_hop: dict[str, list[float]] = field(default_factory=dict)
    by_domain: dict[str, list[float]] = field(default_factory=dict)
    # What the device profile mended in commands and content.
    device_repairs: int = 0

    def count_refusal(self, reason: str) -> None:
        """One refused session, command or message."""
        self.refused += 1
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def count_login(self, result: str) -> None:
        """One log-in."""
        self.logins[result] = self.logins.get(result, 0) + 1


@dataclass(slots=True)
class ServerContext:
    """See the module's text. `authenticate` gives an Account or None; it may be a coroutine function or a plain one."""

    options: Options
    dispatcher: Dispatcher
    clock: Clock
    commit: GroupCommit
    scheduler: Scheduler
    spool: Spool | None
    new_uid: UidSource
    outbox: Outbox
    admission: Admission
    is_trusted: Callable[[str], bool]
    tls: ssl.SSLContext | None = None
    # Puts the address of the option `postmaster` in place of postmaster and abuse.
    redirect: Callable[[Sequence[Addressed]], None] | None = None
    # Of sessions of the device profile.
    device_tls: ssl.SSLContext | None = None
    device_rules: Rules = field(default_factory=Rules)
    device_networks: tuple[Network, ...] = ()
    authenticate: Callable[[str, str], Any] | None = None
    default_senders: Callable[[Account], tuple[str, ...]] = lambda account: account.may_send_as
    rules: Rules = field(default_factory=Rules)
    room: Room = field(default_factory=lambda: Room("", 0))
    rates: Rates | None = None
    guesses: Guesses = field(default_factory=Guesses)
    hashing: HashPool = field(default_factory=HashPool)
    sessions: dict[str, SmtpSession] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    wiretap: Callable[..., None] | None = None
    is_closing: bool = False
    last_client: int = 0
    # Each life of each worker has its own: no id comes twice (session_prefix).
    client_prefix: str = "s"
    guess_delay_s: float = 1.0
    _first_facts: dict[bool, Facts] = field(default_factory=dict)

    def is_device(self, host: str) -> bool:
        """True for a client of `device_networks`."""
        try:
            address: Any = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.device_networks)

    def tls_of(self, session: Session) -> ssl.SSLContext | None:
        """The context for a session's STARTTLS."""
        return self.device_tls if session.profile == DEVICE else self.tls

    def change(self, options: Options, rules: Rules, device_rules: Rules) -> None:
        """Other options, for sessions that begin from now on; bounds for all."""
        self.options = options
        if self.rates is not None:
            self.rates.change(options)
        self.device_rules, self.device_networks = device_rules, parse_networks(options.device_networks)
        self._first_facts.clear()
        if rules != self.rules:
            self.rules = rules
            self.dispatcher.begin_ways()

    def protocol_facts(self, session: Session) -> Facts:
        """What EHLO offers in a session that begins, in clear or with TLS."""
        is_tls = bool(session.tls)
        facts = self._first_facts.get(is_tls)
        if facts is None:
            options = self.options
            mechanisms = MECHANISMS if self.authenticate is not None else ()
            facts = self._first_facts[is_tls] = Facts(
                options.max_size_bytes,
                options.max_recipients,
                tls_offered=self.tls is not None,
                is_tls=is_tls,
                auth_mechanisms=mechanisms,
                auth_in_clear=options.auth_in_clear,
            )
        return facts

    def new_client_id(self) -> str:
        """A name for a session: short, never used twice by this server, over restarts too."""
        self.last_client += 1
        return f"{self.client_prefix}{self.last_client:x}"


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def session_prefix(started_at: float, worker: int) -> str:
    """What the session ids of one life of a worker begin with: its start in milliseconds, its number."""
    number, text = int(started_at * 1000), ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return f"s{text or '0'}{f'.{worker}' if worker else ''}-"


def facts_of_session(context: ServerContext) -> Callable[[Session], Any]:
    """For the plugin `simple`: the protocol's facts of a session, by its public side."""

    def facts_of(session: Session) -> Facts:
        found = context.sessions.get(session.client_id)
        # A plugin before it may have waited until the client was gone: nobody hears what is answered then.
        return context.protocol_facts(session) if found is None else found.protocol.facts

    return facts_of
