"""What each `relay_tls` accepts from a next hop: its certificate, its name, its version of TLS, and no TLS at all."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from pillarbox.clock import SystemClock
from pillarbox.delivery.client import ClientConnection, ClientSettings, ConnectFault
from pillarbox.delivery.route import Target
from pillarbox.delivery.tlspolicy import TlsPolicy, client_context
from pillarbox.errors import OptionError
from pillarbox.smtp.client import Stage
from pillarbox.smtp.sasl import Credentials
from pillarbox.testing import DictResolver, ScriptedServer
from tests.conftest import queued, run_async, serving, until

OFFER = "250-tls.test\r\n250-AUTH PLAIN\r\n250 STARTTLS"
REQUIRED = [TlsPolicy.ENCRYPT, TlsPolicy.VERIFY]


class Nobody:
    def transaction_done(self, connection: Any, transaction: Any) -> None: ...

    def may_send_more(self, connection: Any) -> None: ...

    def connection_closed(self, connection: Any) -> None: ...


@dataclasses.dataclass
class Files:
    """An authority's certificate, and a leaf with its key, as files."""

    ca: str
    cert: str
    key: str


def issue(folder: Path, *names: str, authority: trustme.CA | None = None) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    authority = authority or trustme.CA()
    leaf = authority.issue_cert(*names)
    files = Files(*(str(folder / f"{name}.pem") for name in ("ca", "cert", "key")))
    authority.cert_pem.write_to_path(files.ca)
    leaf.cert_chain_pems[0].write_to_path(files.cert)
    leaf.private_key_pem.write_to_path(files.key)
    return files


