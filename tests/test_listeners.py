"""Listener profiles (MX, submission) and load balancers in front: the PROXY protocol, hostile row 64."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.errors import OptionError
from pillarbox.options import parse_options
from pillarbox.server import proxyproto
from pillarbox.server.acceptor import ACCEPTED_A_TURN
from pillarbox.server.proxyproto import SIGNATURE, ProxyFault, missing, parse
from tests.conftest import Client, run_async, serving, until

V1 = b"PROXY TCP4 198.51.100.7 192.0.2.25 40000 25\r\n"


def v2(command: int = 1, family: int = 0x11, block: bytes | None = None, *, length: int | None = None) -> bytes:
    """A header of version 2."""
    if block is None:
        block = socket.inet_aton("198.51.100.7") + socket.inet_aton("192.0.2.25") + struct.pack("!HH", 40000, 25)
    return SIGNATURE + bytes((0x20 | command, family)) + struct.pack("!H", length or len(block)) + block


V6 = v2(1, 0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 4, 25))


@asynccontextmanager
async def behind_balancer(folder: Path, **options: Any) -> AsyncIterator[MailServer]:
    given = {"proxy_from": ["127.0.0.0/8"], **options}
    async with serving(folder, store="memory", **given) as server:
        yield server


async def raw(server: MailServer) -> Client:
    return await Client.connect(server, greeted=False)


def the_peer(server: MailServer) -> str:
    (session,) = server._parts.context.sessions.values()
    return session.facts.peer.host


# -------------------------------------------------------------------------- row 64


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (V1, "198.51.100.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::25 40000 25\r\n", "2001:db8::7"),
        (v2(), "198.51.100.7"),
        (V6, "2001:db8::7"),
        # With the TLVs of a balancer that has more to say.
        (v2(block=v2()[16:] + b"\x01\x00\x03abc", length=12 + 6), "198.51.100.7"),
    ],
)
@pytest.mark.parametrize("cut", ["whole", "bytes"])
def test_row_64_the_client_is_who_the_balancer_says(tmp_path: Path, header: bytes, peer: str, cut: str) -> None:
    async def main() -> None:
        async with behind_balancer(tmp_path) as server:
            client = await raw(server)
            for piece in [header] if cut == "whole" else [header[n : n + 1] for n in range(len(header))]:
                client.send(piece)
                await client.writer.drain()
                await asyncio.sleep(0)
            assert (await client.reply()).startswith("220")
            assert the_peer(server) == peer
            # What follows at once is the client's.
            assert (await client.ask(b"EHLO x.test")).startswith("250")
            # A stranger may not relay, whatever address the balancer has.
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("250")
            assert (await client.ask(b"RCPT TO:<c@d.test>")).startswith("550 5.7.1")
            client.close()

    run_async(main)


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 x 1 2\r\n", v2(0), v2(1, 0, b"")])
def test_row_64_a_balancer_that_speaks_for_nobody_is_not_trusted(tmp_path: Path, header: bytes) -> None:
    async def main() -> None:
        async with behind_balancer(tmp_path) as server:
            client = await raw(server)
            client.send(header + b"EHLO x.test\r\n")
            assert (await client.reply()).startswith("220")
            assert (await client.reply()).startswith("250")
            assert the_peer(server) == "127.0.0.1"
            await client.ask(b"MAIL FROM:<a@b.test>")
            assert (await client.ask(b"RCPT TO:<c@d.test>")).startswith("550 5.7.1")
            client.close()

    run_async(main)


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO x.test\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.25 40000\r\n",
        b"PROXY TCP4 198.51.100.999 192.0.2.25 40000 25\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::8 40000 25\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.25 70000 25\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.25 40000 25\n" + b"x" * 200,
        b"PROXY " + b"x" * (1 << 20),
        SIGNATURE + b"\x21\x11\xff\xff" + b"x" * (1 << 20),
        SIGNATURE + b"\x31\x11\x00\x0c" + b"x" * 12,
        SIGNATURE + b"\x22\x11\x00\x0c" + b"x" * 12,
        SIGNATURE + b"\x21\x12\x00\x0c" + b"x" * 12,
        # A length that is a lie: too short for its addresses.
        v2(length=4),
    ],
)
def test_row_64_what_is_no_header_is_closed_without_a_word(tmp_path: Path, octets: bytes) -> None:
    async def main() -> None:
        async with behind_balancer(tmp_path) as server:
            client = await raw(server)
            client.send(octets)
            assert await client.rest() == ""
            assert server._parts.context.counters.sessions == 0

    run_async(main)


def test_row_64_half_a_header_is_closed_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxyproto, "HEADER_S", 0.1)

    async def main() -> None:
        async with behind_balancer(tmp_path) as server:
            silent, half, ended = await raw(server), await raw(server), await raw(server)
            half.send(V1[:20])
            ended.send(v2()[:20])
            ended.writer.write_eof()
            for client in (silent, half, ended):
                assert await client.rest() == ""

    run_async(main)


def test_row_64_a_stranger_cannot_spoof(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_balancer(tmp_path, proxy_from=["192.0.2.0/24"]) as server:
            client = await raw(server)
            assert (await client.reply()).startswith("220")
            assert (await client.ask(V1[:-2])).startswith("500")
            assert the_peer(server) == "127.0.0.1"
            client.close()

    run_async(main)


def test_row_64_header_then_tls_in_one_segment(tmp_path: Path, certificate: dict[str, str]) -> None:
    """The handshake's first octets may stand in the same segment as the header."""

    def talk(port: int) -> bytes:
        context = ssl.create_default_context(cafile=certificate["ca"])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="mx.test")
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            header = v2()
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(header + outgoing.read())
                    header = b""
                    incoming.write(sock.recv(65536))
            sock.sendall(outgoing.read())
            while True:
                try:
                    return tls.read(1000)
                except ssl.SSLWantReadError:
                    incoming.write(sock.recv(65536))

    async def main() -> None:
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with behind_balancer(tmp_path, listen=["smtps://127.0.0.1:0"], **files) as server:
            greeting = await asyncio.to_thread(talk, server.getsockname()[1])
            assert greeting.startswith(b"220 mx.test")

    run_async(main)


