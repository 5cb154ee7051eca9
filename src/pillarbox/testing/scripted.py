"""An SMTP server that answers as a script says: the peer for tests of what sends mail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

CLOSE = "close"
"""As a reply: close the connection without a word."""

SILENT = "silent"
"""As a reply: say nothing, and go on reading."""

HANG = "hang"
"""As a reply: say nothing, and read nothing more on this connection, until `go_on` is called."""

_DEFAULTS = {
    "CONNECT": "220 scripted.test ESMTP",
    "EHLO": "250-scripted.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 SIZE 100000000",
    "HELO": "250 scripted.test",
    "MAIL": "250 2.1.0 OK",
    "RCPT": "250 2.1.5 OK",
    "DATA": "354 go on",
    ".": "250 2.0.0 OK taken",
    "RSET": "250 2.0.0 OK",
    "QUIT": "221 2.0.0 bye",
    "NOOP": "250 OK",
}


class ScriptedServer:
    """`replies[verb]` is a reply (without CRLF), or a callable that gets the line and gives one.

    Verbs are CONNECT, EHLO, MAIL, ..., "." for the end of content. `messages` holds (reverse-path line, recipient lines,
    content) of every message whose end was answered 2yz; `lines` all command lines, `connections` how many there were.
    """

    def __init__(self, **replies: str | Callable[[str], str]) -> None:
        self.replies: dict[str, str | Callable[[str], str]] = {**_DEFAULTS, **replies}
        self.messages: list[tuple[str, list[str], bytes]] = []
        self.lines: list[str] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._arrived = asyncio.Event()
        self._goes_on = asyncio.Event()

    def go_on(self) -> None:
        """What hangs goes on, as if it had been answered by default."""
        self._goes_on.set()

    def script(self, verb: str, reply: str | Callable[[str], str]) -> None:
        """Sets the reply of one verb ("." too)."""
        self.replies[verb] = reply

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listens on loopback; another `host`, such as 127.0.0.2, to be one of several MX at the same port."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the listener and every connection."""
        if self._server is not None:
            self._server.close()
            self._goes_on.set()
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0)

    async def __aenter__(self) -> ScriptedServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        """Returns when so many messages have been taken."""
        async with asyncio.timeout(timeout_s):
            while len(self.messages) < count:
                self._arrived.clear()
                await self._arrived.wait()

    def _reply(self, verb: str, line: str) -> str:
        reply = self.replies.get(verb, "500 5.5.2 what?")
        return reply if isinstance(reply, str) else reply(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, _Closed):
            pass
        finally:
            self._writers.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()

    async def _say(self, writer: asyncio.StreamWriter, verb: str, line: str) -> str:
        reply = self._reply(verb, line)
        if reply == HANG:
            await self._goes_on.wait()
            reply = _DEFAULTS[verb]
        if reply == CLOSE:
            raise _Closed
        if reply != SILENT:
            writer.write(reply.encode() + b"\r\n")
        return reply

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, "CONNECT", "")
        sender = ""
        recipients: list[str] = []
        while raw := await reader.readline():
            line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
            self.lines.append(line)
            verb = line.partition(" ")[0].upper()
            reply = await self._say(writer, verb, line)
            if verb == "MAIL":
                sender, recipients = line, []
            elif verb == "RCPT" and reply.startswith("2"):
                recipients.append(line)
            elif verb == "DATA" and reply.startswith("3"):
                content = await reader.readuntil(b".\r\n") if not recipients else await self._content(reader)
                reply = await self._say(writer, ".", "")
                if reply.startswith("2") and recipients:
                    self.messages.append((sender, recipients, content))
                    self._arrived.set()
            elif verb == "QUIT":
                return

    @staticmethod
    async def _content(reader: asyncio.StreamReader) -> bytes:
        lines = []
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                raise _Closed
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)


class _Closed(Exception):
    """The script said close."""
