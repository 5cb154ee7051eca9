"""Who may use the admin API: a token always; a browser by a login URL that works once; Host and Origin are checked.

The Host check keeps a web site away whose name was made to point here (DNS rebinding), the Origin check one that makes the
browser send requests with our cookie (CSRF). Must not know what is behind it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusals import refused

FILE = "admin.json"
COOKIE = "pillarbox"
LOGIN_S = 600.0
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/healthz", "/login")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-DNS-Prefetch-Control": "off",
}


class Access:
    """Tokens of one server. `hosts` are the names (host:port) by which it may be called."""

    def __init__(
        self, hosts: set[str], token: str | None = None, *, is_open: bool = False, is_wildcard: bool = False
    ) -> None:
        self._is_wildcard = is_wildcard
        # No token is asked for; Host and Origin are looked at all the same.
        self.is_open = is_open
        self.token = token or secrets.token_urlsafe(32)
        self.hosts = hosts
        self._logins: dict[str, float] = {}
        # What the browser keeps is made from the token, so that it outlives no change of it.
        self._cookie = hashlib.sha256(b"cookie " + self.token.encode()).hexdigest()

    def new_login(self) -> str:
        """A code for `/login?code=...`, good once, for ten minutes."""
        now = time.monotonic()
        self._logins = {code: until for code, until in self._logins.items() if until > now}
        code = secrets.token_urlsafe(16)
        self._logins[code] = now + LOGIN_S
        return code

    def login(self, request: Request) -> Response:
        """Trades a code for the cookie."""
        until = self._logins.pop(request.query_params.get("code", ""), 0.0)
        if until <= time.monotonic():
            return PlainTextResponse(
                "This login link was used already, or is too old: `pillarbox admin` prints a new one.\n", 403
            )
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, self._cookie, httponly=True, samesite="strict", path="/")
        return response

    def refusal(self, scope: Scope) -> Response | None:
        """Why this request is not let in, or None."""
        headers = Headers(scope=scope)
        if scope["path"] == "/healthz":
            # Probes call by whatever name or address; it says nothing but that we live.
            return None
        has_bearer = self._has_bearer(headers)
        # The Host check keeps DNS rebinding away: a web site that took our address does not know the token.
        if not has_bearer and not self._is_host_ours(headers.get("host", "").lower(), scope):
            return refused(
                scope, 421, "this Host is not ours: `admin_hosts` (--admin-host) names more, or send the token"
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_origin_ours(origin.lower().partition("://")[2], headers, scope):
            return refused(scope, 403, "this Origin is not ours")
        if not has_bearer and self._is_from_elsewhere(headers, scope):
            error = "a request from another web site is refused"
            return refused(
                scope, 403, error, html='Another web site has opened this address. <a href="">Open it here</a>'
            )
        if self.is_open or has_bearer or scope["path"] in _OPEN:
            return None
        if self._has_cookie(headers.get("cookie", "")):
            # A browser says where a request that changes something comes from; what does not say it is none of ours.
            if scope["method"] in _SAFE or origin is not None:
                return None
            return JSONResponse({"error": "a request with the cookie wants an Origin"}, 403)
        return refused(
            scope,
            401,
            "a token is wanted: Authorization: Bearer TOKEN; it stands in admin.json in the data directory",
            html="Run <code>pillarbox admin</code> on the server, with its <code>--data-dir</code>: "
            "it prints a link that logs this browser in.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def _is_from_elsewhere(headers: Headers, scope: Scope) -> bool:
        """True for a request that a page of another site (or port) has caused: even its timing tells what mail holds.

        A log-in link works wherever it is clicked: it does nothing without its code.
        """
        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and scope["path"] != "/login"

    def is_holder(self, scope: Scope) -> bool:
        """True for a request with a valid token or cookie; where none is asked for, for each."""
        headers = Headers(scope=scope)
        return self.is_open or self._has_bearer(headers) or self._has_cookie(headers.get("cookie", ""))

    def _has_bearer(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())

    def _is_host_ours(self, host: str, scope: Scope) -> bool:
        """True for a name that is ours; a name that was given without a port is ours on each port.

        A container's port is mapped to another one: there `localhost` has each port. No web site can have that name.
        """
        name = re.sub(r":\d+\Z", "", host)
        return self._is_ours(host, scope) or name in self.hosts or (self._is_wildcard and name in _LOCAL_NAMES)

    def _is_origin_ours(self, origin: str, headers: Headers, scope: Scope) -> bool:
        """True for the site that this very request was sent to, and for our names."""
        host = headers.get("host", "").lower()
        return self._is_ours(origin, scope) or (origin == host and self._is_host_ours(host, scope))

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """One of our names, or, on a wildcard, the very address that was called."""
        if host in self.hosts:
            return True
        server = scope.get("server")
        if not self._is_wildcard or not server:
            return False
        name, port = server
        return host == (f"[{name}]:{port}" if ":" in name else f"{name}:{port}")

    def _has_cookie(self, text: str) -> bool:
        # Other services on this machine may have set others, of whatever form.
        found = cookie_parser(text).get(COOKIE)
        return found is not None and hmac.compare_digest(found.encode(), self._cookie.encode())


class Guard:
    """The middleware in front of everything."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        refusal = self._access.refusal(scope)

        async def send_with_headers(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                assert isinstance(headers, list)
                there = {name.lower() for name, _ in headers}
                headers += [
                    (name.lower().encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.lower().encode() not in there
                ]
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)  # type: ignore[arg-type]


def write_file(folder: str, url: str, token: str) -> str:
    """admin.json, readable by the owner alone: where the API is, and its token."""
    path = os.path.join(folder, FILE)
    # A name that nobody can have made before.
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"url": url, "token": token}, file)
    os.replace(temporary, path)
    return path


def read_token(folder: str) -> str | None:
    """The token of before, so that a restart logs nobody out. None for a file that is not ours alone."""
    try:
        handle = os.open(os.path.join(folder, FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, encoding="utf-8") as file:
            status = os.fstat(handle)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                return None
            found = json.load(file).get("token")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and len(found) >= 32 else None
