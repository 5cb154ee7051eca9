"""The queue as a whole: every shard in the data directory, whichever worker is asked, whether it runs or not.

A shard is asked through its worker's control socket, or opened here, under its lock, while nobody runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from ..errors import StateError, StoreError, StoreLockedError
from ..mail.content import Content
from .commit import GroupCommit
from .control import LiveSteering, Rows, Uids, ask, perform
from .model import Action, Query, View
from .paused import PAUSED, PAUSED_HOPS, parse_hops
from .shards import database, find_shards, journal, spool_folder
from .sqlite import SqliteStore
from .sqlite_read import SqliteReader, connect
from .stopped import StoppedSteering

_log = logging.getLogger("pillarbox.queue")
T = TypeVar("T")
GONE = object()
# What was changed before stays so: asked again, a shard tells of the others.
_CHANGING = frozenset(action.value for action in Action)
# Whoever watches wants to know what there is: a worker that does not answer soon is left out, and counted.
_LOOKS = ("live", "status")
LOOK_S = 2.0
# A worker that is just starting, or just ending, holds its lock without answering: for a moment.
PATIENCE_S = 60.0
_PAUSE_S = 0.05
# What a lane may be, the worst last.
LANE_STATES = ("idle", "busy", "probing", "down")


def ask_shard(
    folder: str, shard: int, request: dict[str, Any], patience_s: float = PATIENCE_S, timeout_s: float = 30.0
) -> Any:
    """One request to one shard, running or not; blocks. GONE when another has taken it over meanwhile.

    StoreError: it says no, or cannot be asked; ValueError: a bad request.
    """
    deadline = time.monotonic() + patience_s
    store = SqliteStore(folder, shard)
    while True:
        try:
            store.open(is_new_allowed=False)
            break
        except FileNotFoundError:
            return GONE
        except StoreLockedError:
            try:
                return ask(folder, {**request, "scope": "shard"}, shard=shard, timeout_s=timeout_s)
            except StateError as error:
                # It is just ending: the next one can be asked, or nobody has the lock.
                if time.monotonic() > deadline:
                    raise StoreError(str(error)) from None
            except StoreError as error:
                _judge_refusal(error, deadline)
        time.sleep(_PAUSE_S)
    try:
        return asyncio.run(perform(StoppedSteering(store, time.time), request))
    finally:
        store.close()


def _judge_refusal(error: StoreError, deadline: float) -> None:
    """Returns when it is worth to try again: there is a lock, but no socket yet."""
    text = str(error)
    if text.startswith("bad request: "):
        raise ValueError(text.removeprefix("bad request: ")) from None
    # No socket yet, or one that is just closing: the verbs may be asked twice.
    is_absent = isinstance(error.__cause__, FileNotFoundError | ConnectionError)
    if not is_absent or time.monotonic() > deadline:
        raise error


def catch_up(folder: str) -> None:
    """What a crash left in a journal comes into its database, for those who are about to read that.

    A running server sees to it by itself, a quarter of a second later at most. StoreError says why it cannot be.
    """
    for shard in find_shards(folder):
        if os.path.exists(journal(folder, shard)):
            store = SqliteStore(folder, shard)
            with contextlib.suppress(StoreLockedError, FileNotFoundError):
                store.open(is_new_allowed=False)
                store.close()


def ask_queue(folder: str, request: dict[str, Any]) -> Any:
    """One request to the queue of a data directory: its shards, or what its server has elsewhere. Errors as in ask_shard."""
    if find_shards(folder):
        return ask_all(folder, request)
    try:
        return ask(folder, request)
    except StateError as error:
        raise StoreError(str(error)) from None
    except StoreError as error:
        _judge_refusal(error, 0.0)
        raise


def ask_all(folder: str, request: dict[str, Any]) -> Any:
    """One request to every shard of a data directory, and what they say together; blocks. Errors as in ask_shard."""
    answers: list[Any] = []
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = [ask_shard(folder, shard, request) for shard in find_shards(folder)]
        answers += [answer for answer in found if answer is not GONE]
        if GONE not in found:
            return merge(request, answers)
        if time.monotonic() > deadline:
            raise StoreError(f"the queue in {folder} cannot be asked: its files appear and disappear")
        time.sleep(_PAUSE_S)
        if request.get("verb") not in _CHANGING:
            # What was in the shard that is gone is in another now, which was asked before: all are asked again.
            answers.clear()


def merge(request: dict[str, Any], answers: list[Any]) -> Any:
    """What the shards' answers to one request mean for the whole."""
    verb = request.get("verb")
    if len(answers) == 1:
        return answers[0]
    if verb in ("show", "explain"):
        return next((answer for answer in answers if answer is not None), None)
    if verb == "list":
        limit = (request.get("query") or {}).get("limit")
        return sorted((row for rows in answers for row in rows), key=lambda row: (row["received_at"], row["uid"]))[
            :limit
        ]
    if verb == "status":
        return _merge_status(answers)
    if verb == "live":
        return _merge_live(answers)
    if verb == "count":
        return sum(answers)
    if verb in ("pause", "resume"):
        return None
    return [uid for uids in answers for uid in uids]


