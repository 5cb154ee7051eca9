"""What goes on within one attempt: further transactions, other connections, other servers; and what is never tried twice."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.delivery.client import ClientSettings
from pillarbox.delivery.tlspolicy import TlsPolicy, client_context
from pillarbox.testing import ScriptedServer
from tests.conftest import run_async, serving, until

PIPELINING = "250-peer.test\r\n250-PIPELINING\r\n250 8BITMIME"
PLAIN = "250 peer.test"


@asynccontextmanager
async def relaying(folder: Path, *peers: ScriptedServer, **options: Any) -> AsyncIterator[MailServer]:
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer)
        relay = [f"127.0.0.1:{peer.port}" for peer in peers]
        yield await stack.enter_async_context(serving(folder, relay=relay, store="memory", **options))


async def put(server: MailServer, *to: str, **more: Any) -> str:
    given = {"reverse_path": "a@b.test", "recipients": list(to), "content": "Subject: x\r\n\r\nhello\r\n", **more}
    return await server.enqueue(**given)


async def in_states(server: MailServer, uid: str, *states: str) -> Any:
    def is_so() -> bool:
        view = server._parts.store.get(uid)
        return view is not None and {r.state for r in view.recipients} == set(states)

    await until(is_so, 10)
    return server._parts.store.get(uid)


def refuse_beyond(count: int, reply: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Scripts of MAIL and RCPT: a transaction has so many recipients."""
    seen = [0]

    def mail(line: str) -> str:
        seen[0] = 0
        return "250 2.1.0 ok"

    def rcpt(line: str) -> str:
        seen[0] += 1
        return "250 2.1.5 ok" if seen[0] <= count else reply

    return mail, rcpt


@pytest.mark.parametrize("ehlo", [PIPELINING, PLAIN, "250-p\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=10"])
@pytest.mark.parametrize("reply", ["452 4.5.3 Too many recipients", "552 5.5.3 Too many", "452 Too many recipients"])
def test_recipients_beyond_the_next_hops_limit_go_at_once(tmp_path: Path, ehlo: str, reply: str) -> None:
    async def main() -> None:
        mail, rcpt = refuse_beyond(10, reply)
        peer = ScriptedServer(EHLO=ehlo, MAIL=mail, RCPT=rcpt)
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, *(f"u{n}@d.test" for n in range(35)))
            view = await in_states(server, uid, "delivered")
            assert [len(recipients) for _, recipients, _ in peer.messages] == [10, 10, 10, 5]
            assert {recipient.attempts for recipient in view.recipients} == {1}
            if "LIMITS" in ehlo:
                assert sum(line.startswith("RCPT") for line in peer.lines) == 35

    run_async(main)


def test_full_mailboxes_do_not_count_as_too_many_recipients(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(RCPT=lambda line: "452 4.2.2 Mailbox full" if "full" in line else "250 ok")
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, "full@d.test", "fine@d.test")
            view = await in_states(server, uid, "delivered", "deferred")
            assert [r.attempts for r in view.recipients] == [1, 1] and len(peer.messages) == 1

    run_async(main)


def test_limits_rcptdomainmax_splits_by_domain(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(EHLO="250-p\r\n250-PIPELINING\r\n250 LIMITS RCPTDOMAINMAX=1")
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, "a@one.test", "b@ONE.test", "c@two.test")
            await in_states(server, uid, "delivered")
            assert [len(recipients) for _, recipients, _ in peer.messages] == [2, 1]

    run_async(main)


