"""Fixtures and helpers of the suite. Loopback only; nothing sleeps for a fixed time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer

ROOT = Path(__file__).resolve().parent.parent
# The suite starts many processes: each would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first: a broken unit shows before a load test has run."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keeps the garbage collector out of pytest's ast.parse when a failure is reported.

    A finalizer that formats a traceback calls ast.parse within ast.parse. CPython before 3.11.5 answers with SystemError "AST
    constructor recursion depth mismatch", which ends the whole run.
    """
    if call.excinfo is None:
        return (yield)
    gc.collect()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A running PostgreSQL, see tests.postgres."""
    from tests.postgres import Postgres

    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def database(postgres: Any) -> Iterator[str]:
    """The URL of an empty database."""
    with postgres.database() as url:
        yield url


def tool(name: str) -> str:
    """A program that the suite runs for real; on CI its absence is a failure, elsewhere the test is left out."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: tools/install-test-programs.sh installs it")
        pytest.skip(f"{name} is not installed (tools/install-test-programs.sh)")
    return found


def run_async(main: Callable[[], Awaitable[Any]], *, timeout_s: float = 60.0) -> Any:
    """A coroutine function in a loop of its own, uvloop where it is installed; bounded in time."""
    from pillarbox.clock import loop_factory

    async def bounded() -> Any:
        async with asyncio.timeout(timeout_s):
            return await main()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(bounded())


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[MailServer]:
    """A server on port 0 in a scratch folder."""
    given: dict[str, Any] = {"port": 0, "data_dir": str(folder), "hostname": "mx.test", "direct": False, **options}
    server = MailServer(**given)
    await server.start()
    try:
        yield server
    finally:
        await server.shutdown(grace_s=1.0)


def lane_of(server: MailServer) -> Any:
    """The one lane of a server that relays."""
    relay = server._parts.router.relay
    assert relay is not None
    return server._parts.lanes._lane(relay.key)


class Client:
    """A raw SMTP client: says octets, hears replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, server: MailServer, *, greeted: bool = True, **kwargs: Any) -> Client:
        host, port = server.getsockname()
        client = cls(*await asyncio.open_connection(host, port, **kwargs))
        if greeted:
            assert (await client.reply()).startswith("220")
        return client

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def reply(self) -> str:
        """A reply, its lines joined by newlines; "" at the end of the connection."""
        lines = []
        async with asyncio.timeout(15):
            while raw := await self.reader.readline():
                lines.append(raw.decode().rstrip("\r\n"))
                if raw[3:4] != b"-":
                    break
        return "\n".join(lines)

    async def ask(self, line: bytes) -> str:
        """A command, and its reply."""
        self.send(line + b"\r\n")
        return await self.reply()

    async def transaction(self, content: bytes, sender: bytes = b"a@b.test", to: bytes = b"c@d.test") -> str:
        """EHLO was said: MAIL to the end of content; the final reply."""
        assert (await self.ask(b"MAIL FROM:<" + sender + b">")).startswith("250")
        assert (await self.ask(b"RCPT TO:<" + to + b">")).startswith("250")
        assert (await self.ask(b"DATA")).startswith("354")
        self.send(content + b".\r\n")
        return await self.reply()

    async def rest(self) -> str:
        """Everything until the server closes."""
        octets = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(15):
                while piece := await self.reader.read(65536):
                    octets += piece
        # A reset hides what had come before it.
        return (octets + bytes(self.reader._buffer)).decode()

    def close(self) -> None:
        self.writer.close()


async def drip(writer: asyncio.StreamWriter, octets: bytes, sizes: Iterator[int]) -> None:
    """Sends octets in pieces, each on its way before the next."""
    place = 0
    while place < len(octets):
        size = next(sizes)
        try:
            writer.write(octets[place : place + size])
            await writer.drain()
        except ConnectionError:
            # The server has hung up on what it has seen: what it said stands in the reader.
            return
        await asyncio.sleep(0)
        place += size


def cuts(seed: int) -> list[Callable[[], Iterator[int]]]:
    """The ways in which every hostile row is fed: whole, byte by byte, cut at random."""

    def whole() -> Iterator[int]:
        while True:
            yield 1 << 30

    def single() -> Iterator[int]:
        while True:
            yield 1

    def at_random() -> Iterator[int]:
        rng = random.Random(seed)
        while True:
            yield rng.randint(1, 7)

    return [whole, single, at_random]


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Returns when the condition holds; looks at each turn of the loop."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true")
        await asyncio.sleep(0.002)


def free_port() -> int:
    """A port that is free now, below the ports that the kernel gives to the connections of other tests (from 32768 on)."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate for mx.test, localhost and 127.0.0.1, its key, and the CA's own certificate, as files."""
    import trustme

    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    leaf = authority.issue_cert("mx.test", "localhost", "127.0.0.1")
    paths = {name: str(folder / f"{name}.pem") for name in ("cert", "key", "ca")}
    leaf.private_key_pem.write_to_path(paths["key"])
    leaf.cert_chain_pems[0].write_to_path(paths["cert"])
    authority.cert_pem.write_to_path(paths["ca"])
    return paths


