"""How a queue whose server does not run is steered: the store itself, under its lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .control import Rows, Uids, make_page
from .model import Action, Query, view_as_json
from .paused import PAUSED, PAUSED_HOPS, format_hops, parse_hops
from .store import Store


class StoppedSteering:
    """A queue whose server does not run: the store itself, under its lock."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def list(self, query: Query) -> Rows:
        """Oldest first."""
        return [view_as_json(view) for view in self._store.search(query)]

    async def page(self, query: Query) -> dict[str, Any]:
        """A bounded part of the list, and where the next one begins."""
        return make_page(self._store.search(query), query)

    async def count(self, query: Query) -> int:
        """The number of messages that the query selects."""
        reader: Any = self._store.reader()
        try:
            return int(reader.count(query))
        finally:
            if reader is not self._store:
                reader.close()

    async def show(self, uid: str) -> dict[str, Any] | None:
        """One message and its attempts."""
        found = self._store.get(uid)
        if found is None:
            return None
        waits_for = None
        if found.state in ("queued", "deferred"):
            waits_for = "one of the servers" if self._store.nodes() else "the server, which is not running"
        return view_as_json(found) | {"waiting_for": waits_for}

    async def change(self, action: Action, query: Query) -> Uids:
        """The uids that were changed."""
        with self._store.transaction():
            return self._store.change(action, query, self._now())

    async def pause(self, next_hop: str | None = None) -> None:
        """From the next start on."""
        self._set_paused(next_hop, is_paused=True)

    async def resume(self, next_hop: str | None = None) -> None:
        """From the next start on."""
        self._set_paused(next_hop, is_paused=False)

    def _set_paused(self, next_hop: str | None, *, is_paused: bool) -> None:
        with self._store.transaction():
            if next_hop is None:
                self._store.set_flag(PAUSED, "1" if is_paused else None)
                return
            hops = parse_hops(self._store.flag(PAUSED_HOPS))
            hops = hops | {next_hop} if is_paused else hops - {next_hop}
            self._store.set_flag(PAUSED_HOPS, format_hops(hops))

    async def status(self) -> dict[str, Any]:
        """Counts and flags."""
        nodes = self._store.nodes()
        return {
            "running": bool(nodes),
            "nodes": nodes,
            "paused": self._store.flag(PAUSED) is not None,
            "paused_next_hops": sorted(parse_hops(self._store.flag(PAUSED_HOPS))),
            "in_hand": sum(node["in_hand"] for node in nodes),
            "recipients": self._store.counts(),
            "waiting_for": None if nodes else "the server is not running",
        }

    async def live(self) -> dict[str, Any]:
        """Nothing goes on."""
        return {}

    async def explain(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Who is not there explains nothing."""
        return None
