"""One log line for each action that comes over the admin API, with its client, and for each request that is refused."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..log.kinds import ADMIN_REFUSED, OPERATOR
from .logins import split_prefix

_SAFE = ("GET", "HEAD", "OPTIONS")
# Mail that is put in has its `queued` line.
_UNLOGGED = {("POST", "/api/messages")}
_REFUSALS = {401: "bad-credentials", 403: "forbidden", 421: "wrong-host"}


class Audit:
    """The middleware around everything, the guard included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, send_and_note)
        note_request(scope, status)


def note_request(scope: Scope, status: int) -> None:
    """The line of a request that has ended with this status, if it has one."""
    # A session's path is no business of the log: who knows it is half way in.
    method, (_, path) = scope["method"], split_prefix(scope["path"])
    client = scope.get("client")
    admin = client[0] if client else None
    caller = scope.get("state", {}).get("caller")
    by = caller.name if caller is not None else None
    if status in _REFUSALS:
        ADMIN_REFUSED.write({"reason": _REFUSALS[status], "admin": admin, "by": by, "code": status, "path": path[:200]})
        return
    is_login = path == "/login"
    if status >= 400 or (method in _SAFE and not is_login) or (method, path) in _UNLOGGED:
        return
    action, uid = ("log-in", None) if is_login else _action(method, path)
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"))) if not is_login else {}
    next_hop = query.pop("next_hop", None)
    changed: Any = scope.get("state", {}).get("changed")
    has_token = caller is not None and caller.has_token
    OPERATOR.write(
        {
            "action": action,
            "via": "api" if has_token else "dashboard",
            "admin": admin,
            "by": by,
            "count": changed,
            "next_hop": next_hop,
            "queue_id": uid,
            "filter": " ".join(f"{name}={value}" for name, value in sorted(query.items()))[:300] or None,
        }
    )


def _action(method: str, path: str) -> tuple[str, str | None]:
    """The action's word, and the message that it is about: from `/api/messages/UID/hold`, `/api/queue/pause`, ..."""
    words = path.strip("/").split("/")
    if words[:2] == ["api", "logins"]:
        return ("log-out" if method == "DELETE" else "new-login-link"), None
    if words[:2] == ["api", "messages"] and len(words) >= 3:
        return (words[3] if len(words) > 3 else method.lower()), words[2][:64]
    if words[:2] == ["api", "queue"] and len(words) == 3:
        return words[2], None
    verb = "delete" if method == "DELETE" else words[-1] if len(words) > 3 else "change"
    return f"{verb}-{words[1]}" if len(words) > 1 else verb, (words[2][:64] if len(words) > 2 else None)
