"""A handler that POSTs mail to a URL, signed, and tried again from the queue until somebody there says 2xx.

    [[handlers]]
    match = "@app\\.example$"
    use = "pillarbox.webhook:Webhook"
    options = { url = "https://app.example/inbound", secret_file = "webhook-secret" }

Signatures are those of Standard Webhooks (standardwebhooks.com): `verify` is for whoever receives.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from . import __version__
from .config.files import exposed_text
from .delivery.answers import Defer, Reject
from .delivery.handlers import Item
from .errors import OptionError, PillarboxError
from .httppost import PostError, post
from .places import hide_password

_log = logging.getLogger("pillarbox.webhook")

# It shall not come again: the request itself is at fault, or the place is gone for ever.
PERMANENT = (400, 404, 405, 410, 413, 415, 422)
KINDS = ("json", "raw")
_SECRET = "whsec_"


class SignatureError(PillarboxError):
    """A request that was not signed with this secret, or too long ago."""


class Webhook:
    """Posts each message to `url`. `Handler(match, Webhook(url, secret=...), in_thread=True)` in a program.

    `kind` "json": an object with url, uid, attempt, reverse_path, recipients, received_at, facts and content (base64).
    "raw": multipart/form-data with the field `envelope` (the same object without content) and the file `message`
    (message/rfc822). `received` reads both. The signature covers the whole body, so also the envelope and the URL.

    The header `webhook-id` is the message's uid, the same at each attempt: a receiver that has it already answers 2xx again.
    2xx delivers, 400, 404, 405, 410, 413, 415 and 422 bounce, everything else is tried again: other answers, redirects, no
    answer within `time_out_s`, which bounds the whole attempt.
    """

    in_thread = True

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        secret_file: str | None = None,
        kind: str = "json",
        headers: Mapping[str, str] | None = None,
        time_out_s: float = 30.0,
        ca_file: str | None = None,
    ) -> None:
        self._url = url
        self._parts = urlsplit(url)
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname or self._parts.username:
            raise OptionError(
                f"webhook: url {hide_password(url)!r}: give http(s)://HOST[:PORT]/PATH, without user and password"
            )
        if kind not in KINDS:
            raise OptionError(f"webhook: kind {kind!r}: there are {' and '.join(KINDS)}")
        if secret_file is not None:
            exposed = exposed_text(secret_file, "the secret of a webhook")
            if exposed is not None:
                _log.warning("webhook: %s", exposed)
            try:
                with open(secret_file, encoding="utf-8") as file:
                    secret = file.readline().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise OptionError(f"webhook: secret_file {secret_file} cannot be read: {error}") from None
        for name, value in (headers or {}).items():
            if any(not c.isprintable() for c in name + str(value)):
                raise OptionError(f"webhook: the header {name!r} has a control character")
        self._key = secret_key(secret) if secret is not None else None
        self._kind = kind
        self._headers = dict(headers or {})
        self._time_out_s = time_out_s
        self._tls: ssl.SSLContext | None = None
        if self._parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except (OSError, ssl.SSLError) as error:
                raise OptionError(f"webhook: ca_file {ca_file} cannot be used: {error}") from None

    def __call__(self, item: Item) -> None:
        """One attempt. Reject, or Defer: it was not taken this time."""
        body, headers = self._request(item)
        moment = str(int(time.time()))
        headers |= {"webhook-id": item.uid, "webhook-timestamp": moment, "User-Agent": f"Pillarbox/{__version__}"}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, item.uid, moment, body)
        try:
            status, text = post(self._parts, body, {**headers, **self._headers}, self._time_out_s, self._tls)
        except PostError as error:
            raise Defer(str(error)) from None
        if 200 <= status < 300:
            return
        said = f"{self._parts.hostname} said {status}" + (f": {text}" if text else "")
        if status in PERMANENT:
            raise Reject(said, 550, "5.3.0")
        raise Defer(said)

    def _request(self, item: Item) -> tuple[bytes, dict[str, str]]:
        envelope = {
            "url": self._url,
            "uid": item.uid,
            "attempt": item.attempt,
            "reverse_path": item.reverse_path,
            "recipients": item.recipients,
            "received_at": item.received_at,
            "facts": item.facts,
        }
        if self._kind == "raw":
            return _form(json.dumps(envelope).encode(), item.content, item.uid)
        content = base64.b64encode(item.content).decode()
        return json.dumps({**envelope, "content": content}).encode(), {"Content-Type": "application/json"}


def _form(envelope: bytes, content: bytes, uid: str) -> tuple[bytes, dict[str, str]]:
    """multipart/form-data (RFC 7578): a header line for each recipient would pass what receivers take (nginx: 8 KB)."""
    boundary = f"pillarbox-{uid}"
    while boundary.encode() in content or boundary.encode() in envelope:
        boundary += "x"
    line = f"--{boundary}\r\n".encode()
    octets = b"".join(
        (
            line,
            b'Content-Disposition: form-data; name="envelope"\r\nContent-Type: application/json\r\n\r\n',
            envelope + b"\r\n",
            line,
            f'Content-Disposition: form-data; name="message"; filename="{uid}.eml"\r\n'.encode(),
            b"Content-Type: message/rfc822\r\n\r\n",
            content + f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    return octets, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@dataclass(frozen=True, slots=True)
class Received:
    """A request as its receiver reads it. `envelope` has the fields of both kinds, without content."""

    envelope: dict[str, Any]
    content: bytes


def received(headers: Mapping[str, str], body: bytes) -> Received:
    """For the receiving side: envelope and content of a request of either kind. ValueError for anything else.

    Call `verify` first.
    """
    kind = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    try:
        if kind.startswith("application/json"):
            envelope = json.loads(body)
            return Received(envelope, base64.b64decode(envelope.pop("content"), validate=True))
        boundary = kind.partition("multipart/form-data; boundary=")[2].encode()
        before, first, second = body.split(b"--" + boundary + b"\r\n")
        if boundary and not before:
            envelope = json.loads(first.partition(b"\r\n\r\n")[2])
            content = second.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n--" + boundary + b"--\r\n")
            if isinstance(envelope, dict):
                return Received(envelope, content)
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ValueError("invalid webhook request: expected a body of kind json or raw")


def secret_key(secret: str) -> bytes:
    """The key of a secret: `whsec_` and base64, or any text. OptionError for what is neither."""
    if secret in ("", _SECRET):
        raise OptionError("webhook: the secret is empty: without one, leave it out")
    if not secret.startswith(_SECRET):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_SECRET), validate=True)
    except binascii.Error:
        raise OptionError("webhook: the secret begins with whsec_ but is no base64 behind it") from None


def signature(key: bytes, uid: str, moment: str, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, timestamp and body, in base64."""
    digest = hmac.new(key, f"{uid}.{moment}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    url: str | None = None,
    tolerance_s: float = 300.0,
    now: float | None = None,
) -> str:
    """For the receiving side: the id of a request that was signed with this secret lately. SignatureError for any other.

    `url`: the URL that the sender is configured with. A request that was signed for another receiver is refused with it.
    """
    found = {name.lower(): value for name, value in headers.items()}
    uid, moment = found.get("webhook-id", ""), found.get("webhook-timestamp", "")
    if not (uid and moment.isascii() and moment.isdigit() and len(moment) < 13):
        raise SignatureError("webhook-id or webhook-timestamp is missing")
    if abs((time.time() if now is None else now) - int(moment)) > tolerance_s:
        raise SignatureError("webhook-timestamp is too far from now")
    wanted = signature(secret_key(secret), uid, moment, body)
    # Several while a secret is changed: one that fits is enough.
    if not any(
        hmac.compare_digest(one.encode(), wanted.encode()) for one in found.get("webhook-signature", "").split(" ")
    ):
        raise SignatureError("webhook-signature is none of ours")
    if "x-pillarbox-envelope" in found:
        # Older versions sent it; nothing signs it.
        raise SignatureError("X-Pillarbox-Envelope is not signed: the envelope is in the body")
    if url is not None and _signed_url(found, body) != url:
        raise SignatureError("the request was signed for another URL")
    return uid


def _signed_url(headers: Mapping[str, str], body: bytes) -> object:
    try:
        return received(headers, body).envelope.get("url")
    except ValueError:
        return None
