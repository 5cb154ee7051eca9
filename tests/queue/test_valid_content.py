"""What set_header, add_header and enqueue of text make is valid: RFC 5322, RFC 2045, RFC 2047."""

from __future__ import annotations

import email
import email.policy
import re
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.errors import OptionError
from pillarbox.mail.compose import compose
from pillarbox.mail.content import Content
from pillarbox.mail.fieldtext import format_field
from tests.conftest import run_async, serving

TEXTS = [
    "Grüße aus Köln",
    "[example] Grüße aus Köln und mehr",
    "ü",
    "日本語の件名はとても長いので何行にも分けて書かなければならないことがよくありますね、はい",
    "plain words and then ünd plain words again that go on for quite a while so that they must be folded somewhere",
    "😀" * 60,
    "a  b\tc ü  d",
    "ü" + "x" * 200 + "ü",
    "=?utf-8?q?literal?= and ü",
]


@pytest.mark.parametrize("name", ["Subject", "X-A-Rather-Long-Name-Of-A-Field-That-Takes-Most-Of-A-Line", "Comments"])
@pytest.mark.parametrize("text", TEXTS)
def test_field_of_text_is_ascii_folded_and_reads_as_it_was(text: str, name: str) -> None:
    octets = format_field(name, text)
    assert octets.isascii() and octets.endswith(b"\r\n")
    lines = octets[:-2].split(b"\r\n")
    assert all(line.startswith(b" ") or number == 0 for number, line in enumerate(lines))
    for line in lines[1:]:
        assert len(line) <= 78
    assert len(lines[0]) <= max(78, len(name) + 2 + 76)
    assert all(len(word) <= 75 for word in re.findall(rb"=\?utf-8\?.*?\?=", octets))
    message = email.message_from_bytes(octets + b"\r\n", policy=email.policy.default)
    if "literal" not in text:
        assert message[name] == text
    assert Content(octets + b"\r\n").header(name) is not None


def test_field_of_ascii_stays_as_it_is_and_is_folded_at_white_space_only() -> None:
    assert format_field("Subject", "plain") == b"Subject: plain\r\n"
    assert format_field("Subject", "=?utf-8?q?=C3=BC?=") == b"Subject: =?utf-8?q?=C3=BC?=\r\n"
    words = "word " * 60 + "end"
    octets = format_field("Subject", words)
    assert octets.replace(b"\r\n", b"") == b"Subject: " + words.encode() and max(map(len, octets.split(b"\r\n"))) <= 78
    token = "x" * 300
    assert format_field("X-Token", token) == b"X-Token: " + token.encode() + b"\r\n"
    with pytest.raises(ValueError, match="998"):
        format_field("X-Token", "x" * 1000)
    assert format_field("Subject", "Grüße", is_utf8=True) == "Subject: Grüße\r\n".encode()


@pytest.mark.parametrize(
    "value", ["a\r\nBcc: x@y.z", "a\n", "a\0", "a\x07", "a\x7f", "ü\r\n", "ü\x85", "ü\u2028", "ü\ud800", "a\x1b[0m"]
)  # fmt: skip
@pytest.mark.parametrize("is_utf8", [False, True])
def test_field_with_a_control_character_is_refused(value: str, is_utf8: bool) -> None:
    with pytest.raises(ValueError, match="control characters"):
        format_field("Subject", value, is_utf8=is_utf8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Jörg <j@d.test>", "=?utf-8?q?J=C3=B6rg?= <j@d.test>"),
        ('"Ümlaut, Karl" <k@d.test>, x@y.test', "=?utf-8?q?=C3=9Cmlaut=2C_Karl?= <k@d.test>, x@y.test"),
        ("j@bücher.test", "j@xn--bcher-kva.test"),
        ('"Smith, J" <s@bücher.test>', '"Smith, J" <s@xn--bcher-kva.test>'),
        ("Gruppe ä: a@b.test, c@d.test;", "=?utf-8?q?Gruppe_=C3=A4?=: a@b.test, c@d.test;"),
    ],
)
def test_address_field_encodes_names_and_domains(value: str, expected: str) -> None:
    octets = format_field("To", value)
    assert octets.decode("ascii").replace("\r\n", "") == f"To: {expected}"


