"""Where a recipient's copy goes next: a handler, the smart hosts of `relay`, or the MX of its domain. Names only, no look-ups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..places import parse_endpoint
from ..smtp.address import comparable_domain, domain_of

HANDLER, RELAY, MX = "handler:", "relay:", "mx:"
NOWHERE = ""


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
    """Decides the next hop of an address, by name: handlers first, in every mode; then `relay`; then the domain's MX."""

    relay: NextHop | None
    find_handler: Callable[[str], str | None]
    is_direct: bool

    def next_hop(self, address: str) -> str:
        """The key of the next hop, NOWHERE when there is no way to go."""
        handler = self.find_handler(address)
        if handler is not None:
            return HANDLER + handler
        if self.relay is not None:
            return self.relay.key
        if not self.is_direct:
            return NOWHERE
        domain = domain_of(address)
        # A postmaster without a domain is ours; our own MX is ourselves.
        return MX + comparable_domain(domain) if domain else NOWHERE

    def takes_ours(self, address: str) -> bool:
        """True when mail for one of our own domains has a way: the MX of such a domain is ourselves."""
        return self.relay is not None or self.find_handler(address) is not None

    @property
    def why_nowhere(self) -> str:
        """For people: why mail without a route waits."""
        return "no smart host is set, and direct delivery is off: start with --relay HOST[:PORT]"
