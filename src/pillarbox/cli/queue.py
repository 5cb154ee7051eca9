"""`pillarbox queue`: list, show, hold, release, retry, cancel, pause, resume; on a running server and a stopped one.

A running server owns the queue's lock and is asked through its control socket; without one, the store is opened here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from ..errors import OptionError, StoreError
from ..queue.paused import is_next_hop
from . import mailbox, sql
from .ordered import Ordered
from .place import DataDir, QueueUrl, ask, list_rows
from .tables import print_list, print_message, print_notes
from .terminal import json_text, say

queue_app = typer.Typer(
    cls=Ordered, rich_markup_mode=None, no_args_is_help=True, help="Look into the queue and steer it."
)

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Uids = Annotated[list[str] | None, typer.Argument(metavar="[UID]...", help="Queue ids.")]
State = Annotated[
    str | None, typer.Option("--state", help="queued, deferred, held, delivered, bounced, expired, cancelled.")
]
Sender = Annotated[
    str | None, typer.Option("--from", metavar="TEXT", help="Part of the reverse-path; <> for the null one.")
]
To = Annotated[str | None, typer.Option("--to", metavar="TEXT", help="Part of a recipient's address.")]
NextHop = Annotated[str | None, typer.Option("--next-hop", metavar="KEY", help="Next hop, as `show` names it.")]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", metavar="TIME", help="Received before: 90s, 15m, 2h, 3d.")
]
Everything = Annotated[bool, typer.Option("--all", help="Every message that is not final.")]

queue_app.command("export")(mailbox.export)
queue_app.command("import")(mailbox.import_)
queue_app.command("sql")(sql.sql)

_TERMINAL_ROWS = 100
_MOST_REASONS = 20
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        raise OptionError(f"--older-than {text!r}: give a number with s, m, h or d, such as 15m") from None


def _query(
    uids: list[str] | None,
    state: str | None,
    sender: str | None,
    to: str | None,
    next_hop: str | None,
    older_than: str | None,
) -> dict[str, Any]:
    if "" in (state, sender, to, next_hop, older_than) or "" in (uids or ()):
        raise OptionError("a filter is empty: it would mean every message; say --all for that")
    query: dict[str, Any] = {
        "uids": uids or None,
        "state": state,
        "sender": sender,
        "recipient": to,
        "next_hop": next_hop,
        "received_before": time.time() - _seconds(older_than) if older_than else None,
    }
    return {name: value for name, value in query.items() if value is not None}


@queue_app.command("list")
def list_(
    uids: Uids = None,
    state: State = None,
    sender: Sender = None,
    to: To = None,
    next_hop: NextHop = None,
    older_than: OlderThan = None,
    everything: Annotated[bool, typer.Option("--all", help="Finished messages, too.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="At most N messages, oldest first. [default: 100 on a terminal]"),
    ] = None,
    data_dir: DataDir = None,
    queue: QueueUrl = None,
    as_json: Json = False,
) -> None:
    """List messages, oldest first; only those that are not final, unless --all.

    A pipe or a file gets one line per message, without a header; notes go to stderr. --json prints an array, one message
    per line.
    """
    query = _query(uids, state, sender, to, next_hop, older_than)
    if everything:
        query["is_all"] = True
    if limit is None and sys.stdout.isatty() and not as_json:
        limit = _TERMINAL_ROWS
    rows = list_rows(data_dir, queue, query if limit is None else {**query, "limit": limit})
    if as_json:
        _print_array(rows)
        return
    status = ask(data_dir, queue, {"verb": "status"})
    shown = print_list(rows, status)
    total = shown
    if shown == limit or not shown:
        total = ask(data_dir, queue, {"verb": "count", "query": query})
    elsewhere = None if total else _what_else(data_dir, queue, query)
    print_notes(shown, total, status, elsewhere)


def _print_array(rows: Iterable[dict[str, Any]]) -> None:
    """Prints a JSON array as its rows arrive."""
    before = "["
    for row in rows:
        print(before, json_text(row, is_indented=False), sep="\n", end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def _what_else(data_dir: str | None, queue: str | None, query: dict[str, Any]) -> str:
    """What to say where a list is empty: the queue is, or the filter matches no message."""

    def count(fields: dict[str, Any]) -> int:
        return int(ask(data_dir, queue, {"verb": "count", "query": fields}))

    waiting = count({})
    if not query.keys() - {"is_all"}:
        finished = 0 if query else count({"is_all": True})
        ended = f" {_messages(finished)} finished: --all shows them." if finished else ""
        return f"The queue is empty.{ended}"
    hint = ""
    if (hop := query.get("next_hop")) and not is_next_hop(hop):
        hint = f" A next hop is named with its kind, for example mx:{hop}."
    elif not query.get("is_all") and count({**query, "is_all": True}):
        hint = " Finished messages match: --all shows them."
    return f"No message matches. {_messages(waiting)} in the queue.{hint}"


def _messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


@queue_app.command()
def show(
    uid: Annotated[str, typer.Argument(help="Queue id.")],
    with_content: Annotated[
        bool, typer.Option("--content", help="Print the message itself, as it is in the queue.")
    ] = False,
    data_dir: DataDir = None,
    queue: QueueUrl = None,
    as_json: Json = False,
) -> None:
    """Show one message: recipients, attempts, last replies, and why it still waits."""
    if with_content:
        if as_json:
            raise OptionError("--content and --json are both given: expected one of them")
        mailbox.print_content(uid, data_dir, queue)
        return
    found = ask(data_dir, queue, {"verb": "show", "uid": uid})
    if found is None:
        raise StoreError(f"no message {uid}: `pillarbox queue list --all` shows what there is")
    if as_json:
        print(json_text(found))
    else:
        print_message(found)


def _steer(
    verb: str,
    done: str,
    place: tuple[str | None, str | None],
    query: dict[str, Any],
    *,
    everything: bool,
    as_json: bool,
) -> None:
    if not query and not everything:
        raise OptionError(f"queue {verb}: name messages by UID or by a filter, or say --all")
    changed = ask(*place, {"verb": verb, "query": query, "is_everything": everything})
    if as_json:
        print(json_text(changed, is_indented=False))
    else:
        print(f"{len(changed)} message{'' if len(changed) == 1 else 's'} {done}")
    missing = [uid for uid in query.get("uids", ()) if uid not in changed]
    if missing:
        raise StoreError("\n".join(f"not {done}: {_why_not(place, uid)}" for uid in missing[:_MOST_REASONS]))
    if not changed and not everything:
        raise StoreError(f"not {done}: no message matches the filter in a state that allows it; see `queue list`")


def _why_not(place: tuple[str | None, str | None], uid: str) -> str:
    row = ask(*place, {"verb": "show", "uid": uid})
    if row is None:
        return f"{uid}: no such message"
    if row["state"] == "held":
        return f"{uid} is held: `pillarbox queue release {uid}` comes first"
    return f"{uid} is {row['state']}"


def _steering_command(verb: str, done: str, help_text: str) -> None:
    """Adds one of the commands that differ only in their verb."""

    def command(
        uids: Uids = None,
        state: State = None,
        sender: Sender = None,
        to: To = None,
        next_hop: NextHop = None,
        older_than: OlderThan = None,
        everything: Everything = False,
        data_dir: DataDir = None,
        queue: QueueUrl = None,
        as_json: Json = False,
    ) -> None:
        query = _query(uids, state, sender, to, next_hop, older_than)
        _steer(verb, done, (data_dir, queue), query, everything=everything, as_json=as_json)

    queue_app.command(verb, help=help_text)(command)


for _verb, _done, _help in (
    ("hold", "held", "Keep messages from being sent, until `release`."),
    ("release", "released", "Let held messages go on, at once."),
    ("cancel", "cancelled", "Take messages out of the queue for good: no delivery, no DSN."),
):
    _steering_command(_verb, _done, _help)


@queue_app.command()
def retry(
    uids: Uids = None,
    state: State = None,
    sender: Sender = None,
    to: To = None,
    next_hop: NextHop = None,
    older_than: OlderThan = None,
    everything: Everything = False,
    reroute: Annotated[
        bool,
        typer.Option(
            "--reroute",
            help="Route by the present options, as if the mail had just come: also mail that waits for a handler.",
        ),
    ] = False,
    data_dir: DataDir = None,
    queue: QueueUrl = None,
    as_json: Json = False,
) -> None:
    """Try messages now, whatever their next attempt was; forgets the next hop's back-off, too."""
    query = _query(uids, state, sender, to, next_hop, older_than)
    _steer(
        "reroute" if reroute else "retry", "due now", (data_dir, queue), query, everything=everything, as_json=as_json
    )


OneHop = Annotated[
    str | None,
    typer.Option("--next-hop", metavar="KEY", help="That next hop alone, as `queue show` names it: mx:example.org."),
]


@queue_app.command()
def pause(next_hop: OneHop = None, data_dir: DataDir = None, queue: QueueUrl = None) -> None:
    """Stop sending: what runs finishes; mail is accepted and kept, also over a restart, until `resume`."""
    _pause("pause", next_hop, data_dir, queue)
    say(f"{next_hop or 'the queue'} is paused")


@queue_app.command()
def resume(next_hop: OneHop = None, data_dir: DataDir = None, queue: QueueUrl = None) -> None:
    """Send again; next hops that were paused by name are resumed by name."""
    _pause("resume", next_hop, data_dir, queue)
    say(f"{next_hop or 'the queue'} is resumed")


def _pause(verb: str, next_hop: str | None, data_dir: str | None, queue: str | None) -> None:
    if next_hop == "":
        raise OptionError("--next-hop is empty: give a key such as mx:example.org, or leave it out for the whole queue")
    ask(data_dir, queue, {"verb": verb, "next_hop": next_hop})