@pytest.mark.parametrize("value", ["jörg@d.test", "ü", "ü@", "Jörg <a@b.test", "ü <a@b.test> x@y.test", "ü@b@c"])
def test_address_field_that_is_not_valid_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="field To: invalid"):
        format_field("To", value)
    with pytest.raises(ValueError, match="expected ASCII"):
        format_field("Message-ID", "<ü@x>")


def test_text_with_a_body_that_is_not_ascii_becomes_mime() -> None:
    octets = compose("Subject: Grüße\nTo: Jörg <j@d.test>\nX-Plain: a\n\nGrüße\n.\nFrom me\n")
    assert octets.isascii() and b"\r\nX-Plain: a\r\n" in octets and octets.count(b"\n") == octets.count(b"\r\n")
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert message["Subject"] == "Grüße" and message["To"].addresses[0].display_name == "Jörg"
    assert message["MIME-Version"] == "1.0" and message.get_content_charset() == "utf-8"
    assert message.get_content() == "Grüße\r\n.\r\nFrom me\r\n" and not message.defects


def test_text_that_says_what_it_is_gets_what_it_lacks() -> None:
    octets = compose("Content-Type: text/html\n\n<p>Grüße</p>\n")
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert message.get_content_type() == "text/html" and message.get_content() == "<p>Grüße</p>\r\n"
    assert message["Content-Transfer-Encoding"] == "8bit" and message["MIME-Version"] == "1.0"
    with pytest.raises(ValueError, match="charset 'iso-8859-1'"):
        compose("Content-Type: text/plain; charset=iso-8859-1\n\nü\n")
    assert compose("Grüße\n").count(b"\r\n\r\n") == 1


def test_text_of_ascii_stays_as_it_is() -> None:
    assert compose("Subject: x\n\nbody\n") == b"Subject: x\r\n\r\nbody\r\n"
    assert compose("no header\n") == b"no header\r\n"


async def queued_octets(server: MailServer, content: Any, **more: Any) -> tuple[bytes, bool]:
    given = {"reverse_path": "a@b.test", "recipients": ["c@d.test"], "content": content, **more}
    uid = await server.enqueue(**given)
    found = await server.queued_content(uid)
    envelope = await server._parts.commit.read(lambda reader: reader.envelope(uid))
    assert found is not None and envelope is not None
    return found.read(), envelope.is_smtputf8


def test_enqueue_makes_valid_content(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", paused=True) as server:
            octets, is_utf8 = await queued_octets(server, "Subject: Grüße\n\nGrüße\n")
            assert octets.isascii() and not is_utf8 and b"\r\nFrom: a@b.test\r\n" in b"\r\n" + octets
            # A null reverse-path has an author, too.
            octets, _ = await queued_octets(server, "Subject: x\n\n", reverse_path=None)
            assert b"From: MAILER-DAEMON@mx.test\r\n" in octets
            octets, _ = await queued_octets(server, b"From: me@b.test\r\n\r\n")
            assert octets.count(b"From: ") == 1
            # Octets stay what they are.
            octets, is_utf8 = await queued_octets(server, "Subject: Grüße\r\n\r\nGrüße\r\n".encode())
            assert "Subject: Grüße\r\n\r\nGrüße\r\n".encode() in octets and not is_utf8
            # An address that has no ASCII form makes the message one of SMTPUTF8.
            octets, is_utf8 = await queued_octets(server, "To: jörg@d.test\n\nx\n", recipients=["jörg@d.test"])
            assert is_utf8 and "To: jörg@d.test".encode() in octets
            message = email.message.EmailMessage()
            message["To"] = "jörg@d.test"
            message.set_content("x")
            assert (await queued_octets(server, message))[1]
            for wrong in ("Subject: ü\0\n\n", "To: jörg@d.test\n\n", "Subject: \ud800\n\n"):
                with pytest.raises(OptionError, match="key 'content'"):
                    await queued_octets(server, wrong)

    run_async(main)


def test_parsed_content_can_be_changed() -> None:
    message = Content(b"Subject: x\r\nTo: a@\r\n\r\nx\r\n").parsed()
    message["List-Id"] = "<a.b>"
    message.replace_header("Subject", "Grüße")
    assert message["List-Id"] == "<a.b>" and message["Subject"] == "Grüße"
