"""Connections of the admin side: half requests end, strangers give way first, token holders are always served."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from pillarbox.admin import bounded
from pillarbox.admin.server import Admin
from tests.conftest import run_async, serving

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def admin_side(folder: Path) -> AsyncIterator[Admin]:
    async with serving(folder, store="memory") as server:
        admin = Admin(server, ("127.0.0.1", 0))
        await admin.start()
        # uvicorn is listening once it answers.
        while not (await ask(admin, HEALTH)).startswith(b"HTTP/1.1 200"):
            await asyncio.sleep(0.01)
        yield admin
        await admin.stop()


def address(admin: Admin) -> tuple[str, int]:
    host, _, port = admin.url.removeprefix("http://").partition(":")
    return host, int(port)


async def ask(admin: Admin, octets: bytes) -> bytes:
    """The first octets of the answer; b"" when the connection was closed."""
    async with asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection(*address(admin))
            writer.write(octets)
            answer = await reader.read(4096)
            writer.close()
        except ConnectionError:
            return b""
        return answer


def status_request(admin: Admin) -> bytes:
    host = admin.url.removeprefix("http://")
    return f"GET /api/status HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {admin.access.token}\r\n\r\n".encode()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\r\n",
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        HEALTH + b"G",
        HEALTH + HEALTH + b"GET / HTTP/1.1\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf a body",
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
    ],
)
def test_half_a_request_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr(bounded, "HEAD_S", 0.2)
    monkeypatch.setattr(bounded, "BODY_S", 0.3)

    async def main() -> None:
        async with admin_side(tmp_path) as admin, asyncio.timeout(4):
            reader, writer = await asyncio.open_connection(*address(admin))
            writer.write(octets)
            try:
                while await reader.read(4096):
                    pass
            except ConnectionResetError:
                pass
            writer.close()

    run_async(main)


def test_slow_body_at_a_fair_rate_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "HEAD_S", 0.1)
    monkeypatch.setattr(bounded, "BODY_S", 0.1)
    monkeypatch.setattr(bounded, "MIN_BODY_RATE_BYTES_S", 10)

    async def main() -> None:
        async with admin_side(tmp_path) as admin, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*address(admin))
            head = status_request(admin).replace(b"GET /api/status", b"POST /api/messages")
            writer.write(head[:-2] + b"Content-Length: 120\r\n\r\n")
            for _ in range(12):
                writer.write(b"x" * 10)
                await asyncio.sleep(0.05)
            assert (await reader.read(100)).startswith(b"HTTP/1.1 400")
            writer.close()

    run_async(main)


@pytest.mark.parametrize("octets", [b"", b"G", HEALTH + b"G", HEALTH])
def test_strangers_never_keep_a_token_holder_or_a_probe_out(tmp_path: Path, octets: bytes) -> None:
    async def main() -> None:
        async with admin_side(tmp_path) as admin:
            reader, writer = await asyncio.open_connection(*address(admin))
            writer.write(status_request(admin))
            assert (await reader.read(4096)).startswith(b"HTTP/1.1 200")
            with ExitStack() as stack:
                for _ in range(2 * bounded.MAX_STRANGERS):
                    sock = stack.enter_context(socket.create_connection(address(admin)))
                    sock.sendall(octets)
                    await asyncio.sleep(0)
                assert (await ask(admin, HEALTH)).startswith(b"HTTP/1.1 200")
                assert (await ask(admin, status_request(admin))).startswith(b"HTTP/1.1 200")
                # The holder's connection has kept its place.
                writer.write(status_request(admin))
                assert (await reader.read(4096)).startswith(b"HTTP/1.1 200")
            writer.close()

    run_async(main)


def test_one_address_that_is_not_loopback_has_a_bound_of_its_own() -> None:
    aborted: list[str] = []

    class Connection:
        is_answered = False

        def __init__(self, address: str) -> None:
            self.address = address

        def abort(self) -> None:
            aborted.append(self.address)
            places.leave(self)  # type: ignore[arg-type]

    places = bounded.Places(lambda scope: False)
    for _ in range(10):
        places.enter(Connection("192.0.2.1"))  # type: ignore[arg-type]
    for _ in range(100):
        places.enter(Connection("198.51.100.1"))  # type: ignore[arg-type]
        places.enter(Connection("127.0.0.1"))  # type: ignore[arg-type]
    assert aborted == ["198.51.100.1"] * (100 - bounded.MAX_STRANGERS_PER_ADDRESS)
