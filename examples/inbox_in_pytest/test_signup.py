"""Tests of what sends mail: those of before, with either server; then what only an inbox can."""

from __future__ import annotations

import asyncio
import smtplib
from typing import Any

import pytest
from signup import sign_up

from pillarbox.testing import SmtpServer, TestInbox


def test_the_welcome_arrives(mailbox: Any) -> None:
    sign_up("me@example.org", mailbox.host, mailbox.port)
    message = mailbox.wait_for("me@example.org")
    assert message["Subject"] == "Welcome to the shop"
    assert "code=1234" in message.get_body(("plain",)).get_content()


def test_without_a_mailbox_of_ones_own(smtp_server: SmtpServer, inbox: TestInbox) -> None:
    sign_up("me@example.org", smtp_server.host, smtp_server.port)
    message = inbox.wait_for(to="me@example.org", subject="welcome")
    assert message.recipients == ["me@example.org"]
    assert "confirm</a>" in message.html
    assert len(inbox) == 1


def test_a_server_that_says_no(smtp_server: SmtpServer, inbox: TestInbox) -> None:
    smtp_server.script(RCPT=["450 4.2.1 Try again later"])
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        sign_up("me@example.org", smtp_server.host, smtp_server.port)
    assert len(inbox) == 0
    sign_up("me@example.org", smtp_server.host, smtp_server.port)
    assert len(inbox) == 1


async def _sign_up_and_wait(server: SmtpServer) -> str:
    await asyncio.to_thread(sign_up, "you@example.org", server.host, server.port)
    return (await server.inbox.await_for(to="you@")).subject


def test_from_an_async_test(smtp_server: SmtpServer) -> None:
    assert asyncio.run(_sign_up_and_wait(smtp_server)) == "Welcome to the shop"


@pytest.mark.smtp_server(auth={"shop": "secret"})
def test_a_login_that_is_wrong(smtp_server: SmtpServer) -> None:
    with smtplib.SMTP(smtp_server.host, smtp_server.port) as client, pytest.raises(smtplib.SMTPAuthenticationError):
        client.login("shop", "wrong")
