"""Two ways to give a test a mail server: aiosmtpd with a handler of one's own, and Pillarbox's fixtures."""

from __future__ import annotations

import email
import email.policy
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, Protocol

import pytest
from aiosmtpd.controller import Controller

from pillarbox.testing import SmtpServer, TestInbox


class Mailbox(Protocol):
    """What the tests use."""

    host: str
    port: int

    def wait_for(self, to: str) -> EmailMessage: ...


# ---- before: aiosmtpd. The handler, the thread's lock of a list, the waiting and the parsing are the suite's own.


@dataclass
class Keep:
    """A handler that keeps what comes."""

    envelopes: list[Any] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.envelopes.append(envelope)
        return "250 OK"


@dataclass
class AiosmtpdMailbox:
    """Looks into the list until something is there."""

    host: str
    port: int
    kept: Keep

    def wait_for(self, to: str) -> EmailMessage:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for envelope in list(self.kept.envelopes):
                if to in envelope.rcpt_tos:
                    found = email.message_from_bytes(envelope.content, policy=email.policy.default)
                    assert isinstance(found, EmailMessage)
                    return found
            time.sleep(0.01)
        raise TimeoutError(to)


@pytest.fixture
def mailbox_of_aiosmtpd() -> Iterator[Mailbox]:
    keep = Keep()
    # Its controller calls itself at the port that it was given: that cannot be 0.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(keep, hostname="127.0.0.1", port=port)
    controller.start()
    yield AiosmtpdMailbox("127.0.0.1", port, keep)
    controller.stop()


# ---- after: Pillarbox. `smtp_server` and `inbox` come with the package.


@dataclass
class PillarboxMailbox:
    """The same for tests that stay as they are; new ones use `smtp_server` and `inbox` themselves."""

    host: str
    port: int
    inbox: TestInbox

    def wait_for(self, to: str) -> EmailMessage:
        return self.inbox.wait_for(to=to).parsed()


@pytest.fixture
def mailbox_of_pillarbox(smtp_server: SmtpServer, inbox: TestInbox) -> Mailbox:
    return PillarboxMailbox(smtp_server.host, smtp_server.port, inbox)


@pytest.fixture(params=["mailbox_of_aiosmtpd", "mailbox_of_pillarbox"])
def mailbox(request: pytest.FixtureRequest) -> Mailbox:
    """Both, to show that nothing else changes."""
    found: Mailbox = request.getfixturevalue(request.param)
    return found
