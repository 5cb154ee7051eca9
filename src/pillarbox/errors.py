"""The root exception and what a user of the library may catch.

Each class says who can mend what it reports: the peer, the operator (or the embedding program), or us.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class PillarboxError(Exception):
    """Root of every exception that Pillarbox raises on purpose."""


class OptionError(PillarboxError, ValueError):
    """An option has a wrong name or value. The operator mends it; the text names option, value and what is allowed."""


class ListenError(PillarboxError, OSError):
    """A listener could not be bound. The operator mends it; the text names the address."""


class StateError(PillarboxError, RuntimeError):
    """A method was called when it makes no sense (for example on a server that is shut down). The program mends it."""


class PluginError(PillarboxError):
    """A plugin could not be added, found or registered. The program mends it."""


class StoreError(PillarboxError):
    """The queue could not do what was asked. The operator mends it (disk, permissions); nothing accepted is lost."""


class NotRunningError(PillarboxError):
    """No server could be asked. The operator starts it; the caller tries again."""


class CommitInDoubtError(StoreError):
    """The queue's database was lost at a commit, and does not tell what became of it: perhaps it is done, perhaps not."""


class StoreFullError(StoreError):
    """The disk that holds the queue is full. The operator makes room; clients are told 452 4.3.1 until then."""


class StoreLockedError(StoreError):
    """Another process owns this data directory. Use its control socket, or stop it first."""


class DuplicateUidError(StoreError):
    """A message with this queue id is there already. The program picks another."""


class AddressError(PillarboxError, ValueError):
    """A mail address that RFC 5321 section 4.1.2 does not allow. Whoever wrote it mends it."""


class ExitError(PillarboxError):
    """A plugin, a handler or a subscriber raised what ends a process (sys.exit): it failed, and the server lives."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


async def contained(awaitable: Awaitable[T]) -> T:
    """Awaits it; what would end the event loop from within a task is an ExitError.

    asyncio raises SystemExit and KeyboardInterrupt of a task out of the running loop, also if the task is awaited.
    """
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:
        raise ExitError(error) from error
