"""The flags of what is paused: the queue as a whole, or single next hops."""

from __future__ import annotations

import json
from collections.abc import Collection

PAUSED = "paused"
NEXT_HOP_KINDS = ("mx:", "relay:", "handler:")
PAUSED_HOPS = "paused_next_hops"


def is_next_hop(key: str) -> bool:
    """True for the key of a next hop: `mx:DOMAIN`, `relay:HOST:PORT` or `handler:PATTERN`."""
    return any(key.startswith(kind) and len(key) > len(kind) for kind in NEXT_HOP_KINDS)


def parse_hops(flag: str | None) -> set[str]:
    """The next hops in a flag; what cannot be read is none."""
    try:
        found = json.loads(flag) if flag else []
    except ValueError:
        return set()
    return {hop for hop in found if isinstance(hop, str)} if isinstance(found, list) else set()


def format_hops(hops: Collection[str]) -> str | None:
    """The flag for these next hops; None removes it."""
    return json.dumps(sorted(hops)) if hops else None
