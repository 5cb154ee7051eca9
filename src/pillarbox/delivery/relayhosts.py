"""From the names of smart hosts to their addresses: each address is a server of its own that gets its turn."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace

from .mx import MAX_ADDRESSES
from .route import Target

# The system's resolver is asked in a thread, and has time-outs of its own.
RESOLVE_S = 30.0


async def resolve_targets(targets: Sequence[Target]) -> list[Target]:
    """The targets with their addresses, in order (RFC 5321 section 5.1). Names without an address stay as they are."""
    found: list[Target] = []
    for target in targets:
        found += await _resolve(target)
    return found


async def _resolve(target: Target) -> list[Target]:
    if _is_address(target.host):
        return [target]
    try:
        async with asyncio.timeout(RESOLVE_S):
            rows = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        # The attempt to connect says what is wrong with the name.
        return [target]
    addresses = dict.fromkeys(str(row[4][0]) for row in rows)
    return [replace(target, address=address) for address in list(addresses)[:MAX_ADDRESSES]] or [target]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
