"""Where a recipient's copy goes next: a handler, the smart hosts of `relay`, or the MX of its domain. Names only, no look-ups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..places import parse_endpoint
from ..smtp.address import comparable_domain, domain_of

HANDLER, RELAY, MX = "handler:", "relay:", "mx:"
NOWHERE = ""
# The next hop of mail that only a handler may have, while no handler matches its recipient.
UNMATCHED = HANDLER
WHY_UNMATCHED = "no handler matches; waits for a handler"


@dataclass(frozen=True, slots=True)
class Target:
    """One server to try. `is_tls` means TLS from the first octet; `address` is what `host` was resolved to, if it was."""

    host: str
    port: int
    is_tls: bool = False
    address: str = ""

    @property
    def name(self) -> str:
        """host:port for people, with the address where one was looked up."""
        if self.address and self.address != self.host:
            return f"{self.host}[{self.address}]:{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NextHop:
    """A place for copies to go: a key that the queue keeps, and the servers behind it, in order of preference."""

    key: str
    targets: tuple[Target, ...]


def relay_next_hop(relay: list[str]) -> NextHop | None:
    """The smart hosts as one next hop, None without any."""
    targets = []
    for text in relay:
        scheme, host, port = parse_endpoint(text, default_port=25)
        targets.append(Target(host, port, scheme == "smtps"))
    if not targets:
        return None
    return NextHop(RELAY + ",".join(target.name for target in targets), tuple(targets))


@dataclass(slots=True)
class Router:
    """Decides the next hop of an address, by name: handlers first, in every mode; then `relay`; then the domain's MX.

    `is_own(domain)` is True for a domain of the option `domains`. `is_own_relayed` sends mail for such a domain to the
    relay when no handler matches (option `domains_via`); otherwise that mail waits for a handler.
    """

    relay: NextHop | None
    find_handler: Callable[[str], str | None]
    is_direct: bool
    is_own: Callable[[str], bool]
    is_own_relayed: bool

    def next_hop(self, address: str, queued: str | None = None) -> str:
        """Returns the key of the next hop, NOWHERE without a route, UNMATCHED for mail that waits for a handler.

        `queued` is the key that the queue keeps for this recipient. Mail that was queued for a handler never goes to
        the relay or to an MX by itself, whatever handlers and options are now.
        """
        handler = self.find_handler(address)
        if handler is not None:
            return HANDLER + handler
        if queued is not None and queued.startswith(HANDLER):
            return UNMATCHED
        domain = domain_of(address)
        if self.is_own(domain):
            # The MX of an own domain is this server.
            return self.relay.key if self.relay is not None and self.is_own_relayed else UNMATCHED
        if self.relay is not None:
            return self.relay.key
        return MX + comparable_domain(domain) if domain and self.is_direct else NOWHERE

    def relay_targets(self) -> tuple[Target, ...]:
        """The smart hosts, in order."""
        return self.relay.targets if self.relay is not None else ()

    def takes_ours(self, address: str) -> bool:
        """True when mail for this address of an own domain has a route: a handler, or the relay if `domains_via` allows."""
        return (self.relay is not None and self.is_own_relayed) or self.find_handler(address) is not None

    @property
    def why_nowhere(self) -> str:
        """For people: why mail without a route waits."""
        return "no smart host is set, and direct delivery is off: start with --relay HOST[:PORT]"
