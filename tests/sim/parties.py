"""Those who talk to the servers: clients that send, and next hops that receive. Written apart from pillarbox.smtp, on purpose:
a fault in its framing must not be in theirs, too."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .loop import SimLoop


@dataclass
class Mail:
    """A message, as its sender wants it to arrive."""

    number: int
    sender: str | None
    recipients: list[str]
    content: bytes
    taken: list[str] = field(default_factory=list)
    # The reply to its content said 250.
    is_acknowledged: bool = False


def make_mail(rng: random.Random, number: int, domains: list[str]) -> Mail:
    """Content that framing may stumble over: dots at line starts, long and empty lines, eight bits."""
    lines = [b"Subject: message %d" % number, b"X-Sim: %d" % number, b"Date: Mon, 23 Nov 2026 10:00:00 +0000"]
    lines += [b"Message-ID: <%d@src.test>" % number, b""]
    size = 1 if rng.random() < 0.9 else 400
    for _ in range(rng.randrange(1, 8) * size):
        kind = rng.randrange(6)
        if kind == 0:
            lines.append(b"." * rng.randrange(1, 4) + b"dots" * rng.randrange(2))
        elif kind == 1:
            lines.append(b"")
        elif kind == 2:
            lines.append(bytes(rng.choices(range(128, 256), k=rng.randrange(1, 30))))
        else:
            lines.append(b"x" * rng.randrange(1, 200) + b".")
    recipients = [f"r{number}-{n}@{rng.choice(domains)}" for n in range(rng.choice((1, 1, 1, 2, 3, 8)))]
    return Mail(number, f"s{number}@src.test", recipients, b"\r\n".join(lines) + b"\r\n")


class Source(asyncio.Protocol):
    """A client that sends its messages over one connection, with or without PIPELINING, by DATA or BDAT, in pieces."""

    def __init__(self, loop: SimLoop, rng: random.Random, mails: list[Mail], tell: Callable[[str], None]) -> None:
        self._loop, self._rng, self._tell = loop, rng, tell
        self._mails = list(mails)
        self._mail: Mail | None = None
        self._buffer = b""
        self._expects: list[tuple[str, str]] = [("greeting", "")]
        self._is_pipelining = rng.random() < 0.6
        self._uses_bdat = rng.random() < 0.3
        self._waits: list[tuple[str, str, bytes]] = []
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (found := re.match(rb"(?:\d\d\d-[^\r\n]*\r\n)*(\d\d\d)(?: [^\r\n]*)?\r\n", self._buffer)) is not None:
            self._buffer = self._buffer[found.end() :]
            if not self._expects:
                # 421, before it is hung up.
                return self._transport.close()
            self._reply(int(found[1]), *self._expects.pop(0))
        return None

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._expects.clear()

    def pause_writing(self) -> None:
        """It has no more than it is told to send."""

    def resume_writing(self) -> None:
        """See pause_writing."""

    def _say(self, what: str, about: str, line: bytes) -> None:
        self._expects.append((what, about))
        self._transport.write(line)

    def _reply(self, code: int, what: str, about: str) -> None:
        mail = self._mail
        if code == 421:
            self._transport.close()
        elif what == "greeting":
            self._say("ehlo", "", b"EHLO client.src.test\r\n")
        elif what == "ehlo":
            self._begin()
        elif what == "rcpt" and mail is not None:
            if code == 250:
                mail.taken.append(about)
            self._next()
        elif what in ("mail", "chunk"):
            self._next()
        elif what == "data" and mail is not None:
            if code != 354:
                self._begin()
            else:
                stuffed = re.sub(rb"(?m)^\.", b"..", mail.content)
                self._say("end", "", stuffed + b".\r\n")
        elif what == "end" and mail is not None:
            if code == 250 and mail.taken:
                mail.is_acknowledged = True
                self._tell(f"250 for {mail.number} ({', '.join(mail.taken)})")
            self._begin()

    def _begin(self) -> None:
        """The next message, or the end."""
        if not self._mails:
            self._say("quit", "", b"QUIT\r\n")
            return
        self._mail = mail = self._mails.pop(0)
        commands = [("mail", "", b"MAIL FROM:<%s> BODY=8BITMIME\r\n" % (mail.sender or "").encode())]
        commands += [("rcpt", r, b"RCPT TO:<%s>\r\n" % r.encode()) for r in mail.recipients]
        if self._uses_bdat:
            cut = self._rng.randrange(len(mail.content))
            first, last = mail.content[:cut], mail.content[cut:]
            commands.append(("chunk", "", b"BDAT %d\r\n" % len(first) + first))
            commands.append(("end", "", b"BDAT %d LAST\r\n" % len(last) + last))
        else:
            commands.append(("data", "", b"DATA\r\n"))
        self._waits = commands
        self._next()

    def _next(self) -> None:
        while self._waits:
            self._say(*self._waits.pop(0))
            if not self._is_pipelining:
                return


@dataclass
class Mood:
    """How a next hop behaves, as chances of each."""

    defers: float = 0.0
    refuses: float = 0.0
    hangs_up: float = 0.0
    slow: float = 0.0
    never_answers: float = 0.0
    # The reply to a content that was taken is lost.
    forgets_to_say: float = 0.0


class Sink:
    """A next hop with a mood; `arrived` has (recipient, content) of what it took, whether or not it could say so."""

    def __init__(self, loop: SimLoop, rng: random.Random, name: str, tell: Callable[[str], None]) -> None:
        self.loop, self.rng, self.name, self.tell = loop, rng, name, tell
        self.mood = Mood()
        self.arrived: list[tuple[str, str, bytes]] = []
        # Recipients of transactions whose end the client may have not heard of.
        self.unsure: set[str] = set()
        self.has_pipelining = rng.random() < 0.8
        self.has_ehlo = rng.random() < 0.95
        self.connections: dict[SinkConnection, None] = {}
        self.most_connections = 0

    def __call__(self) -> SinkConnection:
        return SinkConnection(self)


class SinkConnection(asyncio.Protocol):
    """One connection of a Sink's."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._is_busy = False
        self._in_content = False
        self._sender = ""
        self._has_sender = False
        self._recipients: list[str] = []
        self._is_closed = False
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._sink.connections[self] = None
        self._sink.most_connections = max(self._sink.most_connections, len(self._sink.connections))
        self._answer(b"220 %s ESMTP\r\n" % self._sink.name.encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._go_on()

    def eof_received(self) -> bool:
        self._is_closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._sink.connections.pop(self, None)
        self._sink.unsure.update(self._recipients if self._in_content else ())

    def pause_writing(self) -> None:
        """Replies are short."""

    def resume_writing(self) -> None:
        """See pause_writing."""

    def _answer(self, reply: bytes) -> None:
        """After a while, as the mood is; what was pipelined waits for it."""
        sink, chance = self._sink, self._sink.rng.random()
        mood = sink.mood
        if chance < mood.never_answers:
            self._is_busy = True
            return
        if chance < mood.never_answers + mood.hangs_up:
            self._transport.abort()
            self._is_closed = True
            return
        if chance < mood.never_answers + mood.hangs_up + mood.slow:
            self._is_busy = True
            sink.loop.call_later(sink.rng.uniform(1.0, 100.0), self._answered, reply)
            return
        self._transport.write(reply)

    def _answered(self, reply: bytes) -> None:
        self._is_busy = False
        if not self._is_closed:
            self._transport.write(reply)
            self._go_on()

    def _go_on(self) -> None:
        while not self._is_busy and not self._is_closed:
            if self._in_content:
                # A line of a dot alone, behind a CRLF (the one of DATA's, if the content is empty).
                end = self._buffer.find(b"\r\n.\r\n") if not self._buffer.startswith(b".\r\n") else -2
                if end == -1:
                    return
                content, self._buffer = self._buffer[: max(end + 2, 0)], self._buffer[end + 5 :]
                self._content(re.sub(rb"(?:^|(?<=\r\n))\.", b"", content))
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return
            self._buffer = rest
            self._command(line.decode("latin-1"))

    def _command(self, line: str) -> None:
        sink = self._sink
        verb = line[:4].upper()
        refusal = self._refusal()
        if verb == "EHLO" and sink.has_ehlo:
            extensions = ["8BITMIME", "SIZE 10000000", *(["PIPELINING"] if sink.has_pipelining else [])]
            lines = [f"250-{sink.name}", *(f"250-{one}" for one in extensions[:-1]), f"250 {extensions[-1]}"]
            self._answer("".join(one + "\r\n" for one in lines).encode())
        elif verb == "EHLO":
            self._answer(b"500 5.5.1 What?\r\n")
        elif verb == "HELO":
            self._answer(b"250 hello\r\n")
        elif verb == "MAIL":
            self._recipients = []
            self._has_sender = not refusal.startswith(b"4")
            self._sender = line.partition("<")[2].partition(">")[0]
            self._answer(refusal if refusal.startswith(b"4") else b"250 2.1.0 Ok\r\n")
        elif verb == "RCPT":
            refusal = refusal if self._has_sender else b"503 5.5.1 No sender\r\n"
            if not refusal:
                self._recipients.append(line.partition("<")[2].partition(">")[0])
            self._answer(refusal or b"250 2.1.5 Ok\r\n")
        elif verb == "DATA":
            if not self._recipients or refusal.startswith(b"4"):
                self._answer(refusal or b"554 5.5.1 No recipients\r\n")
            else:
                self._in_content = True
                self._answer(b"354 Go ahead\r\n")
        elif verb == "QUIT":
            self._transport.write(b"221 2.0.0 Bye\r\n")
            self._transport.close()
            self._is_closed = True
        else:
            self._answer(b"250 2.0.0 Ok\r\n")

    def _refusal(self) -> bytes:
        chance, mood = self._sink.rng.random(), self._sink.mood
        if chance < mood.defers:
            return self._sink.rng.choice((b"451 4.3.0 Later\r\n", b"450 4.2.1 Busy\r\n", b"452 4.2.2 Full\r\n"))
        if chance < mood.defers + mood.refuses:
            return b"550 5.1.1 Nobody here\r\n"
        return b""

    def _content(self, content: bytes) -> None:
        sink = self._sink
        self._in_content = False
        refusal = self._refusal()
        if not refusal:
            sink.arrived += [(r, self._sender, content) for r in self._recipients]
            sink.tell(f"{sink.name} took {', '.join(self._recipients)}")
        # From here on the client may not hear of it.
        recipients = list(self._recipients)
        if sink.rng.random() < sink.mood.forgets_to_say:
            sink.unsure.update(recipients)
            self._transport.abort()
            self._is_closed = True
            return
        before = sink.mood.hangs_up, sink.mood.never_answers
        self._answer(refusal or b"250 2.0.0 Taken\r\n")
        if self._is_closed or self._is_busy or any(before):
            sink.unsure.update(recipients)
