"""When to commit: at once for a lone message, together with the others where others are about to bring theirs.

A commit has its price (a transaction, a flush of the disk) however many messages share it. Must not know the store.
"""

from __future__ import annotations

# Who waits looks about so often; when nobody was answered meanwhile, nobody comes any more.
LOOK_S = 0.002
# As many messages share a commit at most, and none waits longer for company, whoever else may come.
MOST_MESSAGES = 64
LONGEST_WAIT_S = 0.005
# Who was expected, and has brought nothing for as long as this to twice that, is not expected any more: a silent client, a
# slow network, a slow plugin. Twenty sessions of a busy server take some 10 ms from coming to their message. Where no
# message asks for company, the sweep ages them: then it takes a second or two.
EXPECTED_S = 0.1
# After waits in vain so many commits go without one, twice as many each time: whoever is expected is in no hurry.
MOST_SKIPPED = 64
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


class Expected:
    """How many of the sessions that were expected within the same time still are."""

    __slots__ = ("sessions",)

    def __init__(self) -> None:
        self.sessions = 0


class Company:
    """What the sessions tell of themselves, and how long the waiting messages have waited for the others.

    A session from which a message is to be expected (it has just come, or has opened a transaction) counts itself in
    `latest`, remembers that, and takes itself out of it when the message is stored, or will not come. When there is a
    new `latest` the one before it counts on, for as long again; older ones do not. `moved` changes with each turn of the
    loop in which a client was answered.
    """

    __slots__ = (
        "_before",
        "_first",
        "_latest_until",
        "_seen",
        "_skip",
        "_skipped",
        "_slow",
        "_slow_until",
        "_waits_until",
        "latest",
        "moved",
    )

    def __init__(self) -> None:
        self.latest = Expected()
        self._before = Expected()
        self._latest_until = 0.0
        self.moved = 0
        self._seen = (0, 0)
        # How many messages there were when the wait began.
        self._first = 0
        self._waits_until: float | None = None
        self._skip = self._skipped = 0
        self._slow = 0
        self._slow_until = 0.0

    @property
    def expected(self) -> int:
        """From so many sessions a message is expected soon; those whose message waits for the commit are among them."""
        return self.latest.sessions + self._before.sessions

    def age(self, now: float) -> None:
        """Time goes by: who was expected long ago is not any more. `now` monotonic."""
        if now >= self._latest_until:
            self._before, self.latest = self.latest, Expected()
            self._latest_until = now + EXPECTED_S

    def is_complete(self, messages: int) -> bool:
        """True when nobody else is expected, or enough are there."""
        return messages >= MOST_MESSAGES or messages >= self.expected

    def is_worth_waiting(self, messages: int, now: float) -> bool:
        """Asked when `messages` begin to wait, and each LOOK_S from then on: more are about to come. `now` monotonic."""
        self.age(now)
        if self._skip or self.is_complete(messages):
            return False
        if self._waits_until is None:
            self._waits_until, self._first = now + LONGEST_WAIT_S, messages
        elif now >= self._waits_until or self._seen == (self.moved, messages):
            return False
        self._seen = (self.moved, messages)
        return True

    def begin(self, messages: int) -> None:
        """A commit of so many begins: the next ones wait anew, unless that was in vain."""
        if self._waits_until is not None:
            is_in_vain = messages <= self._first
            self._skip = self._skipped = min(self._skipped * 2 or 1, MOST_SKIPPED) if is_in_vain else 0
            self._waits_until = None
        elif self._skip and messages:
            self._skip -= 1

    def suits_loop(self, content_bytes: int, rows: int, now: float) -> bool:
        """True when a commit of that size may run in the loop's own thread, which saves the way to another and back."""
        return content_bytes <= MOST_BYTES and rows <= MOST_ROWS and now >= self._slow_until

    def took(self, seconds: float, now: float) -> None:
        """How long a commit in the loop's thread took."""
        self._slow = self._slow + 1 if seconds > SLOW_S else 0
        if self._slow >= SLOW_COMMITS or seconds > STALLED_S:
            self._slow = 0
            self._slow_until = now + max(SLOW_PAUSE_S, seconds * PAUSE_FACTOR)
