"""Rows B18 to B44 of the hostile checklist: commands and state. Each row whole, byte by byte, and cut at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import cuts, queued, run_async, stored_content, wired

Sizes = Callable[[], Iterator[int]]
pytestmark = pytest.mark.parametrize("sizes", cuts(2), ids=["whole", "bytes", "random"])
HELLO = b"EHLO x.test\r\n"
MAIL = b"MAIL FROM:<a@b.test>\r\n"
RCPT = b"RCPT TO:<c@d.test>\r\n"


def codes(replies: list[str]) -> list[str]:
    return [reply[:3] for reply in replies]


def talk(sizes: Sizes, octets: bytes, expected: list[str], **options: Any) -> None:
    """One burst of commands, and the beginnings of the replies to it (after EHLO's)."""

    async def main() -> None:
        async with wired(sizes, **options) as (server, wire):
            await wire.ask(HELLO)
            replies = await wire.ask(octets)
            assert len(replies) == len(expected), replies
            for reply, start in zip(replies, expected, strict=True):
                assert reply.startswith(start), (reply, start)

    run_async(main)


def test_b18_endless_command(sizes: Sizes) -> None:
    talk(sizes, b"MAIL FROM:<" + b"x" * 20_000 + b"@b.test>\r\nNOOP\r\n", ["500 5.5.2", "250"])


def test_b18_endless_command_without_end(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            replies = await wire.ask(b"x" * 100_000)
            assert codes(replies) == ["500"]
            assert wire.connection.session.protocol.buffered_bytes <= 2048

    run_async(main)


def test_b19_controls_and_8_bit(sizes: Sizes) -> None:
    talk(sizes, b"NO\0OP\r\nNOOP\r\n", ["500", "250"])
    talk(sizes, b"MAIL FROM:<a\0b@c.test>\r\n", ["501"])
    talk(sizes, b"MAIL FROM:<a\x1b[2J@c.test>\r\n", ["501"])
    talk(sizes, b"NOOP \x07\r\n", ["500 5.5.2"])
    talk(sizes, b"MAIL FROM:<\xff\xfe@c.test>\r\n", ["501"])
    talk(sizes, b"\xc3\xa9HLO x\r\n", ["500"])
    talk(sizes, b"HELO \xff\r\n", ["501"])
    talk(sizes, b"QUIT \x01\r\nNOOP\r\n", ["500", "250"])


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.0\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"Host: mx.test\r\n",
        b"CONNECT a:25 HTTP/1.1\r\n",
    ],
)
def test_b20_other_protocols(sizes: Sizes, line: bytes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            replies = await wire.ask(line + b"NOOP\r\n")
            assert codes(replies) == ["554"] and wire.transport.closed

    run_async(main)


def test_b20_tls_hello(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            replies = await wire.ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 64)
            assert codes(replies) == ["554"] and wire.transport.closed

    run_async(main)


@pytest.mark.parametrize("line", [b"NOOP", b"RSET", b"VRFY a", b"HELP", b"EXPN a", b"EHLO x.test"])
def test_b21_junk(sizes: Sizes, line: bytes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            await wire.ask(HELLO)
            replies = await wire.ask((line + b"\r\n") * 10_000)
            assert replies[-1].startswith("421 4.7.0") and wire.transport.closed
            # A greeting counts a tenth.
            assert len(replies) <= (1001 if line.startswith(b"EHLO") else 101)

    run_async(main)


def test_b22_order(sizes: Sizes) -> None:
    talk(sizes, RCPT, ["503 5.5.1"])
    talk(sizes, b"DATA\r\n", ["503 5.5.1"])
    talk(sizes, MAIL + b"DATA\r\nRCPT TO:<c@d.test>\r\n", ["250", "503 5.5.1", "250"])
    talk(sizes, MAIL + MAIL + RCPT + MAIL + RCPT, ["250", "503 5.5.1", "250", "503 5.5.1", "250"])

    async def no_hello() -> None:
        async with wired(sizes) as (_, wire):
            assert codes(await wire.ask(MAIL)) == ["503"]

    run_async(no_hello)


def test_b23_after_a_refused_message(sizes: Sizes) -> None:
    class RefuseFirst:
        def __init__(self) -> None:
            self.seen: list[list[str]] = []

        def on_message(self, server: Any, event: Any) -> Any:
            from pillarbox import Reply

            self.seen.append(event.envelope.addresses)
            return Reply(550, "5.7.1", "no") if len(self.seen) == 1 else None

    async def main() -> None:
        plugin = RefuseFirst()
        async with wired(sizes, plugins={"refuse": plugin}) as (server, wire):
            await wire.ask(HELLO + MAIL + b"RCPT TO:<first@d.test>\r\n")
            await wire.ask(b"DATA\r\n")
            assert codes(await wire.ask(b"x\r\n.\r\n")) == ["550"]
            assert codes(await wire.ask(b"RCPT TO:<late@d.test>\r\n")) == ["503"]
            await wire.ask(MAIL + b"RCPT TO:<second@d.test>\r\n")
            await wire.ask(b"DATA\r\n")
            assert codes(await wire.ask(b"x\r\n.\r\n")) == ["250"]
            assert plugin.seen == [["first@d.test"], ["second@d.test"]]
            assert [r.address for r in queued(server)[0].recipients] == ["second@d.test"]

    run_async(main)


def test_b24_bdat_error_then_data(sizes: Sizes) -> None:
    talk(
        sizes,
        MAIL + RCPT + b"BDAT 99999999999\r\n",
        ["250", "250", "552 5.3.4"],
    )
    talk(
        sizes,
        MAIL + RCPT + b"BDAT 2000\r\n" + b"x" * 2000 + b"DATA\r\n",
        ["250", "250", "552", "503"],
        max_size_bytes=1024,
    )


def test_b25_ehlo_and_rset_within(sizes: Sizes) -> None:
    talk(sizes, MAIL + RCPT + HELLO + RCPT, ["250", "250", "250", "503"])
    talk(sizes, MAIL + RCPT + b"RSET\r\n" + RCPT + MAIL, ["250", "250", "250", "503", "250"])
    talk(sizes, MAIL + b"HELO y.test\r\n" + MAIL, ["250", "250", "250"])


def test_b26_vrfy(sizes: Sizes) -> None:
    talk(sizes, MAIL + b"VRFY\r\nVRFY SMTPUTF8\r\nVRFY someone\r\n" + RCPT, ["250", "501", "501", "252", "250"])


def test_b27_null_reverse_path(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            assert codes(await wire.ask(HELLO + b"MAIL FROM:<>\r\n" + RCPT)) == ["250", "250", "250"]
            await wire.ask(b"DATA\r\n")
            await wire.ask(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert queued(server)[0].reverse_path is None

    run_async(main)


def test_b28_spaces_brackets_junk(sizes: Sizes) -> None:
    talk(sizes, b"MAIL FROM: <a@b.test>\r\nRCPT TO: <c@d.test>\r\n", ["250", "250"])
    talk(sizes, b"MAIL FROM: <a@b.test>\r\n", ["501"], strict_envelope=True)
    for bad in (
        b"a@b.test",
        b"<a@b.test> junk=",
        b"<a@b.test",
        b"a@b.test>",
        b"<a@b.test>x",
        b"<<a@b.test>>",
        b"<a@b.test>,<c@d.test>",
    ):
        talk(sizes, b"MAIL FROM:" + bad + b"\r\n" + RCPT, ["501", "503"])


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        (b'"a@evil"@good.test', "good.test"),
        (b'"a b"@x.test', "x.test"),
        (b'"\\""@x.test', "x.test"),
        (b'"a\\@b@c"@x.test', "x.test"),
    ],
)
def test_b29_quoted_local_parts(sizes: Sizes, path: bytes, domain: str) -> None:
    async def main() -> None:
        from pillarbox.smtp.address import domain_of

        async with wired(sizes) as (server, wire):
            await wire.ask(HELLO + MAIL)
            assert codes(await wire.ask(b"RCPT TO:<" + path + b">\r\n")) == ["250"]
            await wire.ask(b"DATA\r\n")
            await wire.ask(b"x\r\n.\r\n")
            address = queued(server)[0].recipients[0].address
            assert address == path.decode() and domain_of(address) == domain

    run_async(main)


def test_b29_broken_quotes(sizes: Sizes) -> None:
    talk(sizes, b'MAIL FROM:<"\\"@x.test>\r\nMAIL FROM:<"a"b@x.test>\r\n', ["501", "501"])


def test_b30_source_route(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            await wire.ask(HELLO + MAIL)
            assert codes(await wire.ask(b"RCPT TO:<@r1.test,@r2.test:u@d.test>\r\n")) == ["250"]
            assert wire.connection.session.facts.envelope.addresses == ["u@d.test"]

    run_async(main)


@pytest.mark.parametrize(
    "to", [b"u%far.test@ours.test", b"far.test!u@ours.test", b"u@[127.0.0.1]", b"u@far.test", b'"u@far.test"@far.test']
)
def test_b31_no_relay_through_hack_forms(sizes: Sizes, to: bytes) -> None:
    async def main() -> None:
        options = {"domains": ["ours.test"], "domains_via": "relay", "relay": "127.0.0.1:1"}
        async with wired(sizes, peer="192.0.2.7", **options) as (_, wire):
            await wire.ask(HELLO + MAIL)
            reply = (await wire.ask(b"RCPT TO:<" + to + b">\r\n"))[0]
            # The smart host trusts this server: it must not get what a stranger has chosen.
            assert reply.startswith("550 5.7.1")

    run_async(main)


def test_b32_parameters(sizes: Sizes) -> None:
    for line, expected in (
        (b"FOO=bar", "555 5.5.4"),
        (b"SIZE=1 SIZE=1", "501 5.5.4"),
        (b"BODY=9BIT", "501 5.5.4"),
        (b"SMTPUTF8=1", "501 5.5.4"),
        (b"=x", "501 5.5.4"),
        (b"SIZE=", "501"),
    ):
        talk(sizes, b"MAIL FROM:<a@b.test> " + line + b"\r\n" + RCPT, [expected, "503"])
    talk(sizes, MAIL + b"RCPT TO:<c@d.test> NOTIFY=MAYBE\r\nRCPT TO:<c@d.test> X=1\r\n", ["250", "501", "555"])


def test_b33_size_values(sizes: Sizes) -> None:
    for value, expected in (
        (b"1" + b"0" * 30, "501"),
        (b"99999999999999999999", "552 5.3.4"),
        (b"-1", "501"),
        (b"0x10", "501"),
        (b"\xd9\xa3", "501"),
        (b"67108864", "250"),
        (b"67108865", "552 5.3.4"),
    ):
        talk(sizes, b"MAIL FROM:<a@b.test> SIZE=" + value + b"\r\n", [expected])


def test_b34_larger_than_it_said(sizes: Sizes, tmp_path: Any) -> None:
    async def main() -> None:
        import os

        async with wired(sizes, max_size_bytes=40_000, spool_above_bytes=1000) as (server, wire):
            await wire.ask(HELLO + b"MAIL FROM:<a@b.test> SIZE=10\r\n" + RCPT)
            await wire.ask(b"DATA\r\n")
            replies = await wire.ask(b"Subject: x\r\n\r\n" + b"y" * 70 * 1000 + b"\r\n.\r\nNOOP\r\n")
            assert [r[:9] for r in replies] == ["552 5.3.4", "250 2.0.0"]
            folder = server._parts.context.spool.folder
            server._parts.context.spool.close()
            assert os.listdir(folder) == []

    run_async(main)


def test_b35_recipients(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes, max_recipients=100, max_errors=10_000) as (_, wire):
            await wire.ask(HELLO + MAIL)
            replies = await wire.ask(b"".join(b"RCPT TO:<r%d@d.test>\r\n" % n for n in range(1000)))
            assert codes(replies) == ["250"] * 100 + ["452"] * 900
            assert replies[100].startswith("452 4.5.3")
            assert len(wire.connection.session.facts.envelope.recipients) == 100

    run_async(main)


def test_b36_probing(sizes: Sizes) -> None:
    """No mailbox list is known yet: any local-part of ours gets one and the same reply, VRFY says 252, errors close."""
    talk(
        sizes,
        MAIL + b"RCPT TO:<known@d.test>\r\nRCPT TO:<unknown@d.test>\r\n",
        ["250", "250 2.1.5 Recipient OK", "250 2.1.5 Recipient OK"],
    )

    async def main() -> None:
        async with wired(sizes, peer="192.0.2.9", domains=["ours.test"]) as (_, wire):
            await wire.ask(HELLO + MAIL)
            replies = await wire.ask(b"".join(b"RCPT TO:<u%d@ours.test>\r\n" % n for n in range(50)))
            assert set(replies[:19]) == {"550 5.1.1 No such mailbox here"}
            assert replies[-1].startswith("421 4.7.0") and wire.transport.closed

    run_async(main)


def test_b37_utf8_without_smtputf8(sizes: Sizes) -> None:
    talk(sizes, "MAIL FROM:<ü@b.test>\r\n".encode(), ["553 5.6.7"])
    talk(sizes, MAIL + "RCPT TO:<ü@d.test>\r\n".encode(), ["250", "553 5.6.7"])
    talk(sizes, "MAIL FROM:<ü@b.test> SMTPUTF8\r\nRCPT TO:<ü@dömäin.test>\r\n".encode(), ["250", "250"])


@pytest.mark.parametrize(
    "local",
    [
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        "a\u202eb".encode(),
        "a\u200bb".encode(),
        "a\u0085b".encode(),
        b"\xf5\x80\x80\x80",
    ],
)
def test_b38_bad_utf8(sizes: Sizes, local: bytes) -> None:
    talk(sizes, b"MAIL FROM:<" + local + b"@b.test> SMTPUTF8\r\nNOOP\r\n", ["501", "250"])


def test_b38_twins_compare_equal(sizes: Sizes) -> None:
    from pillarbox.smtp.address import comparable_mailbox

    assert comparable_mailbox("e\u0301@B\u00fccher.TEST") == comparable_mailbox("\u00e9@bu\u0308cher.test")
    assert comparable_mailbox("a@xn--bcher-kva.test") == comparable_mailbox("a@bücher.test")


@pytest.mark.parametrize("value", [b"+00", b"+0D+0A", b"+G1", b"+0", b"a+", b"a=b", b"+7F", b"x" * 101])
def test_b39_xtext(sizes: Sizes, value: bytes) -> None:
    talk(sizes, b"MAIL FROM:<a@b.test> ENVID=" + value + b"\r\n", ["501 5.5.4"])
    if len(value) < 100:
        talk(sizes, MAIL + b"RCPT TO:<c@d.test> ORCPT=rfc822;" + value + b"\r\n", ["250", "501 5.5.4"])


@pytest.mark.parametrize("size", [b"-1", b"0x10", b"", b" LAST", b"1e3", b"+5", b"10 LATER", b"1" + b"0" * 30])
def test_b40_bdat_sizes(sizes: Sizes, size: bytes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await wire.ask(HELLO + MAIL + RCPT)
            replies = await wire.ask(b"BDAT" + (b" " + size if size else b"") + b"\r\nQUIT\r\n")
            assert codes(replies) == ["501"] and wire.transport.closed and queued(server) == []

    run_async(main)


def test_b40_huge_bdat(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (_, wire):
            await wire.ask(HELLO + MAIL + RCPT)
            replies = await wire.ask(b"BDAT 9223372036854775808\r\nRSET\r\n")
            assert codes(replies) == ["552"] and wire.transport.closed

    run_async(main)


def test_b41_small_chunks(sizes: Sizes) -> None:
    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await wire.ask(HELLO + MAIL + RCPT)
            replies = await wire.ask(b"BDAT 1\r\nx" * 1500 + b"BDAT 0 LAST\r\n")
            assert replies[-1].startswith("421 4.7.0") and len(replies) <= 1001
            assert wire.transport.closed and queued(server) == []

    run_async(main)


def test_b42_bdat_swallows_exactly(sizes: Sizes) -> None:
    payload = b"MAIL FROM:<evil@b.test>\r\nRCPT TO:<victim@d.test>\r\n"
    talk(sizes, b"BDAT %d LAST\r\n" % len(payload) + payload + b"NOOP\r\n", ["503 5.5.1", "250"])
    # After a chunk that failed (too large in all), the next ones have nothing to belong to.
    talk(
        sizes,
        MAIL
        + RCPT
        + b"BDAT 1000\r\n"
        + b"x" * 1000
        + b"BDAT 1000\r\n"
        + b"x" * 1000
        + b"BDAT 5 LAST\r\nhello"
        + b"NOOP\r\n",
        ["250", "250", "250", "552", "503", "250"],
        max_size_bytes=1500,
    )
    talk(sizes, MAIL + b"BDAT 5 LAST\r\nhello" + RCPT, ["250", "503", "250"])


def test_b43_data_after_bdat(sizes: Sizes) -> None:
    talk(sizes, MAIL + RCPT + b"BDAT 5\r\nhelloDATA\r\nRSET\r\nNOOP\r\n", ["250", "250", "250", "503", "250", "250"])


def test_b44_end_mark_within_a_chunk(sizes: Sizes) -> None:
    content = b"Subject: x\r\n\r\na\r\n.\r\nMAIL FROM:<evil@b.test>\r\n"

    async def main() -> None:
        async with wired(sizes) as (server, wire):
            half = len(content) // 2
            octets = (
                b"BDAT %d\r\n" % half + content[:half] + b"BDAT %d LAST\r\n" % (len(content) - half) + content[half:]
            )
            replies = await wire.ask(HELLO + MAIL + RCPT + octets)
            assert codes(replies) == ["250"] * 5
            assert len(queued(server)) == 1 and stored_content(server).endswith(content)

    run_async(main)
