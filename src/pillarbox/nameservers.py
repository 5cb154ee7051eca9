"""The nameservers of the system: reads /etc/resolv.conf, reads it again when it changes, and words their failures.

dnspython reads the file once and raises on a bad line; a mail server starts before the network and outlives its files.
Must not know mail.
"""

from __future__ import annotations

import io
import ipaddress
import logging
import os
from collections.abc import Sequence
from typing import Any

RESOLV_CONF = "/etc/resolv.conf"
_log = logging.getLogger("pillarbox.dns")
# resolv.conf(5): without a nameserver line, the nameserver on the local machine is asked.
_LOCAL = "127.0.0.1"
_MAX_FILE_BYTES = 65536
# A failure names so many nameservers, each with its last answer.
_MAX_NAMED = 3
_MAX_REASON = 160

Resolver = Any


class SystemNameservers:
    """Gives a dnspython resolver for the present content of resolv.conf.

    `current` calls stat(2) for each look-up (1 us); it reads the file when that shows a change, and after a failure. While
    the file is missing or names no nameserver, the nameservers that were known last stay in use.
    """

    def __init__(self, time_out_s: float, path: str = RESOLV_CONF) -> None:
        self._time_out_s = time_out_s
        self._path = path
        self._signature: object = None
        # What was logged last: the reason why the file is of no use, or the nameservers that it names.
        self._told = ""
        self._resolver = new_resolver([_LOCAL], time_out_s)
        self._read()

    def current(self) -> Resolver:
        """The resolver to ask now."""
        if self._stat() != self._signature:
            self._read()
        return self._resolver

    def failed(self) -> None:
        """Makes the next look-up read the file, whatever stat(2) says: a look-up has failed."""
        self._signature = None

    def _stat(self) -> object:
        try:
            found = os.stat(self._path)
        except OSError as error:
            return error.errno
        return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size

    def _read(self) -> None:
        # The state before reading: a write that comes meanwhile is found at the next look-up.
        self._signature = self._stat()
        try:
            with open(self._path, "rb") as file:
                text = usable_lines(file.read(_MAX_FILE_BYTES))
            reason = "" if "nameserver" in text else "names no nameserver"
        except OSError as error:
            text, reason = "", f"cannot be read: {error.strerror}"
        if not reason:
            self._resolver = new_resolver((), self._time_out_s, text)
        told, self._told = self._told, reason or self._named()
        if reason and reason != told:
            _log.warning("dns: %s %s; using nameserver %s until it does", self._path, reason, self._named())
        elif told and self._told != told:
            _log.info("dns: %s has changed; using nameserver %s", self._path, self._told)

    def _named(self) -> str:
        return ", ".join(map(str, self._resolver.nameservers))


def new_resolver(nameservers: Sequence[Any], time_out_s: float, resolv_conf: str = "") -> Resolver:
    """A dnspython resolver for these nameservers, or for the text of a resolv.conf."""
    import dns.asyncresolver

    resolver = dns.asyncresolver.Resolver(configure=False)
    if resolv_conf:
        resolver.read_resolv_conf(io.StringIO(resolv_conf))
    else:
        resolver.nameservers = list(nameservers)
    resolver.lifetime = time_out_s
    resolver.timeout = min(3.0, time_out_s)
    # Without a search list: each name is looked up as it is.
    resolver.search = []
    return resolver


def usable_lines(octets: bytes) -> str:
    """The lines of a resolv.conf that can be obeyed; all others are left out (the C library ignores them, too)."""
    lines = []
    for line in octets.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] not in ("nameserver", "options"):
            continue
        if words[0] == "nameserver":
            if not _is_address(words[1]):
                continue
            words = words[:2]
        if (text := " ".join(words)) not in lines:
            lines.append(text)
    return "\n".join(lines)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def failure_reason(error: BaseException) -> str:
    """Why a look-up failed, for people: the nameservers that were asked and what each did last. Bounded."""
    import dns.exception
    import dns.name
    import dns.resolver

    if isinstance(error, (dns.resolver.LifetimeTimeout, dns.resolver.NoNameservers)):
        return _asked_nameservers(error)
    if isinstance(error, dns.resolver.YXDOMAIN):
        return "the name becomes too long behind its DNAME record"
    if isinstance(error, dns.name.LabelTooLong):
        return "is not a valid domain name: a label is longer than 63 octets"
    if isinstance(error, dns.name.NameTooLong):
        return "is not a valid domain name: longer than 255 octets"
    if isinstance(error, dns.name.EmptyLabel):
        return "is not a valid domain name: empty label"
    if isinstance(error, (dns.exception.SyntaxError, UnicodeError)):
        return "is not a valid domain name"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return bounded(error.strerror or str(error) or "network error")
    if isinstance(error, dns.exception.DNSException):
        # Its own texts are docstrings of dnspython.
        return "the nameserver's answer cannot be read"
    # A resolver of the program's own: its programmer needs the class, too.
    return bounded(f"{type(error).__name__}: {error}")


def _asked_nameservers(error: Any) -> str:
    seconds = error.kwargs.get("timeout")
    within = f" within {seconds:.0f} s" if seconds else ""
    last: dict[str, str] = {}
    for nameserver, _, port, what, _ in error.kwargs.get("errors") or ():
        address = str(nameserver).removeprefix("Do53:").partition("@")[0]
        place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        last[place] = _one_answer(place, what, within)
    if not last:
        return f"no answer from any nameserver{within}"
    texts = list(last.values())
    if len(texts) > _MAX_NAMED:
        texts[_MAX_NAMED:] = [f"and {len(texts) - _MAX_NAMED} more"]
    return bounded("; ".join(texts))


def _one_answer(place: str, what: object, within: str) -> str:
    import dns.exception

    if isinstance(what, str):
        return f"nameserver {place} answered {what}"
    if isinstance(what, (dns.exception.Timeout, TimeoutError)):
        return f"no answer from nameserver {place}{within}"
    if isinstance(what, OSError):
        return f"no answer from nameserver {place}: {what.strerror or 'network error'}"
    if isinstance(what, EOFError):
        return f"nameserver {place} closed the connection"
    return f"nameserver {place} sent an answer that cannot be read"


def bounded(text: str) -> str:
    """One printable line, cut between two words where it is too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= _MAX_REASON:
        return line
    return line[:_MAX_REASON].rpartition(" ")[0].rstrip(",;:") + " ..."
