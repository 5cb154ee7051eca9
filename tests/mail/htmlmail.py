"""HTML mails as they are sent: (name, message, words that must show, pictures, links). Whatever a mail may not load is at evil.test."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import NamedTuple


def png(width: int = 2, height: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\xff\x00\x00" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PNG = png()
PNG64 = base64.encodebytes(PNG).decode()
GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
BMP = base64.b64encode(
    b"BM"
    + struct.pack("<IHHI", 58, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
    + b"\0\0\xff\0"
).decode()
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="5" height="5"><script>fetch("http://evil.test/svg")</script><rect width="5" height="5"/></svg>'
LINK = "http://link.test/confirm?token=1"


class Mail(NamedTuple):
    """One mail. `pictures` and `links`: how many `img` show, and the ids of links that open a new tab at LINK."""

    name: str
    octets: bytes
    words: str
    pictures: int = 0
    links: tuple[str, ...] = ()


def html(body: str, charset: str = "utf-8", label: str | None = None) -> bytes:
    kind = "text/html" + (f"; charset={label or charset}" if label != "" else "")
    fields = f"Subject: t\nMIME-Version: 1.0\nContent-Type: {kind}\nContent-Transfer-Encoding: 8bit\n\n"
    return fields.encode() + body.encode(charset)


def related(body: str, *pictures: tuple[str, str, str]) -> bytes:
    """`pictures`: (fields beside Content-ID, id, base64)."""
    parts = "".join(
        f"--b\nContent-Type: {kind}\nContent-Transfer-Encoding: base64\nContent-Disposition: inline\nContent-ID: <{name}>\n\n{data}\n"
        for kind, name, data in pictures
    )
    return (
        f"Subject: t\nMIME-Version: 1.0\nContent-Type: multipart/related; boundary=b\n\n--b\nContent-Type: text/html; charset=utf-8\n\n{body}\n"
        f"{parts}--b--\n"
    ).encode()


def a(name: str = "l", more: str = "") -> str:
    return f'<a id="{name}" href="{LINK}"{more}>Confirm</a>'


NEWSLETTER = f"""<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><meta http-equiv="Content-Type" content="text/html; charset=utf-8" />
<meta name="viewport" content="width=device-width" /><link rel="stylesheet" href="https://evil.test/a.css" />
<link rel="preconnect" href="http://evil.test/"><link rel="dns-prefetch" href="//dns.evil.test"><link rel="preload" as="image" href="http://evil.test/p.png">
<style>@import url("http://evil.test/b.css"); @font-face {{ font-family: x; src: url(http://evil.test/f.woff) }} p {{ color: #123456; font-family: x }}</style>
<script>document.body.innerHTML = "taken"</script><title>News</title></head>
<body style="background:url(http://evil.test/bg.png)" background="http://evil.test/bg2.png"><p>Spring news</p>{a()}
<img src="http://evil.test/pixel.gif" width=1 height=1><img srcset="http://evil.test/1.png 1x, //evil.test/2.png 2x" alt="a picture"></body></html>"""

MAILS = [
    Mail("newsletter with meta, link, style, script", html(NEWSLETTER), "Spring news", 0, ("l",)),
    Mail("meta alone", html('<html><head><meta charset="utf-8"></head><body><h1>Visible</h1></body></html>'), "Visible"),
    Mail("Outlook conditional comments", html(
        "<!DOCTYPE html><html xmlns:v='urn:schemas-microsoft-com:vml' xmlns:o='urn:x'><head><!--[if gte mso 9]><xml><o:OfficeDocumentSettings>"
        "<o:AllowPNG/></o:OfficeDocumentSettings></xml><![endif]--></head><body><!--[if mso]><table><tr><td>only Outlook</td></tr></table><![endif]-->"
        f"<!--[if !mso]><!-->For the others {a()} <!--<![endif]--><![if !mso]>and these<![endif]></body></html>"
    ), "For the others Confirm and these", 0, ("l",)),
    Mail("XHTML with an XML declaration", html(
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>'
        f'<base target="_top"/></head><body><p>Well formed<br/>{a()}</p></body></html>'
    ), "Well formed Confirm", 0, ("l",)),
    Mail("Word's HTML", html(
        "<html xmlns:o=\"urn:schemas-microsoft-com:office:office\"><head><style><!-- p.MsoNormal { margin: 0 } --></style></head>"
        "<body lang=EN-US><div class=WordSection1><p class=MsoNormal>Dear <o:p>&nbsp;</o:p>colleague</p></div></body></html>"
    ), "colleague"),
    Mail("nested tables", html("<table><tr><td>" * 30 + f"Deep {a()}" + "</td></tr></table>" * 30), "Deep Confirm", 0, ("l",)),
    Mail("pictures of the message", related(
        "<img src='cid:one@x'><img src=\"cid:two%40x\"><img src=cid:three><img src='CID:four'><img src='cid:five'><img src='cid:six'><p>Six pictures</p>",
        ("image/png", "one@x", PNG64), ("image/jpg; name=a.jpg", "two@x", PNG64), ("image/x-png", "three", PNG64),
        ("application/octet-stream; name=a.gif", "four", GIF), ("image/bmp", "five", BMP), ("image/svg+xml", "six", base64.encodebytes(SVG.encode()).decode()),
    ), "Six pictures", 6),
    Mail("pictures in data URLs and styles", related(
        f'<img src="data:image/gif;base64,{GIF}"><div style="background:url(cid:one)">In a style</div><table background="cid:one"><tr><td>x</table>',
        ("image/png", "one", PNG64),
    ), "In a style", 1),
    Mail("an SVG elsewhere than in a picture", related(
        '<object data="cid:s">o</object><embed src="cid:s"><iframe src="cid:s"></iframe><p>No document</p>',
        ("image/svg+xml", "s", base64.encodebytes(SVG.encode()).decode()),
    ), "No document"),
    Mail("right to left", html(f'<html dir="rtl" lang="he"><body><p>שלום עולם</p>{a()}</body></html>'), "שלום עולם", 0, ("l",)),
    Mail("emoji", html("<p>Party 🎉👩‍👩‍👧 tonight</p>"), "Party 🎉👩‍👩‍👧 tonight"),
    Mail("base href", html(
        '<html><head><base href="http://link.test/" target="_parent"></head><body>With a base <a id="l" href="confirm?token=1">Confirm</a></body></html>'
    ), "With a base Confirm", 0, ("l",)),
    Mail("meta refresh", html('<meta http-equiv="refresh" content="0;url=http://evil.test/refresh"><p>Stays here</p>'), "Stays here"),
    Mail("frames", html(
        '<iframe src="http://evil.test/f"></iframe><iframe srcdoc="<img src=http://evil.test/s.png><script>fetch(\'http://evil.test/x\')</script>"></iframe>'
        '<object data="http://evil.test/o"></object><embed src="http://evil.test/e"><p>Behind the frames</p>'
        '<video poster="http://evil.test/v.png" src="http://evil.test/v.mp4" autoplay></video><audio src="http://evil.test/a.mp3" autoplay></audio>'
    ), "Behind the frames"),
    Mail("a form", html(
        '<form action="http://evil.test/form" target="_top"><input name="q" value="x" autofocus><input type="image" src="http://evil.test/i.png">'
        f'<button>Send</button> Our form</form>{a()}'
    ), "Our form", 0, ("l",)),
    Mail("very long", html("<p>" + "many words " * 60_000 + f"</p><p>The end {a()}</p>"), "The end Confirm", 0, ("l",)),
    Mail("no html element", html(f"Just <b>bold</b> words {a()}"), "Just bold words Confirm", 0, ("l",)),
    Mail("charset only in meta", html(
        '<html><head><meta http-equiv="Content-Type" content="text/html; charset=koi8-r"></head><body>Привет</body></html>', "koi8-r", ""
    ), "Привет"),
    Mail("an AMP part", (
        b"Subject: t\nMIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/plain\n\nplain\n--b\n"
        b"Content-Type: text/x-amp-html\n\n<html amp4email><body>AMP</body></html>\n--b\nContent-Type: text/html\n\n<p>Not the AMP part</p>\n--b--\n"
    ), "Not the AMP part"),
    Mail("dark mode", html(
        '<html><head><meta name="color-scheme" content="light dark"><style>:root{color-scheme:light dark} @media (prefers-color-scheme: dark)'
        "{ body{background:#000!important;color:#fff!important} }</style></head><body>Dark or light</body></html>"
    ), "Dark or light"),
    Mail("words that look like attributes", html("<p>Set src = 5 and onload = 6, background=7 in your config; url(http://x)</p>"),
         "Set src = 5 and onload = 6, background=7 in your config; url(http://x)"),
    Mail("tags without an end", html(f"<div><p>First<b>bold<table><tr><td>cell {a()}<p>last"), "cell Confirm", 0, ("l",)),
    Mail("an SVG in the HTML", html(
        '<svg width="90" height="20"><script>fetch("http://evil.test/s")</script><image href="http://evil.test/i.png" width="5" height="5"/>'
        f'<use href="http://evil.test/u.svg#a"/><a id="s" href="{LINK}" target="_top"><rect width="80" height="20"/></a></svg><p>A drawing</p>'
    ), "A drawing", 0, ("s",)),
    Mail("links with every target", html(
        f"{a('n')} {a('b', ' target=_blank rel=opener')} {a('t', ' target=_top')} {a('s', ' target=_self')} {a('p', ' target=_parent')} {a('w', ' target=win')} "
        f'<A ID=u HREF="{LINK}" TARGET="_TOP">Upper</A><a\nid="d"\ntarget="_self"\nhref="{LINK}">Lines</a>'
        f'<map name="m"><area id="r" shape="default" href="{LINK}" target="_top"></map><img usemap="#m" width="30" height="30" src="data:image/gif;base64,{GIF}">'
    ), "Confirm Confirm Confirm Confirm Confirm Confirm Upper", 1, ("n", "b", "t", "s", "p", "w", "u", "d", "r")),
    Mail("tags in raw text", html(
        f"<style>p > a {{ color: red }} /* <a href=x> */</style><!-- <a> --><title><a></title><textarea><a href=x></textarea> Behind raw text {a()}"
    ), "Behind raw text Confirm", 0, ("l",)),
    Mail("handlers and pings", html(
        '<body onload="fetch(\'http://evil.test/1\')"><img src=x onerror="fetch(\'http://evil.test/2\')">'
        f'<a id=l ping="http://evil.test/ping" onclick="fetch(\'http://evil.test/3\')" href="{LINK}">Confirm</a><a href="javascript:alert(1)">No</a> Handlers'
    ), "ConfirmNo Handlers", 0, ("l",)),
]  # fmt: skip
