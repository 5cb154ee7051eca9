"""Messages as programs write them, right and wrong, with what a reader has to see: (name, octets, text, html, attachments).

`text` and `html` are stripped; None is "has none". An attachment is (name, type, octets).
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple
from urllib.parse import quote


class Sample(NamedTuple):
    """One message."""

    name: str
    octets: bytes
    text: str | None
    html: str | None = None
    attachments: tuple[tuple[str | None, str, bytes], ...] = ()


HEAD = b"From: a@example.org\nTo: b@example.org\nSubject: t\nMIME-Version: 1.0\n"
PDF = b"%PDF-1.4\n" + bytes(range(256)) * 3
PDF64 = base64.encodebytes(PDF)


def single(content_type: bytes, body: bytes, more: bytes = b"") -> bytes:
    return HEAD + b"Content-Type: " + content_type + b"\n" + more + b"\n" + body


def mixed(*parts: bytes, kind: bytes = b"mixed", tail: bytes = b"--b--\n") -> bytes:
    return (
        HEAD
        + b"Content-Type: multipart/"
        + kind
        + b"; boundary=b\n\n"
        + b"".join(b"--b\n" + p + b"\n" for p in parts)
        + tail
    )


TEXT = b"Content-Type: text/plain\n\nwords"
HTML = b"Content-Type: text/html\n\n<p>x</p>"


def file(fields: bytes, body: bytes = PDF64) -> bytes:
    return b"Content-Transfer-Encoding: base64\n" + fields + b"\n\n" + body.rstrip(b"\n")


def charset(label: bytes, octets: bytes, text: str) -> Sample:
    made = single(b"text/plain; charset=" + label, octets, b"Content-Transfer-Encoding: 8bit\n")
    return Sample(f"charset {label.decode()} {text}", made, text)


def named(fields: bytes, name: str, kind: str = "application/pdf") -> Sample:
    return Sample(f"file name {fields!r}", mixed(TEXT, file(fields)), "words", None, ((name, kind, PDF),))


GRUESSE = "Grüße"
CHARSETS = [
    *(charset(label, b"plain words", "plain words") for label in (
        b"unknown", b"1", b'""', b"X-UNKNOWN", b'"charset=us-ascii"', b'"utf-8  euao6y"', b"cp-850", b"unknown-8bit", b"x-user-defined",
        b"idna", b"base64", b"rot13", b"utf-8*en", b"''", b"?", b"=utf-8",
    )),
    *(charset(label, GRUESSE.encode(), GRUESSE) for label in (
        b"uft-8", b"utf8mb4", b"UTF8", b"utf_8", b"us-ascii", b"ascii", b"unknown-8bit", b"utf-8;", b"'utf-8'", b"x-utf-8", b"cp65001",
    )),
    *(charset(label, GRUESSE.encode("cp1252"), GRUESSE) for label in (
        b"iso-8859-1", b"ISO8859-1", b"iso_8859-1:1987", b"latin1", b"windows-1252", b"win-1252", b"cp1252", b"us-ascii", b"nonsense",
        b"ansi_1252", b"x-cp1252",
    )),
    charset(b"iso-8859-1", b"5 \x80 \x93q\x94", "5 € “q”"),
    charset(b"iso-8859-8-i", "שלום".encode("iso-8859-8"), "שלום"),
    charset(b"iso-8859-8-e", "שלום".encode("iso-8859-8"), "שלום"),
    charset(b"windows-874", "ไทย".encode("cp874"), "ไทย"),
    charset(b"tis-620", "ไทย".encode("cp874"), "ไทย"),
    charset(b"gb2312", "漢字朝鎔".encode("gb18030"), "漢字朝鎔"),
    charset(b"ks_c_5601-1987", "똠방각하".encode("cp949"), "똠방각하"),
    charset(b"shift_jis", "①髙".encode("cp932"), "①髙"),
    charset(b"iso-2022-jp", "日本語".encode("iso-2022-jp"), "日本語"),
    charset(b"koi8-r", "Привет".encode("koi8-r"), "Привет"),
    charset(b"windows-1251", "Привет".encode("cp1251"), "Привет"),
    charset(b"macintosh", "é".encode("mac-roman"), "é"),
    charset(b"utf-7", b"Gr+APwA3w-e", GRUESSE),
    charset(b"utf-8", b"\xef\xbb\xbfmark", "mark"),
    charset(b"utf-8", b"Gr\xfcn", "Gr\ufffdn"),
    charset(b"utf-16", "wide".encode("utf-16"), "wide"),
    Sample("utf-16 without a mark", single(
        b"text/plain; charset=utf-16", base64.encodebytes("wide words".encode("utf-16-be")), b"Content-Transfer-Encoding: base64\n"
    ), "wide words"),
    Sample("no charset, UTF-8", HEAD + b"\n" + "Body 熟語 tiếng Việt".encode(), "Body 熟語 tiếng Việt"),
    Sample("no charset, windows-1252", HEAD + b"\n" + b"na\xefve \x96 caf\xe9", "naïve – café"),
    Sample("no charset, iso-2022-jp", HEAD + b"\n" + "日本語".encode("iso-2022-jp"), "日本語"),
    Sample("html, UTF-8 by meta", single(b"text/html", b'<meta charset="utf-8"><p>' + GRUESSE.encode()), None,
           f'<meta charset="utf-8"><p>{GRUESSE}'),
    Sample("html, koi8-r by meta", single(
        b"text/html", b"<meta http-equiv=Content-Type content='text/html; charset=koi8-r'><p>" + "Привет".encode("koi8-r")
    ), None, "<meta http-equiv=Content-Type content='text/html; charset=koi8-r'><p>Привет"),
    Sample("html, meta says what it is not", single(b"text/html", b"<meta charset=utf-16><p>" + GRUESSE.encode()), None,
           f"<meta charset=utf-16><p>{GRUESSE}"),
]  # fmt: skip

TYPES = [
    *(Sample(f"type {kind!r}", single(kind, b"plain words"), "plain words") for kind in (
        b"text/plain charset=utf-8", b"text/plain>", b"text", b"text; charset=utf-8", b"plain", b"", b"nonsense", b"TEXT/PLAIN",
        b'"text/plain"', b"text / plain", b"text/plain;;; charset=utf-8;", b"text/plain;\n\tcharset=utf-8", b"text/plain, charset=utf-8",
        b"text/x-unknown", b"multipart/mixed", b"multipart/mixed; boundary=zz", b"text/plain; charset", b"text/plain; =x",
        b"text/plain; format=flowed (a comment)", b"multipart", b"charset=utf-8",
    )),
    Sample("html with a colon", single(b"text/html: charset=utf-8", b"<p>words</p>"), None, "<p>words</p>"),
    Sample("html without a slash", single(b"html", b"<p>words</p>"), None, "<p>words</p>"),
    Sample("two type fields", HEAD + b"Content-Type: nonsense\nContent-Type: text/html\n\n<p>x</p>", None, "<p>x</p>"),
    Sample("no header section", b"just words\nand more", "just words\nand more"),
    Sample("a line of an mbox file", b"From a@b Mon Jan  1 00:00:00 2024\n" + HEAD + b"\nwords", "words"),
    Sample("nothing at all", b"", ""),
    Sample("an image alone", single(b"image/png; name=a.png", PDF64, b"Content-Transfer-Encoding: base64\n"), None, None,
           (("a.png", "image/png", PDF),)),
]  # fmt: skip

ENCODINGS = [
    *(Sample(f"encoding {name!r}", single(
        b"text/plain; charset=utf-8", body, b"Content-Transfer-Encoding: " + name + b"\n"
    ), GRUESSE) for name, body in (
        (b"BASE64", base64.encodebytes(GRUESSE.encode())),
        (b"base-64", base64.encodebytes(GRUESSE.encode())),
        (b"base64 (comment)", base64.encodebytes(GRUESSE.encode())),
        (b'"base64"', base64.encodebytes(GRUESSE.encode())),
        (b"base64", b"R3LDvM*O\n!fZQ"),
        (b"base64", b"R3LDvMOfZQ="),
        (b"base64", b"R3I=w7zDn2U="),
        (b"base64", GRUESSE.encode()),
        (b"Quoted_Printable", b"Gr=C3=BC=C3=9Fe"),
        (b"qp", b"Gr=c3=bc=\n=c3=9fe"),
        (b"x-unknown", GRUESSE.encode()),
        (b"8 bit", GRUESSE.encode()),
        (b"utf-8", GRUESSE.encode()),
        (b"", GRUESSE.encode()),
        (b"x-uuencode", b"begin 644 a.txt\n" + binascii.b2a_uu(GRUESSE.encode()) + b"`\nend\n"),
    )),
    Sample("damaged quoted-printable", single(
        b"text/plain", b"50 % = a lot =\n=zz =4", b"Content-Transfer-Encoding: quoted-printable\n"
    ), "50 % = a lot =zz =4"),
    Sample("words that are said to be base64", single(
        b"text/plain", b"these are plain words", b"Content-Transfer-Encoding: base64\n"
    ), "these are plain words"),
    Sample("a footer behind base64", single(
        b"text/plain", base64.encodebytes(b"words") + b"_____\nThe list: http://list.test/", b"Content-Transfer-Encoding: base64\n"
    ), "words\r\n_____\nThe list: http://list.test/"),
    Sample("a uuencoded file", mixed(
        TEXT, b"Content-Type: application/octet-stream\nContent-Transfer-Encoding: uuencode\n\nbegin 644 a.bin\n"
        + b"".join(binascii.b2a_uu(PDF[n : n + 45]) for n in range(0, len(PDF), 45)) + b"`\nend"
    ), "words", None, (("a.bin", "application/octet-stream", PDF),)),
]  # fmt: skip


def two(boundary: bytes, field: bytes | None = None, *, tail: bytes = b"--") -> bytes:
    line = b"\n--" + boundary
    return (
        HEAD + b"Content-Type: multipart/alternative; boundary=" + (boundary if field is None else field) + b"\n"
        + line + b"\nContent-Type: text/plain\n\nwords" + line + b"\nContent-Type: text/html\n\n<p>x</p>" + line + tail + b"\n"
    )  # fmt: skip


BOUNDARIES = [
    *(Sample(f"boundary {octets[120:180]!r}", octets, "words", "<p>x</p>") for octets in (
        two(b"----=_NextPart_000_0093_01C81419.EB75E850"),
        two(b"----=_Part_13069834_15179892.1376435426074"),
        two(b"_000_/abc?x(1)"),
        two(b"a:b@c"),
        two(b"a b", b'"a b"'),
        two(b"abc", b'"abc'),
        two(b"abc", b"abc;; charset=utf-8"),
        two(b"abc", b'"abc"\n\t; type="text/html"'),
        two(b"abc", b"\n\tabc"),
        two(b"abc", b"wrong; boundary=abc"),
        two(b"abc", b"wrong"),
        two(b"abc", b"abc (made by us)"),
        two(b"abc", b'"abc "'),
        two(b"abc", tail=b""),
        two(b"abc").replace(b"multipart/alternative; ", b"multipart/alternative\n\t"),
        two(b"abc").replace(b"multipart/alternative; ", b"multipart/alternative, "),
        two(b"abc").replace(b"--abc\n", b"--abc  \n"),
        two(b"abc").replace(b" boundary=abc", b""),
        two(b"abc").replace(b"Content-Type: multipart", b"Content-Type: multipart/mixed; boundary=other\nContent-Type: multipart"),
        mixed(TEXT, HTML, tail=b""),
    )),
    Sample("a boundary that begins like another", mixed(
        b"Content-Type: multipart/alternative; boundary=bb\n\n--bb\n" + TEXT + b"\n--bb\n" + HTML + b"\n--bb--"
    ), "words", "<p>x</p>"),
    Sample("the same boundary within", mixed(
        b"Content-Type: multipart/alternative; boundary=b\n\n--b\n" + TEXT + b"\n--b\n" + HTML + b"\n--b--", file(b"Content-Type: application/pdf; name=a.pdf")
    ), "words", "<p>x</p>", (("a.pdf", "application/pdf", PDF),)),
]  # fmt: skip

RELATED = file(b"Content-Type: application/pdf; name=a.pdf")
NESTING = [
    *(Sample(f"related without parts {inner!r}", mixed(inner, TEXT, HTML, RELATED), "words", "<p>x</p>", (
        (None, "text/plain", b"no parts here"), ("a.pdf", "application/pdf", PDF),
    )) for inner in (
        b"Content-Type: multipart/related\n\nno parts here", b"Content-Type: multipart/related; boundary=zz\n\nno parts here",
    )),
    Sample("related with its root last", mixed(
        b"Content-Type: multipart/related; boundary=r; start=\"<root>\"\n\n--r\nContent-Type: image/png\nContent-ID: <pic>\n\nx\n"
        b"--r\nContent-Type: text/html\nContent-ID: <root>\n\n<p>x</p>\n--r--", TEXT,
    ), "words", "<p>x</p>", ((None, "image/png", b"x"),)),
    Sample("text as an attachment", mixed(TEXT, b"Content-Type: text/plain\nContent-Disposition: attachment; filename=a.txt\n\nmore"),
           "words", None, (("a.txt", "text/plain", b"more"),)),
    Sample("nothing but an attachment", single(b"text/plain", b"more", b"Content-Disposition: attachment; filename=a.txt\n"),
           None, None, (("a.txt", "text/plain", b"more"),)),
    Sample("an empty part", mixed(b"", TEXT), "", None, ((None, "text/plain", b"words"),)),
]  # fmt: skip

INNER = b"Subject: inner: words\nFrom: x@example.net\n\ninner words"
ATTACHED = [
    *(Sample(f"an attached message, {fields!r}", mixed(TEXT, b"Content-Type: message/rfc822" + fields + b"\n\n" + octets), "words", None,
             ((name, "message/rfc822", INNER),)) for fields, octets, name in (
        (b"; name=fwd.eml", INNER, "fwd.eml"),
        (b"\nContent-Disposition: attachment; filename=fwd.eml", INNER, "fwd.eml"),
        (b"\nContent-Transfer-Encoding: base64", base64.encodebytes(INNER), "inner words.eml"),
        (b"", INNER, "inner words.eml"),
    )),
    Sample("a digest", mixed(b"\n" + INNER, b"\n" + INNER, kind=b"digest"), None, None, (
        ("inner words.eml", "message/rfc822", INNER), ("inner words.eml", "message/rfc822", INNER),
    )),
    Sample("a delivery report", mixed(
        TEXT, b"Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nFinal-Recipient: rfc822; a@b\nStatus: 5.1.1",
        b"Content-Type: text/rfc822-headers\n\nSubject: x", kind=b"report; report-type=delivery-status",
    ), "words", None, (
        (None, "message/delivery-status", b"Reporting-MTA: dns; x\n\nFinal-Recipient: rfc822; a@b\nStatus: 5.1.1"),
        (None, "text/rfc822-headers", b"Subject: x"),
    )),
]  # fmt: skip

NAMES = [
    named(b"Content-Type: application/pdf; name=a.pdf", "a.pdf"),
    named(b'Content-Type: application/pdf; name="a b;c.pdf"', "a b;c.pdf"),
    named(b"Content-Type: application/pdf; name=my long name.pdf", "my long name.pdf"),
    named(b'Content-Type: application/pdf; name="C:\\dir\\a.pdf"', "C:\\dir\\a.pdf"),
    named(b'Content-Type: application/pdf; name="a \\"b\\".pdf"', 'a "b".pdf'),
    named(b"Content-Type: application/pdf\nContent-Disposition: attachment; filename*=UTF-8''" + quote("Ärger mit.pdf").encode(), "Ärger mit.pdf"),
    named(b"Content-Type: application/pdf\nContent-Disposition: attachment; filename=x.pdf; filename*=iso-8859-1'de'%C4.pdf", "Ä.pdf"),
    named(b"Content-Type: application/pdf;\n name*0*=utf-8''%C3%84;\n name*1=b; name*2*=%2Epdf", "Äb.pdf"),
    named(b"Content-Type: application/pdf; name*1=b.pdf; name*0=a", "ab.pdf"),
    named(b"Content-Type: application/pdf; name*0*=utf-8''%C3; name*1*=%84.pdf", "Ä.pdf"),
    named(b"Content-Type: application/pdf; name*=%C3%84.pdf", "Ä.pdf"),
    named(b"Content-Type: application/pdf; name=\"=?utf-8?Q?=C3=84rger=2Epdf?=\"", "Ärger.pdf"),
    named(b"Content-Type: application/pdf; name==?utf-8?B?w4QucGRm?=", "Ä.pdf"),
    named(b"Content-Type: application/pdf; name=\"=?iso-8859-1?Q?=C4?=\n =?iso-8859-1?Q?b=2Epdf?=\"", "Äb.pdf"),
    named("Content-Type: application/pdf; name=\"Ä.pdf\"".encode(), "Ä.pdf"),
    named(b"Content-Type: application/pdf; name=\"\xc4.pdf\"", "Ä.pdf"),
    named(b"Content-Disposition: attachment; filename=\"a.pdf\nContent-Type: application/pdf", "a.pdf"),
    named(b"Content-Type: application/pdf name=a.pdf", "a.pdf"),
    named(b"Content-Disposition: filename=a.pdf\nContent-Type: application/pdf", "a.pdf"),
]  # fmt: skip

SAMPLES = [*CHARSETS, *TYPES, *ENCODINGS, *BOUNDARIES, *NESTING, *ATTACHED, *NAMES]
