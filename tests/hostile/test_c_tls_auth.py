"""Rows C47 to C61 of the hostile checklist: TLS and AUTH. Each row whole, byte by byte, and cut at random."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Account, MailServer
from pillarbox.delivery.client import ClientConnection, ClientSettings, ConnectFault
from pillarbox.delivery.route import Target
from pillarbox.delivery.tlspolicy import TlsPolicy, client_context
from pillarbox.smtp.client import Stage
from pillarbox.smtp.sasl import Credentials, SaslFault, server_mechanism
from pillarbox.testing import ScriptedServer
from tests.conftest import Client, cuts, drip, run_async, serving

Sizes = Callable[[], Iterator[int]]
Certificate = dict[str, str]
SIZES = pytest.mark.parametrize("sizes", cuts(3), ids=["whole", "bytes", "random"])


def b64(text: str | bytes) -> bytes:
    return base64.b64encode(text.encode() if isinstance(text, str) else text)


def trusting(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate["ca"])


class TlsClient(Client):
    """A client that can start TLS and sends in cuts."""

    sizes: Iterator[int]

    async def start_tls(self, certificate: Certificate, context: ssl.SSLContext | None = None) -> None:
        assert (await self.ask(b"STARTTLS")).startswith("220")
        await self.writer.start_tls(context or trusting(certificate), server_hostname="mx.test")

    async def say(self, line: bytes) -> str:
        await drip(self.writer, line + b"\r\n", self.sizes)
        return await self.reply()


async def connect(server: MailServer, sizes: Sizes) -> TlsClient:
    client = await TlsClient.connect(server)
    assert isinstance(client, TlsClient)
    client.sizes = sizes()
    return client


async def secure(server: MailServer, sizes: Sizes, certificate: Certificate) -> TlsClient:
    client = await connect(server, sizes)
    await client.say(b"EHLO x.test")
    await client.start_tls(certificate)
    await client.say(b"EHLO x.test")
    return client


def tls(certificate: Certificate, **more: Any) -> dict[str, Any]:
    return {"tls_cert": certificate["cert"], "tls_key": certificate["key"], "store": "memory", **more}


def check(username: str, password: str) -> bool:
    return (username, password) == ("user@mx.test", "secret")


@SIZES
def test_c47_plaintext_behind_starttls(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, **tls(certificate)) as server:
            client = await connect(server, sizes)
            await client.say(b"EHLO x.test")
            await drip(client.writer, b"STARTTLS\r\nMAIL FROM:<evil@b.test>\r\nNOOP\r\n", sizes())
            text = await client.rest()
            # Together with STARTTLS: refused. Behind the 220: no TLS record, so the handshake fails. Never a command.
            assert text.startswith(("554 5.5.0", "220")) and "250" not in text
            assert not server._parts.context.sessions or all(
                s.facts.envelope is None for s in server._parts.context.sessions.values()
            )

    run_async(main)


@SIZES
def test_c48_state_is_forgotten(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, **tls(certificate)) as server:
            client = await connect(server, sizes)
            await client.say(b"EHLO before.test")
            await client.start_tls(certificate)
            assert (await client.say(b"MAIL FROM:<a@b.test>")).startswith("503")
            session = next(iter(server._parts.context.sessions.values()))
            assert session.facts.helo == "" and session.facts.tls
            assert "STARTTLS" not in await client.say(b"EHLO after.test")
            client.close()

    run_async(main)


@SIZES
def test_c49_starttls_out_of_place(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, **tls(certificate)) as server:
            client = await connect(server, sizes)
            assert (await client.say(b"STARTTLS")).startswith("503")
            await client.say(b"EHLO x.test")
            assert (await client.say(b"STARTTLS now")).startswith("501")
            await client.say(b"MAIL FROM:<a@b.test>")
            assert (await client.say(b"STARTTLS")).startswith("503")
            await client.say(b"RSET")
            await client.start_tls(certificate)
            await client.say(b"EHLO x.test")
            assert (await client.say(b"STARTTLS")).startswith("503")
            client.close()

    run_async(main)


@SIZES
def test_c50_handshake_garbage_and_close(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, **tls(certificate)) as server:
            for garbage in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b""):
                client = await connect(server, sizes)
                await client.say(b"EHLO x.test")
                assert (await client.say(b"STARTTLS")).startswith("220")
                await drip(client.writer, garbage, sizes())
                if not garbage:
                    client.writer.transport.abort()
                else:
                    await client.rest()
            async with asyncio.timeout(10):
                while server._parts.context.sessions:
                    await asyncio.sleep(0.005)
            assert server._parts.context.admission.sessions == 0

    run_async(main)


def test_c50_handshake_stall(tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("pillarbox.server.limits.HANDSHAKE_S", 0.2)
        async with serving(tmp_path, **tls(certificate)) as server:
            client = await connect(server, cuts(0)[0])
            await client.say(b"EHLO x.test")
            await client.say(b"STARTTLS")
            await client.rest()
            assert server._parts.context.admission.sessions == 0

    run_async(main)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_c51_old_tls(tmp_path: Path, certificate: Certificate) -> None:
    async def main() -> None:
        async with serving(tmp_path, **tls(certificate)) as server:
            assert server._parts.context.tls is not None
            assert server._parts.context.tls.minimum_version is ssl.TLSVersion.TLSv1_2
            assert server._parts.context.tls.options & ssl.OP_NO_RENEGOTIATION
            client = await connect(server, cuts(0)[0])
            await client.say(b"EHLO x.test")
            old = trusting(certificate)
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await client.start_tls(certificate, old)

    run_async(main)


def test_c52_ticket_of_another_service(tmp_path: Path, certificate: Certificate) -> None:
    """A session ticket of one server opens nothing at another; and at its own, AUTH is still asked for."""

    def handshake(
        port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> tuple[bool, ssl.SSLSession | None]:
        import smtplib

        plain = smtplib.SMTP("127.0.0.1", port)
        plain.ehlo("x.test")
        plain.docmd("STARTTLS")
        assert plain.sock is not None
        secure = context.wrap_socket(plain.sock, server_hostname="mx.test", session=session)
        plain.sock, plain.file = secure, None
        plain.ehlo("x.test")
        reused, ticket = bool(secure.session_reused), secure.session
        assert plain.docmd("MAIL", "FROM:<someone@else.test>")[0] == 250
        plain.close()
        return reused, ticket

    async def main() -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        async with (
            serving(first, alias="one", **tls(certificate)) as one,
            serving(second, alias="two", **tls(certificate)) as two,
        ):
            context = trusting(certificate)
            _, ticket = await asyncio.to_thread(handshake, one.getsockname()[1], context, None)
            assert (await asyncio.to_thread(handshake, one.getsockname()[1], context, ticket))[0]
            assert not (await asyncio.to_thread(handshake, two.getsockname()[1], context, ticket))[0]

    run_async(main)


def settings(policy: str, **more: Any) -> ClientSettings:
    kind = TlsPolicy(policy)
    return ClientSettings("mx.test", kind, client_context(kind, None), **more)


class NoOwner:
    def transaction_done(self, connection: Any, transaction: Any) -> None: ...

    def may_send_more(self, connection: Any) -> None: ...

    def connection_closed(self, connection: Any) -> None: ...


async def opening(peer: ScriptedServer, given: ClientSettings) -> ConnectFault:
    from pillarbox.clock import SystemClock

    connection = ClientConnection(NoOwner(), Target("127.0.0.1", peer.port), given, SystemClock())
    with pytest.raises(ConnectFault) as caught:
        await connection.open()
    return caught.value


STARTTLS = "250-scripted.test\r\n250 STARTTLS"


@pytest.mark.parametrize("extra", ["\r\n250 injected", "\r\n250-half", "\r\nx"])
def test_c53_plaintext_behind_220(extra: str) -> None:
    async def main() -> None:
        async with ScriptedServer(EHLO=STARTTLS, STARTTLS="220 go" + extra) as peer:
            fault = await opening(peer, settings("encrypt"))
            assert fault.reply.is_transient
            assert [line for line in peer.lines if line.startswith(("MAIL", "AUTH"))] == []

    run_async(main)


def test_c54_tls_is_required_and_not_there() -> None:
    async def main() -> None:
        for replies in ({}, {"EHLO": STARTTLS, "STARTTLS": "454 4.7.0 not now"}):
            async with ScriptedServer(**replies) as peer:
                for policy in ("encrypt", "verify"):
                    fault = await opening(peer, settings(policy, credentials=Credentials("u", "p")))
                    assert (fault.reply.code, fault.reply.enhanced, fault.stage) == (451, "4.7.10", Stage.TLS)
                assert not any(line.startswith(("MAIL", "AUTH")) for line in peer.lines)
        async with ScriptedServer(EHLO="250-scripted.test\r\n250 AUTH PLAIN") as peer:
            fault = await opening(peer, settings("may", credentials=Credentials("u", "p")))
            assert fault.stage is Stage.AUTH and not any("AUTH" in line for line in peer.lines)

    run_async(main)


@SIZES
def test_c55_auth_in_clear(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, authenticator=check, **tls(certificate)) as server:
            client = await connect(server, sizes)
            assert "AUTH" not in await client.say(b"EHLO x.test")
            assert (await client.say(b"AUTH PLAIN " + b64("\0user@mx.test\0secret"))).startswith("538 5.7.11")
            await client.start_tls(certificate)
            assert "AUTH PLAIN LOGIN" in await client.say(b"EHLO x.test")
            client.close()

    run_async(main)


@SIZES
def test_c56_broken_exchanges(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, authenticator=check, **tls(certificate)) as server:
            server._parts.context.guess_delay_s = 0.0
            client = await secure(server, sizes, certificate)
            assert await client.say(b"AUTH PLAIN") == "334 "
            long = b"A" * 20_000
            assert (await client.say(long)).startswith("500 5.5.6")
            for line, expected in ((b"!!!!", "501 5.5.2"), (b"*", "501"), (b"abc", "501 5.5.2"), (b"=", "535 5.7.8")):
                assert (await client.say(b"AUTH PLAIN")).startswith("334")
                assert (await client.say(line)).startswith(expected)
            assert (await client.say(b"AUTH PLAIN !!")).startswith("501 5.5.2")
            assert (await client.say(b"AUTH CRAM-MD5")).startswith("504 5.5.4")
            assert (await client.say(b"AUTH")).startswith("501")
            session = next(iter(server._parts.context.sessions.values()))
            assert session.errors >= 7, "they are counted"
            assert (await client.say(b"AUTH PLAIN " + b64("\0user@mx.test\0secret"))).startswith("235 2.7.0")
            client.close()

    run_async(main)


@pytest.mark.parametrize(
    "octets",
    [
        b"user\0secret",
        b"\0user\0secret\0",
        b"\0\0",
        b"\0us\ner\0x",
        b"other\0user\0secret",
        b"\0user\0",
        b"\0\xff\0x",
        b"\0" + b"u" * 300 + b"\x01\0x",
        b"",
    ],
)
@SIZES
def test_c57_plain(tmp_path: Path, certificate: Certificate, sizes: Sizes, octets: bytes) -> None:
    with pytest.raises(SaslFault):
        server_mechanism("PLAIN").step(octets)

    async def main() -> None:
        async with serving(tmp_path, authenticator=lambda u, p: True, **tls(certificate)) as server:
            server._parts.context.guess_delay_s = 0.0
            client = await secure(server, sizes, certificate)
            assert (await client.say(b"AUTH PLAIN " + (b64(octets) or b"="))).startswith("535 5.7.8")
            assert next(iter(server._parts.context.sessions.values())).facts.username is None
            client.close()

    run_async(main)


@SIZES
def test_c58_auth_twice_and_within(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        async with serving(tmp_path, authenticator=check, **tls(certificate)) as server:
            client = await secure(server, sizes, certificate)
            good = b"AUTH PLAIN " + b64("\0user@mx.test\0secret")
            await client.say(b"MAIL FROM:<a@b.test>")
            assert (await client.say(good)).startswith("503 5.5.1")
            await client.say(b"RSET")
            assert (await client.say(b"AUTH LOGIN")).startswith("334 " + b64("Username:").decode())
            assert (await client.say(b64("user@mx.test"))).startswith("334 " + b64("Password:").decode())
            assert (await client.say(b64("secret"))).startswith("235")
            assert (await client.say(good)).startswith("503 5.5.1")
            assert "AUTH" not in await client.say(b"EHLO x.test")
            client.close()

    run_async(main)


@SIZES
def test_c59_guessing(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    async def main() -> None:
        delays: list[float] = []
        async with serving(tmp_path, authenticator=check, **tls(certificate, max_errors=1000)) as server:
            real = server._parts.context.clock.call_later

            class Clock:
                time, monotonic = server._parts.context.clock.time, server._parts.context.clock.monotonic

                def call_later(self, delay_s: float, callback: Any) -> Any:
                    delays.append(delay_s)
                    return real(0.0, callback)

            server._parts.context.clock = Clock()
            client = await secure(server, sizes, certificate)
            replies = [await client.say(b"AUTH PLAIN " + b64(f"\0u{n}@mx.test\0guess")) for n in range(12)]
            assert {r[:9] for r in replies[:10]} == {"535 5.7.8"} and replies[10].startswith("454 4.7.0")
            # From the beginning of the verdict; what that took is part of the second.
            assert server._parts.context.guess_delay_s >= 1.0 and all(0.0 < delay <= 1.0 for delay in delays)
            # The right password does not help from there any more, for a while.
            assert (await client.say(b"AUTH PLAIN " + b64("\0user@mx.test\0secret"))).startswith("454")
            client.close()

    run_async(main)


def test_c59_no_oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that is not there costs a hash like one that is."""
    from pillarbox.server import accounts

    path = tmp_path / "accounts"
    accounts.update_file(str(path), "user", accounts.format_line("user", accounts.hash_password("secret"), ()))
    hashed: list[str] = []
    real = accounts.is_password
    monkeypatch.setattr(
        accounts, "is_password", lambda password, digest: hashed.append(digest) or real(password, digest)
    )
    file = accounts.AuthFile(str(path))
    assert file("user", "secret") == Account("user")
    assert file("user", "wrong") is None and file("nobody", "secret") is None
    assert len(hashed) == 3


