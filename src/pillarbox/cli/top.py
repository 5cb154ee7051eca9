"""`pillarbox top`: rates, next hops and sessions of the running server, live in the terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..errors import StoreError
from ..log.record import escape_controls
from ..queue.shards import has_queue
from ..queue.whole import ask_queue
from .place import server_folder
from .tables import age, size

WAITING = ("queued", "deferred", "held")
_RATES = ("accepted", "delivered", "deferred", "bounced", "refused", "sessions", "commits")
_STYLES = {"down": "red", "probing": "yellow", "busy": "green"}


def top(
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="How often it looks.")] = 1.0,
    count: Annotated[int | None, typer.Option("--count", metavar="N", help="End after so many looks.")] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder of its queue.")] = None,
) -> None:
    """Watch the running server: rates, the queue, next hops, sessions; Ctrl-C ends it."""
    folder = server_folder(data_dir)
    console = Console(highlight=False)
    before: tuple[float, dict[str, Any]] | None = None
    seen = 0
    try:
        with Live(console=console, screen=console.is_terminal and count is None, auto_refresh=False) as live:
            while True:
                status, now = _look(folder), time.monotonic()
                counters = status["live"]["counters"]
                live.update(
                    _page(status, _rates(before, now, counters), folder, console.width, console.height), refresh=True
                )
                before = (now, counters)
                seen += 1
                if seen == count:
                    return
                time.sleep(max(0.1, interval))
    except KeyboardInterrupt:
        sys.exit(0)


def _look(folder: str) -> dict[str, Any]:
    if not os.path.isdir(folder) or not has_queue(folder):
        raise StoreError(f"there is no queue in {folder}: start `pillarbox serve`, or name its folder with --data-dir")
    status: dict[str, Any] = ask_queue(folder, {"verb": "status"})
    if not status["running"]:
        raise StoreError(f"no server runs on {folder}: start `pillarbox serve`, or name its folder with --data-dir")
    live = ask_queue(folder, {"verb": "live"})
    if "counters" not in live:
        raise StoreError(f"the server on {folder} has ended")
    return {**status, "live": live}


def _rates(before: tuple[float, dict[str, Any]] | None, now: float, counters: dict[str, Any]) -> dict[str, float]:
    if before is None:
        return {}
    seconds = max(now - before[0], 0.001)
    return {name: max(0, counters.get(name, 0) - before[1].get(name, 0)) / seconds for name in _RATES}


def _page(status: dict[str, Any], rates: dict[str, float], folder: str, width: int, height: int) -> Group:
    live = status["live"]
    counters = live["counters"]
    head = Text.assemble(
        ("pillarbox", "bold"),
        f"  {folder}  ",
        ("paused  ", "yellow") if status["paused"] else "",
        f"{counters.get('open', 0)} sessions  {status['in_hand']} messages in delivery",
    )
    flow = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *_RATES):
        flow.add_column(name, justify="right" if name else "left")
    flow.add_row("a second", *(f"{rates[name]:.1f}" if rates else "-" for name in _RATES))
    flow.add_row("since start", *(str(counters.get(name, 0)) for name in _RATES))
    counts = status["recipients"]
    states = "  ".join(f"{state} {counts[state]:,}" for state in WAITING if counts.get(state)) or "empty"
    # What is final stays for a while as history: it is not in the queue.
    ended = sum(count for state, count in counts.items() if state not in WAITING)
    room = max(5, (height - 14) // 2)
    return Group(
        head,
        "",
        flow,
        "",
        Text(f"queue (recipients): {states}    history: {ended:,} finished"),
        "",
        _lanes(live, room, width),
        "",
        _sessions(live, room, width),
    )


def _lanes(live: dict[str, Any], room: int, width: int) -> Table:
    """The numbers always show: the reason gives way first, then the middle of a long name."""
    table = Table(box=None, pad_edge=False, header_style="bold", width=width)
    for name in ("NEXT HOP", "STATE", "WAITING", "SENDING", "CONN"):
        table.add_column(name, justify="left" if name in ("NEXT HOP", "STATE") else "right", no_wrap=True)
    table.add_column("WHY IT WAITS", ratio=1, no_wrap=True, overflow="ellipsis")
    # The other columns take 36 characters; a reason of 20 is still of use.
    most = max(20, min(50, width - 36 - 20))
    lanes = sorted(live["lanes"], key=lambda lane: -(lane["waiting"] + lane["busy"] + lane["connections"]))
    for lane in lanes[:room]:
        state = Text("paused" if lane.get("paused") else lane["state"], _STYLES.get(lane["state"], ""))
        numbers = (str(lane[name]) for name in ("waiting", "busy", "connections"))
        table.add_row(_plain(_middle(lane["next_hop"] or "none", most)), state, *numbers, _plain(lane["reason"] or ""))
    if len(lanes) > room:
        table.add_row(Text(f"and {len(lanes) - room} more", "dim"))
    return table


def _middle(text: object, most: int) -> str:
    """Shortens text in its middle, where names of next hops differ least."""
    shown = escape_controls(str(text))
    if len(shown) <= most:
        return shown
    return f"{shown[: (most - 1) // 2]}…{shown[-(most // 2) :]}"


def _sessions(live: dict[str, Any], room: int, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    most = max(12, (width - 60) // 2)
    for name in ("SESSION", "PEER", "HELO", "USER", "STATE", "AGE", "CONTENT"):
        table.add_column(name, no_wrap=True)
    sessions = live["sessions"]
    for one in sessions[:room]:
        table.add_row(
            _plain(one["session"]),
            _plain(one["peer"]),
            _plain(_middle(one["helo"], most)),
            _plain(_middle(one["user"] or "", most)),
            str(one["state"]),
            age(float(one["seconds"])),
            size(int(one["content_bytes"])),
        )
    if len(sessions) > room:
        table.add_row(Text(f"and {len(sessions) - room} more", "dim"))
    return table


def _plain(text: object) -> Text:
    return Text(escape_controls(str(text)))
