"""`pillarbox reload`: has the running server read its configuration and certificates again, and says what came of it."""

from __future__ import annotations

import os
import signal
from typing import Annotated, Any

import typer

from ..daemon.pid import running_pid
from ..errors import OptionError, StoreError
from ..queue.control import ask
from ..queue.shards import find_shards
from .place import DataDir, server_folder
from .terminal import say

# Plugins and handlers of the new configuration are imported first.
_TIME_OUT_S = 120.0


def reload(
    data_dir: DataDir = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Restart it, refusing nobody: also for what a reload cannot change.")
    ] = False,
) -> None:
    """Have the running server read its configuration again, for new sessions; exit 1 with the faults if it is refused."""
    folder = server_folder(data_dir)
    pid = running_pid(folder)
    if pid is None:
        raise StoreError(f"no server runs on {folder}: start `pillarbox serve`, or name its folder with --data-dir")
    try:
        done = _ask(folder, "restart" if restart else "reload")
    except OptionError as error:
        for line in str(error).splitlines():
            say(line)
        say(f"the server (pid {pid}) has not reloaded, everything stays as it was", is_error=True)
        raise typer.Exit(1) from None
    if done is None:
        _signal(pid, signal.SIGUSR2 if restart else signal.SIGHUP)
    elif restart:
        say(f"the server (pid {done['pid']}) restarts; its log says so if it cannot")
    else:
        changed = ", ".join(done["changed"]) or "no option changed, certificates and accounts are read again"
        say(f"the server (pid {done['pid']}) has reloaded: {changed}")
        if done["restart"]:
            say(f"only a restart changes {', '.join(done['restart'])}: pillarbox reload --restart")


def _ask(folder: str, verb: str) -> dict[str, Any] | None:
    """What the server answers; None for one without a control socket, which hears signals only."""
    for shard in find_shards(folder) or [0]:
        try:
            found: dict[str, Any] = ask(folder, {"verb": verb}, shard=shard, timeout_s=_TIME_OUT_S)
        except OptionError:
            raise
        except StoreError as error:
            if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
                # A worker that is just replaced: the next one answers for all.
                continue
            raise
        return found
    return None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except PermissionError:
        raise StoreError(f"the server (pid {pid}) is not yours: use its user, or root") from None
    say(f"the server (pid {pid}) was asked by a signal; its log says what came of it")
