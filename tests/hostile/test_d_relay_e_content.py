"""Rows D62 to E84 of the hostile checklist: relaying and loops, content. Over the wire whole, byte by byte, cut at random."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, MailServer, PillarboxError
from pillarbox.mail.content import Content
from pillarbox.smtp.client import ClientFault, ClientProtocol, Recipient, Transaction
from pillarbox.testing import DictResolver, ScriptedServer
from tests.conftest import cuts, queued, run_async, serving, stored_content, until, wired
from tests.simplesmtp.helpers import BODY, heard, send, server_test, soon

Sizes = Callable[[], Iterator[int]]
CUTS = pytest.mark.parametrize("sizes", cuts(4), ids=["whole", "bytes", "random"])
STRANGER = "192.0.2.77"
HELLO = b"EHLO x.test\r\n"
START = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"


def talk(sizes: Sizes, octets: list[bytes], expected: list[str], peer: str = STRANGER, **options: Any) -> list[str]:
    """Pieces one after the other, each waited for; the last replies begin so. All replies."""
    found: list[str] = []

    async def main() -> None:
        async with wired(sizes, peer, **options) as (_, wire):
            for piece in octets:
                found.extend(await wire.ask(piece))

    run_async(main)
    last = found[-len(expected) :]
    assert all(reply.startswith(start) for reply, start in zip(last, expected, strict=True)), found
    return found


# ------------------------------------------------------------------------ D. relaying


@CUTS
def test_d62_fresh_install(sizes: Sizes) -> None:
    talk(sizes, [HELLO, b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n"], ["550 5.7.1"])
    talk(sizes, [HELLO, b"MAIL FROM:<>\r\n", b"RCPT TO:<c%d.test@mx.test>\r\n"], ["550 5.7.1"])


@CUTS
def test_d63_xclient(sizes: Sizes) -> None:
    replies = talk(
        sizes,
        [
            HELLO,
            b"XCLIENT ADDR=127.0.0.1 LOGIN=root\r\n",
            b"XFORWARD NAME=x\r\n",
            b"MAIL FROM:<a@b.test>\r\n",
            b"RCPT TO:<c@d.test>\r\n",
        ],
        ["550 5.7.0", "550 5.7.0", "250", "550 5.7.1"],
    )
    assert "XCLIENT" not in replies[0] and "XFORWARD" not in replies[0], "not advertised"
    assert "XCLIENT" not in talk(sizes, [b"HELP\r\n"], ["214"])[0]


@CUTS
def test_d65_unknown_recipient(sizes: Sizes) -> None:
    handlers = [Handler(r"^known@", lambda item: None)]
    talk(
        sizes,
        [HELLO, b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<unknown@ours.test>\r\n", b"RCPT TO:<known@ours.test>\r\n"],
        ["550 5.1.1", "250"],
        domains=["ours.test"],
        handlers=handlers,
        direct=True,
        resolver=DictResolver({}),
    )


def test_d66_a_bounce_that_bounces(tmp_path: Path) -> None:
    async def main() -> None:
        peer = ScriptedServer(RCPT="550 5.1.1 nobody")
        await peer.start()
        async with serving(tmp_path, store="memory", relay=f"127.0.0.1:{peer.port}") as server:
            failed = heard(server, "send_failed")
            await send(server)
            await soon(failed)
            event = await soon(failed)
            assert event.is_permanent and event.recipients == ["a@b.test"], "the DSN's own failure is told"
            await until(lambda: len(queued(server)) == 2 and queued(server)[1].finished_at)
            assert [view.recipients[0].state for view in queued(server)] == ["bounced", "bounced"], "no second DSN"
        await peer.stop()

    run_async(main)


@CUTS
def test_d68_a_hundred_received(sizes: Sizes) -> None:
    content = b"Received: from a by b\r\n" * 101 + b"\r\nx\r\n.\r\n"
    talk(sizes, [HELLO, START, content], ["554 5.4.6"], "127.0.0.1")
    folded = b"received:\r\n\tfrom a by b\r\n" * 101 + b"\r\n.\r\n"
    talk(sizes, [HELLO, START, folded], ["554 5.4.6"], "127.0.0.1")
    in_body = b"Subject: x\r\n\r\n" + b"Received: from a by b\r\n" * 101 + b".\r\n"
    talk(sizes, [HELLO, START, in_body], ["250 2.0.0"], "127.0.0.1")


@server_test(
    direct=True,
    mx_networks="127.0.0.0/8",
    resolver=DictResolver({"d.test": {"MX": [(1, "mx.test"), (2, "b.test")]}, "mx.test": {"A": ["127.0.0.1"]}, "b.test": {"A": ["127.0.0.9"]}}),
)  # fmt: skip
async def test_d69_the_best_mx_is_ourselves(server: MailServer) -> None:
    failed = heard(server, "send_failed")
    await send(server)
    event = await soon(failed)
    assert event.is_permanent and str(event.reply).startswith("554 5.4.6")
    assert len(server._parts.store.get(event.uid).attempts) == 1 and server._parts.context.counters.sessions == 1


@CUTS
def test_d71_control_headers(sizes: Sizes) -> None:
    """No header of a message steers anything; what a sender says for itself (TLS-Required) is kept."""
    content = b"X-Pillarbox-Next-Hop: evil.test\r\nX-Pillarbox-No-TLS: 1\r\nTLS-Required: No\r\nSubject: x\r\n\r\n.\r\n"

    async def main() -> None:
        async with wired(sizes, relay="127.0.0.1:9", paused=True) as (server, wire):
            await wire.ask(HELLO)
            await wire.ask(START)
            assert (await wire.ask(content))[-1].startswith("250")
            assert queued(server)[0].recipients[0].next_hop == "relay:127.0.0.1:9"
            assert b"TLS-Required: No\r\n" in stored_content(server)

    run_async(main)


# ------------------------------------------------------------------------- E. content


@pytest.mark.parametrize("sizes", [cuts(4)[0]], ids=["whole"])
def test_e72_a_million_fields(sizes: Sizes) -> None:
    started = time.monotonic()
    fields = b"".join(b"X-%d: y\r\n" % n for n in range(1_000_000))
    talk(sizes, [HELLO, START, fields + b"\r\n.\r\n"], ["552 5.3.4"], "127.0.0.1")
    one = b"Subject: " + (b"y" * 70 + b"\r\n ") * 700_000 + b"\r\n\r\n.\r\n"
    talk(sizes, [HELLO, START, one], ["552 5.3.4"], "127.0.0.1")
    assert time.monotonic() - started < 20


@CUTS
def test_e73_no_header_section(sizes: Sizes) -> None:
    for content, end in (
        (b"just text\r\n", b"\r\n\r\njust text\r\n"),
        (b"\r\nbody first\r\n", b"\r\n\r\nbody first\r\n"),
        (b" folded from the start\r\n", b"\r\n\r\n folded from the start\r\n"),
    ):

        async def main(content: bytes = content, end: bytes = end) -> None:
            async with wired(sizes) as (server, wire):
                await wire.ask(HELLO)
                await wire.ask(START)
                assert (await wire.ask(content + b".\r\n"))[-1].startswith("250")
                kept = stored_content(server)
                assert kept.startswith(b"Received: ") and kept.endswith(end)

        run_async(main)


@CUTS
def test_e74_from_fields(sizes: Sizes) -> None:
    for fields in (
        b"From: a@b.test\r\nFrom: c@d.test\r\n",
        b"From: a@b.test, c@d.test\r\n",
        b"Subject: none\r\n",
        b"From: \r\n",
    ):
        talk(sizes, [HELLO, START, fields + b"\r\nx\r\n.\r\n"], ["250 2.0.0"], "127.0.0.1")


def test_e75_mime_nested_ten_thousand_deep(tmp_path: Path) -> None:
    async def main() -> None:
        raw: list[bytes] = []
        outcomes: list[str] = []

        def handle(item: Any) -> None:
            raw.append(item.content)
            try:
                item.parsed()
                outcomes.append("parsed")
            except ValueError:
                outcomes.append("refused")

        nested = b"".join(
            b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(10_000)
        )
        huge = (
            b"Content-Type: multipart/mixed; boundary="
            + b"b" * 100_000
            + b"\r\n\r\n--"
            + b"b" * 100_000
            + b"\r\n\r\nx\r\n"
        )
        async with serving(tmp_path, store="memory", handlers=[Handler(".", handle)]) as server:
            started = time.monotonic()
            await send(server, nested)
            await until(lambda: len(raw) == 1)
            await send(server, huge)
            await until(lambda: len(raw) == 2)
            assert raw[0].endswith(nested) and raw[1].endswith(huge), "the octets are there whatever a parser says"
            assert time.monotonic() - started < 20 and len(outcomes) == 2
            assert (await send(server)).startswith("250"), "and the server lives"

    run_async(main)


@CUTS
def test_e76_broken_charsets(sizes: Sizes) -> None:
    for subject in (
        b"=?x-unknown?Q?abc?=", b"=?utf-8?B?!!!?=", b"=?utf-8?Q?=FF=FE?=", b"\xff\xfe\x80", b"=?utf-8?b?" + b"A" * 5000 + b"?=",
        b"=?utf-7?Q?+2AA-?=", b"=?us-ascii?Q?=ED=A0=80?=",
    ):  # fmt: skip

        async def main(subject: bytes = subject) -> None:
            async with wired(sizes) as (server, wire):
                await wire.ask(HELLO)
                await wire.ask(START)
                assert (await wire.ask(b"Subject: " + subject + b"\r\n\r\nx\r\n.\r\n"))[-1].startswith("250"), subject
                queued(server)[0].subject.encode("utf-8")
                assert b"Subject: " + subject + b"\r\n" in stored_content(server)

        run_async(main)


def test_e77_line_ends_in_a_header() -> None:
    content = Content(BODY)
    for value in ("x\r\nBcc: all@d.test", "x\ny", "x\ry", "x\0y"):
        for change in (content.set_header, content.add_header):
            with pytest.raises(ValueError, match="CR, LF or NUL"):
                change("Subject", value)
    for name in ("Sub ject", "Subject:", "", "Sübject", "X\r\nY"):
        with pytest.raises(ValueError, match="field name"):
            content.set_header(name, "x")
    assert content.read() == BODY, "untouched"
    message = default.message_factory()
    with pytest.raises(ValueError):
        message["Subject"] = "x\r\nBcc: y"


def test_content_that_was_judged_is_plain_until_somebody_changes_it() -> None:
    def change_prefix(content: Content) -> None:
        content.prefix = content.prefix.replace(b"x", b".")

    changes: list[Callable[[Content], object]] = [
        lambda c: c.set_header("Subject", "y"),
        lambda c: c.replace(b".\r\n"),
        lambda c: c.prepend(b".dot: 1\r\n"),
        lambda c: c.prepend(b"X: 1\n.\r\n"),
        lambda c: c.prepend(b"X: 1"),
        change_prefix,
    ]
    for change in changes:
        content = Content(b"Subject: x\r\n\r\nx\r\n")
        assert not content.is_plain
        content.mark_plain()
        content.prepend(b"Received: x\r\n\tby y\r\n")
        content.prepend(b"")
        assert content.is_plain
        change(content)
        assert not content.is_plain
    assert not Content(b"", path="somewhere").is_plain


@server_test()
async def test_e78_line_ends_in_an_envelope(server: MailServer) -> None:
    for wrong in ("a@b.test\r\nRCPT TO:<x@y.test>", "a@b.test>", "a\n@b.test", "a@b.test\0"):
        for key in ("reverse_path", "recipients"):
            given: dict[str, Any] = {"reverse_path": "a@b.test", "recipients": "c@d.test", "content": BODY, key: wrong}
            with pytest.raises(PillarboxError, match=key):
                await server.enqueue(**given)
    with pytest.raises(PillarboxError, match="hostname"):
        MailServer(hostname="x.test\r\nMAIL FROM:<>")
    # Whatever a plugin has put into an envelope: no command line is broken by it.
    smtp = ClientProtocol("x.test")
    smtp.receive_data(b"220 x\r\n")
    while smtp.next_event() is not None:
        pass
    smtp.receive_data(b"250 x\r\n")
    while smtp.next_event() is not None:
        pass
    for sender, to, words in (
        ("a\r\n@b.test", "c@d.test", ()),
        ("a@b.test", "c@d.test>\r\nDATA", ()),
        ("a@b.test", "c@d.test", ("X=1\r\nDATA",)),
    ):
        with pytest.raises(ClientFault):
            smtp.start_transaction(Transaction(sender, [Recipient(to)], [b"x"], words))
    assert queued(server) == []


@CUTS
def test_e79_authentication_results_in_our_name(sizes: Sizes) -> None:
    content = (
        b"Authentication-Results: mx.test; spf=pass\r\nauthentication-results:\r\n (c) MX.Test/1;\r\n dkim=pass\r\n"
        b"Authentication-Results: other.test; spf=pass\r\nSubject: mx.test; x\r\n\r\nAuthentication-Results: mx.test; in the body\r\n"
    )

    async def main() -> None:
        async with wired(sizes) as (server, wire):
            await wire.ask(HELLO)
            await wire.ask(START)
            assert (await wire.ask(content + b".\r\n"))[-1].startswith("250")
            kept = stored_content(server)
            header, _, body = kept.partition(b"\r\n\r\n")
            assert b"Authentication-Results: other.test; spf=pass" in header and b"dkim=pass" not in header
            assert header.lower().count(b"authentication-results") == 1 and b"in the body" in body

    run_async(main)


@CUTS
def test_e84_return_path_and_bcc(sizes: Sizes) -> None:
    content = (
        b"Return-Path: <evil@x.test>\r\nBcc: secret@x.test,\r\n more@x.test\r\nSubject: x\r\n\r\nBcc: body\r\n.\r\n"
    )

    async def main(peer: str, keeps_bcc: bool) -> None:
        async with wired(sizes, peer, domains=["d.test"], domains_via="relay", relay="127.0.0.1:9", paused=True) as (
            server,
            wire,
        ):
            await wire.ask(HELLO)
            await wire.ask(START)
            assert (await wire.ask(content))[-1].startswith("250")
            header = stored_content(server).partition(b"\r\n\r\n")[0]
            assert b"Return-Path" not in header and (b"secret@x.test" in header) is keeps_bcc
            assert stored_content(server).endswith(b"\r\n\r\nBcc: body\r\n")

    run_async(lambda: main("127.0.0.1", False))
    run_async(lambda: main(STRANGER, True))