@pytest.mark.parametrize("name", ["*)(uid=*", "' OR 1=1 --", "user)(|(password=*)", "$(reboot)"])
@SIZES
def test_c60_metacharacters(tmp_path: Path, certificate: Certificate, sizes: Sizes, name: str) -> None:
    async def main() -> None:
        seen: list[tuple[str, str]] = []

        async def authenticator(username: str, password: str) -> bool:
            seen.append((username, password))
            return False

        async with serving(tmp_path, authenticator=authenticator, **tls(certificate)) as server:
            server._parts.context.guess_delay_s = 0.0
            client = await secure(server, sizes, certificate)
            assert (await client.say(b"AUTH PLAIN " + b64(f"\0{name}\0x"))).startswith("535")
            assert seen == [(name, "x")]
            client.close()

    run_async(main)


@SIZES
def test_c61_sends_as_somebody_else(tmp_path: Path, certificate: Certificate, sizes: Sizes) -> None:
    def authenticator(username: str, password: str) -> Any:
        return {"wide": Account("wide", ("me@a.test", "@b.test")), "any": Account("any", ("*",)), "bob": True}.get(
            username, False
        )

    expected = {
        "bob": {"bob@mx.test": "250", "alice@mx.test": "553 5.7.1", "": "250"},
        "wide": {"me@a.test": "250", "x@B.test": "250", "x@a.test": "553 5.7.1", "x@c.b.test": "553"},
        "any": {"whoever@else.test": "250"},
    }

    async def main() -> None:
        async with serving(tmp_path, authenticator=authenticator, **tls(certificate)) as server:
            for name, cases in expected.items():
                client = await secure(server, sizes, certificate)
                assert (await client.say(b"AUTH PLAIN " + b64(f"\0{name}\0x"))).startswith("235")
                for sender, reply in cases.items():
                    assert (await client.say(f"MAIL FROM:<{sender}>".encode())).startswith(reply), (name, sender)
                    await client.say(b"RSET")
                client.close()

    run_async(main)


