"""The tokens of the admin API: the full one in admin.json, and two that may less, in admin-tokens.json.

Each file is its owner's alone (mode 0600). A token outlives restarts; to revoke it, delete its file and restart the server.
"""

from __future__ import annotations

import enum
import json
import os
import secrets
import stat
from typing import Any

from ..errors import StoreError

FILE = "admin.json"
SCOPED_FILE = "admin-tokens.json"
_SHORTEST = 32


class Right(enum.IntEnum):
    """What a request may: scrape metrics, read everything, or everything."""

    METRICS = 1
    READ = 2
    FULL = 3


# The tokens of admin-tokens.json, by name.
SCOPED = {"metrics": Right.METRICS, "read": Right.READ}


def new_token() -> str:
    """A token that nobody guesses: 256 bits."""
    return secrets.token_urlsafe(32)


def write_file(folder: str, url: str, token: str) -> str:
    """admin.json: where the API is, and its full token."""
    return _write(os.path.join(folder, FILE), {"url": url, "token": token})


def read_token(folder: str) -> str | None:
    """The full token of before, so that a restart invalidates no script. None for a file that is not ours alone."""
    return _token(_read(os.path.join(folder, FILE)).get("token"))


def scoped_tokens(folder: str) -> dict[str, str]:
    """The tokens that may less, by name; those that are missing are made. StoreError when they cannot be written."""
    path = os.path.join(folder, SCOPED_FILE)
    found = _read(path)
    kept = {name: token for name in SCOPED if (token := _token(found.get(name))) is not None}
    if len(kept) == len(SCOPED):
        return kept
    tokens = {name: kept.get(name) or new_token() for name in SCOPED}
    try:
        _write(path, tokens)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None
    return tokens


def _write(path: str, found: dict[str, str]) -> str:
    # A name that nobody can have made before.
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(temporary, path)
    return path


def _read(path: str) -> dict[str, Any]:
    """The object in a file that is this user's alone, else an empty one."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, encoding="utf-8") as file:
            status = os.fstat(handle)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                return {}
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _token(found: Any) -> str | None:
    return found if isinstance(found, str) and len(found) >= _SHORTEST else None
