"""Names and addresses: the Resolver protocol, its dnspython implementation, and a cache in front of either.

Answers are values: found, no such name, no such record, failed; a failure is never taken for an absence (RFC 5321
section 5.1). Must not know mail.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from .clock import Clock
from .config.networks import parse_nameserver
from .nameservers import RESOLV_CONF, SystemNameservers, failure_reason, new_resolver
from .smtp.address import comparable_domain

_log = logging.getLogger("pillarbox.dns")
# A question is given up after this, all nameservers and repetitions included.
TIME_OUT_S = 10.0
# Whatever resolver a program has given: this is the end.
LONGEST_S = 60.0
# RFC 2308 section 5 and 7: negative answers by their SOA, failures for a moment only.
LONGEST_TTL_S = 86400.0
LONGEST_NEGATIVE_S = 3600.0
FAILURE_S = 1.0
MAX_ENTRIES = 10_000
# More records than anybody needs are cut off (hostile row 89).
MAX_RECORDS = 100


class Status(Enum):
    """What came of a question. NO_NAME: NXDOMAIN. NO_DATA: the name is there, the record is not. FAILED: nobody knows."""

    FOUND = "found"
    NO_NAME = "no such name"
    NO_DATA = "no such record"
    FAILED = "failed"

    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. `records`: (preference, host) for MX, text for all else. `canonical`: the name behind a CNAME, or ""."""

    status: Status
    records: tuple[Any, ...] = ()
    ttl_s: float = 0.0
    reason: str = ""
    canonical: str = ""


class Resolver(Protocol):
    """Who answers questions; any object of this shape will do for the option `resolver`."""

    async def resolve(self, name: str, kind: str) -> Answer:
        """`kind` is MX, A, AAAA, TXT or PTR. Never raises for what DNS may bring; `name` is an A-label name."""


class DnsResolver:
    """Asks real nameservers: `nameservers` (ADDRESS[:PORT], [IPV6]:PORT), or those that resolv.conf names at the time."""

    def __init__(
        self, nameservers: Sequence[str] = (), time_out_s: float = TIME_OUT_S, resolv_conf: str = RESOLV_CONF
    ) -> None:
        self._system: SystemNameservers | None = None
        if nameservers:
            import dns.nameserver

            given = [dns.nameserver.Do53Nameserver(*parse_nameserver(text)) for text in nameservers]
            self._fixed = new_resolver(given, time_out_s)
        else:
            self._system = SystemNameservers(time_out_s, resolv_conf)

    async def resolve(self, name: str, kind: str) -> Answer:
        """See Resolver."""
        import dns.exception
        import dns.name
        import dns.resolver

        try:
            asked = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError, ValueError) as error:
            # What cannot be asked for does not exist.
            return Answer(Status.NO_NAME, reason=failure_reason(error))
        resolver = self._fixed if self._system is None else self._system.current()
        try:
            found = await resolver.resolve(asked, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as error:
            return Answer(Status.NO_NAME, ttl_s=_negative_ttl(error.kwargs.get("responses")))
        except (dns.exception.DNSException, OSError, ValueError) as error:
            if self._system is not None:
                self._system.failed()
            return Answer(Status.FAILED, reason=failure_reason(error))
        if found.rrset is None:
            ttl = _negative_ttl({name: found.response})
            return Answer(Status.NO_DATA, ttl_s=ttl, canonical=_canonical(found, name))
        records = tuple(_record(kind, data) for data in list(found.rrset)[:MAX_RECORDS])
        return Answer(Status.FOUND, records, float(found.rrset.ttl), canonical=_canonical(found, name))


def _canonical(found: Any, name: str) -> str:
    canonical = found.canonical_name.to_text(omit_final_dot=True).lower()
    return "" if canonical == name.rstrip(".").lower() else canonical


def _record(kind: str, data: Any) -> Any:
    if kind == "MX":
        return (int(data.preference), data.exchange.to_text(omit_final_dot=True).lower() or ".")
    if kind == "TXT":
        return b"".join(data.strings).decode("utf-8", "replace")
    return data.to_text().rstrip(".").lower()


def _negative_ttl(responses: Any) -> float:
    """RFC 2308 section 5: the lesser of the SOA's TTL and its minimum."""
    import dns.rdatatype

    for response in (responses or {}).values():
        for rrset in response.authority:
            if rrset.rdtype == dns.rdatatype.SOA:
                return float(min(rrset.ttl, rrset[0].minimum))
    return 0.0


class CachingResolver:
    """A bounded cache that keeps TTLs and negative answers; one question at a time for each name.

    Filled by the answers of the resolver behind it alone: what a client says never enters it.
    """

    def __init__(self, resolver: Resolver, clock: Clock, max_entries: int = MAX_ENTRIES) -> None:
        self._resolver = resolver
        self._clock = clock
        self._max_entries = max_entries
        self._answers: OrderedDict[tuple[str, str], tuple[float, Answer]] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        self.hits = self.misses = 0

    async def resolve(self, name: str, kind: str) -> Answer:
        """See Resolver."""
        key = (comparable_domain(name), kind)
        known = self._answers.get(key)
        if known is not None:
            if self._clock.monotonic() < known[0]:
                self.hits += 1
                self._answers.move_to_end(key)
                return known[1]
            del self._answers[key]
        task = self._asking.get(key)
        if task is None:
            self.misses += 1
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._ask(key))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        # Who gives up waiting does not take the answer away from the others.
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[str, str]) -> Answer:
        try:
            async with asyncio.timeout(LONGEST_S):
                answer = await self._resolver.resolve(*key)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            _log.warning("the resolver failed on %s %s: %r", *key, error)
            answer = Answer(Status.FAILED, reason=failure_reason(error))
        ttl = answer.ttl_s
        if answer.status is Status.FAILED:
            ttl = FAILURE_S
        elif answer.status is not Status.FOUND:
            ttl = min(ttl, LONGEST_NEGATIVE_S)
        if ttl > 0:
            self._answers[key] = (self._clock.monotonic() + min(ttl, LONGEST_TTL_S), answer)
            while len(self._answers) > self._max_entries:
                self._answers.popitem(last=False)
        return answer

    async def close(self) -> None:
        """Gives up what is being asked."""
        for task in list(self._asking.values()):
            task.cancel()

    def __len__(self) -> int:
        return len(self._answers)


async def addresses(
    resolver: Resolver, host: str, kinds: Sequence[str] = ("A", "AAAA")
) -> tuple[list[str], list[Answer]]:
    """The addresses of a host, in the order of `kinds`, and the answers themselves; asked for at once."""
    answers = await asyncio.gather(*(resolver.resolve(host, kind) for kind in kinds))
    found = [record for answer in answers if answer.status is Status.FOUND for record in answer.records]
    return found, list(answers)


def reversed_name(address: str, zone: str) -> str:
    """The name to ask a DNS list for: octets or nibbles in reverse, then the zone (RFC 5782 section 2.1 and 2.4)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    pointer = (mapped or ip).reverse_pointer
    return pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa") + "." + zone
