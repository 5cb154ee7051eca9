"""The EXTENSIONS table: keyword, RFC, when it is offered, and the MAIL and RCPT parameters that it brings.

Must not know commands, sessions or policy. A parameter's parser gets its value (None when it had no "=") and returns
what the envelope keeps, or raises ParameterFault with the reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .reply import Reply


class ParameterFault(ValueError):
    """A parameter's value is wrong; `reply` says so to the client."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides which extensions are offered now. Sizes in octets; `tls_offered` means: there is a certificate.

    Sessions share it: one whose TLS or authentication changes gets another.
    """

    max_size_bytes: int = 64 * 1024 * 1024
    max_recipients: int = 1000
    max_messages: int = 0
    tls_offered: bool = False
    is_tls: bool = False
    auth_mechanisms: tuple[str, ...] = ()
    is_authenticated: bool = False
    auth_in_clear: bool = False
    enhanced: bool = True


def _bad(text: str) -> ParameterFault:
    return ParameterFault(Reply(501, "5.5.4", text))


def _parse_size(value: str | None) -> int:
    # RFC 1870 section 4: size-value = 1*20DIGIT
    if value is None or not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise _bad("SIZE wants a number of octets, of 20 digits at most")
    return int(value)


def _parse_body(value: str | None) -> str:
    # RFC 6152 section 3; BINARYMIME (RFC 3030 section 3) is not offered, so not taken.
    body = (value or "").upper()
    if body not in ("7BIT", "8BITMIME"):
        raise _bad("BODY is 7BIT or 8BITMIME")
    return body


def _parse_flag(value: str | None) -> bool:
    # RFC 6531 section 3.4 item 3: SMTPUTF8 takes no value.
    if value is not None:
        raise _bad("this parameter takes no value")
    return True


def _parse_ret(value: str | None) -> str:
    ret = (value or "").upper()
    if ret not in ("FULL", "HDRS"):
        raise _bad("RET is FULL or HDRS")
    return ret


_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")


def parse_xtext(value: str) -> str | None:
    """RFC 3461 section 4: printable ASCII, `+XX` for the rest. None where it does not hold, or hides a control."""
    if not _XTEXT.match(value):
        return None
    text = re.sub(r"\+([0-9A-F]{2})", lambda m: chr(int(m.group(1), 16)), value)
    return text if all(" " <= c <= "~" for c in text) else None


def format_xtext(text: str) -> str:
    """The inverse of parse_xtext, for printable ASCII."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def format_utf8_xtext(text: str, escaped: str = "") -> str:
    """utf-8-addr-xtext (RFC 6533 section 3): what is not printable ASCII, and the characters of `escaped`, as \\x{HEX}."""
    return "".join(c if "!" <= c <= "~" and c not in escaped else f"\\x{{{ord(c):X}}}" for c in text)


def _parse_envid(value: str | None) -> str:
    # RFC 3461 section 4.4: at most 100 octets as written.
    text = parse_xtext(value) if value and len(value) <= 100 else None
    if text is None:
        raise _bad("ENVID wants xtext of 100 octets at most")
    return text


def _parse_notify(value: str | None) -> tuple[str, ...]:
    # RFC 3461 section 4.1
    words = tuple((value or "").upper().split(","))
    if words == ("NEVER",):
        return words
    if not words or len(set(words)) != len(words) or any(w not in ("SUCCESS", "FAILURE", "DELAY") for w in words):
        raise _bad("NOTIFY is NEVER, or a list of SUCCESS, FAILURE, DELAY")
    return words


def _parse_orcpt(value: str | None) -> str:
    # RFC 3461 section 4.2: addr-type ";" xtext, at most 500 octets. RFC 6533 section 3 adds utf-8-addr forms.
    kind, semicolon, text = (value or "").partition(";")
    plain = parse_xtext(text)
    if not semicolon or len(value or "") > 500 or not re.match(r"[A-Za-z0-9-]+\Z", kind):
        raise _bad("ORCPT wants address-type;xtext")
    if kind.lower() == "utf-8":
        if not text or any(c <= " " or c == "\x7f" for c in text):
            raise _bad("ORCPT has a broken utf-8 address")
        return f"utf-8;{text}"
    if not plain:
        raise _bad("ORCPT wants address-type;xtext")
    return f"{kind};{plain}"


