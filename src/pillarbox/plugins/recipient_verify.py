"""Recipient verification: asks the relay at RCPT whether it takes a recipient of an own domain. Alias `recipient_verify`.

A recipient that the relay refuses is refused here, so that this server makes no DSN for it (RFC 5321 section 6.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..events.catalogue import CmdRcpt, Session
from ..smtp.address import domain_of
from ..smtp.reply import Reply
from .simple import RelayRule

_REFUSED = Reply(550, "5.1.1", "Recipient refused by the next hop", reason="no-such-recipient")
_UNKNOWN = Reply(450, "4.1.1", "Recipient cannot be verified at present", reason="recipient-unverified")


class RecipientVerifyPlugin:
    """`verify` returns None or the next hop's reply; `is_relayed` is True for addresses that go to the relay."""

    deadline_s = 60.0

    def __init__(
        self, rule: RelayRule, verify: Callable[[str], Awaitable[Reply | None]], is_relayed: Callable[[str], bool]
    ) -> None:
        self._rule = rule
        self._verify = verify
        self._is_relayed = is_relayed

    async def on_cmd_rcpt(self, server: Any, event: CmdRcpt) -> Reply | None:
        """Returns a refusal, or None: then the built-in behaviour answers."""
        envelope = event.session.envelope
        if not event.address or (not event.address.isascii() and (envelope is None or not envelope.is_smtputf8)):
            return None
        return (await self.judge(event.session, event.address))[0]

    async def judge(self, session: Session, address: str) -> tuple[Reply | None, Reply | None]:
        """Returns the refusal, and the next hop's reply behind it; both None for an address that is not verified."""
        rule = self._rule
        if not rule.is_ours(domain_of(address)) or rule.is_our_role(address) or not self._is_relayed(address):
            return None, None
        if rule.judge(session, address) is not None:
            # Refused without a probe.
            return None, None
        said = await self._verify(address)
        if said is None:
            return None, None
        return (_REFUSED if said.is_permanent else _UNKNOWN), said
