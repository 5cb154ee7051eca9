"""The control socket: how `pillarbox queue` looks into a running server and steers it. Mode 0600, in the data directory.

One JSON object a line each way: {"verb": "list", ...} and {"ok": true, "value": ...} or {"ok": false, "error": "..."}.
What cannot be read gets an error and the connection is closed; the server lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

import orjson

from ..errors import DuplicateUidError, OptionError, PillarboxError, StateError, StoreError
from .audit import note_action
from .commit import GroupCommit
from .model import ACTIVE, STATES, Action, Query, View, view_as_json
from .paused import is_next_hop
from .scheduler import Scheduler
from .shards import control_socket

_log = logging.getLogger("pillarbox.control")
MAX_REQUEST_BYTES = 1 << 20
# Connections at once, and seconds for a request and for each piece of content.
MAX_CLIENTS = 64
SILENT_S = 60.0
_PIECE_BYTES = 1 << 18
Enqueue = Callable[[dict[str, Any]], Awaitable[str]]
Rows = list[dict[str, Any]]
Uids = list[str]
_QUERY_FIELDS = {
    "uids": list,
    "state": str,
    "sender": str,
    "recipient": str,
    "next_hop": str,
    "received_before": (int, float),
    "is_all": bool,
    "limit": int,
    "after": list,
    "most_recipients": int,
    "is_newest_first": bool,
}
# A page of the list: about 700 KB of JSON, built and encoded in some 20 ms.
PAGE_ROWS = 500
PAGE_RECIPIENTS = 2000


class Steering(Protocol):
    """What can be asked of a queue, running or not. Values are fit for JSON."""

    async def list(self, query: Query) -> Rows: ...

    async def page(self, query: Query) -> dict[str, Any]: ...

    async def count(self, query: Query) -> int: ...

    async def show(self, uid: str) -> dict[str, Any] | None: ...

    async def change(self, action: Action, query: Query) -> Uids: ...

    async def pause(self, next_hop: str | None = None) -> None: ...

    async def resume(self, next_hop: str | None = None) -> None: ...

    async def status(self) -> dict[str, Any]: ...

    async def live(self) -> dict[str, Any]: ...

    async def explain(self, request: dict[str, Any]) -> dict[str, Any] | None: ...


def parse_query(fields: dict[str, Any]) -> Query:
    """A Query from JSON. ValueError names the field that is unknown or of the wrong type."""
    for name, value in fields.items():
        kind = _QUERY_FIELDS.get(name)
        if kind is None:
            raise ValueError(f"unknown filter {name!r}: there are {', '.join(_QUERY_FIELDS)}")
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):  # type: ignore[arg-type]
            raise ValueError(f"filter {name!r} has a value of the wrong type")
    given = {name: value for name, value in fields.items() if value is not None}
    if "after" in given:
        given["after"] = _position(given["after"])
    query = Query(**given)
    if query.state is not None and query.state not in STATES:
        raise ValueError(f"unknown state {query.state!r}: there are {', '.join(STATES)}")
    for name in ("limit", "most_recipients"):
        if (bound := getattr(query, name)) is not None and not 0 <= bound < 1 << 31:
            raise ValueError(f"invalid filter {name!r} {bound!r}: expected a number from 0 up")
    if query.received_before is not None and not abs(query.received_before) < 1e12:
        raise ValueError("filter 'received_before' is a unix time")
    if not all(isinstance(uid, str) for uid in query.uids):
        raise ValueError("filter 'uids' is a list of queue ids")
    return query


def _position(value: list[Any]) -> tuple[float, int]:
    """The field `after` of a query, as a page gives it."""
    match value:
        case [int() | float() as received_at, int() as key] if abs(received_at) < 1e12 and abs(key) < 1 << 63:
            return float(received_at), key
    raise ValueError(f"invalid filter 'after' {value!r}: expected [unix time, number] from the previous page")


def make_page(
    views: Sequence[View], query: Query, as_json: Callable[[View], dict[str, Any]] = view_as_json
) -> dict[str, Any]:
    """Returns {"rows": [...], "after": position}; `after` is None behind the last page."""
    recipients = sum(len(view.recipients) for view in views)
    is_full = len(views) == query.limit or (query.most_recipients is not None and recipients >= query.most_recipients)
    return {
        "rows": [as_json(view) for view in views],
        "after": list(views[-1].position) if views and is_full else None,
    }


def make_query(fields: dict[str, Any]) -> Query:
    """A Query from a program's keywords. OptionError names the one that is wrong."""
    try:
        return parse_query(fields)
    except ValueError as error:
        raise OptionError(f"mail_queue: {error}") from None


