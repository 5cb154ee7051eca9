"""Undoes content transfer encodings (RFC 2045 section 6), broken ones too. Never raises."""

from __future__ import annotations

import base64
import binascii
import re
import string
from dataclasses import dataclass

_NAMES = {
    "base64": "base64",
    "b64": "base64",
    "quotedprintable": "quoted-printable",
    "qp": "quoted-printable",
    "uuencode": "uuencode",
    "uue": "uuencode",
    "uu": "uuencode",
    "7bit": "7bit",
    "8bit": "8bit",
    "binary": "binary",
    "": "7bit",
}
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
_SPACE = b" \t\r\n\v\f"
_NOT_ALPHABET = bytes(set(range(256)) - set(_ALPHABET) - {ord("=")})
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_FOOTER = re.compile(rb"=[ \t]*\r?\n(?=[^\n]*[^A-Za-z0-9+/=\s][^\n]*(?:\n|\Z))")
_UU_BEGIN = re.compile(rb"^begin[ \t]+[0-7]{3,4}[ \t]+([^\r\n]*)\r?\n", re.M)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The octets behind an encoding. `note` says what was wrong; `name` is the file name that uuencode carries."""

    octets: bytes
    note: str = ""
    name: str = ""


def encoding_name(field: str) -> str | None:
    """Returns the encoding that a Content-Transfer-Encoding field names, in its canonical form; None if unknown."""
    word = re.split(r"[\s;,(]", field.strip(" \t\r\n\"'"), maxsplit=1)[0]
    return _NAMES.get(re.sub(r"[^a-z0-9]", "", word.lower()).removeprefix("x"))


def decode_transfer(octets: bytes, encoding: str | None, *, is_text: bool) -> Decoded:
    """Undoes the encoding; `encoding` None (unknown) leaves the octets as they are."""
    if encoding == "base64":
        return _base64(octets, is_text)
    if encoding == "quoted-printable":
        return Decoded(binascii.a2b_qp(octets))
    if encoding == "uuencode":
        return _uuencode(octets)
    return Decoded(octets, "" if encoding else "the transfer encoding is unknown")


def _base64(octets: bytes, is_text: bool) -> Decoded:
    # A mailing list may have written its footer behind the padding.
    footer = _FOOTER.search(octets)
    encoded, rest = (octets[: footer.end()], octets[footer.end() :]) if footer else (octets, b"")
    letters = encoded.translate(None, _NOT_ALPHABET)
    strange = len(encoded.translate(None, _SPACE)) - len(letters)
    found = b"".join(_segment(segment) for segment in letters.split(b"="))
    is_odd = strange > 0 or b" " in encoded.strip()
    # Words are not valid base64 of other words; a file that is hardly damaged is still of use.
    is_other = not (found and _is_text(found)) if is_text else strange * 8 > len(letters)
    if is_odd and is_other and not _CONTROLS.search(octets):
        return Decoded(octets, "this is not the base64 that it is said to be")
    if rest.strip():
        if is_text:
            return Decoded(found + b"\r\n" + rest)
        return Decoded(found, "text behind the base64 is left out")
    return Decoded(found, "the base64 is damaged" if strange or len(letters.rstrip(b"=")) % 4 == 1 else "")


def _segment(letters: bytes) -> bytes:
    # One letter more than a multiple of four carries no octet.
    usable = len(letters) - (len(letters) % 4 == 1)
    return base64.b64decode(letters[:usable] + b"=" * (-usable % 4)) if usable else b""


def _is_text(octets: bytes) -> bool:
    try:
        octets.decode()
    except ValueError:
        return False
    return not _CONTROLS.search(octets)


def _uuencode(octets: bytes) -> Decoded:
    begin = _UU_BEGIN.search(octets)
    if begin is None:
        return Decoded(octets, "this is not the uuencoding that it is said to be")
    found, note = bytearray(), "the end of the uuencoding is missing"
    for line in octets[begin.end() :].splitlines():
        if line.strip().lower() == b"end":
            note = ""
            break
        if not line:
            continue
        try:
            found += binascii.a2b_uu(line)
        except binascii.Error:
            # As the standard library does: some encoders write more than the length says.
            length = (((line[0] - 32) & 63) * 4 + 5) // 3
            try:
                found += binascii.a2b_uu(line[:length])
            except binascii.Error:
                note = "the uuencoding is damaged"
    return Decoded(bytes(found), note, begin[1].decode("utf-8", "replace").strip())
