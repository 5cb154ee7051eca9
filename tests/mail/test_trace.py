"""Trace fields: Received as RFC 5321 section 4.4 has it, what a submission lacks, and fields that must not stay."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pillarbox import Handler
from pillarbox.mail import headers
from pillarbox.mail.trace import PROTOCOLS, format_received, message_id, received_from
from tests.conftest import cuts, run_async, stored_content, wired

HELO = [
    "x.test", "x y", "x)\r\n(y", "x;y", "x<y>z", "x@y", 'x"y', "x\\y", "x\ty", "[192.0.2.1]", "m\u00fcnchen.test", "\u2028x", "", "x\x7fy", "a, b",
]  # fmt: skip


@pytest.mark.parametrize("helo", HELO)
@pytest.mark.parametrize("peer", ["192.0.2.7", "2001:db8::7", ""])
def test_received_has_its_clauses_whatever_the_client_says(helo: str, peer: str) -> None:
    field = format_received(
        received_from(helo, peer, "mx.test", "ESMTPS", "TLSv1.3 with cipher X"), "U1", "c@d.test", 0.0
    ).decode()
    assert field.isascii() and field.startswith("Received: from ") and field.endswith("\r\n")
    # Three folds and the end; no line of the client's own.
    assert field.count("\r") == field.count("\n") == 5 and all(line[0] == "\t" for line in field.split("\r\n")[1:-1])
    clause = re.fullmatch(
        r"Received: from ([^\x00-\x20()<>;,@\"\\]+)( \(\[[^\]\r\n]+\]\))?\r\n\t\(using TLSv1.3 with cipher X\)"
        r"\r\n\tby mx\.test with ESMTPS id U1\r\n\tfor <c@d\.test>;\r\n\tThu, 01 Jan 1970 00:00:00 [-+]0000\r\n",
        field,
    )
    assert clause is not None, field
    literal = {"192.0.2.7": " ([192.0.2.7])", "2001:db8::7": " ([IPv6:2001:db8::7])", "": None}
    assert clause[2] == literal[peer]


def test_received_protocol_is_that_of_rfc_3848() -> None:
    assert {PROTOCOLS[False, utf8, tls, auth] for utf8 in (0, 1) for tls in (0, 1) for auth in (0, 1)} == {"SMTP"}
    names = {(tls, auth): PROTOCOLS[True, False, tls, auth] for tls in (False, True) for auth in (False, True)}
    assert names == {(False, False): "ESMTP", (False, True): "ESMTPA", (True, False): "ESMTPS", (True, True): "ESMTPSA"}
    assert PROTOCOLS[True, True, True, True] == "UTF8SMTPSA" and PROTOCOLS[True, True, False, False] == "UTF8SMTP"


@pytest.mark.parametrize("hostname", ["mx.test", "[192.0.2.1]", "[IPv6:2001:db8::1]"])
def test_message_id_has_one_at_and_no_brackets_of_a_literal(hostname: str) -> None:
    assert re.fullmatch(r"<U1@[A-Za-z0-9.]+>", message_id("U1", hostname))


def stored(content: bytes, recipients: int = 1, *, peer: str = "127.0.0.1", **options: Any) -> bytes:
    """The message as the server keeps it."""
    kept = b""

    async def main() -> None:
        nonlocal kept
        async with wired(
            cuts(1)[0], peer=peer, hostname="mx.test", domains=["d.test"], direct=False, handlers=_all(), **options
        ) as (
            server,
            wire,
        ):
            await wire.ask(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n")
            for number in range(recipients):
                await wire.ask(b"RCPT TO:<c%d@d.test>\r\n" % number)
            await wire.ask(b"DATA\r\n")
            assert (await wire.ask(content + b".\r\n"))[-1].startswith("250")
            kept = stored_content(server)

    run_async(main)
    return kept


def _all() -> list[Any]:
    return [Handler(r"@d\.test$", lambda item: None)]


def names_of(content: bytes) -> list[str]:
    return [name.lower() for name, _ in headers.raw_fields(content[: headers.section_end(content)])]


def test_received_names_the_recipient_only_where_there_is_one() -> None:
    assert b"for <c0@d.test>" in stored(b"Subject: x\r\n\r\nhi\r\n")
    for count in (2, 3):
        kept = stored(b"Subject: x\r\n\r\nhi\r\n", count)
        # A second recipient may be a blind copy.
        assert b"for <" not in kept and b"@d.test" not in kept


FIELDS = (
    b"Bcc: x@y.test\r\nFrom: a@b.test\r\nBCC:\r\n\tsecret@z.test,\r\n second@z.test\r\nReturn-Path: <e@f.test>\r\n"
    b"bcc : third@z.test\r\nreturn-path:\r\n <g@h.test>\r\n"
)


def test_submission_gets_what_it_lacks_and_loses_every_blind_copy() -> None:
    kept = stored(FIELDS + b"\r\nBcc: stays\r\n")
    assert sorted(names_of(kept)) == ["date", "from", "message-id", "received"]
    assert b"z.test" not in kept and b"y.test" not in kept and kept.endswith(b"\r\nBcc: stays\r\n")
    twice = stored(b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <own@b.test>\r\n" + FIELDS + b"\r\nx\r\n")
    assert sorted(names_of(twice)) == ["date", "from", "message-id", "received"] and b"<own@b.test>" in twice


def test_mail_of_strangers_is_not_completed_and_keeps_its_copies() -> None:
    kept = stored(FIELDS + b"\r\nx\r\n", peer="192.0.2.7")
    # RFC 6409 section 8 is for submissions. Return-Path is made at final delivery alone.
    assert sorted(names_of(kept)) == ["bcc", "bcc", "bcc", "from", "received"]


def test_hundred_received_fields_are_a_loop() -> None:
    async def main() -> None:
        async with wired(cuts(1)[0], hostname="mx.test", domains=["d.test"], direct=False, handlers=_all()) as (
            _,
            wire,
        ):
            await wire.ask(b"EHLO x.test\r\n")
            for count, code in ((99, "250"), (101, "554")):
                await wire.ask(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
                await wire.ask(b"DATA\r\n")
                assert (await wire.ask(b"Received: x\r\n" * count + b"\r\nhi\r\n.\r\n"))[-1].startswith(code)

    run_async(main)


SECTION = b"A: 1\r\nb : 2\r\n  folded\r\nB:3\r\nBB: 4\r\nX-B: 5\r\n b: no field\r\nb:\r\n\t6\r\n\t7\r\n"


def test_removal_takes_every_field_of_that_name_with_its_folds_and_no_other() -> None:
    for name in ("b", "B"):
        assert headers.remove(SECTION, name) == b"A: 1\r\nBB: 4\r\nX-B: 5\r\n b: no field\r\n"
        assert headers.get_raw(SECTION, name) == b"2  folded"
        assert (
            headers.replace(SECTION, name, "9")
            == b"A: 1\r\n" + name.encode() + b": 9\r\nBB: 4\r\nX-B: 5\r\n b: no field\r\n"
        )
    assert headers.remove(SECTION, "C") == SECTION and headers.get_raw(SECTION, "C") is None
    # The name is a text, not a pattern.
    assert headers.remove(SECTION, ".") == SECTION and headers.get_raw(SECTION, "X.B") is None


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "\u00e4", "a\0", "a\n"])
def test_field_name_that_is_none_is_refused(name: str) -> None:
    for call in (
        lambda: headers.remove(SECTION, name),
        lambda: headers.get_raw(SECTION, name),
        lambda: headers.replace(SECTION, name, "x"),
    ):
        with pytest.raises(ValueError, match="field"):
            call()


@pytest.mark.parametrize("value", ["a\r\nBcc: x@y.test", "a\nb", "a\rb", "a\0b", "\r\n", "a\r\n b"])
def test_field_value_with_a_line_end_is_refused(value: str) -> None:
    for is_utf8 in (False, True):
        with pytest.raises(ValueError, match="expected one line"):
            headers.replace(SECTION, "Subject", value, is_utf8=is_utf8)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (b"A: 1\r\n\r\nB: 2\r\n", 6), (b"A: 1\r\n b\r\n\tc\r\nB:2\r\n\r\n", 19), (b"\r\nA: 1\r\n", 0), (b" A: 1\r\n", 0), (b"junk\r\nA: 1\r\n", 0),
        (b"A: 1\r\njunk\r\nB: 2\r\n", 6), (b"A : 1\r\n\r\n", 7), (b"A b: 1\r\n", 0), (b": 1\r\n", 0), (b"\xc3\xa4: 1\r\n", 0), (b"A: 1", 0),
    ],
)  # fmt: skip
def test_header_section_ends_before_the_first_line_that_is_no_field(start: bytes, end: int) -> None:
    assert headers.section_end(start) == headers.Scan(start).end == end
    assert headers.Scan(start).lacks_end is (start[end : end + 2] not in (b"\r\n", b""))
