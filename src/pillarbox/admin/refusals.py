"""Answers that refuse a request or report a fault: a page for a browser that opens an address, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope

from .logins import split_prefix

# The script of the page that asks for a log-in: it leads a bookmark to the session that this browser has.
ENTER = "/static/enter.js"
_FOR_PROGRAMS = ("/api/", "/metrics", "/readyz", "/healthz", "/samples", "/static/")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; frame-ancestors 'none'; base-uri 'none'"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Pillarbox</title>{script}
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto 0; padding: 0 1.2rem; overflow-wrap: anywhere }}
h1 {{ font-size: 1.4rem }}
</style></head>
<body><main><h1>{title}</h1><p>{text}</p></main></body></html>
"""
_TITLES = {400: "Invalid request", 401: "Log in", 403: "Refused", 421: "Unknown host name", 503: "Not available now"}


def refused(
    scope: Scope, status: int, error: str, *, html: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """Returns the answer for this request; `html` is what a page says in place of `error`."""
    accepted = Headers(scope=scope).get("accept", "")
    _, path = split_prefix(scope["path"])
    if "text/html" not in accepted or path.startswith(_FOR_PROGRAMS):
        return JSONResponse({"error": error}, status, headers)
    title = _TITLES.get(status, "Error")
    text = html or escape(error)
    script = f'\n<script src="{ENTER}" defer></script>' if status == 401 else ""
    page = _PAGE.format(title=title, text=text, script=script)
    return HTMLResponse(page, status, {**(headers or {}), "Content-Security-Policy": _POLICY})
