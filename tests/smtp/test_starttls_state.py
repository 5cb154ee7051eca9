"""RFC 3207 section 4.2: what was said before TLS is forgotten, and what comes before the handshake is never a command."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Reply
from pillarbox.server.tls import replace_context, server_context
from pillarbox.smtp.command import Command
from pillarbox.smtp.extension import Facts, offered
from pillarbox.smtp.server import ServerProtocol
from pillarbox.smtp.state import State
from tests.conftest import Client, cuts, run_async, serving, wired

OK, READY, LOGGED_IN = Reply(250, "2.0.0", "OK"), Reply(220, "2.0.0", "Ready"), Reply(235, "2.7.0", "Yes")
FACTS = Facts(tls_offered=True, auth_mechanisms=("PLAIN", "LOGIN"), auth_in_clear=True)


def protocol_at(state: State = State.READY, facts: Facts = FACTS) -> ServerProtocol:
    protocol = ServerProtocol(facts)
    protocol.state = state
    return protocol


def judge(protocol: ServerProtocol, octets: bytes) -> Command:
    protocol.receive_data(octets)
    command = protocol.next_event()
    assert isinstance(command, Command)
    return command


def code_of(command: Command) -> int:
    return command.error.code if command.error is not None else 250


def test_starttls_forgets_authentication_exchange_and_octets() -> None:
    protocol = protocol_at()
    judge(protocol, b"AUTH PLAIN eA==\r\n")
    protocol.respond(LOGGED_IN)
    assert protocol.facts.is_authenticated
    judge(protocol, b"STARTTLS\r\n")
    protocol.respond(READY)
    # Between the 220 and the handshake nothing is read.
    protocol.receive_data(b"MAIL FROM:<a@b.test>\r\n")
    assert protocol.next_event() is None
    protocol.tls_started()
    assert protocol.next_event() is None and protocol.buffered_bytes == 0
    assert protocol.state is State.OPEN and protocol.facts.is_tls and not protocol.facts.is_authenticated
    assert code_of(judge(protocol, b"MAIL FROM:<a@b.test>\r\n")) == 503


def test_starttls_ends_an_open_exchange_of_auth() -> None:
    protocol = protocol_at()
    judge(protocol, b"AUTH LOGIN\r\n")
    protocol.respond(Reply(334, None, "VXNlcm5hbWU6"))
    protocol.tls_started()
    # A command again, not a line of the exchange.
    assert judge(protocol, b"NOOP\r\n").verb == "NOOP"


@pytest.mark.parametrize("behind", [b"\r\n", b"N", b"NOOP\r\n", b"\x16\x03\x01", b"EHLO x\r\n"])
def test_starttls_with_octets_behind_it_is_refused_and_closes(behind: bytes) -> None:
    protocol = protocol_at()
    command = judge(protocol, b"STARTTLS\r\n" + behind)
    assert command.error is not None and command.error.code == 554
    protocol.respond(command.error)
    assert protocol.is_closed and protocol.next_event() is None


@pytest.mark.parametrize("state", [State.OPEN, State.MAIL, State.RCPT, State.CHUNKS])
@pytest.mark.parametrize("verb", [b"STARTTLS", b"AUTH PLAIN eA=="])
def test_starttls_and_auth_outside_the_greeted_state_are_out_of_order(state: State, verb: bytes) -> None:
    assert code_of(judge(protocol_at(state), verb + b"\r\n")) == 503


@pytest.mark.parametrize(
    ("facts", "line", "code"),
    [
        (Facts(tls_offered=True, is_tls=True), b"STARTTLS", 503), (Facts(), b"STARTTLS", 502), (Facts(tls_offered=True), b"STARTTLS", 250),
        (Facts(tls_offered=True), b"STARTTLS x", 501),
        (Facts(tls_offered=True, auth_mechanisms=("PLAIN",)), b"AUTH PLAIN eA==", 538),
        (Facts(auth_mechanisms=("PLAIN",)), b"AUTH PLAIN eA==", 538),
        (Facts(is_tls=True, auth_mechanisms=("PLAIN",)), b"AUTH PLAIN eA==", 250), (Facts(is_tls=True), b"AUTH PLAIN eA==", 502),
        (Facts(is_tls=True, auth_mechanisms=("PLAIN",)), b"AUTH LOGIN", 504),
        (Facts(is_tls=True, auth_mechanisms=("PLAIN",), is_authenticated=True), b"AUTH PLAIN eA==", 503),
        (Facts(auth_in_clear=True, auth_mechanisms=("PLAIN",)), b"AUTH PLAIN eA==", 250),
    ],
)  # fmt: skip
def test_starttls_and_auth_are_taken_where_they_are_offered(facts: Facts, line: bytes, code: int) -> None:
    assert code_of(judge(protocol_at(facts=facts), line + b"\r\n")) == code
    verb = line.split()[0].decode()
    if code in (502, 503, 538):
        assert not any(one.split()[0] == verb for one in offered(facts))
    elif code == 250:
        assert any(one.split()[0] == verb for one in offered(facts))


def test_session_forgets_account_name_and_transaction_at_the_handshake() -> None:
    async def main() -> None:
        async with wired(cuts(1)[0], authenticator=lambda name, password: True, auth_in_clear=True) as (server, wire):
            await wire.ask(b"EHLO before.test\r\n")
            await wire.ask(b"AUTH PLAIN " + base64.b64encode(b"\0ann\0x") + b"\r\n")
            await wire.ask(b"MAIL FROM:<ann@mx.test>\r\nRCPT TO:<c@d.test>\r\n")
            (session,) = server._parts.context.sessions.values()
            facts = session.facts
            assert facts.username == "ann" and facts.senders and facts.envelope and facts.is_esmtp
            session.tls_started("TLSv1.3 with cipher X")
            assert (facts.username, tuple(facts.senders), facts.envelope) == (None, (), None)
            assert (facts.helo, facts.is_esmtp, facts.tls) == ("", False, "TLSv1.3 with cipher X")
            assert not session.protocol.facts.is_authenticated

    run_async(main)


def test_account_of_before_the_handshake_relays_nothing_after_it(tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        given = {
            "tls_cert": certificate["cert"],
            "tls_key": certificate["key"],
            "store": "memory",
            "trust": ["192.0.2.0/24"],
        }
        async with serving(
            tmp_path, authenticator=lambda n, p: True, auth_in_clear=True, domains=["us.test"], **given
        ) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"AUTH PLAIN " + base64.b64encode(b"\0ann\0x"))).startswith("235")
            assert (await client.ask(b"STARTTLS")).startswith("220")
            await client.writer.start_tls(
                ssl.create_default_context(cafile=certificate["ca"]), server_hostname="mx.test"
            )
            assert "AUTH PLAIN" in await client.ask(b"EHLO x.test")
            await client.ask(b"MAIL FROM:<a@b.test>")
            assert (await client.ask(b"RCPT TO:<c@them.test>")).startswith("550 5.7.1")
            client.close()

    run_async(main)


# ------------------------------------------------------------------------- the context


def _context(certificate: dict[str, str], **more: Any) -> ssl.SSLContext:
    return server_context(certificate["cert"], certificate["key"], **more)


def test_server_context_has_tls_1_2_strong_ciphers_and_no_renegotiation(certificate: dict[str, str]) -> None:
    context = _context(certificate)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    wanted = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.options & wanted == wanted
    names = {one["name"] for one in context.get_ciphers()}
    assert not [
        name for name in names if any(weak in name for weak in ("NULL", "RC4", "DES-", "MD5", "EXP", "aNULL", "ADH"))
    ]
    device = _context(certificate, is_device=True)
    assert device.minimum_version < ssl.TLSVersion.TLSv1_2
    # OpenSSL takes the ciphers and signatures of TLS 1.0 at level 0 alone.
    assert device.security_level == 0 < context.security_level


def test_replaced_context_serves_every_hello(certificate: dict[str, str]) -> None:
    facade, current = _context(certificate), _context(certificate)
    replace_context(facade, current)

    class Handshake:
        context: ssl.SSLContext | None = None

    for name in (None, "mx.test", "other.test"):
        handshake = Handshake()
        assert callable(facade.sni_callback)
        facade.sni_callback(handshake, name, facade)  # type: ignore[arg-type, call-arg]
        assert handshake.context is current


def test_session_takes_the_context_of_its_profile(tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        given = {"tls_cert": certificate["cert"], "tls_key": certificate["key"], "store": "memory"}
        async with serving(tmp_path, device_networks=["127.0.0.0/8"], **given) as server:
            context = server._parts.context
            client = await Client.connect(server)
            (session,) = context.sessions.values()
            assert context.device_tls is not None and context.tls_of(session.facts) is context.device_tls
            session.facts.profile = ""
            assert context.tls_of(session.facts) is context.tls
            client.close()

    run_async(main)
