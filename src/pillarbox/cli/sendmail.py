"""`pillarbox sendmail`: what programs expect at /usr/sbin/sendmail. Link that to the command: it knows itself by that name.

It speaks SMTP to a server (PILLARBOX_SENDMAIL, else 127.0.0.1:25), so that any user may call it and nothing but SMTP is
believed; exit codes are those of sysexits.h. Options are sendmail's own, and so is their form.
"""

from __future__ import annotations

import contextlib
import getopt
import getpass
import os
import re
import smtplib
import sys
from dataclasses import dataclass, field
from email.header import Header
from email.parser import BytesHeaderParser
from email.policy import default as modern
from email.utils import formataddr, formatdate
from typing import BinaryIO

from ..client import without_bcc
from ..config.usual import usual_server
from ..mail.headers import raw_fields, section_end
from ..places import default_hostname, parse_endpoint
from ..smtp.extension import format_xtext
from ..smtp.framing import normalise_lines
from .addresslist import parse_addresses
from .smtp_input import hold_dialogue
from .terminal import say

ENVIRONMENT = "PILLARBOX_SENDMAIL"
NAMES = ("sendmail", "mailq", "newaliases")
# sysexits.h
_OK, _USAGE, _DATA, _UNAVAILABLE, _TEMPORARY = 0, 64, 65, 69, 75
_SHORT = "A:B:b:C:D:d:e:F:f:Gh:IiL:mN:nO:o:p:q:R:r:tUV:vX:x"
_WAIT_S = 300.0
HELP = """\
usage: {called} [-t] [-i] [-f SENDER] [-F NAME] [-N NOTIFY] [-R full|hdrs] [-V ENVID] [RECIPIENT]...  < MESSAGE
       {called} -bs                          SMTP on stdin and stdout
       {called} -bp, mailq [--data-dir DIR | --queue URL]    the queue, as `pillarbox queue list`
       {called} -q  [--data-dir DIR | --queue URL]           tries all queued mail again
       {called} -bi, newaliases              does nothing: there are no alias files

  -t  recipients from To, Cc and Bcc     -i  a line with a dot alone does not end the message
  -f  reverse-path                       -F  name in the From field, where the message has none
  -N  never, or success,failure,delay    -R  what a delivery status notification returns
  -V  envelope identifier                -bv only checks the message and its recipients

The message goes to the SMTP server at $PILLARBOX_SENDMAIL (HOST:PORT), else to where the configuration of this machine
listens, else to 127.0.0.1:25. Exit codes are those of sysexits.h."""


