"""The capture inbox by HTTP: list, wait, read, delete, release; and the faults that its clients meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..app import MailServer
from ..capture import Captured, Faults
from ..capture.inbox import Wanted
from ..errors import OptionError
from ..queue.model import View
from . import reading
from .rows import Row

LONGEST_WAIT_S = 60.0
MOST_ROWS = 1000
_FILTERS = {
    "to": "a part of a recipient's address",
    "from": "a part of the reverse-path",
    "subject": "a part of the subject",
}

ROWS = (
    Row(
        "GET", "/api/inbox", "inbox", "Messages in the inbox, newest first",
        "[message]", {**_FILTERS, "limit": f"at most so many, {MOST_ROWS} at most"},
    ),
    Row(
        "GET", "/api/inbox/wait", "inbox_wait", "The first message that is like that, there already or yet to come; 404 when "
        "none has come by then", "message", {**_FILTERS, "timeout": f"seconds, {LONGEST_WAIT_S:g} at most; 10 by default"},
    ),
    Row("GET", "/api/inbox/{uid}", "inbox_get", "One message: envelope, headers, text, HTML, attachments", "message", {}),
    Row(
        "DELETE", "/api/inbox", "inbox_clear", "Deletes the messages that match; without one all of them", "{deleted: [uid]}",
        {**_FILTERS, "everything": "1: every message, as without a filter"},
    ),
    Row("DELETE", "/api/inbox/{uid}", "inbox_delete", "Takes one message out", "{deleted: [uid]}", {}),
    Row("POST", "/api/inbox/{uid}/release", "inbox_release", "Sends it on its way, through the relay", "{released}", {}),
    Row("GET", "/api/faults", "faults", "Faults that clients meet", "[fault]", {}),
    Row(
        "PUT", "/api/faults", "set_faults", "These faults and no others: a JSON list of lines such as "
        "\"defer at=rcpt to=*@slow.test rate=0.2\"", "[fault]", {},
    ),
)  # fmt: skip


def envelope_json(message: Captured | View) -> dict[str, Any]:
    """A message of the inbox, without its content."""
    return {
        "uid": message.uid,
        "from": message.reverse_path or "",
        "to": [one if isinstance(one, str) else one.address for one in message.recipients],
        "subject": message.subject,
        "size_bytes": message.size_bytes,
        "received_at": message.received_at,
        "received": message.facts,
    }


class InboxApi:
    """The handlers of the rows, by name."""

    def __init__(self, server: MailServer) -> None:
        self._server = server

    def _faults(self) -> Faults:
        found = self._server.plugin_get("faults")
        if not isinstance(found, Faults):
            raise OptionError("this server has no faults on purpose: `pillarbox dev` has")
        return found

    async def inbox(self, request: Request) -> Response:
        """The list."""
        params = request.query_params
        text = params.get("limit", str(MOST_ROWS))
        if not (text.isascii() and text.isdigit()):
            raise ValueError("limit is a number")
        views = await self._server.inbox.views(_wanted(request), limit=min(int(text), MOST_ROWS))
        return JSONResponse([envelope_json(view) for view in views])

    async def inbox_wait(self, request: Request) -> Response:
        """The first one."""
        try:
            timeout = float(request.query_params.get("timeout", "10"))
        except ValueError:
            timeout = -1.0
        if not 0 <= timeout <= LONGEST_WAIT_S:
            raise ValueError(f"timeout is a number of seconds, {LONGEST_WAIT_S:g} at most")
        wanted = _wanted(request)
        try:
            found = await self._server.inbox.wait_for(
                to=wanted.to, sender=wanted.sender, subject=wanted.subject, timeout=timeout
            )
        except TimeoutError as error:
            return JSONResponse({"error": str(error)}, 404)
        return JSONResponse(envelope_json(found) | await reading.view([found.octets], len(found.octets)))

    async def inbox_get(self, request: Request) -> Response:
        """One."""
        found = await self._server.inbox.get(request.path_params["uid"])
        if found is None:
            return _unknown(request)
        return JSONResponse(envelope_json(found) | await reading.view([found.octets], len(found.octets)))

    async def inbox_clear(self, request: Request) -> Response:
        """Those that match."""
        wanted = _wanted(request, ("everything",))
        if any(not text for text in request.query_params.values()):
            raise ValueError("delete: a filter is empty: it would mean every message")
        if request.query_params.get("everything", "1") != "1":
            raise ValueError("delete: invalid everything: expected 1, or no filter at all for every message")
        return JSONResponse({"deleted": await self._server.inbox.delete(wanted=wanted)})

    async def inbox_delete(self, request: Request) -> Response:
        """One."""
        deleted = await self._server.inbox.delete([request.path_params["uid"]])
        return JSONResponse({"deleted": deleted}) if deleted else _unknown(request)

    async def inbox_release(self, request: Request) -> Response:
        """On its way."""
        if not self._server.options.relay and not self._server.options.direct:
            raise ValueError("there is no relay to release it to: start with --relay HOST:PORT")
        if not await self._server.inbox.release(request.path_params["uid"]):
            return _unknown(request)
        return JSONResponse({"released": request.path_params["uid"]})

    async def faults(self, request: Request) -> Response:
        """As lines."""
        return JSONResponse([str(fault) for fault in self._faults().list])

    async def set_faults(self, request: Request) -> Response:
        """All or none."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > 1 << 16:
                return JSONResponse({"error": "larger than 64 KB"}, 413)
        lines = json.loads(bytes(body))
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError("the body is a list of lines")
        made = Faults(lines)
        self._faults().list[:] = made.list
        return await self.faults(request)


def _wanted(request: Request, others: Sequence[str] = ("limit", "timeout")) -> Wanted:
    params = request.query_params
    for name in params:
        if name not in _FILTERS and name not in others:
            raise ValueError(f"unknown filter {name!r}: there are {', '.join(_FILTERS)}")
    return Wanted(params.get("to") or None, params.get("from") or None, params.get("subject") or None)


def _unknown(request: Request) -> Response:
    return JSONResponse({"error": f"no message {request.path_params['uid']} in the inbox"}, 404)