class WireTransport(asyncio.Transport):
    """A transport that keeps what is written; octets come in exactly as a test cuts them."""

    def __init__(self, peer: str = "127.0.0.1") -> None:
        super().__init__()
        self.out = bytearray()
        self.writes = 0
        self.closed = False
        self.is_reading_paused = False
        self._info = {"peername": (peer, 4321), "sockname": ("127.0.0.1", 25)}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._info.get(name, default)

    def write(self, data: Any) -> None:
        assert not self.closed
        self.out += data
        self.writes += 1

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False


class Wire:
    """A session of a real server without a socket: what the client says is cut as `sizes` says."""

    def __init__(self, server: MailServer, sizes: Iterator[int], peer: str = "127.0.0.1") -> None:
        from pillarbox.events.session import Endpoint
        from pillarbox.server.connection import SmtpConnection
        from pillarbox.smtp.reply import Reply, format_reply

        context = server._parts.context
        is_trusted = context.is_trusted(peer)
        local = Endpoint("127.0.0.1", 25)
        self.connection = SmtpConnection(context, Endpoint(peer, 4321), local, is_trusted=is_trusted)
        self.transport = WireTransport(peer)
        self._sizes = sizes
        self._seen = 0
        # As the acceptor does it.
        refusal = context.admission.enter(peer, is_trusted=is_trusted)
        if refusal is None:
            self.connection.connection_made(self.transport)
        else:
            self.transport.write(format_reply(Reply(421, "4.7.0", refusal.text)))
            self.transport.close()

    async def send(self, octets: bytes) -> None:
        """Feeds octets in pieces, with turns of the loop between some of them."""
        place = 0
        while place < len(octets) and not self.transport.closed:
            while self.transport.is_reading_paused and not self.transport.closed:
                await asyncio.sleep(0)
            size = next(self._sizes)
            self.connection.data_received(octets[place : place + size])
            place += size
            if place % 64 < size:
                await asyncio.sleep(0)

    async def settle(self) -> None:
        """Until the session waits for its client: nothing is parked, nothing is in commit."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            await asyncio.sleep(0)
            if self.transport.closed:
                return
            session = self.connection.session
            if not session._waiting and not self.connection._outbox.writes:
                return
        raise TimeoutError("the session does not come to rest")

    def replies(self) -> list[str]:
        """Replies since the last look, each with its lines joined by newlines."""
        text = self.transport.out[self._seen :].decode()
        self._seen = len(self.transport.out)
        found, lines = [], []
        for line in text.split("\r\n")[:-1]:
            lines.append(line)
            if line[3:4] != "-":
                found.append("\n".join(lines))
                lines = []
        return found

    async def ask(self, octets: bytes) -> list[str]:
        """Sends, settles, and gives the replies."""
        await self.send(octets)
        await self.settle()
        return self.replies()

    def lose(self) -> None:
        """The client is gone."""
        self.transport.closed = True
        self.connection.connection_lost(None)


@asynccontextmanager
async def wired(sizes: Callable[[], Iterator[int]], peer: str = "127.0.0.1", **options: Any) -> AsyncIterator[Any]:
    """(server, wire, codes): a memory-store server, a greeted session, and `codes(octets)` for the reply codes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), store="memory", **options) as server:
            wire = Wire(server, sizes(), peer)
            await wire.settle()
            wire.replies()
            try:
                yield server, wire
            finally:
                if not wire.transport.closed:
                    wire.lose()
                else:
                    wire.connection.connection_lost(None)


def queued(server: MailServer) -> list[Any]:
    """All messages of a memory-store server."""
    from pillarbox.queue.model import Query

    return server._parts.store.search(Query(is_all=True))


def stored_content(server: MailServer, index: int = 0) -> bytes:
    """The content of a queued message, as it would be sent."""
    content = server._parts.store.content(queued(server)[index].uid)
    assert content is not None
    return content.read()
