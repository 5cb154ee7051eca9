"""`pillarbox admin`: a link to the dashboard of the running server. `pillarbox events`: what happens there, as it happens."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from ..errors import OptionError, StoreError
from . import api
from .place import server_folder
from .terminal import json_text, say

DataDir = Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder of its queue.")]


def admin(
    data_dir: DataDir = None,
    sessions: Annotated[bool, typer.Option("--sessions", help="List the browsers that are logged in.")] = False,
    log_out: Annotated[bool, typer.Option("--log-out", help="Log all browsers out.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="NAME",
            help="Print a token: metrics (for /metrics and /readyz), read (changes nothing), full.",
        ),
    ] = None,
) -> None:
    """Print a link that logs a browser into the dashboard, once, within ten minutes."""
    if (token is not None) + sessions + log_out > 1:
        raise OptionError("--token, --sessions, --log-out: expected one of them")
    if token is not None:
        _print_token(token, data_dir)
        return
    place = api.find(data_dir)
    if sessions:
        rows = _answer(api.ask(*place, "GET", "/api/logins"))
        for row in rows:
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["began_at"]))
            say(f"{row['session']} from {row['client']} since {began}, for {row['ends_in_s'] / 3600:.1f} h more")
        if not rows:
            say("no browser is logged in")
    elif log_out:
        ended = _answer(api.ask(*place, "DELETE", "/api/logins"))["ended"]
        say(f"{len(ended)} browser{'' if len(ended) == 1 else 's'} logged out")
    else:
        answer = _answer(api.ask(*place, "POST", "/api/logins"))
        for url in (answer["url"], *answer["proxy_urls"]):
            say(url)


def _answer(answer: Any) -> Any:
    try:
        return json.load(answer)
    except (OSError, ValueError) as error:
        raise StoreError(f"the server does not answer: {error}") from None


def _print_token(name: str, data_dir: str | None) -> None:
    """The token; those that may less are made if the server has not made them yet."""
    if name == "full":
        say(api.find(data_dir)[1])
        return
    from ..admin.tokens import SCOPED, scoped_tokens

    if name not in SCOPED:
        raise OptionError(f"--token: invalid name {name!r}: expected metrics, read or full")
    say(scoped_tokens(server_folder(data_dir))[name])


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
    # All of them: a filter is what the names and the text are for.
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