async def perform(steering: Steering, request: Any) -> Any:
    """One request's value. ValueError for what makes no sense."""
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        raise ValueError("a request is an object with a verb")
    verb = request["verb"]
    if verb == "show":
        if not isinstance(request.get("uid"), str):
            raise ValueError("show wants a uid")
        return await steering.show(request["uid"])
    if verb in ("pause", "resume"):
        next_hop = request.get("next_hop")
        if next_hop is not None:
            _check_next_hop(verb, next_hop)
        return await (steering.pause(next_hop) if verb == "pause" else steering.resume(next_hop))
    if verb == "status":
        return await steering.status()
    if verb == "live":
        return await steering.live()
    if verb == "explain":
        return await steering.explain(request)
    fields = request.get("query", {})
    if not isinstance(fields, dict):
        raise ValueError("query is an object")
    query = parse_query(fields)
    if verb == "list":
        return await steering.list(query)
    if verb == "page":
        query.limit = PAGE_ROWS if query.limit is None else min(query.limit, PAGE_ROWS)
        query.most_recipients = PAGE_RECIPIENTS
        return await steering.page(query)
    if verb == "count":
        return await steering.count(query)
    if verb in {action.value for action in Action}:
        if not request.get("is_everything") and not query.is_narrow:
            raise ValueError(f"{verb}: name messages by a filter, or say is_everything")
        return await steering.change(Action(verb), query)
    raise ValueError(f"unknown verb {verb!r}")


def _check_next_hop(verb: str, next_hop: Any) -> None:
    """ValueError for a key that pauses nothing. `resume` takes every text, so that an old flag can be removed."""
    if isinstance(next_hop, str) and next_hop and (verb == "resume" or is_next_hop(next_hop)):
        return
    hint = f", for example mx:{next_hop}" if isinstance(next_hop, str) and next_hop else ""
    raise ValueError(
        f"{verb}: invalid next hop {next_hop!r}: expected mx:DOMAIN, relay:HOST:PORT or handler:PATTERN{hint}"
    )


# ---------------------------------------------------------------------- a running queue


class Reasons(Protocol):
    """When and why mail waits for its next hop; see queue.work.Deliverer."""

    def why_waiting(self, next_hops: Collection[str] | None = None) -> str | None:
        """Why mail for these next hops is not sent now."""

    def retry_at(self, next_hop: str) -> float | None:
        """Unix time of the next probe."""

    def next_try(self, next_hop: str, due_at: float | None, last_stage: str | None = None) -> float | None:
        """Unix time of the next attempt."""


