"""The dashboard: pages made here by templates, a little JavaScript that asks the API; works without any other host."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..app import MailServer
from ..capture.inbox import Wanted
from ..queue.control import parse_query
from ..queue.model import CAPTURED
from . import reading
from .htmlview import HTML_POLICY, SANDBOX
from .rows import answering_errors

HERE = Path(__file__).parent
STATIC = HERE / "static"
# A sample of the counters every so often, for the charts: an hour of them.
SAMPLE_S = 5.0
SAMPLES = 720
PAGE_ROWS = 200
# Of a longer text the page shows this much and says so.
SHOWN_CHARACTERS = 1 << 20
_TITLES = (("/", "Overview"), ("/queue", "Queue"), ("/sessions", "Sessions"), ("/events", "Events"))


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if abs(seconds) >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _size(octets: int) -> str:
    for unit, length in (("MB", 1 << 20), ("KB", 1 << 10)):
        if octets >= length:
            return f"{octets / length:.1f} {unit}"
    return f"{octets} B"


def _moment(unix_s: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s)) if unix_s is not None else ""


class Samples:
    """The counters of the last hour."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, float]] = deque(maxlen=SAMPLES)

    def add(self, counters: dict[str, Any]) -> None:
        """One more."""
        names = ("accepted", "delivered", "deferred", "bounced", "refused", "open", "delivery_s")
        self._rows.append({"at": time.time(), **{name: counters.get(name, 0) for name in names}})

    def list(self) -> list[dict[str, float]]:
        """Oldest first."""
        return list(self._rows)


class Pages:
    """What the routes show."""

    def __init__(self, server: MailServer, samples: Samples) -> None:
        self._server = server
        self._samples = samples
        self._titles = (("/inbox", "Inbox"), *_TITLES) if server.options.capture else _TITLES
        self._templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)
        self._templates.filters |= {"age": _age, "size": _size, "moment": _moment}

    def _page(self, template: str, request: Request, *, status: int = 200, **values: Any) -> Response:
        options, root = self._server.options, request.scope.get("root_path", "")
        text = self._templates.get_template(template).render(
            hostname=options.hostname,
            version=__version__,
            titles=self._titles,
            root=root,
            path=request.url.path.removeprefix(root),
            now=time.time(),
            **values,
        )
        return HTMLResponse(text, status)

    async def overview(self, request: Request) -> Response:
        """Rates, counts, next hops."""
        queue = self._server.queue
        return self._page(
            "overview.html",
            request,
            status_=await queue.status(),
            live=await queue.live(),
            hops=await queue.next_hops(20),
            samples=self._samples.list(),
        )

    async def samples(self, request: Request) -> Response:
        """For the charts."""
        return JSONResponse(self._samples.list())

    async def queue(self, request: Request) -> Response:
        """Messages, by state, address or next hop."""
        asked = {
            name: request.query_params.get(name, "").strip() for name in ("state", "sender", "recipient", "next_hop")
        }
        given: dict[str, Any] = {name: text for name, text in asked.items() if text}
        is_all = request.query_params.get("is_all") == "1"
        rows = await self._server.queue.list(parse_query({**given, "is_all": is_all, "limit": PAGE_ROWS}))
        return self._page(
            "queue.html",
            request,
            rows=rows,
            asked=asked,
            is_all=is_all,
            most=PAGE_ROWS,
            status_=await self._server.queue.status(),
        )

    async def message(self, request: Request) -> Response:
        """One message: timeline, content."""
        uid = request.path_params["uid"]
        row = await self._server.queue.show(uid)
        if row is None:
            return self._page("missing.html", request, status=404, uid=uid)
        content = await self._server.queued_content(uid)
        parsed = None
        if content is not None:
            parsed = await reading.view(content.chunks(), content.size_bytes)
        is_inbox = row["received"].get("held_for") == CAPTURED and row["state"] == "held"
        can_release = self._can_release() or not self._server.options.capture
        shown: dict[str, Any] = {"row": row, "parsed": parsed, "is_inbox": is_inbox, "can_release": can_release}
        return self._page("message.html", request, sandbox=SANDBOX, most=SHOWN_CHARACTERS, **shown)

    async def html(self, request: Request) -> Response:
        """A message's HTML: a document of its own, for a frame, that may do nothing."""
        content = await self._server.queued_content(request.path_params["uid"])
        page = None if content is None else await reading.html(content.chunks(), content.size_bytes)
        # A browser does not show a sandboxed document that asks for an opener policy.
        headers = {"Content-Security-Policy": HTML_POLICY, "Cross-Origin-Opener-Policy": "unsafe-none"}
        return HTMLResponse(page or "", 200 if page is not None else 404, headers)

    async def inbox(self, request: Request) -> Response:
        """What was captured, newest first."""
        asked = {name: request.query_params.get(name, "").strip() for name in ("to", "from", "subject")}
        wanted = Wanted(asked["to"] or None, asked["from"] or None, asked["subject"] or None)
        rows = await self._server.inbox.views(wanted, limit=PAGE_ROWS)
        # The button deletes what the page shows.
        filters = urlencode({name: text for name, text in asked.items() if text})
        shown: dict[str, Any] = {"rows": rows, "asked": asked, "filters": filters, "can_release": self._can_release()}
        return self._page("inbox.html", request, most=PAGE_ROWS, **shown)

    def _can_release(self) -> bool:
        return bool(self._server.options.relay) or self._server.options.direct

    async def sessions(self, request: Request) -> Response:
        """Who is connected."""
        live = await self._server.queue.live()
        return self._page("sessions.html", request, sessions=live["sessions"])

    async def events(self, request: Request) -> Response:
        """What happens, live."""
        return self._page("events.html", request)


def page_routes(server: MailServer, samples: Samples) -> list[Route]:
    """The dashboard's routes."""
    pages = Pages(server, samples)
    rows: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("/", pages.overview),
        ("/samples", pages.samples),
        ("/queue", pages.queue),
        ("/message/{uid}", pages.message),
        ("/message/{uid}/html", pages.html),
        ("/sessions", pages.sessions),
        ("/events", pages.events),
    )
    if server.options.capture:
        rows = (*rows, ("/inbox", pages.inbox))
    return [Route(path, answering_errors(handle), methods=["GET"]) for path, handle in rows]
