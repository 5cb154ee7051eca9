"""`pillarbox queue sql`: questions in SQL to the queue as a whole, read-only."""

from __future__ import annotations

import csv
import sys
from typing import Annotated, Any

import typer

from ..errors import OptionError
from ..log.record import escape_controls
from ..queue.look import ask_sql
from ..queue.shared import ask_shared_sql
from ..queue.whole import catch_up
from .place import DataDir, QueueUrl, check_url, server_folder
from .terminal import json_text


def sql(
    question: Annotated[
        str,
        typer.Argument(
            metavar="SELECT",
            help="From queue_messages, queue_recipients, queue_attempts, queue_next_hops; - for stdin.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One array of objects on stdout.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout, with a line of names.")] = False,
    data_dir: DataDir = None,
    queue: QueueUrl = None,
) -> None:
    """Ask the queue in SQL, all of its parts as one, while it runs or not; nothing is changed."""
    if as_json and as_csv:
        raise OptionError("--json and --csv are both given: one of them")
    text = sys.stdin.read() if question == "-" else question
    check_url(queue)
    if queue is not None and data_dir is None:
        columns, rows = ask_shared_sql(queue, text)
    else:
        folder = server_folder(data_dir)
        catch_up(folder)
        columns, rows = ask_sql(folder, text)
    if as_json:
        print(json_text([dict(zip(columns, map(_plain, row), strict=True)) for row in rows]))
    elif as_csv:
        out = csv.writer(sys.stdout)
        out.writerow(map(_safe, columns))
        out.writerows(map(_safe, row) for row in rows)
    else:
        from .tables import print_rows

        print_rows(columns, rows)


def _safe(value: Any) -> Any:
    value = _plain(value)
    return escape_controls(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
