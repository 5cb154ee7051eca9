"""`pillarbox reload`: asks the running server to read its configuration and certificates again."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from ..config.usual import usual_folder
from ..daemon.pid import running_pid
from ..errors import StoreError


def reload(
    data_dir: Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder of its queue.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Restart it, refusing nobody: also for what a reload cannot change.")
    ] = False,
) -> None:
    """Have the running server read its configuration again, for new sessions; what is wrong is said in its log."""
    folder = data_dir or usual_folder()
    pid = running_pid(folder)
    if pid is None:
        raise StoreError(f"no server runs on {folder}: start `pillarbox serve`, or name its folder with --data-dir")
    try:
        os.kill(pid, signal.SIGUSR2 if restart else signal.SIGHUP)
    except PermissionError:
        raise StoreError(f"the server (pid {pid}) is not yours: use its user, or root") from None
    print(f"the server (pid {pid}) was asked to {'restart' if restart else 'reload'}; its log says what came of it")
