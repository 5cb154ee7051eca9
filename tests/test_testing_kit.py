"""pillarbox.testing for users: the server in a thread, its inbox, its script, the pytest fixtures."""

from __future__ import annotations

import asyncio
import smtplib
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from pillarbox.errors import ListenError, OptionError, StateError
from pillarbox.testing import SmtpServer, TestInbox
from tests.conftest import ROOT


def send(server: SmtpServer, to: str = "c@d.test", subject: str = "hello") -> None:
    with smtplib.SMTP(server.host, server.port, timeout=10) as client:
        client.sendmail("a@b.test", [to], f"Subject: {subject}\r\n\r\nbody\r\n".encode())


def test_fixture_and_inbox(smtp_server: SmtpServer, inbox: TestInbox) -> None:
    assert len(inbox) == 0
    send(smtp_server, "one@d.test", "first")
    send(smtp_server, "two@d.test", "second")
    assert [m.subject for m in inbox] == ["first", "second"] and inbox[0].recipients == ["one@d.test"]
    assert inbox.wait_for(to="two@").subject == "second"
    assert inbox.wait_for(where=lambda m: m.recipients == ["two@d.test"]).subject == "second"
    assert [m.subject for m in inbox.messages(subject="FIR")] == ["first"]
    with pytest.raises(TimeoutError, match=r"the inbox has to=one@d\.test subject='first'; to=two"):
        inbox.wait_for(subject="third", timeout=0.05)
    late = threading.Timer(0.05, send, (smtp_server, "c@d.test", "third"))
    late.start()
    assert inbox.wait_for(subject="third", timeout=10).text.strip() == "body"
    late.join()
    inbox.clear()
    assert list(inbox) == []


def test_many_at_once_and_each_its_own(smtp_server_factory: Any) -> None:
    servers = [smtp_server_factory() for _ in range(5)]
    assert len({server.port for server in servers}) == 5
    for number, server in enumerate(servers):
        send(server, subject=f"n{number}")
    assert [server.inbox[0].subject for server in servers] == [f"n{n}" for n in range(5)]


def test_script_and_faults(smtp_server: SmtpServer) -> None:
    with pytest.raises(OptionError, match="'RPCT' is no step"):
        smtp_server.script(RPCT="450 no")
    with pytest.raises(OptionError, match="begins with a code"):
        smtp_server.script(RCPT="no")
    smtp_server.script(RCPT=["450 4.2.1 Later", "550 5.1.1 Never"], MESSAGE="452 4.3.1 Full")
    codes = []
    for _ in range(3):
        try:
            send(smtp_server)
        except smtplib.SMTPRecipientsRefused as error:
            codes.append(next(iter(error.recipients.values()))[0])
        except smtplib.SMTPDataError as error:
            codes.append(error.smtp_code)
    assert codes == [450, 550, 452]
    smtp_server.reset()
    smtp_server.faults.add("drop at=mail")
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(smtp_server)
    smtp_server.reset()
    send(smtp_server)
    assert len(smtp_server.inbox) == 1
    smtp_server.script(CONNECTION="554 5.7.1 Not you")
    with pytest.raises(smtplib.SMTPConnectError):
        send(smtp_server)


@pytest.mark.smtp_server(tls=True, auth=True)
def test_tls_and_any_login(smtp_server: SmtpServer, inbox: TestInbox) -> None:
    with smtplib.SMTP("localhost", smtp_server.port, timeout=10) as client:
        client.starttls(context=smtp_server.client_context)
        client.login("anybody", "anything")
        client.sendmail("who@ever.test", ["c@d.test"], b"Subject: x\r\n\r\nx\r\n")
    message = inbox.wait_for()
    assert message.facts["user"] == "anybody" and message.facts["tls"].startswith("TLSv1")


@pytest.mark.smtp_server(implicit_tls=True, auth={"me": "right"})
def test_implicit_tls_and_one_login(smtp_server: SmtpServer) -> None:
    with smtplib.SMTP_SSL("localhost", smtp_server.port, timeout=10, context=smtp_server.client_context) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("me", "wrong")
        client.login("me", "right")


def test_from_an_async_test(smtp_server: SmtpServer) -> None:
    async def main() -> str:
        waiting = asyncio.ensure_future(smtp_server.inbox.await_for(to="c@d.test"))
        await asyncio.sleep(0)
        await asyncio.to_thread(send, smtp_server)
        return (await waiting).subject

    assert asyncio.run(main()) == "hello"


def test_what_a_plugin_sees_and_the_server_itself() -> None:
    class Upper:
        def on_message(self, server: Any, event: Any) -> None:
            event.content.set_header("Subject", "CHANGED")

    with SmtpServer(plugins={"upper": Upper()}, max_size_bytes=2000) as server:
        send(server)
        assert server.inbox[0].subject == "CHANGED"
        assert server.call(lambda s: s.queue.status())["recipients"] == {"held": 1}
        assert server.mail_server.options.max_size_bytes == 2000
        with pytest.raises(StateError):
            server.start()
        with pytest.raises(smtplib.SMTPResponseException), smtplib.SMTP(server.host, server.port) as client:
            client.sendmail("a@b.test", ["c@d.test"], b"x" * 5000)


def test_a_server_that_cannot_start(smtp_server: SmtpServer) -> None:
    with pytest.raises(ListenError, match="another server has it"):
        SmtpServer(listen=[f"127.0.0.1:{smtp_server.port}"]).start()
    with pytest.raises(OptionError, match="max_size"):
        SmtpServer(max_size_byte=1).start()
    SmtpServer().stop()


def test_it_comes_and_goes_quickly() -> None:
    before = time.monotonic()
    for _ in range(10):
        with SmtpServer():
            pass
    assert time.monotonic() - before < 10
    assert not [t for t in threading.enumerate() if t.name == "pillarbox-test-server"]


def test_the_example_project_with_both_servers() -> None:
    """In a pytest of its own, as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir=.", "."],
        cwd=ROOT / "examples" / "inbox_in_pytest",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