def _merge_status(answers: list[dict[str, Any]]) -> dict[str, Any]:
    recipients: dict[str, int] = {}
    for answer in answers:
        for state, count in answer["recipients"].items():
            recipients[state] = recipients.get(state, 0) + count
    running = [answer for answer in answers if answer["running"]]
    return {
        "running": bool(running),
        "paused": any(answer["paused"] for answer in answers),
        "paused_next_hops": sorted({hop for answer in answers for hop in answer["paused_next_hops"]}),
        "in_hand": sum(answer["in_hand"] for answer in answers),
        "recipients": recipients,
        "waiting_for": next((a["waiting_for"] for a in running or answers if a["waiting_for"]), None),
    }


def add_counts(one: Any, other: Any) -> Any:
    """Counters of two workers as one: numbers, lists of numbers, or counts by label."""
    if isinstance(one, dict):
        both = {key: add_counts(count, other[key]) for key, count in one.items() if key in other}
        return {**one, **other, **both}
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other


def _merge_live(answers: list[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {"counters": {}, "sessions": [], "lanes": []}
    lanes: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for name, count in answer.get("counters", {}).items():
            known_count = whole["counters"].get(name)
            whole["counters"][name] = count if known_count is None else add_counts(known_count, count)
        whole["sessions"] += answer.get("sessions", [])
        for lane in answer.get("lanes", []):
            known = lanes.setdefault(lane["next_hop"], {**lane, "waiting": 0, "busy": 0, "connections": 0})
            for name in ("waiting", "busy", "connections"):
                known[name] += lane[name]
            known["paused"] = bool(known.get("paused") or lane.get("paused"))
            known["state"] = max(known["state"], lane["state"], key=LANE_STATES.index)
            known["reason"] = known["reason"] or lane["reason"]
    whole["lanes"] = list(lanes.values())
    return whole


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is: of `workers` in this data directory; `is_shared` when one queue is the queue of all."""

    folder: str
    worker: int = 0
    workers: int = 1
    is_shared: bool = False


class WholeQueue:
    """A worker's view of all shards: its own through its scheduler, the others by reading their files and asking their workers.

    In a server of one process there are no others, and nothing but its own is asked.
    """

    def __init__(self, own: LiveSteering, commit: GroupCommit, place: Place) -> None:
        self._own = own
        self._commit = commit
        self._folder = place.folder
        self._shard = place.worker
        self._place = place
        self._threads = ThreadPoolExecutor(4, "pillarbox-shards")

    def close(self) -> None:
        """No more questions."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _others(self) -> list[int]:
        if self._place.workers == 1 or self._place.is_shared:
            return []
        return [shard for shard in find_shards(self._folder) if shard != self._shard]

    async def _ask(self, request: dict[str, Any]) -> Any:
        """The own answer and those of the others, together."""
        loop = asyncio.get_running_loop()
        is_look = request.get("verb") in _LOOKS
        if self._place.is_shared and request.get("verb") == "live":
            return await self._ask_workers(request)
        times = (LOOK_S, LOOK_S) if is_look else (PATIENCE_S, 30.0)
        asked = [
            loop.run_in_executor(self._threads, ask_shard, self._folder, shard, request, *times)
            for shard in self._others()
        ]
        own = await perform(self._own, request)
        found = await asyncio.gather(*asked, return_exceptions=is_look)
        silent = [answer for answer in found if isinstance(answer, BaseException)]
        for error in silent:
            if not isinstance(error, StoreError):
                raise error
        whole = merge(request, [own, *(one for one in found if one is not GONE and one not in silent)])
        return {**whole, "silent_workers": len(silent)} if is_look else whole

    async def _ask_workers(self, request: dict[str, Any]) -> Any:
        """Each knows the same queue, but has sessions and lanes of its own."""
        loop = asyncio.get_running_loop()

        def one(worker: int) -> Any:
            return ask(self._folder, {**request, "scope": "shard"}, shard=worker, timeout_s=LOOK_S)

        others = [worker for worker in range(self._place.workers) if worker != self._shard]
        asked = [loop.run_in_executor(self._threads, one, worker) for worker in others]
        own = await perform(self._own, request)
        found = await asyncio.gather(*asked, return_exceptions=True)
        silent = [answer for answer in found if isinstance(answer, BaseException)]
        whole = merge(request, [own, *(one for one in found if one not in silent)])
        return {**whole, "silent_workers": len(silent)}

    # ----------------------------------------------------------------- reading

    async def _read(self, look: Callable[[Any], T]) -> list[T]:
        """`look(reader)` on each shard; what is committed there can be read whoever owns it."""
        loop = asyncio.get_running_loop()
        asked = [loop.run_in_executor(self._threads, self._look, shard, look) for shard in self._others()]
        return [await self._commit.read(look), *await asyncio.gather(*asked)]

    def _look(self, shard: int, look: Callable[[Any], T]) -> T:
        connection = connect(database(self._folder, shard), is_read_only=True)
        try:
            return look(SqliteReader(connection, spool_folder(self._folder, shard)))
        finally:
            connection.close()

    async def search(self, query: Query) -> list[View]:
        """Messages, oldest first."""
        found: list[list[View]] = await self._read(lambda reader: reader.search(query))
        if len(found) == 1:
            return found[0]
        views = sorted((view for views in found for view in views), key=lambda view: (view.received_at, view.uid))
        return views[: query.limit]

    async def next_hops(self, limit: int = 200) -> Rows:
        """Returns what waits for whom, the most first: next_hop, recipients by state, earliest due time, and why it waits."""
        hops: dict[str, dict[str, Any]] = {}
        for rows in await self._read(lambda reader: reader.next_hops(limit)):
            for hop, state, count, due_at in rows:
                row = hops.setdefault(hop, {"next_hop": hop, "queued": 0, "deferred": 0, "held": 0, "due_at": None})
                row[state] += count
                times = [at for at in (row["due_at"], due_at) if at is not None]
                row["due_at"] = min(times) if times else None
        for hop, row in hops.items():
            is_active = bool(row["queued"] or row["deferred"])
            row["reason"] = self._own.lanes.why_waiting({hop}) if is_active else None
            # While the next hop is in back-off the next attempt is its probe.
            row["due_at"] = self._own.lanes.retry_at(hop) or row["due_at"]
        found = sorted(hops.values(), key=lambda row: (-row["queued"] - row["deferred"] - row["held"], row["next_hop"]))
        return found[:limit]

    async def content(self, uid: str) -> Content | None:
        """The content of a message that is not final."""
        found = await self._read(lambda reader: reader.content(uid))
        return next((content for content in found if content is not None), None)

    # ---------------------------------------------------------------- steering

    async def list(self, query: Query) -> Rows:
        """Oldest first."""
        rows: Rows = await self._ask({"verb": "list", "query": _fields(query)})
        return rows

    async def page(self, query: Query) -> dict[str, Any]:
        """A page of this worker's shard, or of a shared queue; `queue.pages` merges the pages of several shards."""
        page: dict[str, Any] = await self._own.page(query)
        return page

    async def count(self, query: Query) -> int:
        """The number of messages that the query selects, in every shard."""
        count: int = await self._ask({"verb": "count", "query": _fields(query)})
        return count

    async def show(self, uid: str) -> dict[str, Any] | None:
        """One message, its attempts, and why it waits."""
        found: dict[str, Any] | None = await self._ask({"verb": "show", "uid": uid})
        return found

    async def change(self, action: Action, query: Query) -> Uids:
        """The uids that were changed, in every shard."""
        request = {"verb": action.value, "query": _fields(query), "is_everything": True}
        changed: Uids = await self._ask(request)
        return changed

    async def pause(self, next_hop: str | None = None) -> None:
        """All workers: running sends finish, nothing else begins; to one next hop, or to all."""
        await self._ask({"verb": "pause", "next_hop": next_hop})

    async def resume(self, next_hop: str | None = None) -> None:
        """All workers go on."""
        await self._ask({"verb": "resume", "next_hop": next_hop})

    async def live(self) -> dict[str, Any]:
        """Counters, sessions and lanes of all workers."""
        live: dict[str, Any] = await self._ask({"verb": "live"})
        return live

    async def explain(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Why, from the worker that has the message; a dry run from this one."""
        found: dict[str, Any] | None = await self._ask({**request, "verb": "explain"})
        return found

    @property
    def own(self) -> LiveSteering:
        """This worker's part."""
        return self._own

    async def status(self) -> dict[str, Any]:
        """Counts and flags of the whole."""
        status: dict[str, Any] = await self._ask({"verb": "status"})
        return status


def _fields(query: Query) -> dict[str, Any]:
    fields = {name: getattr(query, name) for name in Query.__slots__}
    fields["uids"] = list(query.uids)
    return {name: value for name, value in fields.items() if value not in (None, [], False)}


def is_paused(folder: str) -> bool:
    """True when any shard of a data directory was paused: new workers begin so, too. What cannot be read is not."""
    return any(flag is not None for flag in _flags(folder, PAUSED))


def paused_next_hops(folder: str) -> set[str]:
    """The next hops that are paused in any shard."""
    return {hop for flag in _flags(folder, PAUSED_HOPS) for hop in parse_hops(flag)}


def _flags(folder: str, name: str) -> Iterator[str | None]:
    for shard in find_shards(folder):
        try:
            connection = connect(database(folder, shard), is_read_only=True)
            try:
                # A start that was cut off left a file without tables.
                is_made = next(iter(connection.execute("PRAGMA user_version")))[0] > 0
                if is_made:
                    yield SqliteReader(connection, folder).flag(name)
            finally:
                connection.close()
        except apsw.Error as error:
            _log.error("the queue at %s cannot be read: %s", database(folder, shard), error)