def test_limits_mailmax_begins_another_session(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(EHLO="250-p\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=2")
        async with relaying(tmp_path, peer, maxrelay=1) as server:
            uids = [await put(server, f"u{n}@d.test") for n in range(6)]
            for uid in uids:
                await in_states(server, uid, "delivered")
            mails = [line.split()[0] for line in peer.lines if line.startswith(("MAIL", "QUIT", "EHLO"))]
            assert "MAIL MAIL MAIL" not in " ".join(mails) and peer.connections >= 3

    run_async(main)


@pytest.mark.parametrize("reply", ["421 4.7.0 Too many messages", "close", "452 4.4.5 Enough", "450 4.7.1 Enough"])
@pytest.mark.parametrize("ehlo", [PIPELINING, PLAIN])
@pytest.mark.parametrize("most", [1, 3])
def test_used_session_that_takes_no_more_costs_no_attempt(tmp_path: Path, reply: str, ehlo: str, most: int) -> None:
    async def main() -> None:
        peer = ScriptedServer(EHLO=ehlo)
        taken = [0]

        def greeting(line: str) -> str:
            taken[0] = 0
            return "220 hello"

        def end(line: str) -> str:
            taken[0] += 1
            return "250 2.0.0 taken"

        peer.replies |= {"CONNECT": greeting, ".": end, "MAIL": lambda line: reply if taken[0] >= most else "250 ok"}
        async with relaying(tmp_path, peer, maxrelay=1) as server:
            uids = [await put(server, f"u{n}@d.test") for n in range(8)]
            for uid in uids:
                view = await in_states(server, uid, "delivered")
                assert view.recipients[0].attempts == 1
            # Where MAIL is refused the peer still takes DATA, and gets an empty message (RFC 2920 section 3.1).
            assert sum(bool(content) for _, _, content in peer.messages) == 8

    run_async(main)


def test_fresh_session_that_takes_nothing_is_an_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(MAIL="421 4.3.2 closing")
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, "u@d.test")
            view = await in_states(server, uid, "deferred")
            assert view.recipients[0].attempts == 1 and peer.connections == 1

    run_async(main)


SICK = [
    {"MAIL": "452 4.3.1 Insufficient system storage"},
    {"MAIL": "close"},
    {"MAIL": "421 4.3.2 closing"},
    {"RCPT": "close"},
    {"RCPT": "451 4.3.0 not now"},
    {"RCPT": "421 4.3.2 closing"},
    {"DATA": "451 4.3.0 local error"},
    {"DATA": "421 4.3.2 closing"},
    {"DATA": "close"},
    {"MAIL": "silent"},
    {"CONNECT": "silent"},
    {"EHLO": "silent"},
    {"CONNECT": "421 4.3.2 closing"},
]


@pytest.mark.parametrize("ehlo", [PIPELINING, PLAIN])
@pytest.mark.parametrize("script", SICK, ids=str)
def test_next_server_gets_what_the_first_does_not_take(tmp_path: Path, script: dict[str, str], ehlo: str) -> None:
    async def main() -> None:
        first, second = ScriptedServer(**{"EHLO": ehlo, **script}), ScriptedServer()
        more = {"time_out": 0.3} if "silent" in script.values() else {}
        async with relaying(tmp_path, first, second, **more) as server:
            uids = [await put(server, f"u{n}@d.test", f"v{n}@d.test") for n in range(4)]
            for uid in uids:
                view = await in_states(server, uid, "delivered")
                assert {recipient.attempts for recipient in view.recipients} == {1}
            assert len(second.messages) == 4

    run_async(main)


def test_all_servers_are_sick_and_each_is_asked_once(tmp_path: Path) -> None:
    async def main() -> None:
        peers = [
            ScriptedServer(MAIL="451 4.3.0 no"),
            ScriptedServer(RCPT="451 4.3.0 no"),
            ScriptedServer(DATA="421 no"),
        ]
        async with relaying(tmp_path, *peers) as server:
            uid = await put(server, "u@d.test")
            view = await in_states(server, uid, "deferred")
            assert view.recipients[0].attempts == 1
            assert [sum(line.startswith("MAIL") for line in peer.lines) for peer in peers] == [1, 1, 1]

    run_async(main)


def test_refused_recipient_is_not_taken_to_the_next_server(tmp_path: Path) -> None:
    async def main() -> None:
        first = ScriptedServer(RCPT=lambda line: "550 5.1.1 no" if "bad" in line else "451 4.3.0 not now")
        second = ScriptedServer()
        async with relaying(tmp_path, first, second) as server:
            uid = await put(server, "bad@d.test", "good@d.test")
            view = await in_states(server, uid, "delivered", "bounced")
            assert [r.state for r in view.recipients] == ["bounced", "delivered"]
            assert not any("bad" in line for line in second.lines if line.startswith("RCPT"))

    run_async(main)


@pytest.mark.parametrize("end", ["close", "silent"])
def test_message_in_doubt_does_not_go_to_the_next_server(tmp_path: Path, end: str) -> None:
    async def main() -> None:
        first, second = ScriptedServer(**{".": end}), ScriptedServer()
        async with relaying(tmp_path, first, second, time_out=0.5) as server:
            uid = await put(server, "u@d.test")
            await in_states(server, uid, "deferred")
            await until(lambda: server._parts.store.get(uid).attempts)
            assert server._parts.store.get(uid).attempts[0].outcome == "ambiguous" and not second.messages

    run_async(main)


@pytest.mark.parametrize(
    "reply", ["530 5.7.0 Authentication required", "538 5.7.11 Encryption", "534 5.7.9 x", "535 no"]
)
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
def test_smart_host_that_wants_a_log_in_defers(tmp_path: Path, verb: str, reply: str) -> None:
    async def main() -> None:
        peer = ScriptedServer(**{verb: reply})
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, "u@d.test")
            view = await in_states(server, uid, "deferred")
            assert reply[:3] in view.recipients[0].last_reply

    run_async(main)


@pytest.mark.parametrize(
    ("broken", "reply"), [("EHLO", "close"), ("EHLO", "421 4.3.2 not now"), ("EHLO", "503 5.5.1 no"), ("MAIL", "close")]
)
def test_tls_session_that_breaks_goes_in_clear_under_may(
    tmp_path: Path, certificate: dict[str, str], broken: str, reply: str
) -> None:
    async def main() -> None:
        peer = TlsPeer(certificate, broken, reply)
        async with relaying(tmp_path, peer, hostname="mx.test") as server:
            uid = await put(server, "u@d.test")
            await in_states(server, uid, "delivered")
            assert len(peer.messages) == 1

    run_async(main)


class TlsPeer(ScriptedServer):
    """Breaks within TLS, and is well in clear."""

    def __init__(self, certificate: dict[str, str], broken: str, reply: str) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate["cert"], certificate["key"])
        self._broken, self._under_tls = reply, False
        self.replies["EHLO"] = "250-p\r\n250 STARTTLS"
        self._verb = broken

    def _reply(self, verb: str, line: str) -> str:
        if verb == "CONNECT":
            self._under_tls = False
        if self._under_tls and verb == self._verb:
            return self._broken
        return super()._reply(verb, line)

    async def _say(self, writer: Any, verb: str, line: str) -> str:
        if verb == "STARTTLS":
            writer.write(b"220 go\r\n")
            await writer.start_tls(self._context)
            self._under_tls = True
            return "220"
        return await super()._say(writer, verb, line)


@pytest.mark.parametrize(
    "reply", ["530 5.7.0 Must issue STARTTLS", "550 5.7.10 Encryption needed", "554 no TLS, no mail"]
)
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_refusal_in_clear_after_broken_tls_defers(tmp_path: Path, verb: str, reply: str) -> None:
    async def main() -> None:
        peer = ScriptedServer(EHLO="250-p\r\n250 STARTTLS", STARTTLS="220 go\r\noops", **{verb: reply})
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, "u@d.test")
            view = await in_states(server, uid, "deferred")
            assert view.recipients[0].attempts == 1
            assert not server._parts.lanes._lane(server._parts.router.relay.key)._opener._no_tls

    run_async(main)


def test_unknown_recipient_bounces_in_clear_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(EHLO="500 what?", RCPT="550 5.1.1 no such user")
        async with relaying(tmp_path, peer) as server:
            await in_states(server, await put(server, "u@d.test"), "bounced")

    run_async(main)


def test_message_that_needs_an_extension_waits_after_helo(tmp_path: Path) -> None:
    async def main() -> None:
        ehlo = iter(["500 5.3.3 what?"])
        peer = ScriptedServer(EHLO=lambda line: next(ehlo, PIPELINING + "\r\n").rstrip())
        async with relaying(tmp_path, peer, retry_first_s=0.2) as server:
            uid = await put(server, "u@d.test", content="Subject: x\r\n\r\nGr\u00fc\u00dfe\r\n".encode())
            await in_states(server, uid, "delivered")
            assert peer.connections == 2

    run_async(main)


def test_session_ends_with_quit_where_the_server_waits_for_a_command(tmp_path: Path) -> None:
    async def main() -> None:
        for number, (script, options) in enumerate(
            [
                ({"CONNECT": "554 5.7.1 no"}, {}),
                ({"EHLO": "550 no", "HELO": "550 no"}, {}),
                ({}, {"relay_tls": "encrypt"}),
                ({"MAIL": "451 4.3.0 no"}, {}),
            ]
        ):
            peer = ScriptedServer(**script)
            async with relaying(tmp_path / str(number), peer, **options) as server:
                await put(server, "u@d.test")
                await until(lambda peer=peer: peer.lines and peer.lines[-1] == "QUIT", 8)

    run_async(main)


def test_short_hostname_becomes_an_address_literal_in_ehlo(tmp_path: Path, caplog: Any) -> None:
    async def main() -> None:
        for number, (hostname, said) in enumerate(
            [("vm", "EHLO [127.0.0.1]"), ("localhost", "EHLO [127.0.0.1]"), ("mx.test", "EHLO mx.test")]
        ):
            caplog.clear()
            peer = ScriptedServer()
            async with relaying(tmp_path / str(number), peer, hostname=hostname) as server:
                await in_states(server, await put(server, "u@d.test"), "delivered")
                assert peer.lines[0] == said and ("option 'hostname'" in caplog.text) is (hostname != "mx.test")

    run_async(main)


@pytest.mark.parametrize("policy", list(TlsPolicy))
def test_old_tls_is_taken_only_where_nothing_is_verified(policy: TlsPolicy) -> None:
    oldest = client_context(policy, None, "1.0")
    names = {cipher["name"] for cipher in oldest.get_ciphers()}
    is_verified = policy is TlsPolicy.VERIFY
    assert oldest.minimum_version is (ssl.TLSVersion.TLSv1_2 if is_verified else ssl.TLSVersion.TLSv1)
    assert "AES128-SHA" in names and (oldest.security_level == 0) is not is_verified
    assert not any(name.startswith(("ADH", "AECDH")) or "NULL" in name for name in names)
    assert client_context(policy, None).minimum_version is ssl.TLSVersion.TLSv1_2
    assert oldest.check_hostname is is_verified
    assert ClientSettings("mx.test", policy, oldest).policy is policy


def test_texts_of_peers_are_bounded_in_queue_and_history(tmp_path: Path) -> None:
    async def main() -> None:
        text = "A" * 3900
        peer = ScriptedServer(RCPT="\r\n".join([f"450-4.1.1 {text}"] * 12 + [f"450 4.1.1 {text}"]))
        async with relaying(tmp_path, peer) as server:
            uid = await put(server, *(f"u{n}@d.test" for n in range(5)))
            view = await in_states(server, uid, "deferred")
            kept = [*(r.last_reply for r in view.recipients), *(a.reply for a in view.attempts)]
            assert kept and max(map(len, kept)) < 1200 and all("..." in one for one in kept)

    run_async(main)
