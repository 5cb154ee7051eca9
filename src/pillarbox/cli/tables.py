"""Tables for people: the queue's list and one message. Text of peers is escaped before it reaches the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..log.record import escape_controls

_STYLES = {"deferred": "yellow", "held": "magenta", "bounced": "red", "expired": "red", "delivered": "green"}
_WIDE = 200


def _console() -> Console:
    """As wide as the terminal; wide where there is none, so that a pipe gets whole lines."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def _safe(text: object) -> str:
    return escape(escape_controls(str(text)))


def _state(name: str) -> str:
    style = _STYLES.get(name)
    return f"[{style}]{name}[/{style}]" if style else _safe(name)


def age(seconds: float) -> str:
    """12s, 5m, 3h, 2d."""
    seconds = max(0.0, seconds)
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{int(seconds / size)}{unit}"
    return f"{int(seconds / 86400)}d"


def size(octets: int) -> str:
    """512 B, 4.0 KB, 1.2 MB."""
    if octets < 1024:
        return f"{octets} B"
    return f"{octets / 1024:.1f} KB" if octets < 1 << 20 else f"{octets / (1 << 20):.1f} MB"


def _when(at: float | None, now: float) -> str:
    if at is None:
        return "-"
    return f"in {age(at - now)}" if at > now + 1 else "now"


_COLUMNS = ("UID", "STATE", "AGE", "SIZE", "FROM", "TO", "NEXT", "LAST REPLY")
# The last column of a line in a pipe: a reply has up to 1,000 characters.
_REPLY_CHARACTERS = 200


def print_list(rows: Iterable[dict[str, Any]], status: dict[str, Any]) -> int:
    """Prints one line per message and returns how many: a table on a terminal, padded text in a pipe as the rows arrive."""
    now = time.time()
    if sys.stdout.isatty():
        return _print_table([_row(row, status, now) for row in rows])
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        uid, state, *cells, reply = _row(row, status, now)
        print(
            f"{uid:16} {state:9} {cells[0]:>4} {cells[1]:>8} {cells[2]} {cells[3]} {cells[4]:9} {reply[:_REPLY_CHARACTERS]}"
        )
    return count


def _print_table(rows: list[tuple[str, ...]]) -> int:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        # FROM, TO and LAST REPLY share what the narrow columns leave, each on one line.
        is_wide = name in ("FROM", "TO", "LAST REPLY")
        ratio = {"FROM": 3, "TO": 3, "LAST REPLY": 5}.get(name)
        table.add_column(name, no_wrap=True, overflow="ellipsis" if is_wide else "fold", ratio=ratio)
    for uid, state, *cells in rows:
        table.add_row(escape(uid), _state(state), *map(escape, cells))
    if rows:
        table.expand = True
        _console().print(table)
    return len(rows)


def print_notes(shown: int, total: int, status: dict[str, Any], instead: str | None) -> None:
    """Prints the total and what holds the queue up; to stderr where stdout is a pipe, which gets messages alone."""
    console = Console(highlight=False, stderr=not sys.stdout.isatty(), soft_wrap=True)
    if instead is not None:
        console.print(escape(escape_controls(instead)))
    elif shown == total:
        console.print(f"{total:,} message{'' if total == 1 else 's'}")
    else:
        console.print(f"{shown:,} of {total:,} messages; --limit shows more")
    if status.get("paused"):
        console.print("[yellow]The queue is paused: `pillarbox queue resume` goes on.[/yellow]")
    elif total and status.get("waiting_for"):
        reasons = str(status["waiting_for"])
        more = " ... (`pillarbox top` shows all)" if len(reasons) > _REPLY_CHARACTERS else ""
        console.print(f"[yellow]Waiting: {_safe(reasons[:_REPLY_CHARACTERS])}{more}[/yellow]")


def _row(row: dict[str, Any], status: dict[str, Any], now: float) -> tuple[str, ...]:
    """The cells of one message, as text of one line each, without markup."""
    recipients = row["recipients"]
    # A message is in the state that says most; the recipients in that state say why.
    those = [r for r in recipients if r["state"] == row["state"]] or recipients
    to = escape_controls(those[0]["address"]) if those else ""
    if len(recipients) > 1:
        to += f" (+{len(recipients) - 1})"
    reply = next((r["last_reply"] for r in those if r["last_reply"]), None)
    if reply and len(those) < len(recipients):
        reply = f"({len(those)} of {len(recipients)}) {reply}"
    return (
        escape_controls(row["uid"]),
        escape_controls(row["state"]),
        age(now - row["received_at"]),
        size(row["size_bytes"]).replace(" ", ""),
        escape_controls(row["reverse_path"] if row["reverse_path"] is not None else "<>"),
        to,
        _next(recipients, status, now),
        escape_controls(reply or "-"),
    )