def test_row_64_any_cut_and_any_garbage() -> None:
    """`missing` never asks for an octet behind the header, and `parse` never fails otherwise than by ProxyFault."""
    rng = random.Random(64)
    for header in (V1, v2(), V6, b"PROXY UNKNOWN\r\n", v2(0)):
        octets = b""
        while wanted := missing(octets):
            assert len(octets) + wanted <= len(header)
            octets += header[len(octets) : len(octets) + rng.randint(1, wanted)]
        assert octets == header
        for _ in range(300):
            broken = bytearray(header)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            try:
                if missing(bytes(broken)) == 0:
                    parse(bytes(broken))
            except ProxyFault:
                pass


def test_a_server_that_closes_hears_who_was_on_the_way(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_balancer(tmp_path) as server:
            client = await raw(server)
            (acceptor,) = server._parts.listeners._acceptors
            await until(lambda: acceptor.is_arriving)
            closing = asyncio.ensure_future(server.shutdown(grace_s=10))
            await until(lambda: server._parts.context.is_closing)
            client.send(V1 + b"EHLO x.test\r\n")
            assert (await client.reply()).startswith("220")
            client.close()
            await closing

    run_async(main)


def test_no_balancer_speaks_on_a_unix_socket(tmp_path: Path) -> None:
    """There the client is greeted at once: no header comes before its session."""

    async def main() -> None:
        path = f"{tmp_path}/s"
        async with behind_balancer(tmp_path, listen=[f"unix:{path}", "127.0.0.1:0"]):
            client = Client(*await asyncio.open_unix_connection(path))
            assert (await client.reply()).startswith("220")
            client.close()

    run_async(main)


# ------------------------------------------------------------------------ profiles


def test_submission_wants_tls_then_a_login_then_takes_mail(tmp_path: Path, certificate: dict[str, str]) -> None:
    files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}

    async def main() -> None:
        listen = ["127.0.0.1:0", "submission://127.0.0.1:0", "submissions://127.0.0.1:0"]
        login = {"authenticator": lambda name, password: password == "right"}
        async with serving(tmp_path, store="memory", listen=listen, **login, **files) as server:
            mx, submission, submissions = (port for _, port in server.getsocknames())
            context = ssl.create_default_context(cafile=certificate["ca"])
            client = Client(*await asyncio.open_connection("127.0.0.1", mx))
            await client.reply()
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("250")
            client.close()
            # Trusted by its address, and still asked: at this door everybody is.
            client = Client(*await asyncio.open_connection("127.0.0.1", submission))
            await client.reply()
            await client.ask(b"EHLO x.test")
            assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("530 5.7.0 Must issue a STARTTLS")
            client.close()
            client = Client(
                *await asyncio.open_connection("127.0.0.1", submissions, ssl=context, server_hostname="mx.test")
            )
            await client.reply()
            await client.ask(b"EHLO x.test")
            assert await client.ask(b"MAIL FROM:<me@b.test>") == "530 5.7.0 Authentication required"
            secret = base64.b64encode(b"\0me@b.test\0right")
            assert (await client.ask(b"AUTH PLAIN " + secret)).startswith("235")
            assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n", b"me@b.test")).startswith("250")
            client.close()

    run_async(main)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"listen": ["submission://127.0.0.1"]}, "no tls_cert"),
        ({"listen": ["submissions://127.0.0.1"], "tls_cert": "x"}, "nobody can log in"),
        ({"listen": ["lmtp://127.0.0.1"]}, "the scheme is smtp://, smtps://, submission://, submissions://"),
        ({"relay": ["submission://a.test"]}, "the scheme is smtp://, smtps://"),
        ({"proxy_from": ["balancer"]}, "'balancer' is not a network"),
    ],
)
def test_profiles_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(given)
    assert words in str(caught.value)


