"""Connections of the admin side: a deadline for each request, and places. A valid token is worth a place of its own.

uvicorn answers 503 beyond its own limit and closes nothing, and its keep-alive timer ends with the first octet of a
request: half a request would keep its place for ever.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Connections that have shown no valid token, of all addresses and of one that is not loopback; and those that have.
MAX_STRANGERS = 200
MAX_STRANGERS_PER_ADDRESS = 50
MAX_HOLDERS = 200
# A head is complete so soon after its first octet (or the connection); a body after this time at this rate.
HEAD_S = 10.0
BODY_S = 30.0
MIN_BODY_RATE_BYTES_S = 16 * 1024


class Places:
    """The connections of one admin side, the oldest first. Beyond a bound the oldest that is not being answered gives way."""

    def __init__(self, is_holder: Callable[[Any], bool]) -> None:
        self.is_holder = is_holder
        # Dicts keep their order.
        self.strangers: dict[Bounded, None] = {}
        self.holders: dict[Bounded, None] = {}

    def enter(self, connection: Bounded) -> None:
        """Adds a connection, of which nothing is known yet: the youngest is the last to give way."""
        self.strangers[connection] = None
        if len(self.strangers) > MAX_STRANGERS:
            _shed(list(self.strangers))
        address = connection.address
        if not _is_loopback(address):
            own = [one for one in self.strangers if one.address == address]
            if len(own) > MAX_STRANGERS_PER_ADDRESS:
                _shed(own)

    def show_token(self, connection: Bounded) -> None:
        """A request with a valid token has come."""
        self.strangers.pop(connection, None)
        self.holders[connection] = None
        if len(self.holders) > MAX_HOLDERS:
            _shed(list(self.holders))

    def leave(self, connection: Bounded) -> None:
        """Removes a connection."""
        self.strangers.pop(connection, None)
        self.holders.pop(connection, None)


def _shed(connections: list[Bounded]) -> None:
    idle = [one for one in connections[:-1] if not one.is_answered]
    (idle or connections)[0].abort()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        # A unix socket has none.
        return True


class Bounded(H11Protocol):
    """uvicorn's protocol with a place and deadlines."""

    def __init__(self, *arguments: Any, places: Places, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._places = places
        self._deadline: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._received = 0
        self._is_holder = False
        self._looked_at: Any = None
        self.address = ""

    @property
    def is_answered(self) -> bool:
        """True while a request is complete and its answer is not."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a place; the first request begins now."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._begin_request()
        self._places.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the place."""
        self._end_request()
        self._places.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes octets: the first of a request begins its deadline."""
        self._received += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Goes on with what came meanwhile: it may be half a request."""
        super().on_response_complete()
        self._look()

    def abort(self) -> None:
        """Closes without another word."""
        self._places.leave(self)
        self.connections.discard(self)
        self.transport.abort()

    # ----------------------------------------------------------------- deadlines

    def _look(self) -> None:
        """Starts or ends the deadline by what the parser has of a request; notices a token."""
        if self.scope is not self._looked_at and not self._is_holder:
            self._looked_at = self.scope
            if self._places.is_holder(self.scope):
                self._is_holder = True
                self._places.show_token(self)
        if self._is_half():
            if self._deadline is None:
                self._begin_request()
        else:
            self._end_request()

    def _is_half(self) -> bool:
        state = self.conn.their_state
        if state is h11.IDLE:
            # Between two requests uvicorn's own timer runs, until the first octet.
            return self.timeout_keep_alive_task is None or bool(self.conn.trailing_data[0])
        return state is h11.SEND_BODY

    def _begin_request(self) -> None:
        self._began, self._received = self.loop.time(), 0
        self._deadline = self.loop.call_later(HEAD_S, self._expire)

    def _end_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.SEND_BODY:
            left = self._began + BODY_S + self._received / MIN_BODY_RATE_BYTES_S - self.loop.time()
            if left > 0 or self.flow.read_paused:
                self._deadline = self.loop.call_later(max(left, 1.0), self._expire)
                return
        self.abort()
