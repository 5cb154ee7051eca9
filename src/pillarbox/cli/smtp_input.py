"""`sendmail -bs`: SMTP on standard input, held with a server command by command.

The input may be a program that waits for each reply, or a file with a whole dialogue; lines may end with LF. The octets
cannot simply be passed on: behind DATA the server would refuse what comes before its 354.
"""

from __future__ import annotations

import os
import re
import select
import smtplib
from typing import BinaryIO

# sysexits.h
OK, DATA_ERROR, UNAVAILABLE, TEMPORARY = 0, 65, 69, 75
_READ_BYTES = 65536
_STARTTLS = b"502 5.5.1 STARTTLS is not offered on standard input\r\n"
_BDAT = re.compile(rb"BDAT[ ]+([0-9]{1,18})(?:[ ]+LAST)?[ ]*\Z", re.IGNORECASE)


class _Input:
    """Standard input: lines, octets, and whether anything waits to be read."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._held = b""
        self._has_ended = False

    def _fill(self) -> bool:
        octets = b"" if self._has_ended else os.read(self._descriptor, _READ_BYTES)
        self._has_ended = not octets
        self._held += octets
        return bool(octets)

    def line(self) -> bytes:
        """The next line with its end; without one at the end of the input; empty when that is over."""
        while b"\n" not in self._held and self._fill():
            pass
        line, end, self._held = self._held.partition(b"\n")
        return line + end

    def take(self, count: int) -> bytes:
        """At most so many octets; none when the input is over."""
        if not self._held:
            self._fill()
        octets, self._held = self._held[:count], self._held[count:]
        return octets

    def is_waiting(self) -> bool:
        """True if the program did not wait for the reply to its last command."""
        if self._held:
            return True
        try:
            ready = bool(select.select([self._descriptor], [], [], 0)[0])
        except (OSError, ValueError):
            ready = True
        return ready and self._fill()


def hold_dialogue(server: smtplib.SMTP, greeting: tuple[int, bytes], stdin: BinaryIO, stdout: BinaryIO) -> int:
    """Passes commands and content to the server, replies to `stdout`. The exit code is that of the worst reply.

    The reply to EHLO does not count: a client falls back to HELO.
    """
    given, worst = _Input(stdin), OK

    def tell(code: int, text: bytes, *, counts: bool = True) -> None:
        nonlocal worst
        lines = [line for line in text.split(b"\n") if line != b"STARTTLS"] or [b""]
        for number, line in enumerate(lines, 1):
            stdout.write(b"%d%s%s\r\n" % (code, b" " if number == len(lines) else b"-", line))
        stdout.flush()
        if counts and code >= 500:
            worst = UNAVAILABLE
        elif counts and code >= 400:
            worst = worst or TEMPORARY

    tell(*greeting)
    if greeting[0] != 220:
        return worst
    while line := given.line():
        command = line.rstrip(b"\r\n")
        verb = command[:8].upper().rstrip()
        if verb == b"STARTTLS":
            stdout.write(_STARTTLS)
            stdout.flush()
            continue
        chunk = _BDAT.match(command)
        server.send(command + b"\r\n")
        if chunk and not _pass_chunk(server, given, int(chunk[1])):
            return DATA_ERROR
        code, text = server.getreply()
        tell(code, text, counts=verb[:4] != b"EHLO")
        if verb == b"DATA" and code == 354:
            if not _pass_content(server, given):
                return DATA_ERROR
            tell(*server.getreply())
        elif verb == b"DATA" and given.is_waiting():
            # A dialogue that was written beforehand: its content must not be read as commands.
            while (line := given.line()) and line.rstrip(b"\r\n") != b".":
                pass
        if code in (221, 421):
            break
    else:
        server.send(b"QUIT\r\n")
        server.getreply()
    return worst


def _pass_content(server: smtplib.SMTP, given: _Input) -> bool:
    """Content up to the line with a dot. False if the input ends before: nothing may be delivered then."""
    while line := given.line():
        text = line.rstrip(b"\r\n")
        if text == b"." and line.endswith(b"\n"):
            server.send(b".\r\n")
            return True
        # A bare CR would be a line end for some: a line with a dot must not come of it.
        server.send(text.replace(b"\r", b"") + b"\r\n")
    return False


def _pass_chunk(server: smtplib.SMTP, given: _Input, count: int) -> bool:
    """RFC 3030 section 2: so many octets, as they are."""
    while count > 0:
        octets = given.take(min(count, _READ_BYTES))
        if not octets:
            return False
        server.send(octets)
        count -= len(octets)
    return True
