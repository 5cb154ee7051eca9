"""Which queue a command means: that of a data directory, running or not, or one on PostgreSQL by its URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ..config.usual import usual, usual_folder
from ..daemon.privileges import become_owner
from ..errors import OptionError, StoreError
from ..queue.control import perform
from ..queue.pages import list_queue, list_store
from ..queue.shards import has_queue
from ..queue.shared import open_postgres
from ..queue.stopped import StoppedSteering
from ..queue.whole import ask_queue

DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Folder of the queue. [default: $PILLARBOX_DATA_DIR, or the configuration's]"
    ),
]
QueueUrl = Annotated[
    str | None,
    typer.Option(
        "--queue",
        metavar="URL",
        # Named by nothing else than the flag: what the environment and the configuration file say.
        callback=lambda given: given or usual().queue,
        help="A queue on PostgreSQL: postgresql://USER@HOST/DATABASE.",
    ),
]


def ask(data_dir: str | None, url: str | None, request: dict[str, Any]) -> Any:
    """One request to the queue that is meant. StoreError or OptionError says what is in the way."""
    try:
        if url and data_dir is None:
            return ask_shared(url, request)
        return ask_queue(folder_of(data_dir), request)
    except ValueError as error:
        raise OptionError(str(error)) from None


def list_rows(data_dir: str | None, url: str | None, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of the queue that is meant, page by page. Errors as in `ask`."""
    try:
        if not url or data_dir is not None:
            yield from list_queue(folder_of(data_dir), query)
            return
        check_url(url)
        with contextlib.closing(open_postgres(url)) as store:
            store.open()
            yield from list_store(store, query)
    except ValueError as error:
        raise OptionError(str(error)) from None


def server_folder(data_dir: str | None) -> str:
    """The data directory that a command means, with a queue in it or not.

    Every command decides it here, before it opens anything there: root becomes the folder's owner. Files of the caller's own
    are opened before.
    """
    folder = data_dir or usual_folder()
    become_owner(folder)
    return folder


def give_to_owner(path: str, folder: str | None) -> None:
    """A folder that root has just made goes to the owner of the data directory, who is about to write into it."""
    if os.geteuid() == 0 and folder is not None and os.path.isdir(folder):
        found = os.stat(folder)
        os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)


def folder_of(data_dir: str | None) -> str:
    """A data directory with a queue in it. StoreError when there is none, or it is not for this user."""
    folder = server_folder(data_dir)
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise StoreError(
            f"the queue in {folder} is not yours to read: use the user that runs the server, or --data-dir"
        )
    if not has_queue(folder):
        raise StoreError(f"there is no queue in {folder}: start `pillarbox serve`, or name its folder with --data-dir")
    return folder


def check_url(url: str | None) -> None:
    """OptionError for what is no URL of a database."""
    if url is not None and not url.startswith(("postgresql://", "postgres://")):
        raise OptionError("--queue: give a URL such as postgresql://pillarbox@db.example.org/mail")


def ask_shared(url: str, request: dict[str, Any]) -> Any:
    """One request to a queue on PostgreSQL: its nodes hear of what is changed."""
    check_url(url)
    store = open_postgres(url)
    store.open()
    try:
        return asyncio.run(perform(StoppedSteering(store, time.time), request))
    finally:
        store.close()
