"""What a lane works by: its settings, and what it asks of the whole. Values and a contract only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..queue.work import Work
from ..smtp.reply import Reply
from .client import ClientSettings
from .route import Target

if TYPE_CHECKING:
    from .lane import Lane

FindTargets = Callable[[], Awaitable[list[Target] | Reply]]


class Lanes(Protocol):
    """What a lane needs of the whole."""

    finished: Callable[[Work], None]
    wake: Callable[[], None]
    is_back: Callable[[str, Collection[str]], None]

    def may_open(self, lane: Lane) -> bool:
        """Counts a connection in, if there may be one more of all."""

    def allowed(self, key: str, wanted: int) -> int:
        """How many connections a next hop may have now; it wants so many."""

    def turn(self, key: str, waiting: int) -> float:
        """0.0 when a next hop with a rate may have one more message now; or after how many seconds to ask again."""

    def may_begin(self) -> bool:
        """False when others may have taken over what this server has in hand."""

    def has_closed(self) -> None:
        """Counts it out."""

    def has_idle(self, lane: Lane) -> None:
        """A connection has nothing to do: another lane may want one in its place."""


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