@pytest.fixture(scope="module")
def localhost(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return issue(tmp_path_factory.mktemp("localhost"), "localhost")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A valid certificate of a host that is not the next hop."""
    return issue(tmp_path_factory.mktemp("elsewhere"), "other.example")


@pytest.fixture(autouse=True)
def _no_deprecation_warnings(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    recwarn.clear()


class TlsServer(ScriptedServer):
    """Speaks STARTTLS with a certificate; `versions` are (oldest, newest). Counts the handshakes that succeeded."""

    def __init__(self, files: Files, versions: tuple[Any, Any] | None = None, **replies: Any) -> None:
        super().__init__(EHLO=OFFER, AUTH="235 2.7.0 ok", **replies)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(files.cert, files.key)
        if versions is not None:
            self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
            self.context.minimum_version, self.context.maximum_version = versions
        self.handshakes = 0

    async def _say(self, writer: Any, verb: str, line: str) -> str:
        if verb != "STARTTLS" or "STARTTLS" in self.replies:
            return await super()._say(writer, verb, line)
        writer.write(b"220 go\r\n")
        await writer.start_tls(self.context)
        self.handshakes += 1
        return "220"


def settings(policy: TlsPolicy, ca: str | None = None, oldest: str = "1.2", **more: Any) -> ClientSettings:
    return ClientSettings("mx.test", policy, client_context(policy, ca, oldest), time_out_s=5.0, **more)


async def opened(peer: ScriptedServer, given: ClientSettings, host: str = "localhost") -> tuple[Stage | None, bool]:
    """Opens a connection: (None, is TLS on) or (the stage of the fault, False)."""
    connection = ClientConnection(Nobody(), Target(host, peer.port, address="127.0.0.1"), given, SystemClock())
    try:
        await connection.open()
    except ConnectFault as fault:
        # Whatever is wrong with TLS or a password, the mail waits.
        return fault.stage if fault.reply.is_transient else None, False
    connection.quit()
    return None, connection.smtp.is_tls


def said(peer: ScriptedServer, *verbs: str) -> list[str]:
    return [line for line in peer.lines if line.split(" ")[0].upper() in verbs]


# -------------------------------------------------------------- certificate and name


@pytest.mark.parametrize("is_implicit", [False, True])
@pytest.mark.parametrize("policy", [TlsPolicy.MAY, TlsPolicy.ENCRYPT, TlsPolicy.VERIFY])
@pytest.mark.parametrize("case", ["good", "other name", "unknown authority"])
def test_certificate_of_the_next_hop_is_verified_under_verify_only(
    tmp_path: Path, localhost: Files, elsewhere: Files, case: str, policy: TlsPolicy, is_implicit: bool
) -> None:
    files = {"good": localhost, "other name": elsewhere, "unknown authority": localhost}[case]
    ca = elsewhere.ca if case == "unknown authority" else files.ca

    async def main() -> None:
        listen = "smtps://127.0.0.1:0" if is_implicit else "127.0.0.1:0"
        async with serving(tmp_path, listen=[listen], store="memory", tls_cert=files.cert, tls_key=files.key) as server:
            target = Target("localhost", server.getsockname()[1], is_tls=is_implicit, address="127.0.0.1")
            connection = ClientConnection(Nobody(), target, settings(policy, ca), SystemClock())
            if case == "good" or policy is not TlsPolicy.VERIFY:
                await connection.open()
                assert connection.smtp.is_tls
                connection.quit()
                return
            with pytest.raises(ConnectFault) as caught:
                await connection.open()
            assert caught.value.stage is Stage.TLS and caught.value.is_handshake
            assert str(caught.value.reply).startswith("451 4.7.5")

    run_async(main)


def test_verify_wants_the_name_of_the_host_and_not_of_its_address(localhost: Files) -> None:
    async def main() -> None:
        async with TlsServer(localhost) as peer:
            assert await opened(peer, settings(TlsPolicy.VERIFY, localhost.ca)) == (None, True)
            # The same server and address under a name that the certificate does not have.
            assert await opened(peer, settings(TlsPolicy.VERIFY, localhost.ca), "mail.example") == (Stage.TLS, False)

    run_async(main)


def test_verify_without_a_ca_file_takes_the_systems_authorities_only(localhost: Files) -> None:
    async def main() -> None:
        async with TlsServer(localhost) as peer:
            assert (await opened(peer, settings(TlsPolicy.VERIFY)))[0] is Stage.TLS

    run_async(main)
    context = client_context(TlsPolicy.VERIFY, None)
    reference = ssl.create_default_context()
    assert context.get_ca_certs() == reference.get_ca_certs()
    # relay_ca takes the place of the system's authorities.
    assert len(client_context(TlsPolicy.VERIFY, localhost.ca).get_ca_certs()) == 1


def test_verify_refuses_an_expired_certificate(tmp_path: Path) -> None:
    import datetime

    authority = trustme.CA()
    files = issue(tmp_path, "localhost", authority=authority)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    leaf = authority.issue_cert("localhost", not_before=past, not_after=past + datetime.timedelta(days=1))
    leaf.private_key_pem.write_to_path(files.key)
    leaf.cert_chain_pems[0].write_to_path(files.cert)

    async def main() -> None:
        async with TlsServer(files) as peer:
            assert (await opened(peer, settings(TlsPolicy.VERIFY, files.ca)))[0] is Stage.TLS
            assert await opened(peer, settings(TlsPolicy.ENCRYPT)) == (None, True)

    run_async(main)


def test_session_of_one_name_is_not_resumed_for_another(localhost: Files) -> None:
    """A resumed handshake carries no certificate: what one name has proven must not stand for another."""

    async def main() -> None:
        async with TlsServer(localhost) as peer:
            given = settings(TlsPolicy.VERIFY, localhost.ca)
            for _ in range(2):
                assert await opened(peer, given) == (None, True)
            assert await opened(peer, given, "mail.example") == (Stage.TLS, False)
            assert list(given.context._sessions()) == ["localhost"]  # type: ignore[union-attr]

    run_async(main)


@pytest.mark.parametrize("content", [None, "", "not a certificate\n"])
def test_ca_file_that_cannot_be_used_is_an_option_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionError, match="relay_ca"):
        client_context(TlsPolicy.VERIFY, str(path))


# ------------------------------------------------------------------------ versions


VERSIONS = [("1.0", "TLSv1"), ("1.1", "TLSv1_1"), ("1.2", "TLSv1_2"), ("1.3", "TLSv1_3")]


@pytest.mark.parametrize("policy", [TlsPolicy.MAY, TlsPolicy.ENCRYPT, TlsPolicy.VERIFY])
@pytest.mark.parametrize("oldest", [text for text, _ in VERSIONS])
def test_oldest_version_of_tls_is_the_options_and_at_least_1_2_under_verify(policy: TlsPolicy, oldest: str) -> None:
    context = client_context(policy, None, oldest)
    expected = "1.2" if policy is TlsPolicy.VERIFY and oldest < "1.2" else oldest
    assert context.minimum_version is getattr(ssl.TLSVersion, dict(VERSIONS)[expected])
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert (context.verify_mode is ssl.CERT_REQUIRED) is context.check_hostname is (policy is TlsPolicy.VERIFY)


@pytest.mark.parametrize("policy", [TlsPolicy.MAY, TlsPolicy.ENCRYPT, TlsPolicy.VERIFY])
def test_server_with_old_tls_only_gets_no_tls_session(localhost: Files, policy: TlsPolicy) -> None:
    versions = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)

    async def main() -> None:
        async with TlsServer(localhost, versions) as peer:
            assert (await opened(peer, settings(policy, localhost.ca)))[0] is Stage.TLS
            assert peer.handshakes == 0 and not said(peer, "MAIL", "AUTH")

    run_async(main)


def test_ciphers_without_encryption_or_authentication_are_never_offered() -> None:
    for policy in (TlsPolicy.MAY, TlsPolicy.ENCRYPT, TlsPolicy.VERIFY):
        for cipher in client_context(policy, None, "1.0").get_ciphers():
            assert "Au=None" not in cipher["description"] and "Enc=None" not in cipher["description"]


# ------------------------------------------------------------------- TLS is not there


@pytest.mark.parametrize("offer", [{"EHLO": "250-x\r\n250 SIZE 1000"}, {"STARTTLS": "454 4.7.0 not now"}, {"STARTTLS": "502 5.5.1 what"}])  # fmt: skip
@pytest.mark.parametrize("policy", REQUIRED)
def test_stripped_starttls_stops_mail_where_tls_is_required(
    localhost: Files, policy: TlsPolicy, offer: dict[str, str]
) -> None:
    async def main() -> None:
        peer = TlsServer(localhost)
        peer.replies.update(offer)
        async with peer:
            given = settings(policy, localhost.ca, credentials=Credentials("u", "p"))
            assert await opened(peer, given) == (Stage.TLS, False)
            assert not said(peer, "MAIL", "AUTH")
            # Under "may" it goes on in clear, without the password.
            assert await opened(peer, settings(TlsPolicy.MAY)) == (None, False)
            assert (await opened(peer, settings(TlsPolicy.MAY, credentials=Credentials("u", "p"))))[0] is Stage.AUTH
            assert not said(peer, "AUTH")
            in_clear = settings(TlsPolicy.MAY, credentials=Credentials("u", "p"), may_auth_in_clear=True)
            if "AUTH" in str(peer.replies["EHLO"]):
                assert await opened(peer, in_clear) == (None, False) and said(peer, "AUTH")

    run_async(main)


@pytest.mark.parametrize("extra", ["250 2.0.0 injected", "250-injected", "235 2.7.0 in", "x"])
@pytest.mark.parametrize("policy", [TlsPolicy.MAY, *REQUIRED])
def test_plaintext_behind_the_220_of_starttls_is_never_taken_for_a_reply_within_tls(
    localhost: Files, policy: TlsPolicy, extra: str
) -> None:
    """What somebody on the way has put behind the 220 must not answer the EHLO that goes through TLS."""

    class Injecting(TlsServer):
        async def _say(self, writer: Any, verb: str, line: str) -> str:
            if verb != "STARTTLS":
                return await super()._say(writer, verb, line)
            writer.write(f"220 go\r\n{extra}\r\n".encode())
            await writer.start_tls(self.context)
            self.handshakes += 1
            return "220"

    async def main() -> None:
        async with Injecting(localhost) as peer:
            given = settings(policy, localhost.ca, credentials=Credentials("u", "p"))
            stage, is_tls = await opened(peer, given)
            assert stage is not None and not is_tls
            assert not said(peer, "MAIL", "AUTH")

    run_async(main)


def test_extensions_offered_in_clear_are_forgotten_within_tls(localhost: Files) -> None:
    async def main() -> None:
        async with TlsServer(localhost) as peer:
            offers = iter(["250-x\r\n250-AUTH PLAIN\r\n250-PIPELINING\r\n250 STARTTLS", "250-x\r\n250 SIZE 1000"])
            peer.script("EHLO", lambda line: next(offers))
            target = Target("localhost", peer.port, address="127.0.0.1")
            connection = ClientConnection(Nobody(), target, settings(TlsPolicy.VERIFY, localhost.ca), SystemClock())
            await connection.open()
            assert connection.smtp.extensions == {"SIZE": "1000"} and len(said(peer, "EHLO")) == 2
            connection.quit()

    run_async(main)


def test_policy_none_never_begins_tls(localhost: Files) -> None:
    async def main() -> None:
        async with TlsServer(localhost) as peer:
            assert await opened(peer, ClientSettings("mx.test", TlsPolicy.NONE, None)) == (None, False)
            assert not said(peer, "STARTTLS")

    run_async(main)


# ----------------------------------------------------- the options reach the connection


async def relayed(folder: Path, peer: ScriptedServer, **options: Any) -> tuple[str, str]:
    """Sends a message through a smart host: its state after the first attempt, and the reply."""
    async with serving(folder, store="memory", relay=f"localhost:{peer.port}", **options) as server:
        await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\r\n\r\ny\r\n")
        await until(lambda: queued(server)[0].recipients[0].attempts)
        recipient = queued(server)[0].recipients[0]
        return recipient.state, recipient.last_reply or ""


@pytest.mark.parametrize(
    ("policy", "case", "expected"),
    [
        ("verify", "good", "delivered"),
        ("verify", "other name", "deferred"),
        ("verify", "no ca", "deferred"),
        ("verify", "no tls", "deferred"),
        ("encrypt", "other name", "delivered"),
        ("encrypt", "no tls", "deferred"),
        ("may", "other name", "delivered"),
        ("may", "no tls", "delivered"),
        ("may", "old tls", "delivered"),
        ("encrypt", "old tls", "deferred"),
    ],
)
def test_relay_tls_decides_about_mail_as_documented(
    tmp_path: Path, localhost: Files, elsewhere: Files, policy: str, case: str, expected: str
) -> None:
    async def main() -> None:
        files = elsewhere if case == "other name" else localhost
        versions = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1) if case == "old tls" else None
        peer = TlsServer(files, versions)
        if case == "no tls":
            peer.replies["EHLO"] = "250-x\r\n250 SIZE 1000000"
        async with peer:
            options: dict[str, Any] = {"relay_tls": policy}
            if case != "no ca":
                options["relay_ca"] = files.ca
            state, reply = await relayed(tmp_path, peer, **options)
            assert state == expected, reply
            assert bool(peer.handshakes) is (expected == "delivered" and case not in ("no tls", "old tls"))
            assert bool(said(peer, "MAIL")) is (expected == "delivered")

    run_async(main)


def test_password_goes_to_a_verified_server_only(tmp_path: Path, localhost: Files, elsewhere: Files) -> None:
    account = {"relay_user": "u", "relay_pass": "p", "relay_tls": "verify"}

    async def main() -> None:
        async with TlsServer(localhost) as peer:
            assert (await relayed(tmp_path / "1", peer, relay_ca=localhost.ca, **account))[0] == "delivered"
            assert said(peer, "AUTH")
        async with TlsServer(elsewhere) as peer:
            assert (await relayed(tmp_path / "2", peer, relay_ca=elsewhere.ca, **account))[0] == "deferred"
            assert not said(peer, "AUTH", "MAIL") and peer.connections == 1, "nor in clear afterwards"

    run_async(main)


def test_password_does_not_follow_a_broken_handshake_into_clear(tmp_path: Path) -> None:
    """`relay_auth_in_clear` is for a server without TLS; whoever breaks the handshake must not get the password."""
    account = {"relay_user": "u", "relay_pass": "p", "relay_tls": "may", "relay_auth_in_clear": True}

    async def main() -> None:
        async with ScriptedServer(EHLO=OFFER, STARTTLS="220 go", AUTH="235 2.7.0 ok") as peer:
            assert (await relayed(tmp_path, peer, **account))[0] == "deferred"
            assert peer.connections == 1 and not said(peer, "AUTH", "MAIL")

    run_async(main)


# --------------------------------------------------------- MX, and policies by default


@pytest.mark.parametrize(
    ("options", "policy", "credentials"),
    [
        ({}, "may", False),
        ({"relay_user": "u", "relay_pass": "p"}, "verify", True),
        ({"relay_user": "u", "relay_pass": "p", "relay_auth_in_clear": True}, "may", True),
        ({"relay_user": "u", "relay_pass": "p", "relay_tls": "encrypt", "relay_auth_unverified": True}, "encrypt", True),
        ({"relay_tls": "none"}, "none", False),
    ],
)  # fmt: skip
def test_policy_towards_the_smart_host_is_verify_where_a_password_goes(
    tmp_path: Path, options: dict[str, Any], policy: str, credentials: bool
) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", relay="127.0.0.1:1", **options) as server:
            client = server._parts.lanes._ways.relay_client
            assert client.policy is TlsPolicy(policy) and (client.credentials is not None) is credentials
            assert client.may_auth_in_clear is bool(options.get("relay_auth_in_clear"))
            assert client.context is not None
            assert (client.context.verify_mode is ssl.CERT_REQUIRED) is (policy == "verify")

    run_async(main)


@pytest.mark.parametrize(
    "options",
    [
        {"relay_tls": "none"},
        {"relay_tls": "may"},
        # A password for a server with whatever certificate.
        {"relay_tls": "encrypt"},
    ],
)
def test_password_without_verification_needs_an_option_that_allows_it(tmp_path: Path, options: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(OptionError, match="relay_tls"):
            async with serving(
                tmp_path, relay="127.0.0.1:1", relay_user="u", relay_pass="p", store="memory", **options
            ):
                pass

    run_async(main)


@pytest.mark.parametrize(
    ("policy", "has_tls", "expected", "handshakes"),
    [
        ("none", True, "delivered", 0),
        ("may", True, "delivered", 1),
        ("may", False, "delivered", 0),
        ("encrypt", True, "delivered", 1),
        ("encrypt", False, "deferred", 0),
        # The system's authorities do not know the test's.
        ("verify", True, "deferred", 0),
    ],
)
def test_mx_tls_decides_about_mail_to_an_mx(
    tmp_path: Path, localhost: Files, policy: str, has_tls: bool, expected: str, handshakes: int
) -> None:
    async def main() -> None:
        peer = TlsServer(localhost)
        if not has_tls:
            peer.replies["EHLO"] = "250-x\r\n250 SIZE 1000000"
        async with peer:
            zones = {"d.test": {"MX": [(1, "localhost.test")]}, "localhost.test": {"A": ["127.0.0.1"]}}
            options: dict[str, Any] = {
                "direct": True,
                "mx_tls": policy,
                "mx_port": peer.port,
                "mx_networks": "127.0.0.0/8",
            }
            async with serving(tmp_path, store="memory", resolver=DictResolver(zones), **options) as server:
                await server.enqueue(
                    reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\r\n\r\ny\r\n"
                )
                await until(lambda: queued(server)[0].recipients[0].attempts)
                assert queued(server)[0].recipients[0].state == expected
                assert peer.handshakes == handshakes and bool(said(peer, "MAIL")) is (expected == "delivered")

    run_async(main)
