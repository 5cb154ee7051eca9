"""Django's mail through a running Pillarbox: each message is on the server's disk before `send` returns.

EMAIL_BACKEND = "pillarbox.django.EmailBackend"
PILLARBOX = "/var/lib/pillarbox"        # data directory, or URL of the admin API with PILLARBOX_TOKEN
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.message import EmailMessage

from .client import Client, connect
from .errors import PillarboxError
from .queue.enqueue import message_octets


class EmailBackend(BaseEmailBackend):
    """See the module's text. Threads and worker processes may share the settings; there is no connection to keep."""

    def __init__(
        self, *, where: str | None = None, token: str | None = None, fail_silently: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(fail_silently=fail_silently)
        where = where or getattr(settings, "PILLARBOX", None)
        self._client: Client = connect(where, token=token or getattr(settings, "PILLARBOX_TOKEN", None))

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """How many were taken. PillarboxError says why one was not, unless `fail_silently`."""
        taken = 0
        for message in email_messages or ():
            recipients = [_bare(one) for one in message.recipients()]
            if not recipients:
                continue
            sender = _bare(message.from_email)
            try:
                content = _octets(message.message())
                self._client.enqueue(reverse_path=sender, recipients=recipients, content=content)
            except PillarboxError:
                if not self.fail_silently:
                    raise
            else:
                taken += 1
        return taken


def _octets(message: Any) -> bytes:
    try:
        found: bytes = message.as_bytes(linesep="\r\n")
    except TypeError:
        # From Django 6 on it is a message of Python's own.
        found = message_octets(message)
    return found


def _bare(address: Any) -> str:
    """`Name <local@domain>` is for the header; the envelope has the address alone."""
    return parseaddr(str(address))[1] or str(address)
