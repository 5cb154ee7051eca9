"""Becoming a new process image without closing what listens: exec keeps descriptors, children and the process's number.

What the next image needs to know stands in an environment variable. The same command with "check" in that variable only
says whether it could start: a broken option must not end a server that works.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import NoReturn

from .sockets import Row

HANDOVER = "PILLARBOX_HANDOVER"
_CHECK = "check"
_CHECK_S = 60.0
SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD))


@dataclass(frozen=True, slots=True)
class Handover:
    """What a process image leaves to the next: its sockets, the pipe that tells workers of it, workers by slot."""

    rows: list[Row]
    life: tuple[int, int] | None = None
    pids: dict[int, int] = field(default_factory=dict)


def is_check() -> bool:
    """True in a process that only says whether it could start."""
    return os.environ.get(HANDOVER) == _CHECK


class Trial:
    """The same command in another process, that only says whether it could start: its options may have changed."""

    def __init__(self) -> None:
        environment = {**os.environ, HANDOVER: _CHECK}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._until = time.monotonic() + _CHECK_S
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]], env=environment, stdout=subprocess.DEVNULL, stderr=self._said
        )

    def fault(self) -> str | None:
        """None while it runs, "" when the command could start, else why not."""
        code = self._process.poll()
        if code is None:
            if time.monotonic() < self._until:
                return None
            self._process.kill()
            self._process.wait()
            return f"the command did not say within {_CHECK_S:.0f} s whether it could start"
        if not code:
            return ""
        self._said.seek(0)
        return self._said.read()[-2000:].decode("utf-8", "replace").strip() or f"status {code}"


def hold_signals() -> None:
    """Signals wait from now on, also over exec, whose new image has no handlers at first: `let_signals` takes them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def let_signals() -> None:
    """There are handlers for them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def become_new(left: Handover) -> NoReturn:
    """The same command again, from its beginning, in this process; with signals on hold."""
    kept = [sock.fileno() for row in left.rows for _, sock in row] + [*(left.life or ())]
    for number in kept:
        os.set_inheritable(number, True)
    state = {
        "rows": [[(scheme, sock.fileno()) for scheme, sock in row] for row in left.rows],
        "life": left.life,
        "pids": left.pids,
    }
    sys.stdout.flush()
    logging.shutdown()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, HANDOVER: json.dumps(state)})


def received() -> Handover | None:
    """What the process image before has left, once."""
    text = os.environ.pop(HANDOVER, "")
    if not text or text == _CHECK:
        return None
    state = json.loads(text)
    known: dict[int, socket.socket] = {}
    for row in state["rows"]:
        for _, number in row:
            if number not in known:
                os.set_inheritable(number, False)
                known[number] = socket.socket(fileno=number)
    for number in state["life"] or ():
        os.set_inheritable(number, False)
    rows = [[(scheme, known[number]) for scheme, number in row] for row in state["rows"]]
    life = (state["life"][0], state["life"][1]) if state["life"] else None
    return Handover(rows, life, {int(number): pid for number, pid in state["pids"].items()})
