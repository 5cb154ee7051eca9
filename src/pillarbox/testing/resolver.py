"""A resolver made of dicts, for tests: no nameserver, no network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ..dns import Answer, Status


class DictResolver:
    """See pillarbox.dns.Resolver. `zones[name][kind]` is a list of records, or a Status such as Status.FAILED.

    A name that is not there does not exist; a kind that is not there has no records. MX records are (preference, host).
    `zones[name]` may be a Status itself. `asked` lists every question; `hold` keeps answers back until it is set.
    """

    def __init__(self, zones: Mapping[str, Any], ttl_s: float = 300.0) -> None:
        self.zones: dict[str, Any] = dict(zones)
        self.ttl_s = ttl_s
        self.asked: list[tuple[str, str]] = []
        self.hold: asyncio.Event | None = None

    async def resolve(self, name: str, kind: str) -> Answer:
        """The answer that the dicts have."""
        self.asked.append((name, kind))
        if self.hold is not None:
            await self.hold.wait()
        zone = self.zones.get(name, Status.NO_NAME)
        found = zone if isinstance(zone, Status) else zone.get(kind, Status.NO_DATA)
        if isinstance(found, Answer):
            return found
        if isinstance(found, Status):
            return Answer(found, ttl_s=self.ttl_s, reason="scripted" if found is Status.FAILED else "")
        records: Sequence[Any] = found
        return Answer(Status.FOUND, tuple(records), self.ttl_s)
