"""Browsers that are logged in to the dashboard: each has a session with a path, a cookie and an end of its own.

Cookies know no ports, paths they know: the cookie of a session goes to `/s/<id>/` alone, and a page of another port of this
host does not know the id. Sessions are in memory: a restart ends them all.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

COOKIE = "pillarbox"
# A log-in link works for so long, once; a session for so long.
LOGIN_S = 600.0
SESSION_S = 12 * 3600.0
MAX_SESSIONS = 32
MAX_CODES = 100
_PREFIX = re.compile(r"/s/([A-Za-z0-9_-]{22})(?=/|\Z)")


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A browser that is logged in. `name` is for people and logs; `id` and `secret` let in."""

    name: str
    client: str
    began_unix_s: float
    ends_s: float
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def root(self) -> str:
        """The path under which this session sees the dashboard."""
        return f"/s/{self.id}"


def split_prefix(path: str) -> tuple[str, str]:
    """(session id, path within the session); the id is empty for a path of no session."""
    found = _PREFIX.match(path)
    return (found[1], path[found.end() :] or "/") if found else ("", path)


class Logins:
    """The log-in links that were not used yet, and the sessions of one server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._codes: dict[str, float] = {}
        self._sessions: dict[str, BrowserSession] = {}

    def new_code(self) -> str:
        """A code for `/login?code=...`, good once, for ten minutes."""
        now = self._clock()
        self._codes = {code: until for code, until in self._codes.items() if until > now}
        while len(self._codes) >= MAX_CODES:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(16)
        self._codes[code] = now + LOGIN_S
        return code

    def begin(self, code: str, client: str) -> BrowserSession | None:
        """Trades a code for a session; None for a code that was used or is too old. The oldest session makes room."""
        now = self._clock()
        if self._codes.pop(code, 0.0) <= now:
            return None
        self._expire()
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = BrowserSession(secrets.token_hex(4), client, time.time(), now + SESSION_S)
        self._sessions[session.id] = session
        return session

    def find(self, session_id: str, cookies: str) -> BrowserSession | None:
        """The session of that id, if the Cookie header has its secret."""
        self._expire()
        session = self._sessions.get(session_id)
        if session is None:
            return None
        # Another service of this host may have set a cookie of the same name: each of them is looked at.
        pairs = [part.strip().partition("=") for part in cookies.split(";")]
        given = [value.strip().encode() for name, _, value in pairs if name.strip() == COOKIE]
        fits = [hmac.compare_digest(value, session.secret.encode()) for value in given]
        return session if any(fits) else None

    def is_alive(self, session: BrowserSession) -> bool:
        """True until the session has ended."""
        self._expire()
        return session.id in self._sessions

    def end(self, name: str | None = None) -> list[str]:
        """Ends the session of that name, or all, with the links that were not used yet. Returns the names."""
        self._expire()
        ended = [one for one in self._sessions.values() if name in (None, one.name)]
        for one in ended:
            del self._sessions[one.id]
        if name is None:
            self._codes.clear()
        return [one.name for one in ended]

    def rows(self) -> list[dict[str, Any]]:
        """The sessions, oldest first, without what lets in."""
        self._expire()
        now = self._clock()
        return [
            {
                "session": one.name,
                "client": one.client,
                "began_at": one.began_unix_s,
                "ends_in_s": round(one.ends_s - now),
            }
            for one in self._sessions.values()
        ]

    def _expire(self) -> None:
        now = self._clock()
        for one in [one for one in self._sessions.values() if one.ends_s <= now]:
            del self._sessions[one.id]