def _parse_auth(value: str | None) -> str:
    # RFC 4954 section 5: AUTH=<> or an xtext mailbox. Taken and, for lack of trust in it, not passed on.
    if value is None or (value != "<>" and parse_xtext(value) is None):
        raise _bad("AUTH= wants xtext or <>")
    return "<>" if value == "<>" else (parse_xtext(value) or "<>")


Parser = Callable[[str | None], Any]
Offer = Callable[[Facts], str | None]


@dataclass(frozen=True, slots=True)
class Extension:
    """A row: `offer` gives the EHLO line, or None when it is not offered now."""

    keyword: str
    rfc: str
    offer: Offer
    mail: Mapping[str, Parser] = field(default_factory=dict)
    rcpt: Mapping[str, Parser] = field(default_factory=dict)


def _offer_limits(facts: Facts) -> str:
    # RFC 9422 section 3
    words = [f"RCPTMAX={facts.max_recipients}"]
    if facts.max_messages:
        words.insert(0, f"MAILMAX={facts.max_messages}")
    return "LIMITS " + " ".join(words)


def _offer_auth(facts: Facts) -> str | None:
    # RFC 4954 section 4: not in clear, not twice.
    if not (facts.is_tls or facts.auth_in_clear) or facts.is_authenticated or not facts.auth_mechanisms:
        return None
    return "AUTH " + " ".join(facts.auth_mechanisms)


def _offer_starttls(facts: Facts) -> str | None:
    # RFC 3207 section 4.2: no STARTTLS once TLS is on.
    return "STARTTLS" if facts.tls_offered and not facts.is_tls else None


EXTENSIONS: tuple[Extension, ...] = (
    Extension("PIPELINING", "2920", lambda f: "PIPELINING"),
    Extension("SIZE", "1870", lambda f: f"SIZE {f.max_size_bytes}", mail={"SIZE": _parse_size}),
    Extension("8BITMIME", "6152", lambda f: "8BITMIME", mail={"BODY": _parse_body}),
    Extension("SMTPUTF8", "6531", lambda f: "SMTPUTF8", mail={"SMTPUTF8": _parse_flag}),
    Extension("CHUNKING", "3030", lambda f: "CHUNKING"),
    Extension("ENHANCEDSTATUSCODES", "2034", lambda f: "ENHANCEDSTATUSCODES"),
    Extension(
        "DSN",
        "3461",
        lambda f: "DSN",
        mail={"RET": _parse_ret, "ENVID": _parse_envid},
        rcpt={"NOTIFY": _parse_notify, "ORCPT": _parse_orcpt},
    ),
    Extension("LIMITS", "9422", _offer_limits),
    Extension("STARTTLS", "3207", _offer_starttls),
    Extension("AUTH", "4954", _offer_auth, mail={"AUTH": _parse_auth}),
)

MAIL_PARAMETERS: dict[str, Parser] = {k: p for row in EXTENSIONS for k, p in row.mail.items()}
RCPT_PARAMETERS: dict[str, Parser] = {k: p for row in EXTENSIONS for k, p in row.rcpt.items()}


def offered(facts: Facts) -> list[str]:
    """The EHLO lines for these facts, in table order."""
    return [line for row in EXTENSIONS if (line := row.offer(facts)) is not None]


_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^=\x00-\x20\x7f]+))?\Z")
_EMPTY: dict[str, Any] = {}


def parse_parameters(text: str, known: Mapping[str, Parser]) -> dict[str, Any]:
    """`KEY=VALUE KEY` by table. Raises ParameterFault: 501 for bad form or a second one, 555 for an unknown one."""
    if not text:
        return _EMPTY
    found: dict[str, Any] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.match(word)
        # ORCPT and ENVID are xtext, which has no "=", so that the one pattern serves all (RFC 5321 section 4.1.2).
        if match is None:
            raise _bad("parameter is not KEYWORD or KEYWORD=VALUE")
        key = match.group(1).upper()
        parser = known.get(key)
        if parser is None:
            # RFC 5321 section 4.1.1.11
            raise ParameterFault(Reply(555, "5.5.4", f"parameter {key} is not known here"))
        if key in found:
            raise _bad(f"parameter {key} is given twice")
        found[key] = parser(match.group(2))
    return found
