"""What a lane works by: its settings, and what it asks of the whole. Values and a contract only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from ..queue.work import Work
from ..smtp.reply import Reply
from .client import ClientSettings
from .pool import Pool
from .route import Target

# Stages that are about the next hop as a whole: what was deferred there is due at once when it is back.
REACHING_STAGES = frozenset(("lookup", "connect", "greeting", "ehlo", "starttls", "auth"))
WHOLE_STAGES = REACHING_STAGES | {"connection"}
FindTargets = Callable[[], Awaitable[list[Target] | Reply]]


class Lanes(Protocol):
    """What a lane needs of the whole."""

    pool: Pool
    finished: Callable[[Work], None]
    wake: Callable[[], None]
    is_back: Callable[[str, Collection[str]], None]

    def allowed(self, key: str, wanted: int) -> int:
        """How many connections a next hop may have now; it wants so many."""

    def turn(self, key: str, waiting: int) -> float:
        """0.0 when a next hop with a rate may have one more message now; or after how many seconds to ask again."""

    def may_begin(self) -> bool:
        """False when others may have taken over what this server has in hand."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """How one lane works: connections at once, messages and octets that may wait in memory, how connections are made.

    `interval_s`: between two messages, where the operator has set a rate.
    """

    limit: int
    waiting: int
    waiting_bytes: int
    client: ClientSettings
    find_targets: FindTargets
    interval_s: float = 0.0
