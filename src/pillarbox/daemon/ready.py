"""What the server says once it listens: a line on stdout, one in the log, and READY=1 to the service manager."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from .. import __version__
from ..log.kinds import STARTED
from ..options import Options
from ..places import hide_password
from .systemd import notify


def say_ready(names: Sequence[tuple[str, int]], options: Options, workers: int, side: Mapping[str, str]) -> None:
    """`side`: of the admin side, empty without one: its URL, the address that it could not have, a link on a terminal."""
    addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]
    listed = " ".join(addresses)
    relay = ",".join(options.relay) or ("none, delivers to the MX" if options.direct else "none, mail stays queued")
    several = f", workers: {workers}" if workers > 1 else ""
    admin = f", admin: {side['admin']}" if side else ""
    if side and side["moved_from"]:
        admin += f" because another process has {side['moved_from']}"
    where = hide_password(options.queue) if options.queue else options.data_dir
    sys.stdout.write(f"pillarbox: ready on {listed} (queue: {where}, relay: {relay}{several}{admin})\n")
    if side.get("login"):
        sys.stdout.write(f"pillarbox: dashboard, for one log-in within ten minutes: {side['login']}\n")
    elif side:
        command = f"pillarbox admin --data-dir {shlex.quote(str(options.data_dir))}"
        sys.stdout.write(f"pillarbox: dashboard: `{command}` prints a link that logs a browser in\n")
    sys.stdout.flush()
    STARTED.write(
        {
            "version": __version__,
            "pid": os.getpid(),
            "workers": workers,
            "listeners": addresses,
            "data_dir": str(options.data_dir),
            "queue": where if options.queue else None,
        }
    )
    notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=listens on {listed}")
