"""Connections of a queue on PostgreSQL, and the driver's errors as ours. Must not know tables.

A node needs its sessions for itself (LISTEN, settings, what becomes of a commit), on a server that takes writes.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from ..errors import DuplicateUidError, StoreError, StoreFullError

Connection = psycopg.Connection[tuple[Any, ...]]
_log = logging.getLogger("pillarbox.queue")
CONNECT_S = 5.0
# A statement of ours that takes longer is in trouble: a lock, or a disk.
STATEMENT_S = 120.0
_MAX_REASON = 400
_WRITABLE = "add all servers and target_session_attrs=read-write to the URL"


# 250 means that it is on the disk, whatever the database's own default. The other side, too, finds out in seconds that its
# peer is gone: what it holds is wanted by others.
_SETTINGS = f"""
SET synchronous_commit = on; SET client_encoding = 'UTF8';
SET statement_timeout = {int(STATEMENT_S * 1000)}; SET idle_in_transaction_session_timeout = {int(STATEMENT_S * 1000)};
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 30000
"""


class StoreAwayError(StoreError):
    """The queue's database cannot be reached. The operator mends it; clients are told 451 4.3.0 meanwhile."""


def shown(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(?<=//)([^/@:]*):[^/]*@", r"\1:***@", url)


def translated(error: psycopg.Error, url: str) -> StoreError:
    """The error as one of ours."""
    text = reason_of(error)
    if isinstance(error, errors.ReadOnlySqlTransaction):
        # A fail-over: this server is not the primary any more, though its sessions stay open.
        return StoreAwayError(f"the queue at {shown(url)} is read-only (a standby, or a former primary): {_WRITABLE}")
    if isinstance(error, errors.UniqueViolation) and "message_uid" in text:
        return DuplicateUidError("a message with this queue id is queued already: choose another uid")
    if isinstance(error, errors.DiskFull):
        return StoreFullError(f"no room left for the queue at {shown(url)}: make room on the database's disk")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not isinstance(
        error, errors.QueryCanceled | errors.DeadlockDetected | errors.SerializationFailure
    ):
        return StoreAwayError(f"the queue at {shown(url)} is away: {text}")
    return StoreError(f"the queue at {shown(url)} failed: {text}")


def reason_of(error: BaseException) -> str:
    """The driver's text in one bounded line; libpq puts a line for each address that it has tried."""
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON].rpartition(" ")[0] + " ..."


def connect(url: str, name: str, *, writes: bool = False) -> Connection:
    """A connection in autocommit, with what we rely on. StoreAwayError or StoreError says why there is none.

    `writes`: a server that is read-only is not accepted.
    """
    try:
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=int(CONNECT_S),
            application_name=f"pillarbox {name}",
            # A lost peer is found out about in seconds, where the system can.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30_000,
        )
        connection.execute(_SETTINGS.encode())
        row = connection.execute("SHOW transaction_read_only").fetchone()
    except psycopg.Error as error:
        raise translated(error, url) from None
    if writes and row == ("on",):
        connection.close()
        raise translated(errors.ReadOnlySqlTransaction(), url)
    return connection


def check_sessions(connection: Connection, url: str) -> None:
    """Raises StoreError for a pooler that lends a session for a transaction only (pgbouncer: pool_mode = transaction).

    LISTEN, settings and prepared statements belong to a session there that is another client's the next moment.
    """
    mine = _backend(connection)
    if mine == connection.info.backend_pid:
        # The process that the server named at the start: nothing is in between.
        return
    for _ in range(3):
        with psycopg.connect(url, autocommit=True, connect_timeout=int(CONNECT_S)) as other, other.transaction():
            if _backend(other) == mine or _backend(connection) != mine:
                raise StoreError(
                    f"the queue at {shown(url)} is behind a pooler that lends sessions for a transaction: "
                    "connect to PostgreSQL itself, or set pool_mode = session"
                )


def _backend(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return int(row[0]) if row else -1


def warn_of_clear_text(url: str) -> None:
    """Logs a warning if the way to another machine is open to somebody in between: mail and password go over it."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        return
    sslmode = str(parts.get("sslmode") or os.environ.get("PGSSLMODE") or "")
    hosts = str(parts.get("host") or parts.get("hostaddr") or os.environ.get("PGHOST") or "").split(",")
    if sslmode != "verify-full" and any(not _is_here(host) for host in hosts):
        _log.warning(
            "queue: the server at %s is not verified by TLS; add sslmode=verify-full and sslrootcert=FILE to the URL",
            shown(url),
        )


def _is_here(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
