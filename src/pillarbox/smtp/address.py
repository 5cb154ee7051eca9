"""Mailboxes, domains and address literals (RFC 5321 section 4.1.2 and 4.1.3, RFC 6531 section 3.3).

The grammar is written once, as bytes patterns that `command.py` builds its own from. Must not know commands.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import NamedTuple

# RFC 5321 section 4.1.2 with RFC 6531 section 3.3: UTF8-non-ascii may stand wherever atext, sub-domain or qtext may.
ATOM = rb"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~\x80-\xff]+"
DOT_STRING = ATOM + rb"(?:\." + ATOM + rb")*"
QUOTED_STRING = rb'"(?:[\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\x20-\x7e])*"'
LOCAL_PART = rb"(?:" + DOT_STRING + rb"|" + QUOTED_STRING + rb")"
# deviates: an underscore may stand in a domain. Containers and Windows hosts have such names, and DNS allows them.
LABEL = rb"[A-Za-z0-9_\x80-\xff]+(?:-+[A-Za-z0-9_\x80-\xff]+)*"
DOMAIN = LABEL + rb"(?:\." + LABEL + rb")*"
LITERAL = rb"\[[\x21-\x5a\x5e-\x7e]+\]"
# Groups: the whole, its local-part, its domain.
MAILBOX = rb"((" + LOCAL_PART + rb")@(" + DOMAIN + rb"|" + LITERAL + rb"))"

_MAILBOX = re.compile(MAILBOX + rb"\Z")
_DOMAIN = re.compile(DOMAIN + rb"\Z")
# deviates: RFC 5321 section 4.1.1.1 wants a domain or an address literal. No decision depends on the name, and section
# 4.1.4 forbids to refuse mail because of it.
_HELO_NAME = re.compile(rb"[\x20-\x7e\x80-\xff]+\Z")

MAX_LABEL = 63
MAX_DOMAIN = 255
# RFC 5321 section 4.5.3.1.3: a path is at most 256 octets with its brackets.
# deviates: section 4.5.3.1.1 gives 64 octets for a local-part; SRS and VERP addresses pass that every day, and the
# same section asks to avoid such limits, so only the path as a whole is bounded.
MAX_MAILBOX = 254


class Mailbox(NamedTuple):
    """A mailbox as written: `local_part` with its quotes, `domain` a name or an address literal with its brackets.

    `domain` is empty for the bare `postmaster` of RFC 5321 section 4.1.1.3.
    """

    local_part: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local_part}@{self.domain}" if self.domain else self.local_part


def split_mailbox(address: str) -> Mailbox:
    """Splits an address that was judged before at its last "@" (an "@" in a quoted local-part stands before it)."""
    local_part, _, domain = address.rpartition("@")
    return Mailbox(local_part, domain) if local_part else Mailbox(domain, "")


def domain_of(address: str) -> str:
    """The domain of an address, in lower case, for comparison and routing."""
    return address.rpartition("@")[2].lower() if "@" in address else ""


def comparable_domain(domain: str) -> str:
    """The form in which two domains are compared: lower case, NFC, A-labels (RFC 5890) where IDNA can make them."""
    domain = domain.rstrip(".")
    if domain.isascii():
        return domain.lower()
    try:
        return ".".join(_a_label(label) for label in unicodedata.normalize("NFC", domain).split("."))
    except UnicodeError:
        return unicodedata.normalize("NFC", domain).lower()


# RFC 5892 section 2.6 and 2.7 with UTS 46 section 4: IDNA 2003 made others of these letters, or nothing, so that mail for
# one domain would go to another; IDNA 2008 keeps them.
_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")


def _a_label(label: str) -> str:
    if _DEVIATIONS.isdisjoint(label):
        return label.encode("idna").decode("ascii").lower()
    return "xn--" + label.lower().encode("punycode").decode("ascii")


def ascii_mailbox(address: str) -> str:
    """The address with its domain in A-labels, if that makes all of it ASCII; else the address as it is.

    Servers without SMTPUTF8 take the first form (RFC 5890 section 2.3.2.1); a local-part has no ASCII form.
    """
    if address.isascii():
        return address
    local_part, _, domain = address.rpartition("@")
    name = comparable_domain(domain)
    return f"{local_part}@{name}" if local_part.isascii() and name.isascii() else address


def comparable_mailbox(address: str) -> str:
    """The form in which two addresses are compared: local-part in NFC as written, domain as `comparable_domain`."""
    local_part, _, domain = address.rpartition("@")
    return f"{unicodedata.normalize('NFC', local_part)}@{comparable_domain(domain)}" if local_part else domain


def ascii_name(name: str) -> str:
    """A host name in ASCII: A-labels where IDNA can make them, else "?" for each other character."""
    if not name.isascii():
        name = comparable_domain(name)
    return name if name.isascii() else name.encode("ascii", "replace").decode("ascii")


def is_address_literal(domain: str) -> bool:
    """True for `[192.0.2.1]` and `[IPv6:2001:db8::1]`, and only for real addresses (RFC 5321 section 4.1.3)."""
    return parse_address_literal(domain) is not None


def parse_address_literal(domain: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address inside a literal, or None. General-address-literals of other kinds are not known to us."""
    if not (domain.startswith("[") and domain.endswith("]")):
        return None
    inner = domain[1:-1]
    if "%" in inner:
        # A zone is no part of an address literal, and Python takes any text for one.
        return None
    try:
        if inner[:5].lower() == "ipv6:":
            return ipaddress.IPv6Address(inner[5:])
        return ipaddress.IPv4Address(inner)
    except ValueError:
        return None


