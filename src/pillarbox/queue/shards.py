"""Where the parts of a queue are: one shard for each worker process, all in the data directory.

Shard 0 has the plain names, so that a server of one process looks as if there were no shards. Must not open anything.
"""

from __future__ import annotations

import os
import re

_FILE = re.compile(r"queue-(\d{1,4})\.db\Z")


def database(folder: str, shard: int) -> str:
    """The path of a shard's file."""
    return os.path.join(folder, f"queue-{shard}.db")


def journal(folder: str, shard: int) -> str:
    """The path of what a busy shard's file does not have yet; there while its server runs, and after a crash."""
    return os.path.join(folder, f"queue-{shard}.journal")


def lock_file(folder: str, shard: int) -> str:
    """The path of the lock that says who owns the shard."""
    return os.path.join(folder, f"queue-{shard}.lock")


def spool_folder(folder: str, shard: int) -> str:
    """The folder of a shard's large contents: what is in it and in no row is left over, so each has its own."""
    return os.path.join(folder, f"spool-{shard}" if shard else "spool")


def control_socket(shard: int) -> str:
    """The name of a worker's control socket in the data directory."""
    return f"control-{shard}.sock" if shard else "control.sock"


def has_queue(folder: str) -> bool:
    """True when there is a queue in that folder, or a server that has its queue elsewhere."""
    return bool(find_shards(folder)) or os.path.exists(os.path.join(folder, control_socket(0)))


def find_shards(folder: str) -> list[int]:
    """The numbers of the shards that are there, in order. Empty where the folder is missing or nobody's to read."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(found[1]) for name in names if (found := _FILE.match(name)))
