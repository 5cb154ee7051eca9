"""TLS towards a next hop: none, may, encrypt, verify (RFC 3207, RFC 7435, RFC 8314)."""

from __future__ import annotations

import ssl
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


def client_context(policy: TlsPolicy, ca_file: str | None) -> ssl.SSLContext:
    """One context for a policy: verified certificates and names only under VERIFY. OptionError names a bad CA file."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise OptionError(f"option 'relay_ca': cannot use {ca_file}: {error}; a PEM file is wanted") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if policy is not TlsPolicy.VERIFY:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