def _next(recipients: list[dict[str, Any]], status: dict[str, Any], now: float) -> str:
    """When the next recipient is tried: "sending", "paused", "in 5m", "now" or "-"."""
    if any(r["in_flight"] for r in recipients):
        return "sending"
    waiting = [r for r in recipients if r["due_at"] is not None]
    paused = set(status.get("paused_next_hops") or ())
    free = [r for r in waiting if r["next_hop"] not in paused]
    if waiting and (status.get("paused") or not free):
        return "paused"
    return _when(min((r["due_at"] for r in free), default=None), now)


def print_message(row: dict[str, Any]) -> None:
    """Everything about one message."""
    console, now = _console(), time.time()
    facts = ", ".join(f"{key} {value}" for key, value in row["received"].items())
    head = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("uid", _safe(row["uid"])),
        ("state", _state(row["state"])),
        ("from", _safe(row["reverse_path"] if row["reverse_path"] is not None else "<>")),
        ("subject", _safe(row["subject"] or "-")),
        ("size", size(row["size_bytes"])),
        ("received", f"{_stamp(row['received_at'])} ({age(now - row['received_at'])} ago) {_safe(facts)}"),
        ("given up", "-" if row["finished_at"] else _stamp(row["expires_at"])),
        ("waiting for", _safe(row.get("waiting_for") or "-")),
    ):
        head.add_row(f"[bold]{name}[/bold]", value)
    console.print(head)
    table = Table(box=None, pad_edge=False, header_style="bold", title="Recipients", title_justify="left")
    for name in ("ADDRESS", "STATE", "ATTEMPTS", "NEXT", "NEXT HOP", "LAST REPLY"):
        table.add_column(name, overflow="fold")
    for r in row["recipients"]:
        next_ = "sending" if r["in_flight"] else _when(r["due_at"], now)
        cells = (_safe(r["address"]), _state(r["state"]), str(r["attempts"]), next_, _safe(r["next_hop"] or "-"))
        table.add_row(*cells, _safe(r["last_reply"] or "-"))
    console.print(table)
    if row["attempts"]:
        table = Table(box=None, pad_edge=False, header_style="bold", title="Attempts", title_justify="left")
        for name in ("AT", "SECONDS", "RECIPIENT", "OUTCOME", "REMOTE", "STAGE", "REPLY"):
            table.add_column(name, overflow="fold")
        for a in row["attempts"]:
            tried = (_stamp(a["at"]), f"{a['seconds']:.3f}", _safe(a["recipient"]), _state(a["outcome"]))
            table.add_row(*tried, _safe(a["remote"] or "-"), _safe(a["stage"] or "-"), _safe(a["reply"] or "-"))
        console.print(table)


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


_VERDICTS = {
    "passes": "green", "delivers": "green", "delivered": "green", "sending": "green", "refuses": "red", "bounces": "red",
    "defers": "yellow", "holds": "magenta", "waits": "yellow",
}  # fmt: skip


def print_explained(found: dict[str, Any]) -> None:
    """What `pillarbox explain` found: the reason first, then every step."""
    console = _console()
    style = _VERDICTS.get(found["verdict"], "white")
    console.print(f"[bold {style}]{found['verdict']}[/bold {style}]  {_safe(found['reason'])}", soft_wrap=True)
    if found.get("reply"):
        console.print(f"[bold]reply[/bold]  {_safe(found['reply'])}", soft_wrap=True)
    for one in found.get("recipients", [found]):
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        if "address" in one:
            table.title = f"{_safe(one['address'])} ({one['state']})"
        for name in ("RULE", "VERDICT", "WHAT"):
            table.add_column(name, overflow="fold", no_wrap=name != "WHAT")
        for step in one["steps"]:
            colour = _VERDICTS.get(step["verdict"], "dim")
            table.add_row(step["rule"], f"[{colour}]{step['verdict']}[/{colour}]", _safe(step["text"]))
        console.print(table)


_COLOURS = {"send_success": "green", "send_failed": "yellow", "message_queued": "cyan", "plugin_error": "red"}


def print_event(event: dict[str, Any]) -> None:
    """Prints one line: time, name, fields. What failed for good is red, what is tried again yellow."""
    name = str(event.get("event"))
    what = "  ".join(
        f"[dim]{_safe(key)}[/dim] {_safe(_field(key, value))}"
        for key, value in event.items()
        if key != "event" and value not in (None, "", [], {}, False)
    )
    colour = "red" if event.get("is_permanent") else _COLOURS.get(name, "bold")
    _console().print(f"{time.strftime('%H:%M:%S')} [{colour}]{_safe(name):16}[/{colour}] {what}", soft_wrap=True)


def _field(key: str, value: Any) -> str:
    """A field for people: lists with commas, the null reverse-path as <>, unix times as time of day, True as yes."""
    if isinstance(value, list):
        return ", ".join(_field(key, one) for one in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={_field(name, one)}" for name, one in value.items() if one not in (None, "", []))
    if value is True:
        return "yes"
    if isinstance(value, float):
        return time.strftime("%H:%M:%S", time.localtime(value)) if value > 1e9 else f"{value:.3g}"
    return str(value)


def print_rows(columns: list[str], rows: Any) -> None:
    """What a question in SQL has brought."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(_safe(name), overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else _safe(value) for value in row))
    _console().print(table if columns else "no rows")
