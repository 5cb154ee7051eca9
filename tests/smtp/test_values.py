"""Replies, addresses, extensions, SASL: values and their parsers, with what they refuse."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox import Reply
from pillarbox.smtp import address as a
from pillarbox.smtp.command import COMMANDS, Grammar, parse_command
from pillarbox.smtp.extension import (
    EXTENSIONS,
    MAIL_PARAMETERS,
    RCPT_PARAMETERS,
    Facts,
    ParameterFault,
    format_xtext,
    offered,
    parse_parameters,
    parse_xtext,
)
from pillarbox.smtp.reply import ReplyReader, format_reply
from pillarbox.smtp.sasl import (
    Credentials,
    SaslFault,
    ScramClient,
    SimpleClient,
    choose_mechanism,
    decode_base64,
    encode_base64,
    server_mechanism,
)
from pillarbox.smtp.state import TRANSITIONS, State


def test_reply() -> None:
    reply = Reply(550, "5.7.1", "not here", "and not there")
    assert format_reply(reply) == b"550-5.7.1 not here\r\n550 5.7.1 and not there\r\n" == format_reply(reply)
    assert (
        str(reply) == "550 5.7.1 not here and not there"
        and repr(reply) == "Reply(550, '5.7.1', 'not here', 'and not there')"
    )
    assert reply == Reply(550, "5.7.1", "not here", "and not there") and hash(reply) == hash(copy.copy(reply))
    assert (
        reply != Reply(550)
        and reply != "550"
        and reply.is_permanent
        and not reply.is_transient
        and not reply.is_positive
    )
    assert (
        Reply(250).lines == ("OK",)
        and Reply(450).lines == ("Error",)
        and Reply(354).is_positive
        and Reply(421).is_transient
    )
    with pytest.raises(AttributeError, match="does not change"):
        reply.code = 250
    for bad in ((99,), (600,), ("250",), (250, "5.1.1"), (550, "5.7"), (250, None, "a\nb"), (250, None, "a\0")):
        with pytest.raises(ValueError):
            Reply(*bad)  # type: ignore[arg-type]
    long = format_reply(Reply(250, "2.0.0", "x" * 1000, "ü" * 300))
    assert all(len(line) <= 510 for line in long.split(b"\r\n")) and long.count(b"\r\n") == 6


def test_reply_reader() -> None:
    octets = b"220 hello\r\n250-one\r\n250-SIZE 10\r\n250 last\r\n550-5.1.1 no\r\n550 5.1.1 way\r\n250\r\n421 4.3.2 x\n"
    for size in (1, 3, 1000):
        reader, found = ReplyReader(), []
        for start in range(0, len(octets), size):
            found += reader.feed(octets[start : start + size])
        assert found == [
            Reply(220, None, "hello"),
            Reply(250, None, "one", "SIZE 10", "last"),
            Reply(550, "5.1.1", "no", "way"),
            Reply(250, None, ""),
            Reply(421, "4.3.2", "x"),
        ]
        assert not reader.has_rest
    assert ReplyReader().feed(b"250 5.1.1 odd\r\n") == [Reply(250, None, "5.1.1 odd")]
    assert ReplyReader().feed(b"250 a\x1b[31m\xff\r\n")[0].lines == ("a?[31m\ufffd",)
    reader = ReplyReader()
    reader.feed(b"250-half\r\n")
    assert reader.has_rest


def test_mailboxes() -> None:
    for good in (
        "a@b.test",
        '"a@b"@c.test',
        "a@[192.0.2.1]",
        "a@[IPv6:2001:db8::1]",
        "ü@bücher.test",
        "a@b",
        "a.b+c@d-e.test",
        "a@" + "x" * 63 + ".test",
    ):
        box = a.parse_mailbox(good)
        assert box is not None and str(box) == good
    for bad in ("", "a", "@b.test", "a@", "a b@c.test", "a@b..c", "a@-b.test", "a@[300.1.1.1]", "a@[IPv6:fe80::1%eth0]", "a@[x]", "a@" + "x" * 64 + ".test",
                "a" * 250 + "@b.test", "a@b.test\r\nRSET", ".a@b.test", "a\u200b@b.test", "a@" + "ü" * 63 + ".test", "a@\udc80.test"):  # fmt: skip
        assert a.parse_mailbox(bad) is None, bad
    assert a.parse_mailbox(b"a@b.test") == a.Mailbox("a", "b.test") and str(a.Mailbox("postmaster", "")) == "postmaster"
    assert a.split_mailbox('"x@y"@Z.test') == ('"x@y"', "Z.test") and a.split_mailbox("postmaster") == (
        "postmaster",
        "",
    )
    assert a.domain_of("a@B.Test") == "b.test" and a.domain_of("postmaster") == ""
    assert (
        a.comparable_mailbox("postmaster") == "postmaster"
        and a.comparable_domain("B\u00dccher.test.") == "xn--bcher-kva.test"
    )
    assert a.comparable_domain("x" * 70 + "ü.test") == "x" * 70 + "ü.test"
    assert a.is_domain("a-b.test") and not a.is_domain("a_b") and not a.is_domain("x" * 64) and a.is_domain("ü.test")
    assert (
        a.is_address_literal("[127.0.0.1]")
        and not a.is_address_literal("127.0.0.1")
        and not a.is_address_literal("[IPv6:1.2.3.4]")
    )
    assert (
        a.is_helo_name(b"a_b")
        and a.is_helo_name(b"[127.0.0.1]")
        and a.is_helo_name(b"[x]")
        and a.is_helo_name(b"a b")
        and not a.is_helo_name(b"a\tb")
        and not a.is_helo_name(b"")
    )
    assert a.is_mail_domain("a_b") and a.is_mail_domain("_x._tcp.a-b.test") and not a.is_mail_domain("-x.test")
    assert not a.is_helo_name(b"x" * 300) and a.decode_utf8(b"\xff") is None and a.decode_utf8("ü".encode()) == "ü"


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_xtext_round_trip(text: str) -> None:
    assert parse_xtext(format_xtext(text)) == text


def test_parameters() -> None:
    parsed = parse_parameters("SIZE=10 body=8bitmime SMTPUTF8 RET=hdrs ENVID=a+2Bb AUTH=<>", MAIL_PARAMETERS)
    assert parsed == {"SIZE": 10, "BODY": "8BITMIME", "SMTPUTF8": True, "RET": "HDRS", "ENVID": "a+b", "AUTH": "<>"}
    parsed = parse_parameters("NOTIFY=success,DELAY  ORCPT=rfc822;x+2By@z", RCPT_PARAMETERS)
    assert parsed == {"NOTIFY": ("SUCCESS", "DELAY"), "ORCPT": "rfc822;x+y@z"}
    assert parse_parameters("ORCPT=utf-8;ü@z", RCPT_PARAMETERS) == {"ORCPT": "utf-8;ü@z"}
    assert parse_parameters("AUTH=a+2Bb@c NOTIFY=NEVER", {**MAIL_PARAMETERS, **RCPT_PARAMETERS}) == {
        "AUTH": "a+b@c",
        "NOTIFY": ("NEVER",),
    }
    for text, code in (
        ("SIZE", 501), ("BODY", 501), ("RET=ALL", 501), ("RET", 501), ("ENVID", 501), ("AUTH", 501), ("AUTH=+0", 501), ("NOTIFY", 501), ("NOTIFY=NEVER,DELAY", 501),
        ("NOTIFY=DELAY,DELAY", 501), ("ORCPT=x", 501), ("ORCPT=;x", 501), ("ORCPT=rfc822;", 501), ("ORCPT=utf-8;", 501), ("ORCPT", 501), ("SMTPUTF8=1", 501),
        ("UNKNOWN=1", 555), ("-x", 501), ("a=b=c", 501), (f"ORCPT=rfc822;{'x' * 500}", 501),
    ):  # fmt: skip
        with pytest.raises(ParameterFault) as caught:
            parse_parameters(text, {**MAIL_PARAMETERS, **RCPT_PARAMETERS})
        assert caught.value.reply.code == code, text


def test_what_is_offered() -> None:
    plain = offered(Facts(max_size_bytes=5, tls_offered=True, auth_mechanisms=("PLAIN",), max_messages=7))
    assert "SIZE 5" in plain and "STARTTLS" in plain and not any(line.startswith("AUTH") for line in plain)
    assert "LIMITS MAILMAX=7 RCPTMAX=1000" in plain
    secure = offered(Facts(tls_offered=True, is_tls=True, auth_mechanisms=("PLAIN", "LOGIN")))
    assert "AUTH PLAIN LOGIN" in secure and "STARTTLS" not in secure
    assert not any(
        "AUTH" in line for line in offered(Facts(is_tls=True, auth_mechanisms=("PLAIN",), is_authenticated=True))
    )
    assert len({row.keyword for row in EXTENSIONS}) == len(EXTENSIONS)


def test_tables_agree() -> None:
    verbs = {row.verb for row in COMMANDS.values()}
    assert {verb for row in TRANSITIONS.values() for verb in row} == verbs
    assert set(TRANSITIONS) == set(State)
    for key, row in COMMANDS.items():
        # The two of Postfix's share an event.
        event = "cmd_xclient" if row.verb == "XFORWARD" else f"cmd_{row.verb.lower()}"
        assert key == row.verb.encode() and row.event == event and row.syntax.startswith(row.verb)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_line_raises(line: bytes) -> None:
    command, _ = parse_command(line.replace(b"\n", b""), Grammar())
    assert command.error is None or command.error.code >= 500


@given(st.sampled_from(sorted(COMMANDS)), st.binary(max_size=80))
@settings(max_examples=500, deadline=None)
def test_no_argument_raises(verb: bytes, rest: bytes) -> None:
    command, row = parse_command(verb + b" " + rest.replace(b"\n", b""), Grammar(is_strict=True))
    assert row is not None and command.verb == verb.decode()


def test_sasl() -> None:
    credentials = Credentials("bob", "secret")
    assert "secret" not in repr(credentials)
    plain = server_mechanism("PLAIN")
    assert plain.step(None) == b"" and plain.step(b"\0bob\0secret") == credentials
    assert server_mechanism("PLAIN").step(b"bob\0bob\0secret") == credentials
    login = server_mechanism("LOGIN")
    assert (
        login.step(None) == b"Username:" and login.step(b"bob") == b"Password:" and login.step(b"secret") == credentials
    )
    early = server_mechanism("LOGIN")
    assert early.step(b"bob") == b"Password:"
    with pytest.raises(SaslFault):
        early.step(b"")
    assert decode_base64(b"=") == b"" and encode_base64(b"x") == "eA=="
    with pytest.raises(SaslFault):
        decode_base64(b"?")
    client = choose_mechanism(frozenset(("LOGIN",)), credentials)
    assert client is not None and client.initial() is None
    assert [client.respond(b"Username:"), client.respond(b"Password:")] == [b"bob", b"secret"]
    with pytest.raises(SaslFault):
        client.respond(b"More?")
    assert SimpleClient("PLAIN", credentials).initial() == b"\0bob\0secret"
    assert choose_mechanism(frozenset(("GSSAPI",)), credentials) is None


def test_scram_by_the_example_of_rfc_7677() -> None:
    client = ScramClient(Credentials("user", "pencil"), nonce="rOprNGfwEbeRWgbNEkqO")
    assert client.initial() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert client.respond(first) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert not client.is_proven
    assert client.respond(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") == b"" and client.is_proven


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=100",
        b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999",
        b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=x",
        b"r=abcdef,s=?,i=4096",
        b"r=abcdef",
        b"e=unknown-user",
        b"\xff",
        b"",
    ],
)
def test_scram_refuses(challenge: bytes) -> None:
    client = ScramClient(Credentials("a,b=c", "p"), nonce="abc")
    assert client.initial() == b"n,,n=a=2Cb=3Dc,r=abc"
    with pytest.raises(SaslFault):
        client.respond(challenge)


def test_scram_wants_the_servers_proof() -> None:
    client = ScramClient(Credentials("user", "pencil"), nonce="abc")
    client.respond(b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    for wrong in (b"v=AAAA", b"x=1", b"e=other-error"):
        with pytest.raises(SaslFault):
            client.respond(wrong)
    assert not client.is_proven and len(ScramClient(Credentials("u", "p")).initial() or b"") > 20
    chosen = choose_mechanism(frozenset(("PLAIN", "SCRAM-SHA-256")), Credentials("u", "p"))
    assert chosen is not None and chosen.name == "SCRAM-SHA-256"
    assert choose_mechanism(frozenset(("PLAIN",)), Credentials("u", "p"), "SCRAM-SHA-256") is None
