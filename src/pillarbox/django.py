"""Django's mail through a running Pillarbox: each message is on the server's disk before `send` returns.

EMAIL_BACKEND = "pillarbox.django.EmailBackend"
PILLARBOX = "/var/lib/pillarbox"        # data directory, or URL of the admin API with PILLARBOX_TOKEN
PILLARBOX_PATIENCE_S = 15               # so long a server that is being restarted is waited for

`message.pillarbox_uid` is the message's uid once it was sent. Set before, it makes `send` idempotent: a message that the
queue has by that uid is not queued again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.message import EmailMessage

from .client import Client, connect
from .errors import DuplicateUidError, OptionError, PillarboxError
from .mail.fieldtext import field_addresses
from .queue.enqueue import message_octets


class EmailBackend(BaseEmailBackend):
    """See the module's text. Threads and worker processes may share the settings; there is no connection to keep."""

    def __init__(
        self,
        *,
        where: str | os.PathLike[str] | None = None,
        token: str | None = None,
        patience_s: float | None = None,
        fail_silently: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(fail_silently=fail_silently)
        where = where or getattr(settings, "PILLARBOX", None)
        if patience_s is None:
            patience_s = getattr(settings, "PILLARBOX_PATIENCE_S", 15.0)
        self._client: Client = connect(
            where, token=token or getattr(settings, "PILLARBOX_TOKEN", None), patience_s=float(patience_s)
        )

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Returns how many were taken. PillarboxError says why one was not, unless `fail_silently`."""
        taken = 0
        for message in email_messages or ():
            if not message.recipients():
                continue
            try:
                self._send(message)
            except PillarboxError:
                if not self.fail_silently:
                    raise
            else:
                taken += 1
        return taken

    def _send(self, message: Any) -> None:
        recipients = [_bare("recipients", one) for one in message.recipients()]
        sender = _bare("from_email", message.from_email)
        given = getattr(message, "pillarbox_uid", None)
        if given == getattr(message, "_pillarbox_made_uid", None):
            # Of the last time that this object was sent: it is another message now.
            given = None
        content = _octets(message.message())
        try:
            uid = self._client.enqueue(reverse_path=sender, recipients=recipients, content=content, uid=given)
        except DuplicateUidError:
            if given is None:
                raise
            return
        message.pillarbox_uid = uid
        if given is None:
            message._pillarbox_made_uid = uid


def _octets(message: Any) -> bytes:
    try:
        found: bytes = message.as_bytes(linesep="\r\n")
    except TypeError:
        # From Django 6 on it is a message of Python's own.
        found = message_octets(message)
    return found


def _bare(where: str, address: Any) -> str:
    """The one address in `Name <local@domain>`: the envelope has it alone, its domain in A-labels.

    As strict as Django's own backend: OptionError for what can be read in two ways.
    """
    try:
        found = field_addresses("To", str(address))
    except ValueError:
        found = []
    if len(found) != 1:
        raise OptionError(f"{where}: invalid address {str(address)!r}: expected one local-part@domain, or Name <...>")
    return found[0]
