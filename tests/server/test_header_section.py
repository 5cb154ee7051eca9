"""The header section as its readers see it: forged claims, junk lines, blind copies, sizes beyond the part in memory."""

from __future__ import annotations

import email
import email.policy
from typing import Any

import pytest

from pillarbox.mail.headers import is_claim
from tests.conftest import cuts, run_async, stored_content, wired

SIZES = pytest.mark.parametrize("sizes", cuts(1), ids=["whole", "bytes", "random"])
CLAIM = b"; dkim=pass header.d=bank.test"
OURS = [
    b"mx.test", b"MX.Test", b"mx.test.", b'"mx.test"', b'"mx\\.test"', b'"m\\x.test."', b"(a)mx.test", b"(a(b)) mx.test", b"(a\\)b) mx.test",
    b"(a(b\\(c)d)\r\n\t(e) mx.test", b"mx (c) . test", b"mx.(c)test", b'mx."test"', b"\r\n\tmx.test", b"mx.test 1", b"mx.test/1", b"mx.test(c)",
    b"=?utf-8?q?mx.test?=", b"=?us-ascii?b?bXgudGVzdA==?=", b"(unclosed mx.test", b'"mx.test', b"((mx.test)", b"[mx.test]", b";mx.test", b"mx.test\0",
]  # fmt: skip
FOREIGN = [
    b"mx.example",
    b"test",
    b"mx.test.example",
    b"amx.test",
    b"(mx.test) other.example",
    b"other.example (mx.test)",
    b'"mx.test.x"',
]