def test_auth_event_and_a_failing_authenticator(tmp_path: Path, certificate: Certificate) -> None:
    async def main() -> None:
        events: list[tuple[str, bool]] = []

        def authenticator(username: str, password: str) -> bool:
            if username == "broken":
                raise RuntimeError("the directory is down")
            return password == "right"

        async with serving(tmp_path, authenticator=authenticator, **tls(certificate)) as server:
            server._parts.context.guess_delay_s = 0.0
            server.register(lambda event: events.append((event.username, event.is_accepted)), "auth")
            client = await secure(server, cuts(0)[0], certificate)
            assert (await client.say(b"AUTH PLAIN " + b64("\0broken\0x"))).startswith("454 4.7.0")
            assert (await client.say(b"AUTH PLAIN " + b64("\0bob\0wrong"))).startswith("535")
            assert (await client.say(b"AUTH PLAIN " + b64("\0bob\0right"))).startswith("235")
            await asyncio.sleep(0)
            assert events == [("bob", False), ("bob", True)]
            reply = await client.transaction(b"Subject: x\r\n\r\nx\r\n", sender=b"bob@mx.test")
            assert reply.startswith("250")
            content = server._parts.store.content(reply.split()[2])
            assert content is not None and b" with ESMTPSA " in content.read() and b"(using TLSv1.3" in content.read()
            client.close()

    run_async(main)


def test_implicit_tls(tmp_path: Path, certificate: Certificate) -> None:
    async def main() -> None:
        async with serving(tmp_path, listen=["smtps://127.0.0.1:0", "127.0.0.1:0"], **tls(certificate)) as server:
            host, port = server.getsocknames()[0]
            reader, writer = await asyncio.open_connection(
                host, port, ssl=trusting(certificate), server_hostname="mx.test"
            )
            client = Client(reader, writer)
            assert (await client.reply()).startswith("220")
            assert "STARTTLS" not in await client.ask(b"EHLO x.test")
            assert (await client.transaction(b"x\r\n")).startswith("250")
            assert await client.ask(b"QUIT") == "221 2.0.0 Bye"
            client.close()

    run_async(main)
