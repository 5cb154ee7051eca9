"""TLS of the receiving side: one context for all listeners, TLS 1.2 or later (RFC 8996), no renegotiation."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from ..errors import OptionError
from ..log.kinds import TLS_FAILED


def server_context(cert: str, key: str | None, *, is_device: bool = False) -> ssl.SSLContext:
    """The context; for the device profile with TLS 1.0 and 1.1. OptionError names the file that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # deviates: RFC 8996 forbids TLS 1.0 and 1.1; old devices have nothing else, and would send in clear.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED if is_device else ssl.TLSVersion.TLSv1_2
    if is_device:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # An encrypted key would have OpenSSL ask on the terminal, where a server has none.
        context.load_cert_chain(cert, key, password=_no_password)
    except _EncryptedKey:
        where = key or cert
        raise OptionError(
            f"option 'tls_key': the private key in {where} is encrypted: expected one without a pass phrase, "
            f"as `openssl pkey -in {where}` writes it"
        ) from None
    except (OSError, ssl.SSLError) as error:
        if key is None and isinstance(error, ssl.SSLError) and _is_certificate_alone(cert):
            raise OptionError(f"option 'tls_cert': no private key in {cert}: give tls_key") from None
        raise OptionError(
            f"option 'tls_cert': cannot use {cert}"
            + (f" with {key}" if key else "")
            + f": {error}; PEM files are wanted"
        ) from None
    return context


class _EncryptedKey(Exception):
    """OpenSSL has asked for a pass phrase."""


def _no_password() -> str:
    raise _EncryptedKey


def _is_certificate_alone(path: str) -> bool:
    with open(path, "rb") as file:
        text = file.read(1 << 20)
    return b"-----BEGIN CERTIFICATE-----" in text and b"PRIVATE KEY-----" not in text


def renewed(facade: ssl.SSLContext | None, current: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """The context for sessions from now on: `facade`, which then stands for `current`, where there are both."""
    if facade is None or current is None:
        return current
    replace_context(facade, current)
    return facade


def replace_context(facade: ssl.SSLContext, current: ssl.SSLContext) -> None:
    """From now on handshakes that begin with `facade` go on with `current`.

    Listeners keep the context that they were opened with. A certificate of another kind of key loaded into that one would
    stand beside the old one, and not in its place.
    """

    def switch(handshake: Any, name: str | None, context: ssl.SSLContext) -> None:
        handshake.context = current

    # OpenSSL calls it for every client hello, also for one without a name.
    facade.sni_callback = switch


def describe(ssl_object: Any) -> str:
    """Version and cipher, as the Received field tells them; empty without TLS."""
    if ssl_object is None:
        return ""
    cipher = ssl_object.cipher()
    return f"{ssl_object.version()} with cipher {cipher[0] if cipher else 'unknown'}"


def log_failed_handshake(peer: str, error: BaseException, session: str = "") -> None:
    """One line for a handshake that failed, with TLS from the first octet or behind STARTTLS."""
    text = str(error) or ("shed in favour of newer ones" if isinstance(error, asyncio.CancelledError) else repr(error))
    TLS_FAILED.write({"reason": "tls-failed", "session": session or None, "peer": peer, "error": text[:200]})
