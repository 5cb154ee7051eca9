"""Listening sockets that outlive the workers that use them: one for each listener and worker (SO_REUSEPORT).

A connection that waits in a socket's queue is reset when its last descriptor closes; kept here, it waits for the next
worker instead. Must not accept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any

from ..errors import ListenError
from ..options import Options
from ..server.listener import answers, listen_fault

# (scheme, socket) of each listener.
Row = list[tuple[str, socket.socket]]


def bind_all(options: Options, count: int) -> list[Row]:
    """`count` rows of sockets; a unix socket is one, and in every row. ListenError names the address that is in the way.

    A single row does not share its port with anybody.
    """
    rows: list[Row] = [[] for _ in range(count)]
    try:
        for scheme, host, port in options.listeners:
            _bind(rows, scheme, host, port)
    except BaseException:
        close_all(rows)
        raise
    return rows


def close_all(rows: list[Row]) -> None:
    """Gives them up, for good; closed ones are left as they are."""
    for row in rows:
        for scheme, sock in row:
            if scheme == "unix" and sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(sock.getsockname())
            sock.close()


def rows_of(rows: list[Row], slot: int, count: int) -> Row:
    """The sockets of one worker of `count`: its own row, and that of a slot that is no more; or, for a new slot, a shared one."""
    numbers = [number for number in range(len(rows)) if number % count == slot] or [slot % len(rows)]
    return list(dict.fromkeys(listener for number in numbers for listener in rows[number]))


def _bind(rows: list[Row], scheme: str, host: str, port: int) -> None:
    where = host if scheme == "unix" else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if scheme == "unix":
            sock = _bind_unix(host)
            for row in rows:
                row.append((scheme, sock))
            return
        for family, address in _addresses(host, port):
            _probe(family, address)
            for row in rows:
                sock = _bind_tcp(family, address, is_shared=len(rows) > 1)
                row.append((scheme, sock))
                # Port 0 is any free one: the others share what the first one got.
                address = (address[0], sock.getsockname()[1], *address[2:])
    except OSError as error:
        raise ListenError(error.errno or 0, listen_fault(error, where, port)) from None


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    pairs: list[Any] = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    # A name may have addresses of a family that this machine has switched off.
    return [pair for pair in pairs if len(pairs) == 1 or _has(pair[0])] or pairs


def _has(family: socket.AddressFamily) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _probe(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """OSError when somebody listens there: SO_REUSEPORT would share the port with a server that shares it, too."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)


def _bind_tcp(family: socket.AddressFamily, address: tuple[str, int], *, is_shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(17, "a file is in the way")
        if answers(path):
            raise OSError(errno.EADDRINUSE, "in use")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock
