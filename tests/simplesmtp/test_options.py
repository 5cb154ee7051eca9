"""A test for each option of the original's constructor."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, MailServer
from pillarbox.dns import Status
from pillarbox.errors import OptionError
from pillarbox.options import parse_options
from pillarbox.testing import DictResolver, ManualClock, ScriptedServer
from tests.conftest import Client, queued, run_async, serving, stored_content, until
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon


@server_test(alias="post-office")
async def test_option_alias(server: MailServer) -> None:
    assert MailServer.find("post-office") is server and server.options.alias == "post-office"
    assert MailServer.find("nobody") is None


def test_option_address(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "smtp.sock"
        async with serving(tmp_path, store="memory", address=["127.0.0.1", "127.0.0.2", f"unix:{path}"]) as server:
            hosts = [name[0] for name in server.getsocknames()]
            assert hosts == ["127.0.0.1", "127.0.0.2", str(path)]
            assert path.stat().st_mode & 0o777 == 0o600
            client = Client(*await asyncio.open_unix_connection(str(path)))
            assert (await client.reply()).startswith("220 mx.test")
            assert (await client.ask(b"EHLO x.test")).startswith("250-mx.test")
            assert (await client.transaction(BODY)).startswith("250 2.0.0"), "trusted: the file let them in"
            client.close()
        # One that a dead server left behind is replaced.
        async with serving(tmp_path, store="memory", address=f"unix:{path}"):
            pass
        assert parse_options({}).address == "127.0.0.1"
        with pytest.raises(OptionError, match="unix"):
            parse_options({"listen": "unix:relative.sock"})

    run_async(main)


@server_test(port=0)
async def test_option_port(server: MailServer) -> None:
    assert server.getsockname()[1] > 0 and parse_options({}).port == 25
    for bad in (-1, 65536, "smtp"):
        with pytest.raises(OptionError, match="option 'port'"):
            parse_options({"port": bad})


def test_option_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", options={"trace": True}) as server:
            assert (await send(server)).startswith("250")

    with caplog.at_level(logging.INFO, "pillarbox.trace"):
        run_async(main)
    text = caplog.text
    assert "C: MAIL FROM:<a@b.test>" in text and "S: 354 " in text and "event message_queued" in text
    assert "octets of content" in text and "Subject: hello\r\n" not in text
    with pytest.raises(OptionError, match="there is no flag 'debug'"):
        parse_options({"options": {"debug": True}})


@server_test(hostname="mail.example.org")
async def test_option_hostname(server: MailServer) -> None:
    client = await Client.connect(server, greeted=False)
    assert (await client.reply()).startswith("220 mail.example.org ESMTP")
    assert (await client.ask(b"EHLO x.test")).startswith("250-mail.example.org")
    await client.transaction(BODY)
    assert b"by mail.example.org with ESMTP" in stored_content(server)
    client.close()
    for bad in ("", "two words", "-x.test", "a..b", "x\r\nQUIT"):
        with pytest.raises(OptionError, match="option 'hostname'"):
            parse_options({"hostname": bad})
    assert parse_options({"hostname": "[192.0.2.1]"}).hostname == "[192.0.2.1]"
    assert parse_options({}).hostname


@server_test(version="")
async def test_option_version(server: MailServer) -> None:
    client = await Client.connect(server, greeted=False)
    assert await client.reply() == "220 mx.test ESMTP"
    client.close()
    assert parse_options({"version": "Acme 7"}).version == "Acme 7"


def test_option_relay(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = ScriptedServer(), ScriptedServer()
        await first.start()
        await second.start()
        relay = [f"127.0.0.1:{first.port}", f"smtp://127.0.0.1:{second.port}"]
        async with serving(tmp_path, store="memory", relay=relay) as server:
            await send(server)
            await until(lambda: first.messages)
            await first.stop()
            await until(lambda: not server._parts.lanes.connections)
            await send(server)
            await until(lambda: second.messages)
        await second.stop()

    run_async(main)
    assert parse_options({"relay": "[2001:db8::1]:26"}).relay == ["[2001:db8::1]:26"]
    assert parse_options({"relay": None}).relay == []
    for bad in ("http://x", "host:port", "::1", "a b"):
        with pytest.raises(OptionError, match="option 'relay'"):
            parse_options({"relay": bad})


def _relay_with(
    tmp_path: Path, certificate: dict[str, str], offered: str, mechanism: str | None, **more: Any
) -> list[str]:
    """AUTH lines that a smart host saw; it offers these mechanisms, in clear."""
    peer = ScriptedServer(EHLO=f"250-peer.test\r\n250 AUTH {offered}", AUTH="235 2.7.0 welcome")

    async def main() -> None:
        await peer.start()
        options = {
            "relay_user": "u",
            "relay_pass": "geheim",
            "relay_auth_in_clear": True,
            "relay_auth": mechanism,
            **more,
        }
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}", **options) as server:
            await send(server)
            await until(lambda: peer.messages or server._parts.store.counts().get("deferred"))
        await peer.stop()

    run_async(main)
    return [line for line in peer.lines if line.startswith("AUTH")]


def test_option_relay_auth(tmp_path: Path, certificate: dict[str, str]) -> None:
    assert _relay_with(tmp_path / "a", certificate, "LOGIN PLAIN", "PLAIN") == ["AUTH PLAIN AHUAZ2VoZWlt"]
    assert _relay_with(tmp_path / "b", certificate, "PLAIN LOGIN SCRAM-SHA-256", None)[0].startswith(
        "AUTH SCRAM-SHA-256 "
    )
    assert _relay_with(tmp_path / "c", certificate, "PLAIN", "LOGIN") == [], "not offered: the mail waits"
    with pytest.raises(OptionError, match="relay_auth"):
        parse_options({"relay_auth": "CRAM-MD5"})


def test_option_relay_user(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="relay_user and relay_pass belong together"):
        parse_options({"relay_user": "u"})
    with pytest.raises(OptionError, match="in clear: use relay_tls verify"):
        parse_options({"relay_user": "u", "relay_pass": "p", "relay_tls": "may"})


@pytest.mark.parametrize("more", [{}, {"relay_auth": "PLAIN"}, {"relay_auth": "LOGIN"}])
def test_relay_user_without_a_verified_certificate_is_refused(more: dict[str, Any]) -> None:
    given = {"relay_user": "u", "relay_pass": "p", "relay_tls": "encrypt", "relay": "smarthost.test", **more}
    with pytest.raises(OptionError, match="use relay_tls verify"):
        parse_options(given)
    assert parse_options({**given, "relay_auth_unverified": True}).relay_user == "u"
    # The server proves that it knows the password.
    assert parse_options({**given, "relay_auth": "SCRAM-SHA-256"}).relay_user == "u"
    assert parse_options({**given, "relay_tls": "verify"}).relay_user == "u"


def test_option_relay_pass(tmp_path: Path, certificate: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _relay_with(tmp_path, certificate, "PLAIN", None, options={"trace": True})
    assert "geheim" not in caplog.text and "AHUAZ2VoZWlt" not in caplog.text
    assert "geheim" not in repr(parse_options({"relay_user": "u", "relay_pass": "geheim"}))
    # Never in clear unless that is allowed.
    assert _relay_with(tmp_path / "x", certificate, "PLAIN", None, relay_auth_in_clear=False, relay_tls="verify") == []


def test_option_time_out(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(EHLO="silent")
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}", time_out=0.5) as server:
            events = heard(server, "send_failed")
            await send(server)
            event = await soon(events)
            assert event.reply.code == 451 and event.reply.enhanced == "4.4.2"
        await peer.stop()

    run_async(main)
    assert parse_options({}).time_out is None
    with pytest.raises(OptionError, match="time_out"):
        parse_options({"time_out": 0})


def test_option_maxrelay(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(**{".": "250 2.0.0 OK"})
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}", maxrelay=2, paused=True) as server:
            for n in range(30):
                await server.enqueue(reverse_path="a@b.test", recipients=[f"r{n}@d.test"], content=BODY)
            await server.resume_queue()
            await until(lambda: len(peer.messages) == 30)
            assert peer.connections <= 2
        await peer.stop()

    run_async(main)
    assert parse_options({}).maxrelay == 100 and parse_options({}).maxrelay_per_next_hop == 20


@server_test(domains=["example.org", ".example.net", "bücher.test"], domains_via="relay", trust=[], relay="127.0.0.1:9")
async def test_option_domains(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    await client.ask(b"MAIL FROM:<a@b.test> SMTPUTF8")
    for good in ("u@example.org", "u@EXAMPLE.Org", "u@a.example.net", "u@xn--bcher-kva.test", "u@bücher.test"):
        assert (await client.ask(f"RCPT TO:<{good}>".encode())).startswith("250"), good
    for bad in ("u@sub.example.org", "u@example.net", "u@badexample.org", "u@example.org.evil.test"):
        assert (await client.ask(f"RCPT TO:<{bad}>".encode())).startswith("550 5.7.1"), bad
    client.close()


@server_test(origin=True)
async def test_option_origin(server: MailServer) -> None:
    content = b"Received: from a\r\n\tby b;\r\n date\r\nSubject: x\r\nreceived: from c\r\n\r\nReceived: in the body\r\n"
    await send(server, content)
    kept = stored_content(server)
    assert kept.lower().count(b"received:") == 1 and kept.endswith(b"\r\n\r\nReceived: in the body\r\n")
    assert b"by mx.test" not in kept and b"Subject: x\r\n" in kept


@server_test(simple=False)
async def test_option_simple(server: MailServer) -> None:
    assert "simple" not in server.plugin_list()
    client = await Client.connect(server)
    commands = heard(server, "cmd_helo", "cmd_noop")
    client.send(b"HELO x.test\r\n")
    event = await soon(commands)
    assert (event.name, event.args) == ("cmd_helo", "x.test")
    assert server.send_to_client(event.client_id, "250 hello to you")
    assert await client.reply() == "250 hello to you"
    # Framing and bounds hold: what is no command never reaches the program.
    assert (await client.ask(b"x" * 5000)).startswith("500 5.5.2")
    assert (await client.ask(b"NONSENSE")).startswith("500")
    client.close()


@server_test(handle_connects=False)
async def test_option_handle_connects(server: MailServer) -> None:
    connections = heard(server, "connection")
    client = await Client.connect(server, greeted=False)
    event = await soon(connections)
    assert not client.reader._buffer, "nothing was said"
    server.send_to_client(event.client_id, "220 at your service")
    assert await client.reply() == "220 at your service"
    assert (await client.ask(b"NOOP")).startswith("250"), "the rest is built in"
    client.close()


@server_test(handlers=[{"match": r"^info@", "callback": lambda item: None}])
async def test_option_handlers(server: MailServer) -> None:
    got: list[Any] = []
    server.set_handlers([Handler(r"@app\.test$", got.append), {"match": "x", "callback": got.append, "concurrency": 2}])
    await send(server, to=b"Foo@APP.test")
    await until(lambda: got)
    assert got[0].recipients == ["Foo@APP.test"] and b"Subject: hello" in got[0].content
    faults = [
        ("x", "no list"),
        ([{"match": "(", "callback": print}], "item 0.*'match'"),
        ([{"match": "a", "callback": 1}], "item 0.*'callback'"),
        ([Handler("a", print), {"match": "a"}], "item 1.*either key 'callback' or key 'event'"),
        ([{"match": "a", "callback": print, "session": "x"}], "item 0.*key 'session'"),
        ([{"callback": print}], "item 0.*'match' is missing"),
        ([3], "item 0.*neither a Handler"),
        ([{"match": "a", "event": ""}], "key 'event'"),
        ([{"match": "a", "callback": print, "concurrency": 0}], "'concurrency'"),
    ]
    for handlers, text in faults:
        with pytest.raises(OptionError, match=re.compile("handlers.*" + text)):
            server.set_handlers(handlers)  # type: ignore[arg-type]
    assert len(server.get_handlers()) == 2, "nothing changed"


def listing(**zones: Any) -> DictResolver:
    return DictResolver({f"2.0.0.127.{zone.replace('_', '.')}": answers for zone, answers in zones.items()})


LISTED = {"A": ["127.0.0.2"], "TXT": ["see http://bl.test/127.0.0.2"]}


def test_option_dnsbl_enable(tmp_path: Path) -> None:
    async def main() -> None:
        resolver = listing(zen_spamhaus_org=LISTED)
        for enabled in (False, True):
            async with serving(tmp_path, store="memory", dnsbl_enable=enabled, resolver=resolver) as server:
                client = await Client.connect(server, greeted=False, local_addr=("127.0.0.2", 0))
                assert (await client.reply()).startswith("554 5.7.1" if enabled else "220")
                client.close()

    run_async(main)


def test_option_dnsbl(tmp_path: Path) -> None:
    async def main() -> None:
        resolver = listing(a_test=LISTED, b_test=LISTED)
        cases: list[tuple[Any, str]] = [
            ("a.test", "554"),
            (["clean.test"], "220"),
            ({"a.test": 0.5, "clean.test": 0.5}, "220"),
            ([("a.test", 0.5), ("b.test", 0.5)], "554"),
        ]
        for lists, code in cases:
            async with serving(tmp_path, store="memory", dnsbl_enable=True, dnsbl=lists, resolver=resolver) as server:
                client = await Client.connect(server, greeted=False, local_addr=("127.0.0.2", 0))
                assert (await client.reply()).startswith(code), lists
                client.close()
        async with serving(
            tmp_path, store="memory", dnsbl_enable=True, dnsbl="a.test", dnsbl_allow="127.0.0.2", resolver=resolver
        ) as server:
            client = await Client.connect(server, local_addr=("127.0.0.2", 0))
            client.close()

    run_async(main)
    for bad in ("not a zone", {"a.test": 0}, {"a.test": "x"}, 3):
        with pytest.raises(OptionError, match="option 'dnsbl'"):
            parse_options({"dnsbl": bad})


def test_option_client_time_out(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        server = MailServer(
            clock=clock,
            port=0,
            data_dir=str(tmp_path),
            store="memory",
            hostname="mx.test",
            client_time_out=10,
            direct=False,
        )
        async with server:
            client = await Client.connect(server)
            clock.advance(9)
            client.send(b"NO")
            await until(lambda: any(s.protocol.buffered_bytes for s in server._parts.context.sessions.values()))
            for _ in range(3):
                clock.advance(1)
                await asyncio.sleep(0.01)
            assert (await client.reply()).startswith("421 4.4.2"), "half a line is no command"
            client.close()

    run_async(main)


@server_test(resolver=DictResolver({"good.test": {"A": ["192.0.2.1"]}}), sender_verify=True)
async def test_option_resolver(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    assert (await client.ask(b"MAIL FROM:<a@good.test>")).startswith("250")
    client.close()
    with pytest.raises(OptionError, match="resolver"):
        parse_options({"resolver": "8.8.8.8"})


VERIFIED = DictResolver(
    {
        "mx.good": {"MX": [(10, "a.test")]},
        "a.good": {"A": ["192.0.2.1"]},
        "aaaa.good": {"AAAA": ["2001:db8::1"]},
        "null.bad": {"MX": [(0, ".")], "A": ["192.0.2.1"]},
        "text.bad": {"TXT": ["x"]},
        "broken.bad": Status.FAILED,
    }
)


@server_test(resolver=VERIFIED, sender_verify=True)
async def test_option_sender_verify(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    expected = {
        "a@mx.good": "250", "a@a.good": "250", "a@aaaa.good": "250", "a@MX.Good": "250", "": "250", "a@[192.0.2.1]": "250",
        "a@null.bad": "550 5.7.27", "a@text.bad": "550 5.1.8", "a@nowhere.bad": "550 5.1.8", "a@broken.bad": "451 4.4.3",
    }  # fmt: skip
    for sender, start in expected.items():
        reply = await client.ask(f"MAIL FROM:<{sender}>".encode())
        assert reply.startswith(start), (sender, reply)
        await client.ask(b"RSET")
    client.close()
    with pytest.raises(OptionError, match="sender_verify"):
        parse_options({"sender_verify": "data"})


@server_test(resolver=VERIFIED, sender_verify="rcpt")
async def test_sender_verify_at_rcpt(server: MailServer) -> None:
    client = await Client.connect(server)
    await client.ask(b"EHLO x.test")
    assert (await client.ask(b"MAIL FROM:<a@nowhere.bad>")).startswith("250")
    assert (await client.ask(b"RCPT TO:<c@d.test>")).startswith("550 5.1.8")
    assert (await client.ask(b"DATA")).startswith("503")
    client.close()
    assert queued(server) == []


def test_wrong_names_are_explained() -> None:
    with pytest.raises(OptionError, match="option 'relay_pas' is not known; did you mean 'relay_pass'"):
        parse_options({"relay_pas": "x"})
