"""What systemd and its like expect of a daemon: a word when it is ready (sd_notify), and sockets that they have bound."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

from ..errors import OptionError
from ..places import LISTENER_SCHEMES

_log = logging.getLogger("pillarbox.daemon")
_FIRST = 3


def notify(*words: str) -> None:
    """`READY=1` and the like, where somebody listens for it; never an error (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.sendall("\n".join(words).encode())


def activated_sockets() -> list[tuple[str, socket.socket]]:
    """(scheme, socket) of each listener that was bound for us (sd_listen_fds(3)); none where there are none.

    A socket's FileDescriptorName is its kind: smtp, smtps, submission, submissions, device or devices; any other name means smtp.
    OptionError for what is no TCP socket that listens.
    """
    count, owner = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if not count.isdigit() or owner != str(os.getpid()):
        return []
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        # They are of this process alone, and not of what it becomes or begets.
        os.environ.pop(name, None)
    found = []
    for number in range(int(count)):
        handle = _FIRST + number
        try:
            os.set_inheritable(handle, False)
            sock = socket.socket(fileno=handle)
        except OSError as error:
            raise OptionError(f"LISTEN_FDS says {count} sockets, but {handle} is none: {error.strerror}") from None
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not _listens(sock):
            raise OptionError(
                f"socket {handle} of the service manager is no TCP socket that listens: use ListenStream=PORT"
            )
        name = names[number] if number < len(names) else ""
        found.append((name if name in LISTENER_SCHEMES else "smtp", sock))
    return found


def _listens(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def as_listen(sockets: list[tuple[str, socket.socket]]) -> list[str]:
    """What the option `listen` would say of them."""
    found = []
    for scheme, sock in sockets:
        host, port = sock.getsockname()[:2]
        found.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    return found
