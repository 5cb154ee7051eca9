"""From a domain to the servers to try, in order: RFC 5321 section 5.1, null MX (RFC 7505), and what no MX may make us do.

Answers are lists of targets, or a Reply that says why there are none: 5yz for ever, 4yz for now. An absence is never
taken for a failure, nor a failure for an absence. Must not connect anywhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..dns import Answer, Resolver, Status
from ..nameservers import bounded
from ..options import Network
from ..smtp.address import parse_address_literal
from ..smtp.reply import Reply
from .route import Target

# Bounds of one attempt (hostile row 89): hosts looked up, addresses of each, servers tried.
MAX_HOSTS = 20
MAX_ADDRESSES = 8
MAX_TARGETS = 40

_NULL_MX = Reply(556, "5.1.10", "This domain takes no mail (null MX)")
_NO_DOMAIN = Reply(550, "5.1.2", "This domain does not exist")
_NO_HOST = Reply(550, "5.1.2", "This domain has neither MX nor address")
_OURSELVES = Reply(554, "5.4.6", "The best MX of this domain is this server, which does not know the recipient")
_FORBIDDEN = Reply(
    550, "5.4.4", "No MX of this domain may be used: private address, CNAME or address in place of a name"
)
_UNRESOLVED = Reply(550, "5.4.4", "No MX of this domain has an address")


@dataclass(frozen=True, slots=True)
class MxPolicy:
    """What an MX may be. `is_ourselves(host, address)`: is a target this very server; with "" for address, by its name."""

    port: int = 25
    networks: tuple[Network, ...] = ()
    may_be_cname: bool = False
    ip_preference: str = "ipv4"
    is_ourselves: Callable[[str, str], bool] = lambda host, address: False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Address records, those to be tried first in front."""
        return {"ipv4": ("A", "AAAA"), "ipv6": ("AAAA", "A"), "ipv4-only": ("A",), "ipv6-only": ("AAAA",)}[
            self.ip_preference
        ]

    def allows(self, address: str) -> bool:
        """False for loopback, private, link-local, multicast and reserved addresses, also inside IPv6 forms of IPv4."""
        ip = ipaddress.ip_address(address)
        if any(ip in network for network in self.networks):
            return True
        inner = _embedded(ip)
        if not all(self.allows(str(one)) for one in inner):
            return False
        is_form_of_ipv4 = bool(inner) and (ip in _MAPPED or ip in _NAT64 or ip in _SIX_TO_FOUR)
        return is_form_of_ipv4 or _is_public(ip)


# IANA special-purpose registries of IPv4 and IPv6 (RFC 6890), and blocks that went out of use: no public MX is there. A table
# of our own, because `ipaddress.is_global` differs from one Python to the next.
_NEVER = tuple(
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        # RFC 4291: unspecified, loopback and the IPv4-compatible form; RFC 2765: the translated form; RFC 8215: local NAT64.
        "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001:2::/48", "2001:10::/28",
        "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_IPV4_BITS = 0xFFFFFFFF
# RFC 5214 section 6.1: the interface identifier of ISATAP, whatever the universal bit says.
_ISATAP = (0x00005EFE, 0x02005EFE)


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (
        ip.is_global and not ip.is_multicast and not any(ip in block for block in _NEVER if block.version == ip.version)
    )


def _embedded(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that this one may lead to: mapped, NAT64, 6to4, Teredo (server and client), ISATAP."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    number = int(ip)
    last = ipaddress.IPv4Address(number & _IPV4_BITS)
    if ip in _MAPPED or ip in _NAT64:
        return [last]
    found = [ip.sixtofour] if ip.sixtofour is not None else []
    found += ip.teredo or ()
    if (number >> 32) & _IPV4_BITS in _ISATAP:
        found.append(last)
    return found


@dataclass(slots=True)
class _Found:
    """What a look-up of the hosts brought: usable targets by preference, and what stood in the way of the others."""

    targets: list[tuple[int, Target]]
    failures: list[tuple[int, str]] = field(default_factory=list)
    is_forbidden: bool = False
    own_preference: int | None = None


class MxLookup:
    """See the module's text. `rng` shuffles equals, so that they share the load."""

    def __init__(self, resolver: Resolver, policy: MxPolicy, rng: random.Random) -> None:
        self._resolver = resolver
        self._policy = policy
        self._rng = rng

    async def targets(self, domain: str) -> list[Target] | Reply:
        """The servers for `domain` (an A-label name or an address literal), best first; or why there are none."""
        literal = parse_address_literal(domain)
        if literal is not None:
            return self._for_literal(domain, str(literal))
        answer = await self._resolver.resolve(domain, "MX")
        if answer.status is Status.FAILED:
            return _failed(domain, answer.reason)
        if answer.status is Status.NO_NAME:
            return _NO_DOMAIN
        if answer.status is Status.NO_DATA or not answer.records:
            return await self._implicit(domain)
        hosts = sorted((int(preference), str(host)) for preference, host in answer.records)
        if len(hosts) == 1 and hosts[0][1] == ".":
            return _NULL_MX
        return await self._from_hosts(domain, [(p, h) for p, h in hosts if h != "."])

    def _for_literal(self, domain: str, address: str) -> list[Target] | Reply:
        policy = self._policy
        if policy.is_ourselves(domain, address):
            return _OURSELVES
        return [Target(domain, policy.port, address=address)] if policy.allows(address) else _FORBIDDEN

    async def _implicit(self, domain: str) -> list[Target] | Reply:
        """RFC 5321 section 5.1: without MX the domain itself is tried, as if it were its own MX with preference 0."""
        found = await self._resolve_hosts([(0, domain)], is_implicit=True)
        if found.own_preference is not None:
            return _OURSELVES
        if not found.targets:
            if found.failures:
                return _failed(domain, found.failures[0][1])
            return _FORBIDDEN if found.is_forbidden else _NO_HOST
        return [target for _, target in found.targets][:MAX_TARGETS]

    async def _from_hosts(self, domain: str, hosts: list[tuple[int, str]]) -> list[Target] | Reply:
        usable = [(p, h) for p, h in hosts if _is_name(h)]
        own = min((p for p, h in hosts if self._policy.is_ourselves(h, "")), default=None)
        if own is not None:
            # Known by name, whatever its addresses: it and all that are no better are out.
            usable = [(p, h) for p, h in usable if p < own]
            if not usable:
                return _OURSELVES
        found = await self._resolve_hosts(self._shuffled(usable)[:MAX_HOSTS], is_implicit=False)
        found.is_forbidden = found.is_forbidden or len(usable) < len(hosts)
        targets = found.targets
        if found.own_preference is not None:
            # Whoever is not better than we are would only give it back: RFC 5321 section 5.1, loops.
            best = found.own_preference
            targets = [(p, t) for p, t in targets if p < best]
            found.failures = [(p, reason) for p, reason in found.failures if p < best]
            if not targets and not found.failures:
                return _OURSELVES
        if targets:
            return [target for _, target in targets][:MAX_TARGETS]
        if found.failures:
            return _failed(domain, found.failures[0][1])
        if own is not None:
            return _OURSELVES
        return _FORBIDDEN if found.is_forbidden else _UNRESOLVED

    def _shuffled(self, hosts: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
        """By preference; equals in random order."""
        return sorted(hosts, key=lambda host: (host[0], self._rng.random()))

    async def _resolve_hosts(self, hosts: list[tuple[int, str]], *, is_implicit: bool) -> _Found:
        kinds = self._policy.kinds
        questions = [self._resolver.resolve(host, kind) for _, host in hosts for kind in kinds]
        answers = await asyncio.gather(*questions)
        found = _Found([])
        for number, (preference, host) in enumerate(hosts):
            mine = answers[number * len(kinds) : (number + 1) * len(kinds)]
            self._take_host(found, preference, host, mine, is_implicit=is_implicit)
        return found

    def _take_host(
        self, found: _Found, preference: int, host: str, answers: Sequence[Answer], *, is_implicit: bool
    ) -> None:
        policy = self._policy
        if not is_implicit and not policy.may_be_cname and any(answer.canonical for answer in answers):
            # RFC 2181 section 10.3: an MX is no alias.
            found.is_forbidden = True
            return
        addresses = [str(record) for a in answers if a.status is Status.FOUND for record in a.records]
        failed = [answer for answer in answers if answer.status is Status.FAILED]
        if not addresses and failed:
            found.failures.append((preference, failed[0].reason or "no answer"))
        for address in addresses[:MAX_ADDRESSES]:
            if policy.is_ourselves(host, address):
                own = found.own_preference
                found.own_preference = preference if own is None else min(own, preference)
            elif policy.allows(address):
                found.targets.append((preference, Target(host, policy.port, address=address)))
            else:
                found.is_forbidden = True


def _is_name(host: str) -> bool:
    """False for an address in place of a name, and for localhost."""
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _failed(domain: str, reason: str) -> Reply:
    return Reply(451, "4.4.3", f"DNS look-up of {domain} failed: {bounded(reason) or 'no answer in time'}")
