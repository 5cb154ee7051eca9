"""When to commit: at once for a lone message, together with the others where others are about to bring theirs.

A commit has its price (a transaction, a flush of the disk) however many messages share it. Must not know the store.
"""

from __future__ import annotations

# The loop has turned so often without hearing from any client: nobody comes any more. Some 0.1 ms.
QUIET_TURNS = 30
# As many messages share a commit at most, and none waits longer for company, whoever else may come.
MOST_MESSAGES = 64
LONGEST_WAIT_S = 0.005
# The loop does not stand still for more than that: larger batches, and slow disks, are the writer thread's work. Rows are
# recipients and outcomes, some 10 us each.
MOST_BYTES = 1 << 20
MOST_ROWS = 500
SLOW_S = 0.01
# So many slow commits in a row are a slow disk, and no hiccup; then the loop's own thread is tried again so much later.
SLOW_COMMITS = 2
SLOW_PAUSE_S = 10.0
# One of this length is no hiccup either: somebody has locked the file, say. The pause grows with it.
STALLED_S = 0.1
PAUSE_FACTOR = 200.0


class Company:
    """What the sessions tell of themselves, and how long the waiting messages have waited for the others.

    `open` counts the transactions that are open, those included whose message waits for the commit; `moved` changes
    with each turn of the loop in which a client was answered.
    """

    __slots__ = ("_moved", "_quiet", "_slow", "_slow_until", "_waits_until", "moved", "open")

    def __init__(self) -> None:
        self.open = 0
        self.moved = 0
        self._moved = 0
        self._quiet = 0
        self._waits_until: float | None = None
        self._slow = 0
        self._slow_until = 0.0

    def is_worth_waiting(self, messages: int, now: float) -> bool:
        """Asked once a turn while `messages` wait: True when more are about to come. `now` in seconds, monotonic."""
        if messages >= self.open or messages >= MOST_MESSAGES:
            return False
        if self._waits_until is None:
            self._waits_until = now + LONGEST_WAIT_S
        elif now >= self._waits_until:
            return False
        if self._moved != self.moved:
            self._moved, self._quiet = self.moved, 0
        else:
            self._quiet += 1
        return self._quiet < QUIET_TURNS

    def begin(self) -> None:
        """A commit begins: the next ones wait anew."""
        self._quiet = 0
        self._waits_until = None

    def suits_loop(self, content_bytes: int, rows: int, now: float) -> bool:
        """True when a commit of that size may run in the loop's own thread, which saves the way to another and back."""
        return content_bytes <= MOST_BYTES and rows <= MOST_ROWS and now >= self._slow_until

    def took(self, seconds: float, now: float) -> None:
        """How long a commit in the loop's thread took."""
        self._slow = self._slow + 1 if seconds > SLOW_S else 0
        if self._slow >= SLOW_COMMITS or seconds > STALLED_S:
            self._slow = 0
            self._slow_until = now + max(SLOW_PAUSE_S, seconds * PAUSE_FACTOR)
