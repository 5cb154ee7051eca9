"""DNS lists of unwelcome clients, asked at connect (RFC 5782). Alias `dnsbl`.

A list that fails, is slow, or answers nonsense counts as clean, and is counted: mail is worth more than a list. Must
not know connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..clock import Clock
from ..dns import Resolver, Status, reversed_name
from ..events.catalogue import Connection, Dnsbl
from ..options import Network
from ..smtp.reply import Reply

_log = logging.getLogger("pillarbox.dnsbl")
# A list that lists everything is asked again after this.
DISABLED_S = 3600.0
# The reason of a listing is waited for so long, no more.
TEXT_S = 2.0
_ANSWERS = ipaddress.IPv4Network("127.0.0.0/8")
# Spamhaus and others answer so when they do not serve the one who asks (RFC 5782 has no word for that).
_ERRORS = ipaddress.IPv4Network("127.255.255.0/24")


@dataclass(slots=True)
class Verdict:
    """What one list says: "listed", "clean" or "unknown", its codes, and why."""

    zone: str
    result: str
    codes: list[str] = field(default_factory=list)
    reason: str = ""


class DnsblPlugin:
    """See the module's text. A client is refused when the weights of the lists that have it reach 1."""

    deadline_s = 60.0

    def __init__(
        self,
        resolver: Resolver,
        clock: Clock,
        zones: Mapping[str, float],
        allow: Sequence[Network],
        time_out_s: float,
        tell: Callable[[Any], None],
    ) -> None:
        self._resolver = resolver
        self._clock = clock
        self._zones = dict(zones)
        self._allow = tuple(allow)
        self._time_out_s = time_out_s
        self._tell = tell
        self._disabled: dict[str, float] = {}
        self.counts = {"listed": 0, "clean": 0, "unknown": 0}

    async def on_connection(self, server: Any, event: Connection) -> Reply | None:
        """Asks all lists at once; 554 and the reason for who is listed."""
        decided, _ = await self.judge(event.peer.host)
        if decided is None:
            return None
        self.counts[decided.result] += 1
        reply = None
        if decided.result == "listed":
            reply = self.refusal(event.peer.host, decided)
            told = {"session": event.client_id, "peer": event.peer.host, "reason": reply.text}
            _log.info("session %s refused: %s", event.client_id, reply.text, extra=told)
        codes = decided.codes
        self._tell(Dnsbl(event.client_id, event.session, reply, decided.result, decided.reason, decided.zone, codes))
        return reply

    async def judge(self, host: str) -> tuple[Verdict | None, list[Verdict]]:
        """What the lists say together, and each of them; None where none is asked about this address."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return None, []
        mapped = getattr(address, "ipv4_mapped", None) or address
        if any(mapped in network for network in self._allow):
            return None, []
        now = self._clock.monotonic()
        zones = [zone for zone in self._zones if self._disabled.get(zone, 0.0) <= now]
        verdicts = await asyncio.gather(*(self._ask(str(mapped), zone) for zone in zones))
        return self._decide(verdicts), list(verdicts)

    @staticmethod
    def refusal(host: str, decided: Verdict) -> Reply:
        """What a client is told that is listed."""
        address = ipaddress.ip_address(host.partition("%")[0])
        text = f"{getattr(address, 'ipv4_mapped', None) or address} is listed by {decided.zone}"
        text = f"{text}: {decided.reason}" if decided.reason else text
        return Reply(554, "5.7.1", text[:400], reason="dnsbl")

    def _decide(self, verdicts: Sequence[Verdict]) -> Verdict:
        """The heaviest list that has it, when their weights reach 1; else the first that failed; else clean."""
        listed = [verdict for verdict in verdicts if verdict.result == "listed"]
        if math.fsum(self._zones[verdict.zone] for verdict in listed) >= 1.0 - 1e-9:
            return max(listed, key=lambda verdict: self._zones[verdict.zone])
        for verdict in verdicts:
            if verdict.result == "unknown":
                return verdict
        return Verdict(next(iter(self._zones), ""), "clean")

    async def _ask(self, address: str, zone: str) -> Verdict:
        try:
            async with asyncio.timeout(self._time_out_s):
                return await self._ask_in_time(address, zone)
        except TimeoutError:
            _log.warning("%s has not answered within %g s: %s goes on", zone, self._time_out_s, address)
            return Verdict(zone, "unknown", reason="time-out")

    async def _ask_in_time(self, address: str, zone: str) -> Verdict:
        name = reversed_name(address, zone)
        answer = await self._resolver.resolve(name, "A")
        if answer.status is Status.FAILED:
            _log.warning("%s cannot be asked: %s", zone, answer.reason)
            return Verdict(zone, "unknown", reason=answer.reason)
        if answer.status is not Status.FOUND:
            return Verdict(zone, "clean")
        codes = [str(record) for record in answer.records]
        wrong = [code for code in codes if not _is_listing(code)]
        if wrong:
            # RFC 5782 section 2.1: listings are within 127.0.0.0/8. Anything else is an error, or somebody's web page.
            _log.error("%s answers %s, which is no listing: it counts as clean", zone, ", ".join(wrong))
            return Verdict(zone, "unknown", codes, f"answers {', '.join(wrong)}")
        if await self._lists_everything(zone, address):
            return Verdict(zone, "unknown", codes, "lists everything")
        reason = await self._reason(name)
        return Verdict(zone, "listed", codes, "".join(c if c.isprintable() else "?" for c in reason)[:300])

    async def _reason(self, name: str) -> str:
        """The list's own words; none where they do not come soon: listed is listed."""
        try:
            async with asyncio.timeout(min(TEXT_S, self._time_out_s / 2)):
                text = await self._resolver.resolve(name, "TXT")
        except TimeoutError:
            return ""
        return str(text.records[0]) if text.status is Status.FOUND and text.records else ""

    async def _lists_everything(self, zone: str, address: str) -> bool:
        """RFC 5782 section 5: 127.0.0.1 (for IPv6: ::FFFF:7F00:1) must not be on any list."""
        probe = "127.0.0.1" if ":" not in address else "::ffff:7f00:1"
        name = "1.0.0.127." + zone
        if probe != "127.0.0.1":
            pointer = ipaddress.IPv6Address(probe).reverse_pointer.removesuffix(".ip6.arpa")
            name = f"{pointer}.{zone}"
        try:
            async with asyncio.timeout(min(TEXT_S, self._time_out_s / 3)):
                answer = await self._resolver.resolve(name, "A")
        except TimeoutError:
            return False
        if answer.status is not Status.FOUND:
            return False
        self._disabled[zone] = self._clock.monotonic() + DISABLED_S
        _log.error("%s lists everything, 127.0.0.1 too: it is not asked for an hour", zone)
        return True


def _is_listing(code: str) -> bool:
    try:
        address = ipaddress.IPv4Address(code)
    except ValueError:
        return False
    return address in _ANSWERS and address not in _ERRORS
