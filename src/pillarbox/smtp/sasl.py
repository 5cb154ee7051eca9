"""AUTH mechanisms as steps (RFC 4422, RFC 4954): PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login) on both sides,
SCRAM-SHA-256 (RFC 5802, RFC 7677) on the client's.

A step takes octets and gives octets; who may log in is decided elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Protocol

MECHANISMS = ("PLAIN", "LOGIN")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
    # RFC 4616 section 2: fields of 255 octets at least. The line of the exchange bounds them (Rules.max_auth_line_bytes).
    if not text or _CONTROL.search(text):
        raise SaslFault("empty, or holds control characters")
    return text


def _any_field(octets: bytes) -> str:
    return octets.decode("utf-8") if is_utf8(octets) else octets.decode("latin-1")


def is_utf8(octets: bytes) -> bool:
    """True for valid UTF-8."""
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class AnyServer:
    """PLAIN and LOGIN for a server that lets everybody in: whatever can be split into fields is taken as it is."""

    def __init__(self, name: str) -> None:
        self._is_plain = name == "PLAIN"
        self._username: str | None = None
        self._asked = False

    def step(self, response: bytes | None) -> bytes | Credentials:
        if self._is_plain:
            if response is None:
                return b""
            parts = response.split(b"\0")
            if len(parts) < 2:
                raise SaslFault("PLAIN wants three fields")
            return Credentials(_any_field(parts[-2] or parts[0]), _any_field(parts[-1]))
        if response is None and not self._asked:
            self._asked = True
            return b"Username:"
        if self._username is None:
            self._username = _any_field(response or b"")
            return b"Password:"
        return Credentials(self._username, _any_field(response or b""))


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


def server_mechanism(name: str, *, takes_anything: bool = False) -> ServerMechanism:
    """A fresh exchange of the named mechanism (a name of MECHANISMS)."""
    if takes_anything:
        return AnyServer(name)
    return PlainServer() if name == "PLAIN" else LoginServer()


class ClientMechanism(Protocol):
    """The sending side of a mechanism. `is_proven`: the server has done what the mechanism asks of it.

    `reads_challenge`: False where the server's challenges are prompts for people, which may be in any form.
    """

    name: str
    is_proven: bool
    reads_challenge: bool

    def initial(self) -> bytes | None:
        """The initial response (RFC 4954 section 4), or None for a mechanism that lets the server begin."""

    def respond(self, challenge: bytes) -> bytes:
        """The answer to a challenge. Raises SaslFault when the exchange breaks the mechanism's rules."""


class SimpleClient:
    """PLAIN and LOGIN, the sending side: `initial` goes with the AUTH command, `respond` answers each 334."""

    is_proven = True
    reads_challenge = False

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
        if self.name == "PLAIN" and self._step == 1 and not challenge:
            # The server did not read the initial response (RFC 4954 section 4) and asks for it.
            return self.initial() or b""
        raise SaslFault("the server asks for more than the mechanism has")


# More rounds than this are not for safety but to keep us busy; RFC 7677 section 4 asks for 4,096 at least.
_MAX_ITERATIONS = 1_000_000
_MIN_ITERATIONS = 4096


class ScramClient:
    """SCRAM-SHA-256 (RFC 5802): the password never leaves us, and the server proves that it knows it, too."""

    name = "SCRAM-SHA-256"
    reads_challenge = True

    def __init__(self, credentials: Credentials, nonce: str | None = None) -> None:
        self._credentials = credentials
        self._nonce = nonce or secrets.token_urlsafe(24)
        # RFC 5802 section 5.1: "," and "=" of a user name are written otherwise.
        name = _saslprep(credentials.username).replace("=", "=3D").replace(",", "=2C")
        self._first_bare = f"n={name},r={self._nonce}"
        self._server_signature: bytes | None = None
        self.is_proven = False

    def initial(self) -> bytes | None:
        """client-first-message, without channel binding."""
        return f"n,,{self._first_bare}".encode()

    def respond(self, challenge: bytes) -> bytes:
        """client-final-message to the server's first; nothing to its last, once that is proven."""
        if self._server_signature is not None:
            fields = _scram_fields(challenge)
            if "v" not in fields or not hmac.compare_digest(
                decode_base64(fields["v"].encode()), self._server_signature
            ):
                raise SaslFault("the server does not know the password either")
            self.is_proven = True
            return b""
        fields = _scram_fields(challenge)
        try:
            nonce, salt, count = fields["r"], decode_base64(fields["s"].encode()), int(fields["i"])
        except (KeyError, ValueError):
            raise SaslFault("the server's first message is malformed") from None
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise SaslFault("the server's nonce does not go on from ours")
        if not _MIN_ITERATIONS <= count <= _MAX_ITERATIONS:
            raise SaslFault(
                f"the server asks for {count} iterations: from {_MIN_ITERATIONS} to {_MAX_ITERATIONS} are allowed"
            )
        without_proof = f"c=biws,r={nonce}"
        signed = f"{self._first_bare},{challenge.decode()},{without_proof}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", _saslprep(self._credentials.password).encode(), salt, count)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return f"{without_proof},p={encode_base64(proof)}".encode()


def _saslprep(text: str) -> str:
    """RFC 4013, as far as it changes text: compatibility forms; what it prohibits is refused where it enters."""
    return unicodedata.normalize("NFKC", text)


def _scram_fields(message: bytes) -> dict[str, str]:
    try:
        parts = message.decode("utf-8").split(",")
    except UnicodeDecodeError:
        raise SaslFault("not UTF-8") from None
    fields = {part[:1]: part[2:] for part in parts if part[1:2] == "="}
    if "e" in fields:
        raise SaslFault(f"the server refuses: {fields['e'][:80]}")
    return fields


# The best first: what tells the server least.
CLIENT_MECHANISMS = ("SCRAM-SHA-256", "PLAIN", "LOGIN")


def choose_mechanism(
    offered: frozenset[str], credentials: Credentials, wanted: str | None = None
) -> ClientMechanism | None:
    """The first of ours that the server offers (or the wanted one, if it does), or None."""
    for name in (wanted,) if wanted else CLIENT_MECHANISMS:
        if name in offered:
            return ScramClient(credentials) if name == "SCRAM-SHA-256" else SimpleClient(name, credentials)
    return None


def may_try_another(refused: ClientMechanism, code: int) -> bool:
    """True when a refusal of one mechanism says little of the others.

    RFC 4954 section 4: 504 is about the mechanism. 535 is about the password; a server may lack the SCRAM secret of an
    account, but PLAIN and LOGIN carry the same password, and a wrong one is not to be tried again.
    """
    return refused.name == "SCRAM-SHA-256" if code == 535 else 500 <= code < 600
