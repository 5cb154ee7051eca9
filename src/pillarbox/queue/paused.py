"""The flags of what is paused: the queue as a whole, or single next hops."""

from __future__ import annotations

import json
from collections.abc import Collection

PAUSED = "paused"
PAUSED_HOPS = "paused_next_hops"


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
