"""A session's deadlines: for a whole command, for content by time and rate, for a reply that a program owes.

Looked at once a second by the listeners' sweep, from counters that the session only counts up: no timer and no look at
the clock per command. Exact to a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import Options
from ..smtp.reply import Reply

if TYPE_CHECKING:
    from .session import SmtpSession

_TIMED_OUT = Reply(421, "4.4.2", "Time-out: closing", reason="timeout")
_TOO_SLOW = Reply(421, "4.4.2", "Content comes too slowly: closing", reason="timeout")


class Deadlines:
    """What one session had done at the last sweep, and since when."""

    __slots__ = ("_arrivals", "_arrived_at", "_commanded_at", "_commands", "_content_at", "_options", "_owed_at")

    def __init__(self, options: Options, now: float) -> None:
        self._options = options
        self._arrivals = self._commands = 0
        self._arrived_at = self._commanded_at = now
        self._content_at: float | None = None
        self._owed_at: float | None = None

    def sweep(self, session: SmtpSession, now: float) -> None:
        """Ends what has taken too long."""
        arrivals = session.arrivals + session.commands
        if arrivals != self._arrivals:
            self._arrivals, self._arrived_at = arrivals, now
        if session.commands != self._commands or session.is_parked:
            self._commands, self._commanded_at = session.commands, now
        limit = self._options.client_time_out
        if session.awaits_program:
            # What the client sends meanwhile does not put off the answer that it is owed.
            self._owed_at = now if self._owed_at is None else self._owed_at
            if now - self._owed_at > limit:
                self._owed_at = None
                session.answer_for_program()
            return
        self._owed_at = None
        if session.is_parked:
            return
        if now - self._arrived_at > limit:
            session.leave(_TIMED_OUT, "time-out")
        elif session.protocol.is_in_content:
            self._sweep_content(session, now)
        else:
            self._content_at = None
            if now - self._commanded_at > limit:
                # Octets come, but no whole line: only a command starts the time anew.
                session.leave(_TIMED_OUT, "time-out within a command line")

    def _sweep_content(self, session: SmtpSession, now: float) -> None:
        self._commanded_at = now
        self._content_at = now if self._content_at is None else self._content_at
        rate = self._options.min_rate_bytes_s
        if rate and now - self._content_at > self._options.client_time_out + session.content_bytes / rate:
            session.leave(_TOO_SLOW, "content too slow")
