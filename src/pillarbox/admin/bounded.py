"""Connections of the admin side: so many and no more, and who connects says soon what for.

uvicorn answers 503 beyond its own limit, and closes nothing: descriptors would run out, and mail with them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 200
FIRST_S = 10.0


class Bounded(H11Protocol):
    """Beyond MOST the oldest that has not asked anything yet is closed, else the new one."""

    _silent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more."""
        super().connection_made(transport)
        self._silent = asyncio.get_running_loop().call_later(FIRST_S, self._close_if_silent)
        if len(self.connections) > MOST:
            for other in list(self.connections):
                if isinstance(other, Bounded) and other is not self and other.cycle is None:
                    other._abort()
                    return
            self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """One less."""
        if self._silent is not None:
            self._silent.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        cycle: Any = self.cycle
        if cycle is None:
            self._abort()

    def _abort(self) -> None:
        self.connections.discard(self)
        self.transport.abort()