class SendmailError(Exception):
    """A text, and the exit code that goes with it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Call:
    """What the arguments mean. `mode` is that of -b: m (send), s (SMTP on stdin), p (the queue), i (aliases), v."""

    mode: str = "m"
    sender: str | None = None
    name: str = ""
    recipients: list[str] = field(default_factory=list)
    takes_from_headers: bool = False
    dots_are_text: bool = False
    notify: str = ""
    ret: str = ""
    envid: str = ""
    flushes: bool = False


def parse_call(arguments: list[str], called: str = "sendmail") -> Call:
    """Raises SendmailError for what cannot be meant."""
    call = Call(mode={"mailq": "p", "newaliases": "i"}.get(called, "m"))
    try:
        given, call.recipients = getopt.gnu_getopt(_without_q(call, arguments), _SHORT)
    except getopt.GetoptError as error:
        raise SendmailError(_USAGE, f"{error}; see the documentation of `pillarbox sendmail`") from None
    for option, value in given:
        _take(call, option, value)
    return call


def _without_q(call: Call, arguments: list[str]) -> list[str]:
    """-q, -q30m and -qIuid: the value stands in the same word or is left out, which getopt knows nothing of."""
    kept: list[str] = []
    for number, word in enumerate(arguments):
        if word == "--":
            return [*kept, *arguments[number:]]
        before = arguments[number - 1] if number else ""
        is_value = len(before) == 2 and before[0] == "-" and f"{before[1]}:" in _SHORT
        if word.startswith("-q") and not is_value:
            call.flushes = True
        else:
            kept.append(word)
    return kept


def _take(call: Call, option: str, value: str) -> None:
    if option in ("-f", "-r"):
        call.sender = value[1:-1] if value.startswith("<") and value.endswith(">") else value
    elif option == "-F":
        # It becomes part of a field, and must not begin another.
        call.name = "".join(c if c.isprintable() else " " for c in value)
    elif option == "-t":
        call.takes_from_headers = True
    elif option in ("-i", "-I") or (option == "-o" and value[:1] == "i"):
        call.dots_are_text = option != "-I" and value[1:].lower() not in ("f", "false", "n", "no", "0")
        call.mode = "i" if option == "-I" else call.mode
    elif option == "-N":
        words = value.upper().split(",")
        if words != ["NEVER"] and not set(words) <= {"SUCCESS", "FAILURE", "DELAY"}:
            raise SendmailError(_USAGE, f"-N {value}: give never, or a list of success, failure, delay")
        call.notify = ",".join(words)
    elif option == "-R":
        if value.upper() not in ("FULL", "HDRS"):
            raise SendmailError(_USAGE, f"-R {value}: give full or hdrs")
        call.ret = value.upper()
    elif option == "-V":
        call.envid = value
    elif option == "-b":
        if value not in ("m", "s", "p", "i", "v"):
            raise SendmailError(_USAGE, f"-b{value} is not for this command: `pillarbox serve` is the server")
        call.mode = value


def run(arguments: list[str], called: str = "sendmail", stdin: BinaryIO | None = None) -> int:
    """The exit code; what went wrong is one line on stderr."""
    stdin = stdin or sys.stdin.buffer
    if "--help" in arguments:
        for line in HELP.format(called=called).splitlines():
            say(line)
        return _OK
    try:
        place, arguments = _take_place(arguments)
        call = parse_call(arguments, called)
        if call.mode == "s":
            return _relay(stdin)
        if call.mode == "p":
            return _queue("list", *place)
        if call.mode == "i":
            return _OK
        if call.flushes:
            return _queue("retry", "--all", *place)
        return _send(call, stdin)
    except SendmailError as error:
        say(f"{called}: {error}", is_error=True)
        return error.code


def _take_place(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(`--data-dir` and `--queue` as `pillarbox queue` takes them, all other arguments)."""
    place: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            others += [word, *rest]
        elif word.startswith(("--data-dir=", "--queue=")):
            place.append(word)
        elif word in ("--data-dir", "--queue"):
            value = next(rest, None)
            if value is None:
                raise SendmailError(_USAGE, f"option {word} requires an argument")
            place += [word, value]
        else:
            others.append(word)
    return place, others


def _queue(*words: str) -> int:
    from .main import app

    app(["queue", *words], standalone_mode=False)
    return _OK


# ------------------------------------------------------------------------- one message


def _send(call: Call, stdin: BinaryIO) -> int:
    octets = read_message(stdin, dots_are_text=call.dots_are_text)
    recipients = [address for text in call.recipients for address in addresses_in(text)]
    if call.takes_from_headers:
        recipients += named_recipients(octets)
        octets = without_bcc(octets)
    if not recipients:
        raise SendmailError(_USAGE, "nobody to send to: name recipients, or use -t with To, Cc or Bcc")
    sender = qualified(call.sender if call.sender is not None else _user())
    octets = completed(octets, sender, call.name)
    if call.mode == "v":
        return _OK
    _hand_over(call, sender, list(dict.fromkeys(qualified(one) for one in recipients)), octets)
    return _OK


def read_message(stdin: BinaryIO, *, dots_are_text: bool) -> bytes:
    """Everything, or up to a line with a dot alone; with CRLF."""
    if dots_are_text:
        return _without_from(normalise_lines(stdin.read()))
    lines = []
    for line in stdin:
        if line.rstrip(b"\r\n") == b".":
            break
        lines.append(line)
    return _without_from(normalise_lines(b"".join(lines)))


def _without_from(octets: bytes) -> bytes:
    """Without the line that an mbox has before a message."""
    return octets.partition(b"\r\n")[2] if octets.startswith(b"From ") else octets


def named_recipients(octets: bytes) -> list[str]:
    """The addresses in To, Cc and Bcc; those of Resent- fields where there are any (RFC 5322 section 3.6.6)."""
    section = octets.replace(b"\r\n", b"\n")
    fields = [(name.lower(), value) for name, value in raw_fields(section[: section_end(section)])]
    for prefix in ("resent-", ""):
        texts = [text for name, text in fields if name in (f"{prefix}to", f"{prefix}cc", f"{prefix}bcc")]
        found = [address for text in texts for address in addresses_in(text)]
        if found:
            return found
    return []


def addresses_in(text: str) -> list[str]:
    """The addresses in a list of them. SendmailError for one that cannot be read: nobody is left out in silence."""
    try:
        return parse_addresses(text)
    except ValueError as error:
        raise SendmailError(_DATA, f"these recipients cannot be read: {text[:200]}: {error}") from None


