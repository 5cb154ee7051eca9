"""Accounts and password hashes: the file that `pillarbox passwd` writes, and who may send as whom.

A line: `name:scrypt$N$r$p$salt$hash[:address,@domain,*]`. Hashes are scrypt (RFC 7914), from the standard library.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import os
import stat
from dataclasses import dataclass

from ..errors import OptionError

# OWASP's minimum for 16 MB of memory: 200 ms of a processor. A hash of more memory verifies up to the bound.
_N, _R, _P = 1 << 14, 8, 5
_MAX_MEMORY = 160 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """Who authenticated. `may_send_as` holds addresses, `@domain` for a whole domain, or `*`.

    Empty: as itself, which is its name where that is an address, else its name at any of the server's domains.
    """

    name: str
    may_send_as: tuple[str, ...] = ()


class AnyAccount:
    """An authenticator that lets everybody in, for development: any name, any password, any sender."""

    def __call__(self, name: str, password: str) -> Account:
        return Account(name, ("*",))


def hash_password(password: str, salt: bytes | None = None) -> str:
    """The hash as it stands in the file; 16 octets of random salt."""
    salt = os.urandom(16) if salt is None else salt
    digest = hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_MAX_MEMORY, dklen=32)
    return f"scrypt${_N}${_R}${_P}${_b64(salt)}${_b64(digest)}"


def _b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def is_password(password: str, hashed: str) -> bool:
    """True when the password has this hash; in constant time. False for a hash that cannot be read."""
    try:
        kind, n, r, p, salt, digest = hashed.split("$")
        if kind != "scrypt":
            return False
        made = hashlib.scrypt(
            password.encode(), salt=_unb64(salt), n=int(n), r=int(r), p=int(p), maxmem=_MAX_MEMORY, dklen=32
        )
        return hmac.compare_digest(made, _unb64(digest))
    except (ValueError, TypeError):
        return False


def _cost(hashed: str) -> int:
    """Returns the work of a hash, in units of N * r * p; 0 for one that cannot be read."""
    try:
        _, n, r, p, _, _ = hashed.split("$")
        return int(n) * int(r) * int(p)
    except ValueError:
        return 0


def _hash_of_cost(cost: int) -> str:
    """Returns a hash that no password has, with about this much work; made without hashing."""
    p = max(1, cost // (_N * _R))
    return f"scrypt${_N}${_R}${p}${_b64(bytes(16))}${_b64(bytes(32))}"


@dataclass(frozen=True, slots=True)
class _Entry:
    hashed: str
    account: Account


class AuthFile:
    """Accounts of a file; read again when the file changes. OptionError names the file and line that cannot be read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._entries: dict[str, _Entry] = {}
        self._cost = 0
        self._load()

    def _load(self) -> None:
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            with open(self._path, encoding="utf-8") as file:
                entries = dict(
                    parse_line(line, f"{self._path}:{n}") for n, line in enumerate(file, 1) if _is_entry(line)
                )
        except (OSError, UnicodeError) as error:
            raise OptionError(f"option 'auth_file': cannot read {self._path}: {error}") from None
        self._entries, self._stamp = entries, stamp
        self._cost = max((_cost(entry.hashed) for entry in entries.values()), default=_N * _R * _P)

    def __call__(self, username: str, password: str) -> Account | None:
        """Returns the account, or None. Takes some 200 ms: meant for a thread.

        A wrong password takes as long for each name, known or not: as long as the file's most expensive hash.
        """
        self._load()
        entry, cost = self._entries.get(username), self._cost
        if entry is not None:
            if is_password(password, entry.hashed):
                return entry.account
            cost -= _cost(entry.hashed)
        if cost > 0:
            is_password(password, _hash_of_cost(cost))
        return None


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def parse_line(line: str, place: str = "") -> tuple[str, _Entry]:
    """(name, entry) of a line. OptionError names the place."""
    name, _, rest = line.rstrip("\r\n").partition(":")
    hashed, _, senders = rest.partition(":")
    if not name or hashed.count("$") != 5 or not hashed.startswith("scrypt$"):
        raise OptionError(f"{place}: not name:hash[:addresses]; make the line with `pillarbox passwd`")
    may = tuple(word.strip() for word in senders.split(",") if word.strip())
    return name, _Entry(hashed, Account(name, may))


def format_line(name: str, hashed: str, may_send_as: tuple[str, ...]) -> str:
    """A line of the file. ValueError where a name or address would break it."""
    if not name or any(c in name for c in ":\r\n") or name.startswith("#"):
        raise ValueError(f"{name!r} cannot be a name: no colon, no line end, no leading #")
    if any(c in one for one in may_send_as for c in ":,\r\n"):
        raise ValueError("an address may not hold a colon, a comma or a line end")
    return f"{name}:{hashed}" + (f":{','.join(may_send_as)}" if may_send_as else "")


def update_file(path: str | os.PathLike[str], name: str, line: str | None) -> bool:
    """Sets or (None) removes an account; the file is replaced as a whole. True if the name was there.

    It keeps its owner, group and mode, so that a server of another user can still read it; a new one is 0600. Changes
    at the same time wait for each other.
    """
    target = os.path.realpath(path)
    lock = _locked(target, is_made=line is not None)
    if lock is None:
        return False
    try:
        return _replace(target, lock, name, line)
    finally:
        os.close(lock)


def _locked(path: str, *, is_made: bool) -> int | None:
    """A descriptor of the file, locked; None where there is none and none is made."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if is_made else 0), 0o600)
        except FileNotFoundError:
            if is_made:
                raise
            return None
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        # The one before us has replaced the file: the lock is on the old one.
        os.close(handle)


def _replace(path: str, lock: int, name: str, line: str | None) -> bool:
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    kept = [old for old in lines if not _is_entry(old) or old.partition(":")[0] != name]
    was_there = len(kept) != len(lines)
    if line is not None:
        kept.append(line)
    before = os.fstat(lock)
    temporary = f"{path}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(handle, before.st_uid, before.st_gid)
        os.fchmod(handle, stat.S_IMODE(before.st_mode))
        file.write("".join(f"{one}\n" for one in kept))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return was_there
