"""The REST API: a table of routes, each with its method, path, summary and parameters; OpenAPI is made from the same rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from .. import __version__
from ..app import MailServer
from ..config.secrets import mark_of, shown_value
from ..errors import DuplicateUidError, PillarboxError
from ..mail.content import Content
from ..options import Options
from ..queue.control import parse_query
from ..queue.model import Action, Query
from . import metrics, reading, stream
from .access import Access
from .facts import read_facts
from .logins import COOKIE
from .parsed import MOST_PARSED_BYTES
from .rows import Row, openapi

MOST_ROWS = 1000
# Objects of the program.
_NOT_SHOWN = ("authenticator", "resolver", "plugins", "handlers")
_FILTERS = {
    "state": "queued, deferred, held, delivered, bounced, expired or cancelled",
    "sender": "a part of the reverse-path; <> for the null one",
    "recipient": "a part of a recipient's address",
    "next_hop": "the next hop, as a message shows it",
    "received_before": "unix seconds",
}


ROWS = (
    Row("GET", "/healthz", "healthz", "The process answers", "ok", {}),
    Row("GET", "/readyz", "readyz", "It listens, and the queue can be read; 503 otherwise", "{ready, why}", {}),
    Row("GET", "/metrics", "metrics", "Prometheus text format", "text", {}),
    Row("GET", "/api/status", "status", "Counts, flags, counters since the start", "{recipients, paused, counters}", {}),
    Row("GET", "/api/sessions", "sessions", "Sessions that are open now", "[session]", {}),
    Row("GET", "/api/lanes", "lanes", "Next hops with their state", "[lane]", {}),
    Row(
        "GET", "/api/next-hops", "next_hops", "What waits for whom, the most first",
        "[{next_hop, queued, deferred, held, due_at, reason}]", {},
    ),
    Row("GET", "/api/options", "options", "Options in force; secrets are left out", "{option: value}", {}),
    Row(
        "GET", "/api/messages", "messages", "Messages, oldest first",
        "[message]", {**_FILTERS, "is_all": "1: finished ones, too", "limit": f"at most so many, {MOST_ROWS} at most"},
    ),
    Row(
        "POST", "/api/messages", "inject", "Puts mail into the queue: JSON {reverse_path, recipients, content} or, as "
        "message/rfc822, the message itself with ?from= and ?to=; header Idempotency-Key: the same key is queued once",
        "{uid}", {"from": "reverse-path of a raw message", "to": "its recipients; repeat for more"},
    ),
    Row(
        "GET", "/api/explain", "explain", "Why mail would be taken, refused or wait; or why a queued message waits",
        "{verdict, reason, reply, steps}",
        {"recipient": "whom to", "sender": "reverse-path", "peer": "client's IP address", "user": "login", "uid": "or a message"},
    ),
    Row("GET", "/api/messages/{uid}", "message", "One message: recipients, attempts, why it waits", "message", {}),
    Row("GET", "/api/messages/{uid}/content", "content", "Its content, as it is sent", "message/rfc822", {}),
    Row("GET", "/api/messages/{uid}/parsed", "parsed", "Its headers, texts and attachments", "{headers, text, html}", {}),
    Row(
        "GET", "/api/messages/{uid}/attachments/{number}", "attachment", "One attachment, by its number in `parsed`",
        "application/octet-stream", {},
    ),
    Row(
        "POST", "/api/messages/{uid}/{action}", "act", "hold, release, retry, reroute or cancel one message",
        "{changed: [uid]}", {},
    ),
    Row(
        "POST", "/api/queue/{action}", "queue_act",
        "pause or resume sending, to one next_hop or to all; hold, release, retry, reroute, cancel by filter (everything=1: all)",
        "{changed: [uid]}", {**_FILTERS, "everything": "1: every message that is not final"},
    ),
    Row(
        "GET", "/api/events", "events", "What happens, as server-sent events",
        "text/event-stream", {
            "names": "events with commas, or all", "text": "only those that have this text",
            "rate": f"at most so many a second, 0 for no bound; {stream.RATE} by default",
        },
    ),
    Row(
        "POST", "/api/logins", "new_login", "A link that logs a browser in, once, within ten minutes; the same by way of each "
        "TLS proxy in admin_hosts", "{url, proxy_urls}", {},
    ),
    Row(
        "GET", "/api/logins", "logins", "Browsers that are logged in", "[{session, client, began_at, ends_in_s}]", {},
    ),
    Row(
        "DELETE", "/api/logins", "log_out_all", "Logs all browsers out; links that were not used yet are void",
        "{ended: [session]}", {},
    ),
    Row(
        "DELETE", "/api/logins/{session}", "log_out", "Logs one browser out: its session, or `this` for the caller's own",
        "{ended: [session]}", {},
    ),
    Row("GET", "/api/openapi.json", "openapi", "This table as OpenAPI 3.1", "OpenAPI", {}),
)  # fmt: skip


class Api:
    """The handlers of the rows, by name."""

    def __init__(self, server: MailServer, access: Access, login_url: Callable[[], str], rows: Sequence[Row]) -> None:
        self._server = server
        self._access = access
        self._logins = access.logins
        self._rows = rows
        self._login_url = login_url

    async def new_login(self, request: Request) -> Response:
        """For `pillarbox admin`."""
        url = self._login_url()
        # The same link by way of each TLS proxy; it works once, wherever it is opened.
        path = "/".join(url.split("/")[3:])
        proxies = [f"https://{name}/{path}" for name in sorted(self._access.proxies)]
        return JSONResponse({"url": url, "proxy_urls": proxies}, 201)

    async def logins(self, request: Request) -> Response:
        """Browser sessions."""
        return JSONResponse(self._logins.rows())

    async def log_out_all(self, request: Request) -> Response:
        """All of them."""
        return JSONResponse({"ended": self._logins.end()})

    async def log_out(self, request: Request) -> Response:
        """One."""
        name = request.path_params["session"]
        own = request.state.caller.session
        if name == "this":
            name = own.name if own is not None else ""
        ended = self._logins.end(name) if name else []
        if not ended:
            return JSONResponse({"error": f"no session {name!r}: `pillarbox admin --sessions` lists them"}, 404)
        response = JSONResponse({"ended": ended})
        if own is not None and own.name == name:
            response.delete_cookie(COOKIE, path=f"{own.root}/", httponly=True, samesite="strict")
        return response

    # ------------------------------------------------------------------ health

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """It listens, and the queue answers."""
        try:
            names = self._server.getsocknames()
            silent = (await self._server.queue.status())["silent_workers"]
        except (PillarboxError, OSError) as error:
            return JSONResponse({"ready": False, "why": str(error)}, 503)
        why = None if names else "no listener is open"
        if silent:
            why = f"{silent} worker{'s do' if silent > 1 else ' does'} not answer"
        return JSONResponse({"ready": why is None, "why": why}, 200 if why is None else 503)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        body, kind = metrics.render(await read_facts(self._server))
        return Response(body, media_type=None, headers={"content-type": kind})

    # ----------------------------------------------------------------- looking

    async def status(self, request: Request) -> Response:
        """Counts and flags."""
        queue = self._server.queue
        live, status = await queue.live(), await queue.status()
        listeners = [f"{host}:{port}" if port else host for host, port in self._server.getsocknames()]
        return JSONResponse({**status, "counters": live["counters"], "listeners": listeners, "version": __version__})

    async def sessions(self, request: Request) -> Response:
        """Who is here."""
        return JSONResponse((await self._server.queue.live())["sessions"])

    async def lanes(self, request: Request) -> Response:
        """Where mail goes."""
        return JSONResponse((await self._server.queue.live())["lanes"])

    async def next_hops(self, request: Request) -> Response:
        """The queue by next hop."""
        return JSONResponse(await self._server.queue.next_hops())

    async def options(self, request: Request) -> Response:
        """What is in force."""
        options: Options = self._server.options
        fields = type(options).model_fields
        secret = {name for name, field in fields.items() if mark_of(field) == "whole"}
        found = options.model_dump(exclude={*_NOT_SHOWN, *secret}, mode="json")
        return JSONResponse({name: shown_value(fields[name], value) for name, value in found.items()})

    async def messages(self, request: Request) -> Response:
        """The queue."""
        query = _query(request)
        query.limit = min(query.limit if query.limit is not None else 100, MOST_ROWS)
        return JSONResponse(await self._server.queue.list(query))

    async def explain(self, request: Request) -> Response:
        """Why."""
        params = request.query_params
        for name in params:
            if name not in ("recipient", "sender", "peer", "user", "uid"):
                raise ValueError(f"unknown parameter {name!r}: there are recipient, sender, peer, user, uid")
        found = await self._server.explain(
            params.get("recipient"),
            uid=params.get("uid"),
            sender=params.get("sender"),
            peer=params.get("peer"),
            user=params.get("user"),
        )
        return JSONResponse(found) if found is not None else JSONResponse({"error": f"no message {params['uid']}"}, 404)

    async def message(self, request: Request) -> Response:
        """One message."""
        found = await self._server.queue.show(request.path_params["uid"])
        return JSONResponse(found) if found is not None else _unknown(request)

    async def content(self, request: Request) -> Response:
        """What is sent."""
        found = await self._server.queued_content(request.path_params["uid"])
        if found is None:
            return _unknown(request)
        # Never shown by a browser as a page of ours.
        headers = {"content-disposition": "attachment; filename=message.eml", "content-length": str(found.size_bytes)}
        return StreamingResponse(found.chunks(), media_type="message/rfc822", headers=headers)

    async def parsed(self, request: Request) -> Response:
        """What a reader sees."""
        found = await self._server.queued_content(request.path_params["uid"])
        if found is None:
            return _unknown(request)
        if reading.is_too_large(found.size_bytes):
            return _too_large(found)
        return JSONResponse(await reading.view(found.chunks(), found.size_bytes))

    async def attachment(self, request: Request) -> Response:
        """One file of it."""
        found = await self._server.queued_content(request.path_params["uid"])
        number = request.path_params["number"]
        if found is None or not (number.isascii() and number.isdigit()):
            return _unknown(request)
        if reading.is_too_large(found.size_bytes):
            return _too_large(found)
        part = await reading.part(found.chunks(), found.size_bytes, int(number[:6]))
        if part is None:
            return JSONResponse({"error": f"message {request.path_params['uid']} has no attachment {number}"}, 404)
        if isinstance(part, bool):
            return JSONResponse({"error": "the message took too long to read, or too much memory: fetch /content"}, 422)
        # Never shown by a browser as a page of ours.
        headers = {
            "content-disposition": content_disposition(part.name),
            "content-length": str(part.size_bytes),
            "content-security-policy": "default-src 'none'; sandbox",
        }
        return StreamingResponse(part.chunks(), media_type="application/octet-stream", headers=headers)

    async def events(self, request: Request) -> Response:
        """What happens."""
        names = stream.wanted_events(request.query_params.get("names", ""))
        rate = request.query_params.get("rate", str(stream.RATE))
        if not (rate.isascii() and rate.isdigit() and len(rate) < 10):
            raise ValueError("rate is a number of events a second, 0 for no bound")
        session = request.state.caller.session
        octets = stream.stream(
            self._server,
            names,
            request.query_params.get("text", ""),
            int(rate),
            # A stream ends with the log-in that opened it.
            is_over=lambda: session is not None and not self._logins.is_alive(session),
        )
        return StreamingResponse(octets, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def openapi(self, request: Request) -> Response:
        """The table."""
        return JSONResponse(openapi(self._rows))

    # ---------------------------------------------------------------- steering

    async def act(self, request: Request) -> Response:
        """One message."""
        action, uid = request.path_params["action"], request.path_params["uid"]
        changed = await self._server.queue.change(_action(action), Query(uids=[uid]))
        request.state.changed = len(changed)
        if changed:
            return JSONResponse({"changed": changed})
        if await self._server.queue.show(uid) is None:
            return _unknown(request)
        return JSONResponse({"error": f"{action}: {uid} is final, or not in a state for it"}, 409)

    async def queue_act(self, request: Request) -> Response:
        """Many."""
        action = request.path_params["action"]
        if action in ("pause", "resume"):
            hop = request.query_params.get("next_hop")
            if hop == "" or set(request.query_params) - {"next_hop"}:
                raise ValueError(f"{action}: the one filter is next_hop, the key of a next hop; without it, all")
            await (self._server.pause_queue(hop) if action == "pause" else self._server.resume_queue(hop))
            return JSONResponse({"paused": action == "pause", "next_hop": hop})
        query = _query(request, "everything")
        if not query.is_narrow and request.query_params.get("everything") != "1":
            raise ValueError(f"{action}: name messages by a filter, or say everything=1")
        changed = await self._server.queue.change(_action(action), query)
        request.state.changed = len(changed)
        return JSONResponse({"changed": changed})

    async def inject(self, request: Request) -> Response:
        """Mail by HTTP."""
        limit = self._server.options.max_size_bytes
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > 2 * limit:
                return JSONResponse({"error": f"larger than {limit} octets"}, 413)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "message/rfc822":
            item: Any = {
                "reverse_path": request.query_params.get("from", ""),
                "recipients": request.query_params.getlist("to"),
                "content": bytes(body),
            }
        else:
            item = json.loads(bytes(body))
            if not isinstance(item, dict):
                raise ValueError("the body is an object with reverse_path, recipients and content")
        key, own = request.headers.get("idempotency-key"), request.headers.get("x-uid")
        if key is not None:
            item["uid"] = _uid_of(key)
        elif own is not None:
            item["uid"] = own
        if "x-hold" in request.headers:
            item["hold"] = unquote(request.headers["x-hold"])
        try:
            uid = await self._server.enqueue(_judged(item, self._server.options))
        except DuplicateUidError:
            if key is None:
                raise
            return JSONResponse({"uid": item["uid"], "queued": "before"})
        return JSONResponse({"uid": uid}, 201)


def _judged(item: dict[str, Any], options: Options) -> dict[str, Any]:
    """By the bounds that mail over SMTP has."""
    recipients = item.get("recipients", item.get("rcpt"))
    if isinstance(recipients, list) and len(recipients) > options.max_recipients:
        raise ValueError(f"{len(recipients)} recipients: {options.max_recipients} are allowed (max_recipients)")
    content = item.get("content", item.get("msg"))
    size = len(content.encode("utf-8", "replace")) if isinstance(content, str) else len(content or b"")
    if size > options.max_size_bytes:
        raise ValueError(f"key 'content': larger than max_size_bytes, which is {options.max_size_bytes}")
    return item


def _uid_of(key: str) -> str:
    if not 1 <= len(key) <= 64 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in key):
        raise ValueError("Idempotency-Key: 1 to 64 letters, digits, - and _")
    # A uid has 64 characters at most.
    return f"k-{key}" if len(key) <= 62 else f"k-{hashlib.sha256(key.encode()).hexdigest()[:62]}"


def _action(name: str) -> Action:
    try:
        return Action(name)
    except ValueError:
        raise ValueError(f"there is no action {name!r}: there are {', '.join(a.value for a in Action)}") from None


def _query(request: Request, *others: str) -> Query:
    fields: dict[str, Any] = {}
    for name, text in request.query_params.items():
        if name in others:
            continue
        if name == "limit":
            fields[name] = int(text) if text.isascii() and text.isdigit() else text
        elif name == "received_before":
            fields[name] = float(text)
        elif name == "is_all":
            fields[name] = text == "1"
        elif not text:
            raise ValueError(f"the filter {name!r} is empty: it would mean every message")
        else:
            fields[name] = text
    return parse_query(fields)


def _too_large(content: Content) -> Response:
    text = f"the message has {content.size_bytes} octets: up to {MOST_PARSED_BYTES} it is taken apart; fetch /content"
    return JSONResponse({"error": text}, 413)


def content_disposition(name: str) -> str:
    """The header for a download by that name (RFC 6266): ASCII for old programs, then the name as it is."""
    # Only the last part of a path; controls and marks that turn the direction of a text are no part of a name.
    name = re.split(r"[/\\]", name)[-1].strip() or name
    name = re.sub("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "_", name)[-200:]
    plain = re.sub(r"[^A-Za-z0-9._ ()+,=@~-]", "_", name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'


def _unknown(request: Request) -> Response:
    return JSONResponse(
        {"error": f"no message {request.path_params['uid']}, or it is final and its content is gone"}, 404
    )
