"""The COMMANDS table: verb, grammar of its argument, event (RFC 5321 section 4.1.1 and the extensions).

Where a verb is legal stands in `state.TRANSITIONS`. One anchored bytes pattern per verb; a line is judged once. Must not
know sessions, policy or I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import address as a
from . import device
from .extension import MAIL_PARAMETERS, RCPT_PARAMETERS, ParameterFault, parse_parameters
from .reply import Reply

_NONE: dict[str, Any] = {}


class Command:
    """One command line, parsed.

    `verb` in upper case ("" when there was none), `args` the text behind it as given. By verb: `address` is the
    reverse-path (None: null reverse-path), the recipient, or the HELO name; `parameters` the ESMTP parameters by keyword;
    `size_bytes` and `is_last` are BDAT's; `mechanism` and `initial` AUTH's. `error` is the reply for a command that is
    malformed or out of order, else None; `is_abuse` asks to close the session after it. `line`: the whole line, of a
    command that is remembered (Rules.remember). `repairs`: what the device profile has mended, in words.
    """

    # Defaults stand in the class, so that making a command sets only what it has.
    address: str | None = None
    parameters: dict[str, Any] = _NONE
    error: Reply | None = None
    size_bytes = 0
    is_last = False
    is_abuse = False
    mechanism = ""
    initial: bytes | None = None
    line = b""
    repairs: tuple[str, ...] = ()

    def __init__(self, verb: str, args: str) -> None:
        self.verb = verb
        self.args = args


@dataclass(frozen=True, slots=True)
class Grammar:
    """How commands are read: `is_strict` takes no white space that RFC 5321 does not allow, and no final dot of a domain.

    `local_domain`, where there is one, completes an address that is a local-part alone. `is_device` repairs more
    (`device.py`).
    """

    is_strict: bool = False
    local_domain: bytes = b""
    is_device: bool = False
    # Of a development inbox: what every real server refuses is refused there, too, so that its sender notices.
    is_development: bool = False


Parse = Callable[[Command, bytes, Grammar], None]

_SOURCE_ROUTE = rb"(?:@" + a.DOMAIN + rb"(?:,@" + a.DOMAIN + rb")*:)?"
_POSTMASTER = rb"([Pp][Oo][Ss][Tt][Mm][Aa][Ss][Tt][Ee][Rr])"


def _patterns(space: bytes, dot: bytes, behind: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """The arguments of MAIL and RCPT: white space before the path, a final dot, white space before the parameters."""
    box = _SOURCE_ROUTE + a.MAILBOX + dot
    # RFC 5321 section 4.1.1.2: "FROM:" Reverse-path [SP Mail-parameters]. A source route is read and ignored (appendix C).
    mail = rb"[Ff][Rr][Oo][Mm]:" + space + rb"<(?:" + box + rb")?>(?:" + behind + rb"(.*))?\Z"
    # RFC 5321 section 4.1.1.3: "TO:" Forward-path, where <postmaster> needs no domain.
    rcpt = rb"[Tt][Oo]:" + space + rb"<(?:" + box + rb"|" + _POSTMASTER + rb")>(?:" + behind + rb"(.*))?\Z"
    return re.compile(mail, re.S), re.compile(rcpt, re.S)


_STRICT_MAIL, _STRICT_RCPT = _patterns(b"", b"", rb" +")
# deviates: white space before the path, TABs, and the final dot of a domain are taken: each has one meaning only.
_MAIL, _RCPT = _patterns(rb"[ \t]*", rb"\.?", rb"[ \t]+")
# A path without a domain, which RFC 5321 section 4.1.2 does not know, but old programs send.
_LOCAL = re.compile(rb"((?i:FROM|TO):[ \t]*<)(" + a.LOCAL_PART + rb")(>.*)\Z", re.S)
_BDAT = re.compile(rb"([0-9]{1,20})(?: +([Ll][Aa][Ss][Tt]))?\Z")
_AUTH = re.compile(rb"([A-Za-z0-9_-]{1,20})(?: +(\S+))?\Z")

_SYNTAX_MAIL = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
_SYNTAX_RCPT = Reply(501, "5.5.4", "Syntax: RCPT TO:<address> [parameters]")
_BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
_BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
_NEEDS_UTF8 = Reply(553, "5.6.7", "Address with UTF-8: use SMTPUTF8 with MAIL")
_NO_ARGUMENT = Reply(501, "5.5.4", "This command takes no argument")


def _parse_greeting(command: Command, rest: bytes, grammar: Grammar) -> None:
    if a.is_helo_name(rest):
        command.address = command.args
    elif grammar.is_device and not rest and not grammar.is_development:
        command.address, command.repairs = "unknown", (device.NO_NAME,)
    else:
        command.error = Reply(501, "5.5.4", f"Syntax: {command.verb} domain-or-address-literal")


def _parameters(command: Command, raw: bytes, known: dict[str, Any]) -> bool:
    if b"\t" in raw:
        raw = raw.replace(b"\t", b" ")
    try:
        command.parameters = parse_parameters(raw.decode("utf-8"), known)
    except ParameterFault as fault:
        command.error = fault.reply
        return False
    return True


def _completed(pattern: re.Pattern[bytes], rest: bytes, grammar: Grammar) -> re.Match[bytes] | None:
    """The match of a path that lacks its domain, with the one that it is given."""
    found = _LOCAL.match(rest) if grammar.local_domain else None
    return pattern.match(b"%s%s@%s%s" % (found[1], found[2], grammar.local_domain, found[3])) if found else None


def _reread(command: Command, pattern: re.Pattern[bytes], rest: bytes, grammar: Grammar) -> re.Match[bytes] | None:
    """A match by the rules that only some servers or sessions have, for an argument that has none by the general ones."""
    found = _completed(pattern, rest, grammar)
    if found is None and grammar.is_device:
        repaired = device.repair_path(rest)
        if repaired is not None and not (grammar.is_development and device.NO_BRACKETS in repaired[1]):
            path, command.repairs = repaired
            found = pattern.match(path) or _completed(pattern, path, grammar)
    return found


def _parse_mail(command: Command, rest: bytes, grammar: Grammar) -> None:
    pattern = _STRICT_MAIL if grammar.is_strict else _MAIL
    found = pattern.match(rest) or _reread(command, pattern, rest, grammar)
    if found is None:
        command.error = _BAD_SENDER if rest[:5].upper() == b"FROM:" and len(rest) > 5 else _SYNTAX_MAIL
        return
    whole, local_part, domain, raw = found.groups()
    if (raw and not _parameters(command, raw, MAIL_PARAMETERS)) or whole is None:
        return
    address = command.address = a.mailbox_text(whole, local_part, domain)
    if address is None:
        command.error = _BAD_SENDER
    # RFC 6531 section 3.5
    elif not address.isascii() and "SMTPUTF8" not in command.parameters:
        command.error = _NEEDS_UTF8


def _parse_rcpt(command: Command, rest: bytes, grammar: Grammar) -> None:
    pattern = _STRICT_RCPT if grammar.is_strict else _RCPT
    found = pattern.match(rest) or _reread(command, pattern, rest, grammar)
    if found is None:
        command.error = _BAD_RECIPIENT if rest[:3].upper() == b"TO:" and len(rest) > 3 else _SYNTAX_RCPT
        return
    whole, local_part, domain, postmaster, raw = found.groups()
    if raw and grammar.is_device:
        less = device.without_empty_orcpt(raw)
        if less != raw:
            raw, command.repairs = less, (*command.repairs, device.EMPTY_ORCPT)
    if raw and not _parameters(command, raw, RCPT_PARAMETERS):
        return
    if postmaster is not None:
        command.address = postmaster.decode("ascii")
        return
    command.address = a.mailbox_text(whole, local_part, domain)
    if command.address is None:
        command.error = _BAD_RECIPIENT


def _parse_nothing(command: Command, rest: bytes, grammar: Grammar) -> None:
    # RFC 5321 section 4.1.1.4, .5, .10; RFC 3207 section 4: no parameters.
    if rest:
        command.error = _HAS_CONTROL if _CONTROL.search(rest) else _NO_ARGUMENT


def _parse_text(command: Command, rest: bytes, grammar: Grammar) -> None:
    # RFC 5321 section 4.1.1.6: VRFY and EXPN want a string; RFC 6531 section 3.7.4.2 allows SMTPUTF8 behind it.
    if not rest or rest.upper() == b"SMTPUTF8":
        command.error = Reply(501, "5.5.4", f"Syntax: {command.verb} string")


def _parse_anything(command: Command, rest: bytes, grammar: Grammar) -> None:
    """NOOP and HELP may have any string."""


def _parse_bdat(command: Command, rest: bytes, grammar: Grammar) -> None:
    found = _BDAT.match(rest)
    if found is None:
        # RFC 3030 section 2: where the length cannot be known, nothing behind this line can be told from content.
        command.error = Reply(501, "5.5.4", "Syntax: BDAT size [LAST]; closing, for what follows cannot be read")
        command.is_abuse = True
        return
    command.size_bytes = int(found.group(1))
    command.is_last = found.group(2) is not None


def _parse_auth(command: Command, rest: bytes, grammar: Grammar) -> None:
    found = _AUTH.match(rest)
    if found is None:
        command.error = Reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
        return
    command.mechanism = found.group(1).decode("ascii").upper()
    command.initial = found.group(2)


# What a command that brings no mail adds to the junk of a session, which `max_junk` bounds in units of JUNK. A probe that
# greets again and again in one session is a monitor, so a greeting adds a tenth.
JUNK, JUNK_OF_A_GREETING = 10, 1


@dataclass(frozen=True, slots=True)
class Row:
    """A verb of the table. `syntax` is for HELP and the documentation; `junk` counts towards the junk limit.

    `rfc` is "" for what no RFC knows: HELP does not tell of it.
    """

    verb: str
    parse: Parse
    event: str
    syntax: str
    rfc: str
    junk: int = 0
    takes_utf8: bool = False
    is_free_text: bool = False


COMMANDS: dict[bytes, Row] = {
    row.verb.encode(): row
    for row in (
        Row("EHLO", _parse_greeting, "cmd_ehlo", "EHLO domain", "5321", junk=JUNK_OF_A_GREETING, takes_utf8=True),
        Row("HELO", _parse_greeting, "cmd_helo", "HELO domain", "5321", junk=JUNK_OF_A_GREETING, takes_utf8=True),
        Row("MAIL", _parse_mail, "cmd_mail", "MAIL FROM:<reverse-path> [parameters]", "5321", takes_utf8=True),
        Row("RCPT", _parse_rcpt, "cmd_rcpt", "RCPT TO:<forward-path> [parameters]", "5321", takes_utf8=True),
        Row("DATA", _parse_nothing, "cmd_data", "DATA", "5321"),
        Row("BDAT", _parse_bdat, "cmd_bdat", "BDAT size [LAST]", "3030"),
        Row("RSET", _parse_nothing, "cmd_rset", "RSET", "5321", junk=JUNK),
        Row(
            "NOOP",
            _parse_anything,
            "cmd_noop",
            "NOOP [string]",
            "5321",
            junk=JUNK,
            takes_utf8=True,
            is_free_text=True,
        ),
        Row("VRFY", _parse_text, "cmd_vrfy", "VRFY string", "5321", junk=JUNK, takes_utf8=True, is_free_text=True),
        Row("EXPN", _parse_text, "cmd_expn", "EXPN string", "5321", junk=JUNK, takes_utf8=True, is_free_text=True),
        Row("HELP", _parse_anything, "cmd_help", "HELP [verb]", "5321", junk=JUNK, takes_utf8=True, is_free_text=True),
        Row("QUIT", _parse_nothing, "cmd_quit", "QUIT", "5321"),
        Row("STARTTLS", _parse_nothing, "cmd_starttls", "STARTTLS", "3207", junk=JUNK),
        Row("AUTH", _parse_auth, "cmd_auth", "AUTH mechanism [initial-response]", "4954"),
        # LMTP's greeting (RFC 2033 section 4.1): for a program that answers everything itself.
        Row("LHLO", _parse_greeting, "cmd_lhlo", "LHLO domain", "", junk=JUNK_OF_A_GREETING),
        # Postfix's way to pass on what a proxy knows. Known, so that it is refused by name, and never offered.
        Row("XCLIENT", _parse_anything, "cmd_xclient", "XCLIENT attribute=value", "", junk=JUNK, is_free_text=True),
        Row("XFORWARD", _parse_anything, "cmd_xclient", "XFORWARD attribute=value", "", junk=JUNK, is_free_text=True),
    )
}

# A browser, an SSH client or a TLS hello that was led here (ALPACA, CVE-2021-3618): no SMTP client begins like this.
_FOREIGN = re.compile(
    rb"(?i:GET|POST|PUT|HEAD|CONNECT|OPTIONS|DELETE|PATCH|TRACE|HOST:|USER-AGENT:|SSH-[\d.]+-\S*)(?: |\Z)"
)
_FOREIGN_REPLY = Reply(554, "5.5.0", "This is SMTP, not what you speak; closing", reason="protocol-abuse")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_UNKNOWN = Reply(500, "5.5.2", "Command not recognised")
_HAS_CONTROL = Reply(500, "5.5.2", "Control characters are not allowed in a command")
_NOT_UTF8 = Reply(501, "5.5.2", "Octets that are neither ASCII nor UTF-8")


def parse_command(line: bytes, grammar: Grammar) -> tuple[Command, Row | None]:
    """A command line without its CRLF. Whatever is wrong with it stands in the command's `error`."""
    # RFC 5321 section 4.1.1: verbs in any case, trailing white space is tolerated.
    word, _, rest = line.partition(b" ")
    row = COMMANDS.get(word) or COMMANDS.get(word.upper())
    if row is None and b"\t" in word:
        # deviates: a TAB behind the verb counts as the space of section 4.1.1.
        word, _, rest = line.replace(b"\t", b" ", 1).partition(b" ")
        row = COMMANDS.get(word.upper())
    if rest and (rest[-1] in b" \t" or rest[0] in b" \t"):
        rest = rest.strip(b" \t")
    if row is None and grammar.is_device and line[:1] in (b" ", b"\t") and (bare := line.lstrip(b" \t")):
        command, row = parse_command(bare, grammar)
        command.repairs = (*command.repairs, device.SPACES)
        return command, row
    # The patterns of the verbs with a grammar let no control character through.
    if row is None or (row.is_free_text and _CONTROL.search(line)):
        return _refuse(word, rest, row, line), row
    try:
        command = Command(row.verb, rest.decode("ascii"))
    except UnicodeDecodeError:
        text = a.decode_utf8(rest) if row.takes_utf8 else None
        command = Command(row.verb, text if text is not None else rest.decode("ascii", "backslashreplace"))
        if text is None and grammar.is_device and row.parse is _parse_greeting:
            command.repairs = (device.NO_NAME,)
        elif text is None:
            command.error, command.is_abuse = _NOT_UTF8, row.verb == "BDAT"
            return command, row
    row.parse(command, rest, grammar)
    return command, row


def _refuse(word: bytes, rest: bytes, row: Row | None, line: bytes) -> Command:
    verb = row.verb if row else word[:16].decode("ascii", "backslashreplace").upper()
    command = Command(verb, rest.decode("ascii", "backslashreplace"))
    if _FOREIGN.match(line):
        command.error, command.is_abuse = _FOREIGN_REPLY, True
    else:
        command.error = _HAS_CONTROL if _CONTROL.search(line) else _UNKNOWN
        command.is_abuse = verb == "BDAT"
    return command
