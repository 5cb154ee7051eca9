"""The tolerant reader of messages: what it shows, what it gives as the standard library's class, and that it never raises."""

from __future__ import annotations

import email
import email.policy
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.admin.parsed import attachment, html_page, parsed_view
from pillarbox.mail.emailmessage import read_email
from pillarbox.mail.headers import decode_value
from pillarbox.mail.readable import read
from tests.mail.messages import HEAD, HTML, PDF, RELATED, SAMPLES, TEXT, Sample, mixed, single


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_reader_message_as_programs_write_it_is_shown_whole(sample: Sample, line_end: bytes) -> None:
    crlf = line_end == b"\r\n"
    octets = sample.octets.replace(b"\n", line_end) if not (crlf and b"wide" in sample.octets) else sample.octets
    found = read(octets)
    assert (None if found.text is None else found.text.strip().replace("\r", "")) == (
        sample.text and sample.text.replace("\r", "")
    )
    assert (None if found.html is None else found.html.strip()) == sample.html
    listed = [(one.name, one.kind) for one in found.attachments]
    assert listed == [(name, kind) for name, kind, _ in sample.attachments]
    for one, (_, _, wanted) in zip(found.attachments, sample.attachments, strict=True):
        assert one.octets == wanted or one.octets.replace(b"\r\n", b"\n") == wanted


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_reader_as_email_message_has_the_same_texts_and_files(sample: Sample) -> None:
    message = read_email(sample.octets)
    for kind, wanted in (("plain", sample.text), ("html", sample.html)):
        body = message.get_body((kind,))
        if wanted is not None and not ("x-unknown" in sample.name and body is None):
            assert body is not None and body.get_content().strip().replace("\r", "") == wanted.replace("\r", "")
    names = {name for name, _, _ in sample.attachments if name} - {"inner words.eml", "a.bin"}
    parts = list(message.walk())
    assert names <= {part.get_filename() for part in parts}
    for name, kind, octets in sample.attachments:
        if name and not kind.startswith("message/"):
            assert octets in [part.get_payload(decode=True) for part in parts]
    message.as_bytes()


@pytest.mark.parametrize(
    "octets",
    [
        HEAD + b"\nwords\n",
        mixed(TEXT, HTML, RELATED),
        single(b"text/plain; charset=utf-8", "Grüße".encode(), b"Content-Transfer-Encoding: 8bit\n"),
        HEAD + b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nDate: Mon, 1 Jan 2024 00:00:00 +0000\n\nx",
        mixed(TEXT, b"Content-Type: message/rfc822\n\nSubject: inner\n\nx"),
        mixed(
            TEXT, b"Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nStatus: 5.1.1\n", kind=b"report"
        ),
    ],
)
def test_reader_well_formed_message_is_what_the_standard_library_makes_of_it(octets: bytes) -> None:
    ours, theirs = read_email(octets), email.message_from_bytes(octets, policy=email.policy.default)
    assert ours.as_bytes() == theirs.as_bytes()
    assert [(p.get_content_type(), p.items()) for p in ours.walk()] == [
        (p.get_content_type(), p.items()) for p in theirs.walk()
    ]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'"A" <a@x.test>; "B" <b@x.test>', '"A" <a@x.test>; "B" <b@x.test>'),
        (b"user1@example.com; user2@example.org", "user1@example.com; user2@example.org"),
        (b"Die Fr\xf6sche \x96 5 \x80", "Die Frösche – 5 €"),
        ("Grüße".encode(), "Grüße"),
        (b"=?windows-874?B?5Le3?=", "ไทท"[:0] + b"\xe4\xb7\xb7".decode("cp874")),
        (b"=?utf-8*de?Q?Gr=C3=BCn?=", "Grün"),
        (b"=?NONE?B?VEVTVA==?=", "TEST"),
        (b"Order 5 =?x-unknown?Q?ready?= =?utf-8?Q?_Gr=C3=BCn?=", "Order 5 ready Grün"),
        (b"=?utf-8?Q?Gr=FCn?= 12", "Gr\ufffdn 12"),
        (b"=?utf-8?Q?Gr=C3?= =?utf-8?Q?=BCn?=", "Grün"),
        (b"=?utf-8?B?R3LDvG4?= x", "Grün x"),
        (b"=?utf-8?B?R3LDvG4====?= x", "Grün x"),
        (b"=?utf-8?Q?with a blank?=", "with a blank"),
        (b"=?utf-8?Q?why?_yes?=", "why? yes"),
        (b"=?utf-8?Q?no end", "=?utf-8?Q?no end"),
        (b"=?utf-8?Q?no end =?utf-8?Q?ok?=", "=?utf-8?Q?no end ok"),
        (b"=?utf-8?X?a?= =?utf-8?Q?b?=", "=?utf-8?X?a?= b"),
        (b"a=?utf-8?Q?b?=c", "abc"),
        (b"=?iso-8859-1?Q?We=92ve?=", "We’ve"),
    ],
)
def test_header_value_is_shown_as_it_was_sent_with_its_words_decoded(raw: bytes, shown: str) -> None:
    assert decode_value(raw) == shown
    assert read(b"X: " + raw + b"\n\nx").fields == [("X", shown)]


