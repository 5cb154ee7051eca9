"""How workers share the processors with each other, and with whoever talks to them."""

from __future__ import annotations

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")


def give_way() -> bool:
    """This process, and its threads to come, push nobody off a processor on waking (SCHED_BATCH); False: all is as it was.

    A worker that wakes for each single command, at its client's expense, has a turn of its loop for each; one that waits
    until that client has done what it is at finds several. Only Linux has it. What somebody else has decided stands: another
    policy, or a filter on system calls, which might kill whoever tries (seccomp).
    """
    if not hasattr(os, "SCHED_BATCH") or _is_filtered():
        return False
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return False
    return True


def _is_filtered() -> bool:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return True
    # A kernel without seccomp has no such line.
    return any(line.startswith("Seccomp:") and line.split()[1:] != ["0"] for line in lines)