async def accept(wire: Any, content: bytes) -> str:
    await wire.ask(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    await wire.ask(b"DATA\r\n")
    return str((await wire.ask(content + b".\r\n"))[-1])


def stored(sizes: Any, content: bytes, **options: Any) -> bytes:
    """The message as the server keeps it."""
    kept = b""

    async def main() -> None:
        nonlocal kept
        async with wired(sizes, hostname="mx.test", **options) as (server, wire):
            assert (await accept(wire, content)).startswith("250")
            kept = stored_content(server)

    run_async(main)
    return kept


def section_of(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("name", OURS)
def test_claim_in_our_name_is_removed_however_it_is_spelt(name: bytes) -> None:
    assert is_claim(b" " + name + CLAIM + b"\r\n", "mx.test")
    kept = stored(
        cuts(1)[0], b"From: a@b.test\r\nAuthentication-Results: " + name + CLAIM + b"\r\nSubject: x\r\n\r\nhi\r\n"
    )
    assert b"dkim=pass" not in kept and b"\r\nSubject: x\r\n\r\nhi\r\n" in kept


@pytest.mark.parametrize("name", FOREIGN)
def test_claim_of_another_server_stays(name: bytes) -> None:
    assert not is_claim(b" " + name + CLAIM + b"; x=mx.test\r\n", "mx.test")


def test_claim_in_an_internationalized_name_is_removed_in_both_forms() -> None:
    for name in ("bücher.test", "BÜCHER.test", "xn--bcher-kva.test"):
        assert is_claim(name.encode() + CLAIM, "bücher.test") and is_claim(name.encode() + CLAIM, "xn--bcher-kva.test")


JUNK = [
    b"this is no field", b"X-\xc3\xa9: y", b"X Y: z", b": no name", b"Subject\r\n : folded name", b"\0X: y", b"X\0: y", b"--boundary", b"Bcc\x0b: x",
    b"From someone Mon Jan  1 00:00:00 2024", b".",
]  # fmt: skip


@SIZES
@pytest.mark.parametrize("junk", JUNK)
def test_line_that_is_no_field_ends_the_section_for_every_reader(sizes: Any, junk: bytes) -> None:
    hidden = b"Authentication-Results: mx.test" + CLAIM + b"\r\nBcc: blind@d.test\r\nReturn-Path: <x@y.test>\r\n"
    wire_form = junk if not junk.startswith(b".") else b"." + junk
    content = stored(sizes, b"Subject: x\r\n" + wire_form + b"\r\n" + hidden + b"\r\nbody\r\n")
    head = section_of(content)
    assert b"Subject: x" in head and b"dkim=pass" not in head and b"Bcc" not in head and b"Return-Path" not in head
    assert content.endswith(b"\r\n\r\n" + junk + b"\r\n" + hidden + b"\r\nbody\r\n")
    read = email.message_from_bytes(content, policy=email.policy.compat32)
    assert read["Authentication-Results"] is None and read["Bcc"] is None and read["Subject"] == "x"


@SIZES
@pytest.mark.parametrize("first", [b" a continuation", b"\tSubject: x", b"no field at all"])
def test_first_line_that_is_no_field_is_body(sizes: Any, first: bytes) -> None:
    content = stored(sizes, first + b"\r\nBcc: blind@d.test\r\n\r\nbody\r\n")
    assert b"Bcc" not in section_of(content) and content.endswith(
        b"\r\n\r\n" + first + b"\r\nBcc: blind@d.test\r\n\r\nbody\r\n"
    )


@SIZES
@pytest.mark.parametrize("spool_above_bytes", [0, 1 << 20])
def test_mbox_line_becomes_a_field_and_the_section_goes_on(sizes: Any, spool_above_bytes: int) -> None:
    for first in (b"From a@b.test Mon Jan  1 00:00:00 2024", b">From a@b.test Mon Jan  1 00:00:00 2024"):
        text = first + b"\r\nSubject: x\r\nAuthentication-Results: mx.test" + CLAIM + b"\r\n\r\nbody\r\n"
        content = stored(sizes, text, spool_above_bytes=spool_above_bytes)
        assert b"\r\nX-Mailbox-Line: " + first + b"\r\nSubject: x\r\n\r\nbody\r\n" in content


def test_obsolete_from_field_with_a_space_is_no_mbox_line() -> None:
    content = stored(cuts(1)[0], b"From : a@b.test\r\nSubject : x\r\nBcc \t: blind@d.test\r\n\r\nbody\r\n")
    assert content.endswith(b"From : a@b.test\r\nSubject : x\r\n\r\nbody\r\n") and b"Mailbox" not in content


@SIZES
def test_origin_hides_received_fields_and_none_comes_back_behind_junk(sizes: Any) -> None:
    content = stored(
        sizes, b"Received: from in\r\nSubject: x\r\njunk\r\nReceived: from inner\r\n\r\nbody\r\n", origin=True
    )
    assert b"Received" not in section_of(content) and b"Subject: x\r\n\r\njunk\r\nReceived: from inner\r\n" in content


@pytest.mark.parametrize("spool_above_bytes", [0, 128 * 1024, 1 << 20])
def test_section_beyond_the_part_in_memory_is_read_whole(spool_above_bytes: int) -> None:
    to = b"To: " + b",\r\n ".join(b"somebody.number%d@customer.example.org" % i for i in range(3600)) + b"\r\n"
    text = (
        b"Subject: x\r\n"
        + to
        + b"Authentication-Results: mx.test"
        + CLAIM
        + b"\r\nBcc: blind@d.test\r\njunk\r\n"
        + b"y" * 900
        + b"\r\n"
    )
    content = stored(cuts(1)[0], text * 1, spool_above_bytes=spool_above_bytes)
    head = section_of(content)
    assert head.endswith(to[:-2]) and content.endswith(b"\r\n\r\njunk\r\n" + b"y" * 900 + b"\r\n")


@pytest.mark.parametrize("spool_above_bytes", [0, 1 << 20])
def test_section_over_the_bound_is_refused(spool_above_bytes: int) -> None:
    async def main() -> None:
        options = {"max_header_bytes": 200_000, "spool_above_bytes": spool_above_bytes}
        async with wired(cuts(1)[0], **options) as (_, wire):
            line = b"X-Long: " + b"y" * 91 + b"\r\n"
            assert (await accept(wire, line * 2000 + b"\r\nbody\r\n")).startswith("552 5.3.4")
            assert (await accept(wire, line * 1900 + b"\r\n" + b"body\r\n" * 50_000)).startswith("250")

    run_async(main)
