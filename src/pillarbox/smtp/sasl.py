"""AUTH mechanisms as steps, both sides (RFC 4422, RFC 4616 PLAIN, draft-murchison-sasl-login LOGIN, RFC 4954).

A step takes octets and gives octets; who may log in is decided elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Protocol

MECHANISMS = ("PLAIN", "LOGIN")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# RFC 4616 section 2 bounds each field to 255 octets.
_MAX_FIELD = 255


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client claims to be; `repr` does not tell the password."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, '***')"


class SaslFault(ValueError):
    """The exchange breaks its mechanism's rules; `reason` is fit for a reply."""


def decode_base64(text: bytes) -> bytes:
    """RFC 4954 section 4: strict base64; a lone "=" is the empty string. Raises SaslFault."""
    if text == b"=":
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SaslFault("not base64") from None


def encode_base64(octets: bytes) -> str:
    """For a 334 challenge or a client's response."""
    return base64.b64encode(octets).decode("ascii")


class ServerMechanism(Protocol):
    """`step` takes the client's octets (None: no initial response) and gives a challenge or the credentials."""

    def step(self, response: bytes | None) -> bytes | Credentials: ...


def _field(octets: bytes) -> str:
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslFault("not UTF-8") from None
    if not text or len(octets) > _MAX_FIELD or _CONTROL.search(text):
        raise SaslFault("empty, over-long, or holds control characters")
    return text


class PlainServer:
    """RFC 4616: [authzid] NUL authcid NUL passwd. Acting for somebody else (a foreign authzid) is refused."""

    def step(self, response: bytes | None) -> bytes | Credentials:
        if response is None:
            return b""
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise SaslFault("PLAIN wants three fields")
        username = _field(parts[1])
        if parts[0] and parts[0] != parts[1]:
            raise SaslFault("acting for somebody else is not possible")
        return Credentials(username, _field(parts[2]))


class LoginServer:
    """LOGIN: user name, then password, each behind a challenge."""

    def __init__(self) -> None:
        self._username: str | None = None
        self._asked = False

    def step(self, response: bytes | None) -> bytes | Credentials:
        if response is None and not self._asked:
            self._asked = True
            return b"Username:"
        if self._username is None:
            self._username = _field(response or b"")
            return b"Password:"
        return Credentials(self._username, _field(response or b""))


def server_mechanism(name: str) -> ServerMechanism:
    """A fresh exchange of the named mechanism (a name of MECHANISMS)."""
    return PlainServer() if name == "PLAIN" else LoginServer()


class ClientMechanism:
    """The sending side: `initial` goes with the AUTH command, `respond` answers each 334."""

    def __init__(self, name: str, credentials: Credentials) -> None:
        self.name = name
        self._credentials = credentials
        self._step = 0

    def initial(self) -> bytes | None:
        """The initial response (RFC 4954 section 4), or None for a mechanism that lets the server begin."""
        if self.name == "PLAIN":
            return f"\0{self._credentials.username}\0{self._credentials.password}".encode()
        return None

    def respond(self, challenge: bytes) -> bytes:
        """The answer to a challenge. Raises SaslFault when the server asks more than the mechanism has."""
        self._step += 1
        if self.name == "LOGIN" and self._step <= 2:
            secret = self._credentials.username if self._step == 1 else self._credentials.password
            return secret.encode()
        raise SaslFault("the server asks for more than the mechanism has")


def choose_mechanism(offered: frozenset[str], credentials: Credentials) -> ClientMechanism | None:
    """The first of ours that the server offers, or None."""
    for name in MECHANISMS:
        if name in offered:
            return ClientMechanism(name, credentials)
    return None
