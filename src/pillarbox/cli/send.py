"""`pillarbox send`: a message, or many, to any SMTP server; for first steps and for tests."""

from __future__ import annotations

import smtplib
import sys
import time
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..config.usual import usual_server
from ..errors import OptionError, PillarboxError
from ..places import default_hostname, parse_endpoint
from ..smtp.framing import normalise_lines
from .terminal import say


class SendError(PillarboxError):
    """The server could not be reached, or refused."""


def send(
    to: Annotated[list[str], typer.Option("--to", metavar="ADDRESS", help="Recipient; repeat for more.")],
    sender: Annotated[str | None, typer.Option("--from", metavar="ADDRESS", help="Reverse-path and From.")] = None,
    subject: Annotated[
        str, typer.Option(help="Subject, where the text brings no header section.")
    ] = "A message from pillarbox send",
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Where to. [default: where the configuration listens, or 127.0.0.1:2525]"
        ),
    ] = "",
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Send it so many times, over one connection.")] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="The text is a whole message: send it so, with CRLF.")] = False,
    file: Annotated[str | None, typer.Argument(help="File with the text; - for stdin. [default: a short text]")] = None,
) -> None:
    """Send a message."""
    server = server or usual_server("127.0.0.1:2525")
    try:
        scheme, host, port = parse_endpoint(server, default_port=25)
    except ValueError as error:
        raise OptionError(f"--server {error}") from None
    sender = sender or f"pillarbox@{default_hostname()}"
    text = _read(file)
    kind = smtplib.SMTP_SSL if scheme == "smtps" else smtplib.SMTP
    try:
        with kind(host, port, timeout=60) as client:
            replies = _send_all(client, sender, to, subject, text, count, raw=raw)
    except smtplib.SMTPRecipientsRefused as error:
        code, reply = next(iter(error.recipients.values()))
        raise SendError(f"{server} refused the recipients: {code} {reply.decode('utf-8', 'replace')}") from None
    except smtplib.SMTPResponseException as error:
        reply_text = (
            error.smtp_error if isinstance(error.smtp_error, str) else error.smtp_error.decode("utf-8", "replace")
        )
        raise SendError(f"{server} refused: {error.smtp_code} {reply_text}") from None
    except ValueError as error:
        raise OptionError(f"an address or the subject cannot be sent so: {error}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise SendError(f"cannot send to {server}: {error}; is the server running? (`pillarbox serve`)") from None
    say(replies[0])
    if replies[1]:
        raise typer.Exit(1)


def _read(file: str | None) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        if file is not None:
            with open(file, "rb") as handle:
                return handle.read()
    except OSError as error:
        raise OptionError(f"cannot read {file}: {error.strerror}") from None
    return b"Hello from Pillarbox.\n"


def _message(sender: str, to: list[str], subject: str, text: bytes, *, raw: bool) -> bytes:
    if raw:
        return normalise_lines(text)
    message = EmailMessage()
    message["From"] = sender
    message["To"] = ", ".join(to)
    message["Subject"] = subject
    message["Date"] = formatdate(localtime=True)
    message["Message-ID"] = make_msgid(domain=default_hostname())
    message.set_content(text.decode("utf-8", "replace"))
    return normalise_lines(message.as_bytes())


def _send_all(
    client: smtplib.SMTP, sender: str, to: list[str], subject: str, text: bytes, count: int, *, raw: bool
) -> tuple[str, bool]:
    """The last word, and whether some recipients were refused."""
    if count == 1:
        return _send_one(client, sender, to, _message(sender, to, subject, text, raw=raw))
    started, is_partial = time.monotonic(), False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for _ in progress.track(range(count), description="sending"):
            _, some = _send_one(client, sender, to, _message(sender, to, subject, text, raw=raw))
            is_partial = is_partial or some
    seconds = time.monotonic() - started
    return f"{count} messages accepted in {seconds:.1f} s", is_partial


def _send_one(client: smtplib.SMTP, sender: str, to: list[str], octets: bytes) -> tuple[str, bool]:
    client.ehlo_or_helo_if_needed()
    code, reply = client.mail(sender)
    if code >= 400:
        raise smtplib.SMTPSenderRefused(code, reply, sender)
    refused = {}
    for address in to:
        code, reply = client.rcpt(address)
        if code >= 400:
            refused[address] = (code, reply)
    if len(refused) == len(to):
        raise smtplib.SMTPRecipientsRefused(refused)
    code, reply = client.data(octets)
    if code >= 400:
        raise smtplib.SMTPDataError(code, reply)
    for address, (bad, why) in refused.items():
        say(f"refused: {address}: {bad} {why.decode('utf-8', 'replace')}", is_error=True)
    return f"{code} {reply.decode('utf-8', 'replace')}", bool(refused)
