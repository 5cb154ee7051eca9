"""Delivery status notifications: 7 bits whatever they tell of, RFC 6533, names of servers, and mail to IDN domains."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from pillarbox.mail.dsn import Action, RecipientReport, Report, format_dsn, is_plain_7bit, remote_mta
from pillarbox.mail.envelope import EnvelopeRecipient
from pillarbox.mail.trace import format_received, received_from
from pillarbox.queue.enqueue import message_octets
from pillarbox.smtp.reply import Reply
from pillarbox.testing.scripted import ScriptedServer

from .conftest import run_async
from .queue.test_delivery import dsns, in_state, put, relaying, until

NO = Reply(550, "5.1.1", "No such user")
OLD = "250-x.test\r\n250 PIPELINING"


def made(original: bytes, to: str = "a@b.test", *, is_full: bool = True, reply: Reply = NO, **recipient: Any) -> bytes:
    one = RecipientReport(recipient.pop("address", "c@d.test"), reply, **recipient)
    return format_dsn(Report(Action.FAILED, "Q1", "mx.test", to, 1e9, original, is_full, None, [one]), "D1", 1e9)


def parts_of(octets: bytes) -> list[EmailMessage]:
    parsed = email.message_from_bytes(octets, policy=email.policy.default)
    assert not parsed.defects and parsed.get_content_type() == "multipart/report"
    return list(parsed.iter_parts())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("original", "kind"),
    [
        (b"Subject: x\r\n\r\nhello\r\n", "message/rfc822"),
        (b"Subject: x\r\n\r\n" + "grüße\r\n".encode(), "text/rfc822-headers"),
        (b"Subject: x\r\n\r\n\xff\xfe\r\n", "text/rfc822-headers"),
        (b"Subject: x\r\n\r\n" + b"y" * 5000 + b"\r\n", "text/rfc822-headers"),
        (b"Subject: x\r\n\r\n\0\r\n", "text/rfc822-headers"),
        ("Subject: grüße\r\n\r\nhello\r\n".encode(), "message/global-headers"),
        (b"Subject: \xe4\r\n\r\nhello\r\n", "text/rfc822-headers"),
        (b"Subject: " + b"y" * 5000 + b"\r\n\r\nhello\r\n", "text/rfc822-headers"),
        (b"no header section: " + "grüße\r\n".encode(), "text/rfc822-headers"),
        (b"", "message/rfc822"),
    ],
)
@pytest.mark.parametrize("is_full", [True, False])
def test_report_to_an_ascii_address_is_7bit_whatever_came_back(original: bytes, kind: str, is_full: bool) -> None:
    octets = made(original, is_full=is_full)
    assert is_plain_7bit(octets)
    text, status, back = parts_of(octets)
    assert status.get_content_type() == "message/delivery-status" and "No such user" in text.get_content()
    if is_full:
        assert back.get_content_type() == kind
    if back.get_content_maintype() == "text" and original.startswith(b"Subject"):
        # Decoded it is the header section, octet for octet.
        assert back.get_payload(decode=True) == original.partition(b"\r\n\r\n")[0] + b"\r\n"


def test_report_of_utf8_addresses_and_replies_is_encoded() -> None:
    reply = Reply(550, "5.1.1", "Benutzer grün unbekannt")
    octets = made(
        b"Subject: x\r\n\r\n", reply=reply, address="grün@bücher.test", orcpt="utf-8;grün@x.test", remote="mx.test:25"
    )
    assert is_plain_7bit(octets)
    text, status, _ = parts_of(octets)
    assert "<grün@bücher.test>" in text.get_content() and "Benutzer grün" in text.get_content()
    fields = status.as_string()
    assert r"Final-Recipient: utf-8; gr\x{FC}n@b\x{FC}cher.test" in fields
    assert r"Original-Recipient: utf-8; gr\x{FC}n@x.test" in fields


def test_report_of_an_idn_domain_has_its_a_label() -> None:
    octets = made(b"Subject: x\r\n\r\n", "a@bücher.test", address="c@bücher.test")
    assert b"To: <a@xn--bcher-kva.test>" in octets and is_plain_7bit(octets)
    assert b"Final-Recipient: rfc822; c@xn--bcher-kva.test" in octets


def test_report_to_a_utf8_mailbox_is_global() -> None:
    original = "Subject: grüße\r\n\r\nhallo grün\r\n".encode()
    octets = made(original, "grün@b.test", address="rot@grün.test", orcpt="utf-8;rot@grün.test")
    assert "To: <grün@b.test>".encode() in octets
    _, status, back = parts_of(octets)
    assert status.get_content_type() == "message/global-delivery-status"
    assert "Final-Recipient: utf-8; rot@grün.test".encode() in octets
    assert back.get_content_type() == "message/global" and original in octets


@pytest.mark.parametrize(
    ("remote", "name"),
    [
        ("mx.bad.test[127.0.0.41]:25", "mx.bad.test"),
        ("mx.bad.test:2525", "mx.bad.test"),
        ("127.0.0.1:25", "[127.0.0.1]"),
        ("[2001:db8::1]:25", "[IPv6:2001:db8::1]"),
        ("[192.0.2.1][192.0.2.1]:25", "[192.0.2.1]"),
        ("[IPv6:2001:db8::1][2001:db8::1]:25", "[IPv6:2001:db8::1]"),
        ("mx.test[2001:db8::1]:25", "mx.test"),
        ("bücher.test[192.0.2.1]:25", "xn--bcher-kva.test"),
        ("a_b.test[192.0.2.1]:25", "[192.0.2.1]"),
        ("/run/lmtp.sock", None),
    ],
)
def test_remote_mta_is_a_name_or_an_address_literal_without_port(remote: str, name: str | None) -> None:
    assert remote_mta(remote) == name
    fields = made(b"Subject: x\r\n\r\n", remote=remote)
    assert (f"Remote-MTA: dns; {name}\r\n".encode() in fields) is (name is not None)
    assert (b"Remote-MTA" in fields) is (name is not None)


@pytest.mark.parametrize("text", ["word " * 400, "x" * 4000])
def test_diagnostic_code_is_folded_and_bounded(text: str) -> None:
    octets = made(b"Subject: x\r\n\r\n", reply=Reply(550, "5.1.1", *([text] * 50)), remote="mx.test:25")
    assert is_plain_7bit(octets) and len(octets) < 30_000
    (status,) = (part for part in parts_of(octets) if part.get_content_type() == "message/delivery-status")
    assert status.get_payload(1)["Diagnostic-Code"].startswith("smtp; 550 5.1.1 ")  # type: ignore[union-attr, index]
    assert max(map(len, status.as_string().splitlines())) < 998


@pytest.mark.parametrize(
    ("octets", "given"),
    [
        ("Subject: x\r\n\r\ngrüße\r\n".encode(), {"body": "8BITMIME"}),
        ("Subject: x\r\n\r\ngrüße\r\n".encode(), {}),
        ("Subject: grüße\r\n\r\nhello\r\n".encode(), {"is_smtputf8": True, "body": "8BITMIME"}),
    ],
)
def test_report_arrives_at_a_server_without_8bitmime(tmp_path: Path, octets: bytes, given: dict[str, Any]) -> None:
    async def main() -> None:
        async with (
            ScriptedServer(EHLO=OLD, RCPT=lambda line: "550 5.1.1 no" if "c@d" in line else "250 OK") as peer,
            relaying(tmp_path, peer.port) as (server, _),
        ):
            await in_state(server, put(server, octets=octets, **given), "bounced")
            await until(lambda: len(dsns(peer)) == 1)
            assert all(content.isascii() for _, _, content in peer.messages)

    run_async(main)


@pytest.mark.parametrize("is_smtputf8", [True, False])
def test_idn_domains_go_as_a_labels_without_smtputf8(tmp_path: Path, is_smtputf8: bool) -> None:
    async def main() -> None:
        hello = "250-x.test\r\n250-PIPELINING\r\n250 DSN"
        async with ScriptedServer(EHLO=hello) as peer, relaying(tmp_path, peer.port) as (server, _):
            to = EnvelopeRecipient("c@bücher.test", ("FAILURE",), "utf-8;c@bücher.test")
            uid = put(server, to, sender="a@grün.test", is_smtputf8=is_smtputf8)
            await in_state(server, uid, "delivered")
            assert "MAIL FROM:<a@xn--grn-ioa.test>" in peer.lines
            assert r"RCPT TO:<c@xn--bcher-kva.test> NOTIFY=FAILURE ORCPT=utf-8;c@b\x{FC}cher.test" in peer.lines

    run_async(main)


def test_enqueue_of_an_idn_domain_needs_no_smtputf8(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(EHLO=OLD) as peer, relaying(tmp_path, peer.port) as (server, _):
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = "a@b.test", "Jörg <c@bücher.test>", "grüße"
            message.set_content("hello")
            await server.enqueue(reverse_path="a@b.test", recipients=["c@bücher.test"], content=message)
            await peer.wait_for(1)
            assert peer.messages[0][1] == ["RCPT TO:<c@xn--bcher-kva.test>"]
            assert b"<c@xn--bcher-kva.test>" in peer.messages[0][2] and peer.messages[0][2].isascii()

    run_async(main)


def test_message_to_a_utf8_local_part_keeps_its_fields_in_utf8() -> None:
    message = EmailMessage()
    message["To"] = "grün@b.test, c@bücher.test"
    assert "To: grün@b.test, c@xn--bcher-kva.test\r\n".encode() in message_octets(message)


def test_received_field_names_idn_domains_in_a_labels() -> None:
    common = received_from("grün.test", "192.0.2.1", "mx.test", "UTF8SMTP")
    field = format_received(common, "Q1", "c@bücher.test", 1e9)
    assert field.isascii() and b"from xn--grn-ioa.test" in field and b"for <c@xn--bcher-kva.test>" in field
