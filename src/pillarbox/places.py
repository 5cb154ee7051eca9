"""Where things are unless somebody says otherwise, and how an endpoint is written.

Apart from options.py, which takes its time to load: the command line must not wait for what it does not need.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from dataclasses import dataclass

from .smtp.address import is_domain


@dataclass(frozen=True, slots=True)
class Slot:
    """One worker process's place among `count` of one server. Embedded there is one, without sockets: it binds its own.

    `sockets`: (scheme, socket) of each listener, bound by whoever keeps them over the worker's life. `tls`: made before the
    fork, so that a session's ticket from one worker is known to all.
    """

    number: int = 0
    count: int = 1
    sockets: tuple[tuple[str, socket.socket], ...] | None = None
    tls: ssl.SSLContext | None = None
    # Of a server that starts; False for a worker that replaces another.
    is_first: bool = True

    def share(self, total: int) -> int:
        """This worker's part of what the whole server may have."""
        return -(-total // self.count)


def default_data_dir() -> str:
    """/var/lib/pillarbox for root, else $XDG_STATE_HOME/pillarbox (~/.local/state/pillarbox)."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return "/var/lib/pillarbox"
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "pillarbox")


def default_hostname() -> str:
    """The machine's full name, or its short one, or localhost: whatever is a domain."""
    for name in (socket.getfqdn(), socket.gethostname()):
        if is_domain(name):
            return name
    return "localhost"


def is_fully_qualified(name: str) -> bool:
    """True for a name that other servers can look up, and for an address literal."""
    return name.startswith("[") or ("." in name.strip(".") and not name.lower().startswith("localhost."))


def address_literal(sockname: object) -> str:
    """A socket's own address as RFC 5321 section 4.1.3 writes it, "" for what has no IP address."""
    try:
        address = ipaddress.ip_address(str(sockname[0]).partition("%")[0])  # type: ignore[index]
    except (ValueError, TypeError, IndexError):
        return ""
    return f"[{address}]" if address.version == 4 else f"[IPv6:{address}]"


# What a listener may be, with its usual port: for mail from other servers and for submission (RFC 6409), whose clients
# have to log in; each also with TLS from the first octet (RFC 8314).
LISTENER_SCHEMES = {"smtp": 25, "smtps": 465, "submission": 587, "submissions": 465, "device": 25, "devices": 465}
TLS_SCHEMES = frozenset(("smtps", "submissions", "devices"))
# For printers, scanners and old programs: what they get wrong is repaired (smtp/device.py), and they may use old TLS.
DEVICE_SCHEMES = frozenset(("device", "devices"))
LOGIN_SCHEMES = frozenset(("submission", "submissions"))


HIDDEN = "***"
_PASSWORD = re.compile(r"(?i)([?&;]|\s|\A)(\w*pass(?:word)?|\w*secret|\w*token)=('(?:[^'\\]|\\.)*'|[^&;\s]*)")


def hide_password(text: str) -> str:
    """A URL or something like it, without what stands before an @ and without the passwords of its query."""
    head, slashes, rest = text.partition("://")
    if not slashes:
        head, rest = "", text
    _, at, behind = rest.rpartition("@")
    return _PASSWORD.sub(rf"\1\2={HIDDEN}", f"{head}{slashes}{HIDDEN}@{behind}" if at else text)


def parse_endpoint(text: str, default_port: int, *, is_listener: bool = False) -> tuple[str, str, int]:
    """(scheme, host, port) of HOST[:PORT], [IPV6][:PORT], smtp(s)://... or unix:/PATH. ValueError says what is wrong.

    A listener may be submission://, submissions://, device:// or devices://, too.
    """
    if text.startswith("unix:"):
        path = text[5:]
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text!r}: a unix socket is given by its whole path, unix:/run/pillarbox/smtp.sock")
        return "unix", path, 0
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "smtp", text
    if "@" in rest:
        raise ValueError(f"{hide_password(text)!r}: no user and password here: give relay_user and relay_pass_file")
    known = tuple(LISTENER_SCHEMES) if is_listener else ("smtp", "smtps")
    if scheme not in known:
        raise ValueError(f"{text!r}: the scheme is {', '.join(f'{one}://' for one in known)}")
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r}: an IPv6 address is written [2001:db8::1]:25")
        port = port[1:]
    else:
        host, _, port = rest.partition(":")
        if ":" in port:
            raise ValueError(f"{text!r}: an IPv6 address wants brackets, [2001:db8::1]:25")
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r}: the port is a number from 0 to 65535")
    if not host or any(c.isspace() or c in "/@" for c in host):
        raise ValueError(f"{text!r}: give HOST:PORT")
    return scheme, host, int(port) if port else (default_port if scheme == "smtp" else LISTENER_SCHEMES[scheme])
