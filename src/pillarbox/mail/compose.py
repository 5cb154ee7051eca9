"""A message from text: header section and body as a program wrote them, made valid (RFC 5322, RFC 2045, RFC 2047)."""

from __future__ import annotations

import email.policy
import re
from email.message import EmailMessage

from ..smtp.framing import normalise_lines
from . import headers
from .content import Content
from .fieldtext import encode_section

_LONGEST = 998
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s\";]+)", re.I)


def compose(text: str, *, is_utf8: bool = False) -> bytes:
    """Returns the octets of a message that is given as text; ASCII stays as it is. ValueError says what is not valid.

    Fields that are not ASCII are encoded, unless the message `is_utf8` (SMTPUTF8) and they have to be. A body that is not
    ASCII gets the MIME fields that it lacks.
    """
    octets = normalise_lines(text.encode("utf-8"))
    end = headers.section_end(octets)
    section, rest = octets[:end], octets[end:]
    section = encode_section(section, is_utf8=is_utf8)
    if rest.isascii() and max(map(len, rest.split(b"\r\n"))) <= _LONGEST:
        return section + rest
    body = rest.removeprefix(b"\r\n") if section or rest.startswith(b"\r\n") else rest
    content = Content(section or b"\r\n")
    kind = content.header("Content-Type")
    if kind is not None:
        _complete(content, kind)
        return content.header_section + b"\r\n" + body
    made = EmailMessage(policy=email.policy.SMTP.clone(cte_type="7bit"))
    made.set_content(body.decode("utf-8").replace("\r\n", "\n"), charset="utf-8")
    for name in ("MIME-Version", "Content-Transfer-Encoding"):
        content.remove_header(name)
    fields = b"".join(
        f"{name}: {made[name]}\r\n".encode("ascii")
        for name in ("MIME-Version", "Content-Type", "Content-Transfer-Encoding")
    )
    return content.header_section + fields + b"\r\n" + normalise_lines(str(made.get_payload()).encode("ascii"))


def _complete(content: Content, kind: str) -> None:
    """The program says what the body is: it stands as it is, in UTF-8, with the fields that it lacks."""
    charset = _CHARSET.search(kind)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        raise ValueError(
            f"field Content-Type: invalid charset {charset[1]!r}: expected utf-8, as text is written; give bytes for another"
        )
    if charset is None and kind.strip().lower().startswith("text/"):
        content.set_header("Content-Type", f"{kind}; charset=utf-8")
    if content.header("MIME-Version") is None:
        content.set_header("MIME-Version", "1.0")
    if (content.header("Content-Transfer-Encoding") or "7bit").strip().lower() == "7bit":
        content.set_header("Content-Transfer-Encoding", "8bit")