def test_profiles_have_their_ports() -> None:
    options = parse_options(
        {"listen": ["0.0.0.0", "submission://[::1]", "submissions://h"], "tls_cert": "x", "auth_file": "y"}
    )
    assert options.listeners == [("smtp", "0.0.0.0", 25), ("submission", "::1", 587), ("submissions", "h", 465)]


# ------------------------------------------------------- many connections at once


def connected(host: str, port: int) -> socket.socket:
    """To that address, or to a unix socket, whose port is 0."""
    if port:
        return socket.create_connection((host, port))
    client = socket.socket(socket.AF_UNIX)
    client.connect(host)
    return client


@pytest.mark.parametrize("hosts", [["127.0.0.1:0"], ["127.0.0.1:0", "[::1]:0"], ["unix:s"]], ids=["one", "two", "unix"])
def test_connections_that_wait_are_taken_several_a_turn(tmp_path: Path, hosts: list[str]) -> None:
    """Sessions that begin together stay together: one after the other they would have a turn of the loop each."""
    hosts = [host.replace("unix:", f"unix:{tmp_path}/") for host in hosts]

    async def main() -> None:
        async with serving(tmp_path, store="memory", listen=hosts) as server:
            counters = server._parts.context.counters
            for host, port in server.getsocknames():
                # The kernel connects them; the loop has not had a turn yet.
                clients = [connected(host, port) for _ in range(12)]
                counts = [counters.sessions]
                while counts[-1] - counts[0] < len(clients):
                    await asyncio.sleep(0)
                    counts.append(counters.sessions)
                assert max(b - a for a, b in itertools.pairwise(counts)) >= ACCEPTED_A_TURN, counts
                for client in clients:
                    # Each was greeted once, whoever took it.
                    client.setblocking(False)
                    greeting = await asyncio.get_running_loop().sock_recv(client, 1000)
                    assert greeting.startswith(b"220 ") and greeting.count(b"\r\n") == 1
                    client.close()
            places = server.getsocknames()
            assert len(places) == len(hosts), "a socket with more handles is one socket"
        for place in places:
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                connected(*place)

    run_async(main)
