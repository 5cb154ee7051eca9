"""`pillarbox admin`: a link to the dashboard of the running server. `pillarbox events`: what happens there, as it happens."""

from __future__ import annotations

import json
import sys
from typing import Annotated
from urllib.parse import urlencode

import typer

from ..errors import StoreError
from . import api
from .terminal import json_text, say

DataDir = Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder of its queue.")]


def admin(data_dir: DataDir = None) -> None:
    """Print a link that logs a browser into the dashboard, once, within ten minutes."""
    answer = api.ask(*api.find(data_dir), "POST", "/api/logins")
    try:
        say(json.load(answer)["url"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"the server does not answer: {error}") from None


def events(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EVENT]...", help="Which; all for every one. [default: mail and sessions]"),
    ] = None,
    text: Annotated[str, typer.Option("--text", metavar="TEXT", help="Only those that have this text somewhere.")] = "",
    count: Annotated[int | None, typer.Option("--count", metavar="N", help="End after so many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show what happens in the running server, as it happens, until Ctrl-C."""
    if count is not None and count <= 0:
        return
    # All of them: who wants fewer names them, or a text.
    asked = {"names": ",".join(names or ()), "text": text, "rate": "0"}
    url, token = api.find(data_dir)
    show = _as_json if as_json or not sys.stdout.isatty() else _for_people
    try:
        for number, event in enumerate(api.events(url, token, f"/api/events?{urlencode(asked)}"), 1):
            show(event)
            if number == count:
                return
    except KeyboardInterrupt:
        return
    raise StoreError("the server has ended")


def _as_json(event: dict[str, object]) -> None:
    sys.stdout.write(json_text(event, is_indented=False) + "\n")
    sys.stdout.flush()


def _for_people(event: dict[str, object]) -> None:
    from .tables import print_event

    print_event(event)
