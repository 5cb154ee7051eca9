"""Sender verification: the domain of the reverse-path must be able to take mail. Alias `sender_verify`.

Decided before the reply to MAIL (or RCPT), never beside it. The null reverse-path passes: it cannot be answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..dns import Resolver, Status, addresses
from ..events.catalogue import CmdMail, CmdRcpt, Fverify, Session
from ..smtp.address import comparable_domain, domain_of, is_address_literal
from ..smtp.reply import Reply

_REASON = "sender-unverified"


class SenderVerifyPlugin:
    """See the module's text. `at` is "mail" or "rcpt"."""

    deadline_s = 60.0

    def __init__(self, resolver: Resolver, at: str, tell: Callable[[Any], None]) -> None:
        self._resolver = resolver
        self._at = at
        self._tell = tell

    async def on_cmd_mail(self, server: Any, event: CmdMail) -> Reply | None:
        """The verdict, where it is wanted at MAIL."""
        return await self._verify(event.session, event.address) if self._at == "mail" else None

    async def on_cmd_rcpt(self, server: Any, event: CmdRcpt) -> Reply | None:
        """The verdict, where it is wanted at RCPT."""
        envelope = event.session.envelope
        if self._at != "rcpt" or envelope is None:
            return None
        return await self._verify(event.session, envelope.reverse_path)

    async def _verify(self, session: Session, address: str | None) -> Reply | None:
        domain = domain_of(address or "")
        if address is None or not domain or is_address_literal(domain):
            return None
        reply, error = await self.judge(address)
        self._tell(Fverify(session.client_id, session, reply, error, domain))
        return reply

    async def judge(self, address: str | None) -> tuple[Reply | None, str]:
        """A refusal and its reason, or None and nothing, for a reverse-path."""
        domain = domain_of(address or "")
        if not domain or is_address_literal(domain):
            return None, ""
        name = comparable_domain(domain)
        answer = await self._resolver.resolve(name, "MX")
        if answer.status is Status.FOUND and answer.records:
            if len(answer.records) == 1 and answer.records[0][1] == ".":
                # RFC 7505 section 4.2
                return Reply(
                    550, "5.7.27", f"Sender domain {domain} takes no mail (null MX)", reason=_REASON
                ), "null MX"
            return None, ""
        if answer.status is Status.NO_NAME:
            return Reply(550, "5.1.8", f"Sender domain {domain} does not exist", reason=_REASON), "no such domain"
        if answer.status is Status.FAILED:
            return _unknown(domain), answer.reason or "no answer"
        # RFC 5321 section 5.1: without MX the address of the domain itself serves. The original forgot that.
        found, answers = await addresses(self._resolver, name)
        if found:
            return None, ""
        if any(one.status is Status.FAILED for one in answers):
            return _unknown(domain), "no answer"
        return Reply(
            550, "5.1.8", f"Sender domain {domain} has neither MX nor address", reason=_REASON
        ), "neither MX nor address"


def _unknown(domain: str) -> Reply:
    return Reply(451, "4.4.3", f"Sender domain {domain} cannot be looked up now: try again later", reason=_REASON)
