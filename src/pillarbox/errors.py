"""The root exception and what a user of the library may catch.

Each class says who can mend what it reports: the peer, the operator (or the embedding program), or us.
"""


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