class LiveSteering:
    """Through the scheduler and the group commit of this process."""

    def __init__(
        self,
        scheduler: Scheduler,
        commit: GroupCommit,
        lanes: Reasons,
        live: Callable[[], dict[str, Any]] = dict,
        explain: Callable[[dict[str, Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self._explain = explain
        self._scheduler = scheduler
        self._commit = commit
        self.lanes = lanes
        self._live = live

    async def list(self, query: Query) -> Rows:
        """Oldest first."""
        return await self._commit.read(lambda reader: [self._row(view) for view in reader.search(query)])

    def _row(self, view: View) -> dict[str, Any]:
        """The message as JSON. `due_at` is when a recipient is tried next, as far as its next hop's state says."""
        row = view_as_json(view)
        for r in row["recipients"]:
            if r["state"] in ACTIVE and not r["in_flight"]:
                r["due_at"] = self.lanes.next_try(r["next_hop"] or "", r["due_at"], r["last_stage"])
        return row

    async def page(self, query: Query) -> dict[str, Any]:
        """A bounded part of the list, and where the next one begins."""
        return await self._commit.read(lambda reader: make_page(reader.search(query), query, self._row))

    async def count(self, query: Query) -> int:
        """The number of messages that the query selects."""
        return await self._commit.read(lambda reader: int(reader.count(query)))

    async def show(self, uid: str) -> dict[str, Any] | None:
        """One message, its attempts, and why it waits."""
        found = await self._commit.read(lambda reader: reader.get(uid))
        if found is None:
            return None
        hops = {r.next_hop or "" for r in found.recipients if r.state in ACTIVE}
        return self._row(found) | {"waiting_for": self._waits_for(found.state, hops)}

    def _waits_for(self, state: str, next_hops: set[str]) -> str | None:
        if state not in ("queued", "deferred"):
            return "somebody to release it: pillarbox queue release" if state == "held" else None
        if self._scheduler.is_paused:
            return "the queue is paused: pillarbox queue resume"
        return self.lanes.why_waiting(next_hops) or ("its next attempt" if state == "deferred" else "a free connection")

    async def change(self, action: Action, query: Query) -> Uids:
        """The uids that were changed."""
        return await self._scheduler.change(action, query)

    async def pause(self, next_hop: str | None = None) -> None:
        """Running sends finish, nothing else begins; to one next hop, or to all."""
        if next_hop is not None:
            await self._scheduler.pause_next_hop(next_hop, is_paused=True)
        else:
            await self._scheduler.pause()

    async def resume(self, next_hop: str | None = None) -> None:
        """Goes on."""
        if next_hop is not None:
            await self._scheduler.pause_next_hop(next_hop, is_paused=False)
        else:
            await self._scheduler.resume()

    async def status(self) -> dict[str, Any]:
        """Counts and flags."""
        counts = await self._commit.read(lambda reader: reader.counts())
        return {
            "running": True,
            "paused": self._scheduler.is_paused,
            "paused_next_hops": self._scheduler.paused_next_hops,
            "in_hand": self._scheduler.in_hand,
            "recipients": counts,
            "waiting_for": self.lanes.why_waiting(),
            "nodes": await self._commit.read(lambda reader: reader.nodes()),
            "database": await self._commit.read(lambda reader: reader.health()),
        }

    async def live(self) -> dict[str, Any]:
        """What goes on in this process now: counters, sessions, lanes."""
        return self._live()

    async def explain(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Why, see pillarbox.explain."""
        return None if self._explain is None else await self._explain(request)


class ControlServer:
    """The socket of a running server, or of one of its workers (`shard`).

    `own` steers the queue of this process, `whole` those of all workers; a request for one says "scope": "shard".
    """

    def __init__(
        self,
        folder: str,
        own: Steering,
        *,
        whole: Steering | None = None,
        shard: int = 0,
        enqueue: Enqueue | None = None,
        max_content_bytes: int = 64 << 20,
    ) -> None:
        # Further requests by verb, of whoever runs the server: `reload` and `restart` of the daemon.
        self.verbs: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {}
        self._enqueue = enqueue
        self._max_content_bytes = max_content_bytes
        self._name = control_socket(shard)
        self.path = os.path.join(folder, self._name)
        self._folder = folder
        self._own = own
        self._whole = whole or own
        self._server: asyncio.AbstractServer | None = None
        # Oldest first; a client that waits for an answer is not in `_silent`.
        self._clients: dict[asyncio.StreamWriter, None] = {}
        self._silent: dict[asyncio.StreamWriter, None] = {}

    async def start(self) -> None:
        """Binds. The caller owns the folder's lock, so a socket that is there is left over."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            with _short_path(self._folder, self._name) as path:
                sock.bind(path)
        except OSError as error:
            sock.close()
            raise StoreError(f"cannot make the control socket {self.path}: {error.strerror or error}") from error
        finally:
            os.umask(mask)
        sock.setblocking(False)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_REQUEST_BYTES)

    async def stop(self) -> None:
        """Closes and removes it."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._clients):
                writer.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients[writer] = None
        if len(self._clients) > MAX_CLIENTS:
            # A client of ours asks at once: the oldest that is silent gives way.
            for oldest in list(self._silent)[:1] or [writer]:
                oldest.transport.abort()
                self._clients.pop(oldest, None)
                self._silent.pop(oldest, None)
        try:
            while line := await self._next_request(reader, writer):
                answer = await self._answer(line, reader, writer.get_extra_info("socket"))
                # orjson encodes a page of the list in 1 ms; json would hold the event loop for 20 ms.
                writer.write(orjson.dumps(answer) + b"\n")
                await writer.drain()
        except (ValueError, OSError, EOFError):
            # A line over the limit, or a client that left: nothing of ours is touched.
            pass
        finally:
            self._clients.pop(writer, None)
            writer.close()

    async def _next_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Returns a line. TimeoutError (an OSError) for a client that is silent, or sends half a request."""
        self._silent[writer] = None
        try:
            async with asyncio.timeout(SILENT_S):
                return await reader.readline()
        finally:
            self._silent.pop(writer, None)

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, sock: Any) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if isinstance(request, dict) and request.get("verb") == "enqueue":
                return {"ok": True, "value": await self._take_mail(request, reader)}
            verb = self.verbs.get(str(request.get("verb"))) if isinstance(request, dict) else None
            if verb is not None:
                done = await verb()
                if not done.get("is_logged"):
                    note_action(sock, request, done)
                return {"ok": True, "value": done}
            is_own = isinstance(request, dict) and request.get("scope") == "shard"
            value = await perform(self._own if is_own else self._whole, request)
            note_action(sock, request, value)
            return {"ok": True, "value": value}
        except EOFError:
            # What follows would be read as a request: the connection ends.
            raise
        except StateError as error:
            return {"ok": False, "error": str(error), "kind": "stopping"}
        except OptionError as error:
            return {"ok": False, "error": str(error), "kind": "option"}
        except (ValueError, RecursionError) as error:
            return {"ok": False, "error": f"bad request: {error}"}
        except DuplicateUidError as error:
            return {"ok": False, "error": str(error), "kind": "duplicate"}
        except PillarboxError as error:
            return {"ok": False, "error": str(error)}
        except Exception:
            _log.exception("a request on the control socket failed")
            return {"ok": False, "error": "internal fault: see the server's log"}

    async def _take_mail(self, request: dict[str, Any], reader: asyncio.StreamReader) -> Any:
        """Mail of a program: `size_bytes` octets of content follow the line."""
        size, item = request.get("size_bytes"), request.get("item")
        if self._enqueue is None or not isinstance(item, dict) or not isinstance(size, int) or size < 0:
            raise EOFError("enqueue wants an item and size_bytes")
        if size > self._max_content_bytes:
            # It is read to its end, so that the sender hears why.
            while size > 0:
                size -= len(await _next_piece(reader, size))
            raise OptionError(f"enqueue: key 'content': larger than max_size_bytes, which is {self._max_content_bytes}")
        with tempfile.SpooledTemporaryFile(_PIECE_BYTES) as file:
            while size > 0:
                piece = await _next_piece(reader, size)
                size -= len(piece)
                file.write(piece)
            file.seek(0)
            return await self._enqueue({**item, "content": file})


async def _next_piece(reader: asyncio.StreamReader, size: int) -> bytes:
    try:
        async with asyncio.timeout(SILENT_S):
            return await reader.readexactly(min(size, _PIECE_BYTES))
    except TimeoutError:
        # What follows would be read as a request: the connection ends.
        raise EOFError("the content does not come") from None


@contextlib.contextmanager
def _short_path(folder: str, name: str) -> Iterator[str]:
    """A path of the socket that fits into sun_path (108 octets), however deep the folder is."""
    path = os.path.join(folder, name)
    if len(os.fsencode(path)) < 100 or not os.path.isdir("/proc/self/fd"):
        yield path
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{name}"
    finally:
        os.close(handle)


# --------------------------------------------------------------------------- the CLI's side


def ask(
    folder: str, request: dict[str, Any], *, content: Iterable[bytes] = (), shard: int = 0, timeout_s: float = 30.0
) -> Any:
    """One request to the server (or its worker `shard`) on this folder. StoreError when it cannot be asked or says no.

    `content` follows the request, as `enqueue` wants it. What was wrong with that is an OptionError or DuplicateUidError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            with _short_path(folder, control_socket(shard)) as path:
                sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            for piece in content:
                sock.sendall(piece)
            with sock.makefile("rb") as file:
                line = file.readline()
        except OSError as error:
            raise StoreError(
                f"a server runs on {folder} but its control socket does not answer: {error.strerror or error}"
            ) from error
    if not line:
        raise StoreError(
            f"the server on {folder} closed the control socket without an answer"
        ) from ConnectionResetError()
    answer = json.loads(line)
    if not answer.get("ok"):
        if answer.get("kind") == "option":
            raise OptionError(str(answer.get("error")))
        if answer.get("kind") == "stopping":
            raise StateError(str(answer.get("error")))
        if answer.get("kind") == "duplicate":
            raise DuplicateUidError(str(answer.get("error")))
        raise StoreError(str(answer.get("error")))
    return answer.get("value")