def qualified(address: str) -> str:
    """A local-part alone, such as root, is of this host."""
    return address if not address or "@" in address else f"{address}@{default_hostname()}"


def completed(octets: bytes, sender: str, name: str) -> bytes:
    """With From and Date, where the message has none; one without a header section gets an empty line before its text."""
    fields = BytesHeaderParser(policy=modern).parsebytes(octets)
    added = b""
    if "From" not in fields:
        address = sender or f"MAILER-DAEMON@{default_hostname()}"
        shown = (
            formataddr((Header(name, "utf-8").encode(), address))
            if name and not name.isascii()
            else formataddr((name, address))
        )
        added += f"From: {shown}\r\n".encode()
    if "Date" not in fields:
        added += f"Date: {formatdate(localtime=True)}\r\n".encode()
    first = octets.split(b"\r\n", 1)[0]
    if first and not re.match(rb"[!-9;-~]+[ \t]*:", first):
        added += b"\r\n"
    return added + octets


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"


def _server() -> tuple[str, str, int]:
    text = os.environ.get(ENVIRONMENT) or usual_server("127.0.0.1:25")
    try:
        return parse_endpoint(text, default_port=25)
    except ValueError as error:
        raise SendmailError(_USAGE, f"{ENVIRONMENT}: {error}") from None


def _absent(host: str, port: int, error: Exception) -> str:
    return (
        f"no server at {host}:{port} ({error}): start `pillarbox serve --listen {host}:{port}`, "
        f"or set {ENVIRONMENT}=HOST:PORT"
    )


def _hand_over(call: Call, sender: str, recipients: list[str], octets: bytes) -> None:
    scheme, host, port = _server()
    kind = smtplib.SMTP_SSL if scheme == "smtps" else smtplib.SMTP
    try:
        client = kind(host, port, timeout=_WAIT_S)
        try:
            client.ehlo()
            _check(client.mail(sender, _mail_options(call, client, [sender, *recipients], octets)), f"sender {sender}")
            for address in recipients:
                options = [f"NOTIFY={call.notify}"] if call.notify and client.has_extn("dsn") else []
                # All or none: who calls a program expects one answer.
                _check(client.rcpt(address, options), address)
            _check(client.data(octets), "the message")
        finally:
            # It is decided, whatever the server says to this.
            with contextlib.suppress(OSError, smtplib.SMTPException):
                client.quit()
    except ValueError as error:
        raise SendmailError(_DATA, f"an address cannot be sent: {error}") from None
    except smtplib.SMTPResponseException as error:
        _check((error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b""), "the session")
        raise SendmailError(_TEMPORARY, str(error)) from None
    except (OSError, smtplib.SMTPException) as error:
        raise SendmailError(
            _TEMPORARY,
            _absent(host, port, error),
        ) from None


def _mail_options(call: Call, client: smtplib.SMTP, addresses: list[str], octets: bytes) -> list[str]:
    options = [f"SIZE={len(octets)}"] if client.has_extn("size") else []
    if client.has_extn("dsn"):
        options += [f"RET={call.ret}"] if call.ret else []
        options += [f"ENVID={format_xtext(call.envid)}"] if call.envid else []
    if not octets.isascii() and client.has_extn("8bitmime"):
        options.append("BODY=8BITMIME")
    if not all(address.isascii() for address in addresses) and client.has_extn("smtputf8"):
        client.command_encoding = "utf-8"
        options.append("SMTPUTF8")
    return options


def _check(answer: tuple[int, bytes], what: str) -> None:
    code, text = answer
    if code >= 400:
        words = f"{what}: {code} {text.decode('utf-8', 'replace')}"
        raise SendmailError(
            _UNAVAILABLE if code >= 500 else _TEMPORARY, "".join(c if c.isprintable() else " " for c in words)
        )


# ------------------------------------------------------------------ SMTP on stdin (-bs)


def _relay(stdin: BinaryIO) -> int:
    """A dialogue with the server, on stdin and stdout."""
    scheme, host, port = _server()
    client = smtplib.SMTP_SSL(timeout=_WAIT_S) if scheme == "smtps" else smtplib.SMTP(timeout=_WAIT_S)
    try:
        greeting = client.connect(host, port)
    except (OSError, smtplib.SMTPException) as error:
        raise SendmailError(
            _TEMPORARY,
            _absent(host, port, error),
        ) from None
    try:
        return hold_dialogue(client, greeting, stdin, sys.stdout.buffer)
    except (OSError, smtplib.SMTPException) as error:
        raise SendmailError(_TEMPORARY, f"the server at {host}:{port} was lost: {error}") from None
    finally:
        client.close()