def test_header_words_that_the_library_cannot_read_are_right_in_the_email_message() -> None:
    message = read_email(
        b"Subject: Order =?x-unknown?Q?ready?= =?windows-874?B?5Le3?= =?utf-8*de?Q?Gr=C3=BCn?=\n"
        b"From: =?iso-8859-8-i?B?+ezl7Q==?= <a@b.test>\nTo: a@b.test; c@d.test\nDate: nonsense\nCc: <<<>>>,,;\n\nx"
    )
    assert message["Subject"] == "Order ready" + b"\xe4\xb7\xb7".decode("cp874") + "Grün"
    assert message["From"].addresses[0].display_name == "שלום" and message["From"].addresses[0].addr_spec == "a@b.test"
    for name in message:
        assert isinstance(str(message[name]), str)


def test_subject_that_is_cut_keeps_its_last_character_whole() -> None:
    from pillarbox.mail.headers import Scan

    for text in ("ü" * 3000, "ü " * 3000, "x" + "語" * 3000):
        subject = Scan(b"Subject: " + text.encode() + b"\r\n").subject
        assert subject == text.strip()[:200]


def test_reader_says_what_is_left_out() -> None:
    octets = HEAD + b"Content-Type: multipart/mixed; boundary=b\n\nin front\n--b\n\nwords\n--b--\nbehind\n"
    assert len([note for note in read(octets).notes if "left out" in note]) == 2
    nested = b"\n\nx"
    for number in range(300):
        nested = (
            b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (number, number)
            + nested
            + b"\n--b%d--\n" % number
        )
    found = read(nested)
    assert any("nested" in note for note in found.notes) and len(found.attachments) == 1
    many = HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 20_000
    found = read(many)
    assert any("more than" in note for note in found.notes) and len(found.attachments) == 10_000 - 1
    assert found.attachments[-1].octets.count(b"--b") > 9_000
    for octets in (nested, many):
        read_email(octets).as_bytes()


HOSTILE = {
    "delimiters": HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b" * 1_000_000,
    "semicolons": b"Content-Type: text/plain" + b";" * 500_000 + b"\n\nx",
    "blanks": b"Content-Type: text/plain; name=" + b" \t" * 250_000 + b"x\n\nx",
    "quotes": b"Content-Type: text/plain; name=" + b'"\\' * 250_000 + b"\n\nx",
    "parameters": b"Content-Type: text/plain" + b"; a=b" * 100_000 + b"\n\nx",
    "pieces": b"Content-Type: text/plain" + b"; a*1*=b" * 100_000 + b"\n\nx",
    "word beginnings": b"Subject: " + b"=?utf-8?Q?" * 100_000 + b"\n\nx",
    "words": b"Subject: " + b"=?utf-8?Q?a?= " * 50_000 + b"\n\nx",
    "questions": b"Subject: =?utf-8?Q?" + b"?" * 500_000 + b"\n\nx",
    "folds": b"Subject: x" + b"\n " * 200_000 + b"\n\nx",
    "fields": b"a:\n" * 100_000 + b"\nx",
    "base64 of equal signs": single(b"text/plain", b"A=" * 300_000, b"Content-Transfer-Encoding: base64\n"),
    "meta": single(b"text/html", b"<meta " * 200_000),
}


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE)
def test_reader_hostile_message_takes_linear_time(octets: bytes) -> None:
    begun = time.process_time()
    json.dumps(parsed_view(octets))
    html_page(octets)
    assert time.process_time() - begun < 4.0


def changed(octets: bytes, chance: random.Random) -> bytes:
    """A few random changes: what belongs to MIME is put where it does not belong."""
    tokens = (
        b"\n", b"\r\n", b"\r", b"--b\n", b"--b--\n", b"Content-Type: multipart/related", b"Content-Type: message/rfc822\n", b'"', b";", b"=?", b"?=",
        b"boundary=b", b"charset=utf-16", b"charset=utf-7", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"Content-Transfer-Encoding: base64\n", b"*0*=",
        b"%", b"=", b"(", b"<", b"\\", b" ", b":", b"Content-Type: multipart/mixed; boundary=b\n\n", b"begin 644 x\n",
    )  # fmt: skip
    made = bytearray(octets)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(made) + 1)
        made[at : at + chance.choice((0, 0, 1, 5, 40))] = chance.choice(tokens)
    return bytes(made)


def every_view(octets: bytes) -> None:
    view = parsed_view(octets)
    json.dumps(view).encode()
    for one in view["attachments"]:
        made = attachment(octets, one["number"])
        assert made is not None and len(made[2]) == one["bytes"]
    html_page(octets)
    message = read_email(octets)
    for part in message.walk():
        part.get_content_type(), part.get_filename(), part.get_content_charset(), part.is_attachment()
        part.get_body(("plain", "html")), list(part.iter_attachments())
        for name in part:
            str(part[name])
        if not part.is_multipart():
            part.get_content()


@pytest.mark.parametrize("seed", range(20))
def test_reader_never_raises_on_changed_messages(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        every_view(changed(chance.choice(SAMPLES).octets, chance))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([s.octets for s in SAMPLES])), max_size=4))
def test_reader_never_raises_on_octets(pieces: list[bytes]) -> None:
    every_view(b"".join(pieces))


def test_reader_attachment_keeps_its_octets() -> None:
    made = attachment(mixed(TEXT, RELATED), 0)
    assert made == ("a.pdf", "application/pdf", PDF)
    assert attachment(mixed(TEXT, RELATED), 1) is None
