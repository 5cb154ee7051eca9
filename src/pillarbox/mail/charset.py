"""Decodes text: by the charset that a message names, or by its octets where the name is missing, unknown or wrong.

The rules are those of the WHATWG Encoding Standard where mail agrees with it: iso-8859-1 is read as windows-1252.
"""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

# windows-1252 with its five unassigned octets as C1 controls: each octet has a character, so decoding cannot fail.
_WINDOWS_1252 = "".join(
    chr(octet) if octet in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes([octet]).decode("cp1252") for octet in range(256)
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Labels that Python does not know, or reads more narrowly than the programs that write them.
_ALIASES = {
    "ascii": "us-ascii",
    "ansi": "cp1252",
    "latin-1": "cp1252",
    "latin1": "cp1252",
    "l1": "cp1252",
    "iso-ir-100": "cp1252",
    "ibm819": "cp1252",
    "macintosh": "mac-roman",
    "mac": "mac-roman",
    "unicode": "utf-16",
    "ucs-2": "utf-16",
    "ucs2": "utf-16",
    "iso-10646-ucs-2": "utf-16",
    "uft-8": "utf-8",
    "uft8": "utf-8",
    "utf": "utf-8",
    "utf8mb3": "utf-8",
    "utf8mb4": "utf-8",
    "unicode-1-1-utf-8": "utf-8",
    "unicode-1-1-utf-7": "utf-7",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gb-2312-80": "gb18030",
    "gbk": "gb18030",
    "ks-c-5601-1987": "cp949",
    "ks-c-5601": "cp949",
    "ksc5601": "cp949",
    "euc-kr": "cp949",
    "shift-jis": "cp932",
    "shift-jisx0213": "cp932",
    "sjis": "cp932",
    "ms-kanji": "cp932",
    "iso-2022-jp": "iso2022_jp_ext",
    "hz-gb-2312": "hz",
    "cp65001": "utf-8",
    "cp1200": "utf-16-le",
    "cp1201": "utf-16-be",
    "cp28591": "cp1252",
    "cp20127": "us-ascii",
    "cp936": "gb18030",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
}
_CODE_PAGE = re.compile(r"(?:windows|win|cp|ibm|dos|oem|ansi|microsoft-cp|ms|codepage|code-page)-*(\d{3,5})")
_ISO_8859 = re.compile(r"(?:iso-*)?8859-*(\d{1,2})(?:-?[ie])?(?:[:-]\d{4})?")
# Text encodings of Python that no mail has: slow, not a charset, or refused on purpose.
_NOT_CHARSETS = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem")
_META = re.compile(
    rb"""<(?:meta\b[^>]{0,500}?\bcharset|\?xml\b[^>]{0,200}?\bencoding)\s{0,9}=\s{0,9}["']?([\w.:-]{1,40})""", re.I
)
_SURROGATE = re.compile("[\ud800-\udfff]")


@lru_cache(maxsize=256)
def codec_of(label: str) -> str | None:
    """Returns Python's codec for a charset label, or None for a label that says nothing: unknown, or us-ascii.

    us-ascii says nothing, because a text to which it applies is the same in the codecs that are tried without a label.
    """
    text = label.lower().strip(" \t\r\n\"'<>").removeprefix("charset=").strip(" \"'")
    # RFC 2231 section 5: an encoded word may name a language behind `*`.
    for tried in (text, *re.split(r"[\s;,*\"'()<>]", text, maxsplit=1)[:1]):
        name = re.sub(r"[\s_-]+", "-", tried).strip("-").removeprefix("x-")
        if not name or len(name) > 40:
            continue
        if page := _CODE_PAGE.fullmatch(name):
            name = f"cp{page[1]}"
        elif number := _ISO_8859.fullmatch(name):
            name = f"iso8859-{int(number[1])}"
        name = _ALIASES.get(name, name)
        if name == "us-ascii":
            return None
        try:
            found = codecs.lookup(name)
        except (LookupError, ValueError):
            continue
        if found.name == "ascii":
            return None
        if getattr(found, "_is_text_encoding", True) and found.name.replace("-", "_") not in _NOT_CHARSETS:
            return "cp1252" if found.name == "iso8859-1" else name
    return None


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except ValueError:
        return False
    return True


def choose_codec(octets: bytes, label: str | None, *, is_html: bool = False) -> str:
    """Returns the codec to decode this text with: byte order mark, label, `<meta charset>` of HTML, UTF-8, windows-1252."""
    for mark, codec in _BOMS:
        if octets.startswith(mark):
            return codec
    found = codec_of(label) if label else None
    if found is None and is_html and (meta := _META.search(octets[:4096])):
        found = codec_of(meta[1].decode("ascii", "replace"))
        # Octets in which `<meta` was found are not UTF-16, whatever it says.
        if found is not None and (found.startswith("utf-16") or not _is_decodable(octets, found)):
            found = None
    if found == "utf-16":
        # Without a mark: the zero octets of Latin text tell the order.
        found = "utf-16-be" if octets[0:2000:2].count(0) > octets[1:2000:2].count(0) else "utf-16-le"
    if found is not None:
        return found
    if b"\x1b$" in octets and octets.isascii():
        return "iso2022_jp_ext"
    return "utf-8" if _is_utf8(octets) else "cp1252"


def _is_decodable(octets: bytes, codec: str) -> bool:
    try:
        octets.decode(codec)
    except (ValueError, LookupError):
        return codec == "cp1252"
    return True


def decode_as(octets: bytes, codec: str) -> str:
    """Decodes by this codec; octets that it does not have become U+FFFD. Never raises, never returns a lone surrogate."""
    if codec == "cp1252":
        return codecs.charmap_decode(octets, "strict", _WINDOWS_1252)[0]
    try:
        text = octets.decode(codec, "replace")
    except (ValueError, LookupError):
        return decode_as(octets, "utf-8" if _is_utf8(octets) else "cp1252")
    # UTF-7 can spell a lone surrogate, which no queue and no log can write.
    return _SURROGATE.sub("\ufffd", text) if _SURROGATE.search(text) else text


def decode_text(octets: bytes, label: str | None = None, *, is_html: bool = False) -> str:
    """Decodes a text by its label or, where that says nothing, by its octets. Never raises."""
    return decode_as(octets, choose_codec(octets, label, is_html=is_html))


def decode_octets(octets: bytes) -> str:
    """Decodes octets without a label, as in a header field: UTF-8 where they are valid UTF-8, else windows-1252."""
    try:
        return octets.decode()
    except ValueError:
        return decode_as(octets, "cp1252")
