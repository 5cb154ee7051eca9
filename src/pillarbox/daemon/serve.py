"""`pillarbox serve`: the server until SIGTERM or SIGINT, in this process or in several, and a line once it listens."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..app import MailServer
from ..errors import OptionError, StoreLockedError
from ..options import Options, parse_options
from ..places import Slot
from ..queue.whole import is_paused
from ..server.tls import server_context
from .handover import Handover, become_new, fault_of_command, is_check, received
from .logs import configure_logs
from .sockets import Row, bind_all, close_all
from .supervisor import Supervisor

_log = logging.getLogger("pillarbox.daemon")
SWITCH_S = 0.0003
# `pillarbox queue` has a shard's lock for a moment while its worker is not there.
LOCKED_S = 3.0
MOST_WORKERS = 64


def parse_workers(text: str) -> int:
    """The number of workers; "auto" is one for each processor that this process may use."""
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_WORKERS:
        raise OptionError(f"--workers {text!r}: give a number from 1 to {MOST_WORKERS}, or auto")
    return int(text)


def serve(given: dict[str, Any], *, workers: str, log_level: str, grace_s: float) -> None:
    """Blocks until the server has been shut down. Raises PillarboxError for what is in its way."""
    count = parse_workers(workers)
    configure_logs(log_level)
    # The queue is nobody else's business.
    os.umask(0o077)
    options = parse_options(given)
    if count > 1 and options.store != "sqlite":
        raise OptionError(f"--workers {count}: option 'store' {options.store!r} is of one process; use sqlite")
    if is_check():
        MailServer(**given)
        return
    left = received()
    rows = left.rows if left is not None else bind_all(options, count)
    if count == 1 and not (left and left.pids):
        _serve_alone(given, rows, grace_s)
    else:
        _supervise(given, options, count, rows, left, grace_s)


def _serve_alone(given: dict[str, Any], rows: list[Row], grace_s: float) -> None:
    """One process. SIGUSR2: it finishes what it has, and becomes a new one; who connects meanwhile waits in the socket."""
    wants_restart = False

    def announce(server: MailServer) -> None:
        _settle_in()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, lambda: tasks.append(loop.create_task(restart(server))))
        _say_ready(server.getsocknames(), server.options, 1)

    async def restart(server: MailServer) -> None:
        nonlocal wants_restart
        fault = await asyncio.to_thread(fault_of_command)
        if fault is not None:
            _log.error("no restart, everything stays as it is: %s", fault)
            return
        _log.info("restarting")
        wants_restart = True
        await server.shutdown(grace_s=grace_s)

    tasks: list[asyncio.Task[None]] = []
    MailServer.run(on_ready=announce, grace_s=grace_s, slot=Slot(sockets=tuple(rows[0])), **given)
    if wants_restart:
        become_new(Handover(rows))
    close_all(rows)


def _supervise(
    given: dict[str, Any], options: Options, count: int, rows: list[Row], left: Handover | None, grace_s: float
) -> None:
    """Several processes."""
    tls = server_context(options.tls_cert, options.tls_key) if options.tls_cert else None
    # What is paused is the queue as a whole, workers that it did not have before included.
    given = {**given, "paused": options.paused or is_paused(options.data_dir)}

    def work(slot: Slot, ready: Callable[[], None], life: int) -> None:
        _work(given, grace_s, slot, ready, life)

    supervisor = Supervisor(work, rows, count, tls=tls, grace_s=grace_s)
    if left is not None:
        supervisor.take_over(left.pids, left.life)
    names = [_name(sock.getsockname()) for _, sock in rows[0]]
    supervisor.run(lambda: _say_ready(names, options, count))


def _name(name: Any) -> tuple[str, int]:
    return (name, 0) if isinstance(name, str) else (str(name[0]), int(name[1]))


def _work(options: dict[str, Any], grace_s: float, slot: Slot, ready: Callable[[], None], life: int) -> None:
    """One worker's life, in its own process."""

    def announce(server: MailServer) -> None:
        _settle_in()
        # The supervisor is gone when its end of this is closed: then nobody keeps our sockets, nor starts us again.
        asyncio.get_running_loop().add_reader(life, _left_alone, server, life)
        ready()

    deadline = time.monotonic() + LOCKED_S
    while True:
        try:
            MailServer.run(on_ready=announce, grace_s=grace_s, slot=slot, **options)
        except StoreLockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _left_alone(server: MailServer, life: int) -> None:
    asyncio.get_running_loop().remove_reader(life)
    server.post("shutdown")


def _settle_in() -> None:
    # What exists now lives as long as the server: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # The queue's writer shares the interpreter's lock with the loop: by default it may wait 5 ms for its turn, which is
    # longer than a commit takes. Measured with 20 sessions: a tenth more messages.
    sys.setswitchinterval(SWITCH_S)


def _say_ready(names: Sequence[tuple[str, int]], options: Options, workers: int) -> None:
    listed = " ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names)
    relay = ",".join(options.relay) or ("none, delivers to the MX" if options.direct else "none, mail stays queued")
    several = f", workers: {workers}" if workers > 1 else ""
    sys.stdout.write(f"pillarbox: ready on {listed} (queue: {options.data_dir}, relay: {relay}{several})\n")
    sys.stdout.flush()
