"""TLS towards a next hop: none, may, encrypt, verify (RFC 3207, RFC 7435, RFC 8314)."""

from __future__ import annotations

import ssl
import sys
import warnings
from enum import Enum

from ..errors import OptionError


class TlsPolicy(Enum):
    """NONE: never. MAY: where offered, unverified, else in clear. ENCRYPT: always, unverified. VERIFY: always, verified."""

    NONE = "none"
    MAY = "may"
    ENCRYPT = "encrypt"
    VERIFY = "verify"

    @property
    def is_required(self) -> bool:
        """True where mail must not go in clear."""
        return self in (TlsPolicy.ENCRYPT, TlsPolicy.VERIFY)


class ResumingContext(ssl.SSLContext):
    """A context that remembers the last session with each server, so that the next handshake is short (RFC 8446 section 2.2).

    Sessions are of this context alone: what a handshake under VERIFY has verified is not taken over by any other policy.
    """

    MOST_SERVERS = 1000

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As the loop calls it; with the session that there is."""
        if session is None and isinstance(server_hostname, str):
            session = self._sessions().get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def _sessions(self) -> dict[str, ssl.SSLSession]:
        # ssl.SSLContext has its own way to be made, and knows no attributes of ours.
        found: dict[str, ssl.SSLSession] = self.__dict__.setdefault("sessions", {})
        return found

    def remember(self, server_hostname: str, tls: ssl.SSLObject) -> None:
        """Once the server has said something: tickets of TLS 1.3 come behind the handshake."""
        session = tls.session
        if session is None or not session.has_ticket:
            return
        sessions = self._sessions()
        if server_hostname not in sessions and len(sessions) >= self.MOST_SERVERS:
            sessions.pop(next(iter(sessions)))
        sessions[server_hostname] = session


# As option texts have them.
VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
# The library's own choice first, then every cipher that encrypts: old ciphers, key exchanges and keys are taken last.
_ANY_CIPHER = "DEFAULT:ALL:!aNULL:!eNULL:@SECLEVEL=0"
# In Python from 3.12 on.
_OP_LEGACY_SERVER_CONNECT = getattr(ssl, "OP_LEGACY_SERVER_CONNECT", 0x4)


def client_context(policy: TlsPolicy, ca_file: str | None, oldest: str = "1.2") -> ssl.SSLContext:
    """One context for a policy: verified certificates and names only under VERIFY. OptionError names a bad CA file.

    `oldest` is the oldest version of TLS (a key of VERSIONS); under VERIFY TLS 1.2 at least.
    """
    try:
        context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
        if sys.version_info >= (3, 13):
            # As ssl.create_default_context has it from there on.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        if ca_file:
            context.load_verify_locations(ca_file)
        else:
            context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise OptionError(f"option 'relay_ca': cannot use {ca_file}: {error}; a PEM file is wanted") from None
    context.options |= ssl.OP_NO_RENEGOTIATION
    if policy is TlsPolicy.VERIFY:
        context.minimum_version = max(VERSIONS[oldest], ssl.TLSVersion.TLSv1_2)
        return context
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # RFC 7435 section 3: where the peer is not authenticated, weak encryption is better than none.
    context.set_ciphers(_ANY_CIPHER)
    context.options |= _OP_LEGACY_SERVER_CONNECT
    with warnings.catch_warnings():
        # RFC 8996 forbids TLS 1.0 and 1.1: they are for an operator who asks for them.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = VERSIONS[oldest]
    return context