def is_domain(text: str) -> bool:
    """True for a domain of RFC 5321 section 4.1.2, within the limits of RFC 1035 section 2.3.4; no underscore."""
    return "_" not in text and is_mail_domain(text)


def is_mail_domain(text: str) -> bool:
    """True for what may be the domain of an address: `is_domain`, and names with an underscore."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) <= MAX_DOMAIN and _DOMAIN.match(raw) is not None and _labels_fit(text)


def is_helo_name(raw: bytes) -> bool:
    """True for the argument of EHLO and HELO: 1 to 255 octets without control characters."""
    return len(raw) <= MAX_DOMAIN and _HELO_NAME.match(raw) is not None


def _labels_fit(domain: str) -> bool:
    if domain.isascii():
        return len(domain) <= MAX_LABEL or all(len(label) <= MAX_LABEL for label in domain.split("."))
    try:
        return len(unicodedata.normalize("NFC", domain).encode("idna")) <= MAX_DOMAIN
    except UnicodeError:
        return False


# RFC 6532 section 3.1 allows nearly all of Unicode; what cannot be seen or turns the text around is refused, for it
# serves only to deceive: controls, formats (zero-width, bidi), surrogates, private use, unassigned, separators.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"))


def decode_utf8(raw: bytes) -> str | None:
    """Strict UTF-8 without hidden characters, or None."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if any(c > "\x7f" and unicodedata.category(c) in _HIDDEN for c in text):
        return None
    return text


def check_mailbox(local_part: bytes, domain: bytes) -> Mailbox | None:
    """What the pattern cannot say: lengths, UTF-8, real address literals. None when it does not hold."""
    if len(local_part) + len(domain) + 1 > MAX_MAILBOX:
        return None
    try:
        box = Mailbox(local_part.decode("ascii"), domain.decode("ascii"))
    except UnicodeDecodeError:
        local, name = decode_utf8(local_part), decode_utf8(domain)
        if local is None or name is None:
            return None
        box = Mailbox(local, name)
    if domain[:1] == b"[":
        return box if is_address_literal(box.domain) else None
    return box if _labels_fit(box.domain) else None


def mailbox_text(whole: bytes, local_part: bytes, domain: bytes) -> str | None:
    """A mailbox that the pattern has found, as text, or None where it breaks a limit."""
    if len(domain) <= MAX_LABEL and len(whole) <= MAX_MAILBOX and domain[0] != 91 and whole.isascii():
        # No label can be too long, nothing is left to judge: nearly every address.
        return whole.decode("ascii")
    box = check_mailbox(local_part, domain)
    return None if box is None else str(box)


def parse_mailbox(address: str | bytes) -> Mailbox | None:
    """`local-part@domain` from a program's own hands, by the same grammar as on the wire; None if it does not hold."""
    try:
        raw = address.encode("utf-8") if isinstance(address, str) else address
    except UnicodeEncodeError:
        return None
    found = _MAILBOX.match(raw)
    return check_mailbox(found.group(2), found.group(3)) if found else None


def is_mailbox(address: str) -> bool:
    """True for what `parse_mailbox` takes."""
    try:
        found = _MAILBOX.match(address.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    return found is not None and mailbox_text(*found.group(1, 2, 3)) is not None
