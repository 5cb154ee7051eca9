"""Who may use the admin API: a token, or a browser that logged in by a link that works once; Host and Origin are checked.

The Host check keeps a web site away whose name was made to point here (DNS rebinding), the Origin check one that makes the
browser send requests with our cookie (CSRF). Must not know what is behind it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .logins import COOKIE, SESSION_S, BrowserSession, Logins, split_prefix
from .refusals import ENTER, refused
from .tokens import SCOPED, Right, new_token

_SAFE = ("GET", "HEAD", "OPTIONS")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/healthz", "/login", ENTER)
_OF_METRICS = ("/metrics", "/readyz", "/healthz")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-DNS-Prefetch-Control": "off",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: a token or a browser's session by its name, and what it may."""

    name: str
    right: Right
    session: BrowserSession | None = None
    has_token: bool = False


class Access:
    """Who is let in to one server.

    `hosts` are the names (host:port) by which it may be called, `proxies` the hosts of https:// URLs under which a TLS proxy
    offers it. `scoped` are the tokens that may less, by name.
    """

    def __init__(
        self,
        hosts: set[str],
        token: str | None = None,
        *,
        proxies: Iterable[str] = (),
        scoped: Mapping[str, str] | None = None,
        is_open: bool = False,
        is_wildcard: bool = False,
    ) -> None:
        self._is_wildcard = is_wildcard
        # No token is asked for; Host and Origin are looked at all the same.
        self.is_open = is_open
        self.token = token or new_token()
        self.proxies = frozenset(proxies)
        self.hosts = hosts | self.proxies
        self.logins = Logins()
        tokens = [("token", self.token, Right.FULL)]
        tokens += [(f"{name}-token", text, SCOPED[name]) for name, text in (scoped or {}).items()]
        self._tokens = [(Caller(name, right, has_token=True), text.encode()) for name, text, right in tokens]

    def login(self, request: Request) -> Response:
        """Trades a code for a session: its path, and the cookie that goes nowhere else."""
        client = request.client.host if request.client else ""
        session = self.logins.begin(request.query_params.get("code", ""), client)
        if session is None:
            return PlainTextResponse(
                "This login link was used already, or is too old: `pillarbox admin` prints a new one.\n", 403
            )
        request.state.caller = Caller(session.name, Right.FULL, session)
        response = RedirectResponse(f"{session.root}/", 303)
        response.set_cookie(
            COOKIE,
            session.secret,
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            path=f"{session.root}/",
            secure=self._is_by_https(request.headers),
        )
        return response

    def _is_by_https(self, headers: Headers) -> bool:
        """True for a request that a TLS proxy has passed on: the browser then keeps the cookie to TLS."""
        by_proxy = headers.get("x-forwarded-proto", "").lower() == "https"
        return by_proxy or _without_port(headers.get("host", "").lower(), "https") in self.proxies

    def enter(self, scope: Scope) -> Response | None:
        """Notes in the scope who calls, and takes a session's path off. Returns why the request is not let in, or None."""
        session_id, path = split_prefix(scope["path"])
        caller = self.caller(scope)
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
        if session_id and not self.is_open:
            # Also for a session that has ended: logs and refusals tell no path that lets in.
            scope["root_path"] = f"/s/{session_id}"
        return self._refusal(scope, path if session_id else scope["path"], caller)

    def caller(self, scope: Scope) -> Caller | None:
        """Who sends this request: a session under its own path, else a token; anybody where no token is asked for."""
        headers = Headers(scope=scope)
        session_id, _ = split_prefix(scope["path"])
        if session_id and not self.is_open:
            session = self.logins.find(session_id, headers.get("cookie", ""))
            return Caller(session.name, Right.FULL, session) if session is not None else None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            word = given.strip().encode()
            fits = [caller for caller, token in self._tokens if hmac.compare_digest(word, token)]
            if fits:
                return fits[0]
        return Caller("open", Right.FULL) if self.is_open else None

    def is_holder(self, scope: Scope) -> bool:
        """True for a request with a valid token or cookie; where none is asked for, for each."""
        return self.caller(scope) is not None

    def _refusal(self, scope: Scope, path: str, caller: Caller | None) -> Response | None:
        headers = Headers(scope=scope)
        if path == "/healthz":
            # Probes call by whatever name or address; it says nothing but that we live.
            return None
        has_bearer = caller is not None and caller.has_token
        host = headers.get("host", "").lower()
        # The Host check keeps DNS rebinding away: a web site that took our address does not know the token.
        if not has_bearer and not self._is_host_ours(host, scope):
            return refused(
                scope, 421, "this Host is not ours: `admin_hosts` (--admin-host) names more, or send the token"
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_origin_ours(origin.lower(), host, scope):
            return refused(scope, 403, "this Origin is not ours")
        if not has_bearer and self._is_from_elsewhere(headers, path):
            error = "a request from another web site is refused"
            return refused(
                scope, 403, error, html='Another web site has opened this address. <a href="">Open it here</a>'
            )
        if path in _OPEN:
            return None
        if caller is None:
            return refused(
                scope,
                401,
                "a token is wanted: Authorization: Bearer TOKEN; it stands in admin.json in the data directory",
                html="Run <code>pillarbox admin</code> on the server, with its <code>--data-dir</code>: "
                "it prints a link that logs this browser in.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self._beyond(scope, path, caller, has_origin=origin is not None)

    @staticmethod
    def _beyond(scope: Scope, path: str, caller: Caller, *, has_origin: bool) -> Response | None:
        """Refuses what this caller may not."""
        is_change = scope["method"] not in _SAFE
        if caller.right is Right.METRICS and (path not in _OF_METRICS or is_change):
            return refused(scope, 403, "the metrics token is for /metrics and /readyz alone")
        if caller.right is Right.READ and is_change:
            return refused(scope, 403, "the read token changes nothing: use the full token")
        if caller.session is not None and is_change and not has_origin:
            # A browser says where a request that changes something comes from; what does not say it is none of ours.
            return refused(scope, 403, "a request with the cookie wants an Origin")
        return None

    @staticmethod
    def _is_from_elsewhere(headers: Headers, path: str) -> bool:
        """True for a request that a page of another site (or port) has caused: even its timing tells what mail holds.

        A log-in link works wherever it is clicked: it does nothing without its code.
        """
        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and path != "/login"

    def _is_host_ours(self, host: str, scope: Scope) -> bool:
        """True for a name that is ours; a name that was given without a port is ours on each port.

        A container's port is mapped to another one: there `localhost` has each port. No web site can have that name.
        """
        name = re.sub(r":\d+\Z", "", host)
        return self._is_ours(host, scope) or name in self.hosts or (self._is_wildcard and name in _LOCAL_NAMES)

    def _is_origin_ours(self, origin: str, host: str, scope: Scope) -> bool:
        """True for the site that this very request was sent to, and for the URL of a TLS proxy of ours.

        Another port of this host is another site, also where the page there may call us by one of our names.
        """
        scheme, _, site = origin.partition("://")
        site = _without_port(site, scheme)
        if scheme == "https" and site in self.proxies:
            return True
        return site == _without_port(host, scheme) and self._is_host_ours(host, scope)

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """One of our names, or, on a wildcard, the very address that was called."""
        if host in self.hosts:
            return True
        server = scope.get("server")
        if not self._is_wildcard or not server:
            return False
        name, port = server
        return host == (f"[{name}]:{port}" if ":" in name else f"{name}:{port}")


def _without_port(host: str, scheme: str) -> str:
    """Takes the scheme's own port off, as a browser does in Origin."""
    return host.removesuffix(_DEFAULT_PORTS.get(scheme, " "))


class Guard:
    """The middleware in front of everything."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        refusal = self._access.enter(scope)

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
