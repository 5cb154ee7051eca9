"""Admission: connections count from `accept` on, by address; what is refused costs one accept, and is logged once."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.options import parse_options
from pillarbox.server import acceptor, limits
from pillarbox.server.limits import TOO_MANY, TOO_MANY_OF_PEER, TOO_OFTEN, Admission, network_keys, session_places
from tests.conftest import Client, run_async, serving, until

STRANGERS = {"trust": ["192.0.2.0/24"], "store": "memory", "domains": ["us.test"], "direct": False}


def admission_of(**options: Any) -> Admission:
    return Admission(parse_options(options))


@contextmanager
def connections(count: int, port: int, source: str) -> Iterator[list[socket.socket]]:
    """So many connections of one address."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0)))
            for _ in range(count)
        ]


async def said(sock: socket.socket, timeout_s: float = 10.0) -> bytes:
    """What comes first on a connection; b"" when it was closed."""
    sock.setblocking(False)
    async with asyncio.timeout(timeout_s):
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 1000)
        except ConnectionResetError:
            return b""


def port_of(server: MailServer, position: int = 0) -> int:
    return server.getsocknames()[position][1]


# ------------------------------------------------------------------------- counts


def test_network_keys_of_ipv6_are_three_networks() -> None:
    assert network_keys("2001:db8:1:2ff::9") == ("2001:db8:1:2ff::/64", "2001:db8:1:200::/56", "2001:db8:1::/48")
    assert network_keys("::ffff:192.0.2.1") == ("192.0.2.1",) == network_keys("192.0.2.1")
    assert network_keys("") == ("",) and network_keys("/run/s") == ("/run/s",)


def test_admission_over_the_bound_of_a_peer_refuses_and_counts_nothing() -> None:
    admission = admission_of(max_sessions_per_peer=2)
    assert [admission.enter("198.51.100.1", is_trusted=False) for _ in range(4)] == [
        None,
        None,
        *[TOO_MANY_OF_PEER] * 2,
    ]
    assert admission.sessions == 2
    assert admission.enter("198.51.100.2", is_trusted=False) is None
    admission.leave("198.51.100.1")
    assert admission.enter("198.51.100.1", is_trusted=False) is None
    for host in ("198.51.100.1", "198.51.100.1", "198.51.100.2"):
        admission.leave(host)
    assert admission.sessions == 0 and not admission._per_network


def test_admission_of_ipv6_is_bounded_by_56_and_48_as_well() -> None:
    admission = admission_of(max_sessions_per_peer=2)

    def enter(host: str) -> Any:
        return admission.enter(host, is_trusted=False)

    assert [enter("2001:db8:1::1"), enter("2001:db8:1::2"), enter("2001:db8:1::3")] == [None, None, TOO_MANY_OF_PEER]
    taken = [enter(f"2001:db8:1:{n:x}::1") for n in range(1, 20)]
    assert taken.count(None) == 6 and taken[-1] is TOO_MANY_OF_PEER, "8 in the /56"
    taken = [enter(f"2001:db8:1:{n << 8:x}::1") for n in range(1, 60)]
    assert taken.count(None) == 24, "32 in the /48"
    assert enter("2001:db8:2::1") is None


def test_admission_keeps_a_reserve_for_trusted_networks() -> None:
    admission = admission_of(max_sessions=20, max_sessions_per_peer=1)
    taken = [admission.enter(f"198.51.100.{n}", is_trusted=False) for n in range(30)]
    assert taken.count(None) == 18 and taken[-1] is TOO_MANY
    trusted = [admission.enter("192.0.2.1", is_trusted=True) for _ in range(3)]
    assert trusted == [None, None, TOO_MANY], "no bound per peer, but one in all"


def test_admission_counts_new_connections_per_minute() -> None:
    admission = admission_of(max_connections_per_minute=3)
    admission.sweep(0.0)

    def come(host: str, *, is_trusted: bool = False) -> Any:
        refusal = admission.enter(host, is_trusted=is_trusted)
        if refusal is None:
            admission.leave(host)
        return refusal

    assert [come("198.51.100.1") for _ in range(4)] == [None, None, None, TOO_OFTEN]
    assert come("198.51.100.2") is None
    assert [come("127.0.0.1", is_trusted=True) for _ in range(9)] == [None] * 9
    admission.sweep(59.0)
    assert come("198.51.100.1") is TOO_OFTEN
    admission.sweep(60.0)
    assert come("198.51.100.1") is None


def test_admission_gives_handshakes_half_their_time_when_places_are_short() -> None:
    admission = admission_of(max_sessions=4)
    assert admission.handshake_s == limits.HANDSHAKE_S
    for _ in range(3):
        admission.enter("127.0.0.1", is_trusted=True)
    assert admission.handshake_s == limits.HANDSHAKE_S / 2


@pytest.mark.parametrize(
    ("limit", "wanted", "places"),
    [(20_000, 10_000, 10_000), (4096, 10_000, 3484), (1024, 10_000, 412), (60, 10_000, 15)],
)
def test_session_places_leave_descriptors_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, limit: int, wanted: int, places: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    assert session_places(wanted, others=100) == places
    raised: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: raised.append(pair))
    limits.raise_descriptor_limit(wanted, 100)
    assert raised == []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, 1 << 20))
    limits.raise_descriptor_limit(wanted, 100)
    assert raised == ([] if limit == 20_000 else [(10_612, 1 << 20)])


def test_max_sessions_over_the_descriptor_limit_is_reduced_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (1024, 1024))
        async with serving(tmp_path, store="memory", max_sessions=5000) as server:
            assert server._parts.context.admission.max_sessions == 412
        monkeypatch.undo()

    run_async(main)
    assert "max_sessions reduced from 5000 to 412" in caplog.text


# ---------------------------------------------------------------------- on the wire


def test_connections_over_the_bound_hear_421_are_closed_and_leave_no_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(tmp_path, max_sessions_per_peer=5, **STRANGERS) as server:
            with connections(40, port_of(server), "127.0.0.9") as flood:
                greetings = [await said(sock) for sock in flood]
                assert sum(greeting.startswith(b"220") for greeting in greetings) == 5
                refused = [greeting for greeting in greetings if not greeting.startswith(b"220")]
                # Beyond twice the bound in one second nothing is written.
                assert refused[:10] == [b"421 4.7.0 Too many sessions from your address: try again later\r\n"] * 10
                assert b"" in refused
                assert server._parts.context.admission.sessions == 5 == len(server._parts.context.sessions)
                with connections(1, port_of(server), "127.0.0.10") as (other,):
                    assert (await said(other)).startswith(b"220")

    run_async(main)
    lines = [record for record in caplog.records if getattr(record, "reason", "") == "too-many-sessions-of-peer"]
    assert 1 <= len(lines) <= 3 and lines[0].peer == "127.0.0.9"  # type: ignore[attr-defined]


def test_silent_tls_connections_count_before_their_handshake(tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        listen = ["smtps://127.0.0.1:0", "127.0.0.1:0"]
        async with serving(tmp_path, max_sessions_per_peer=5, listen=listen, **files, **STRANGERS) as server:
            admission = server._parts.context.admission
            with connections(12, port_of(server), "127.0.0.9") as flood:
                for sock in flood[5:]:
                    assert await said(sock) == b"", "closed without a word"
                assert admission.sessions == 5
                # It has had its five on the other port as well.
                with connections(1, port_of(server, 1), "127.0.0.9") as (again,):
                    assert (await said(again)).startswith(b"421")
                with connections(1, port_of(server, 1), "127.0.0.10") as (other,):
                    assert (await said(other)).startswith(b"220")
            await until(lambda: admission.sessions == 0)

    run_async(main)


def test_silent_handshakes_never_take_more_than_half_of_the_places(tmp_path: Path, certificate: dict[str, str]) -> None:
    """From many addresses: the oldest give way."""

    async def main() -> None:
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        options = {**STRANGERS, **files, "listen": ["smtps://127.0.0.1:0"], "max_sessions": 20}
        async with serving(tmp_path, **options) as server:
            admission = server._parts.context.admission
            with ExitStack() as stack:
                for n in range(30):
                    stack.enter_context(connections(1, port_of(server), f"127.0.1.{n + 1}"))
                    await until(lambda: admission.sessions <= 11)
                assert admission.sessions <= 11

                def talk() -> bytes:
                    with (
                        socket.create_connection(
                            ("127.0.0.1", port_of(server)), 10, source_address=("127.0.2.1", 0)
                        ) as sock,
                        ssl.create_default_context(cafile=certificate["ca"]).wrap_socket(
                            sock, server_hostname="mx.test"
                        ) as tls,
                    ):
                        return tls.recv(1000)

                assert (await asyncio.to_thread(talk)).startswith(b"220")

    run_async(main)


def test_silent_proxy_headers_give_way_to_newer_ones_and_leave_a_line_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("pillarbox.server.listener.MAX_HEADERS_PER_BALANCER", 10)

    async def main() -> None:
        async with serving(tmp_path, proxy_from=["127.0.0.0/8"], **STRANGERS) as server:
            listeners = server._parts.listeners
            with connections(50, port_of(server), "127.0.0.1") as silent:
                await until(lambda: listeners._headers._count == 10)
                client = await Client.connect(server, greeted=False)
                client.send(b"PROXY TCP4 198.51.100.7 192.0.2.25 40000 25\r\n")
                assert (await client.reply()).startswith("220")
                for sock in silent[:40]:
                    assert await said(sock) == b""
                client.close()
                lines = [record for record in caplog.records if "without a PROXY" in getattr(record, "reply", "")]
                assert 1 <= len(lines) < 10 and {record.peer for record in lines} == {"127.0.0.1"}  # type: ignore[attr-defined]
                assert server._parts.context.counters.refusals["proxy-failed"] >= 40

    run_async(main)


@pytest.mark.parametrize(
    "octets", [b"EHLO printer\r\n", b"", b"\x15\x03\x01\x00\x02\x02\x28"], ids=["plain", "close", "alert"]
)
@pytest.mark.parametrize("is_implicit", [True, False], ids=["smtps", "starttls"])
def test_failed_handshake_leaves_one_log_line(
    tmp_path: Path, certificate: dict[str, str], caplog: pytest.LogCaptureFixture, octets: bytes, is_implicit: bool
) -> None:
    caplog.set_level(logging.INFO)

    def failures() -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "reason", "") == "tls-failed"]

    async def main() -> None:
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        listen = ["smtps://127.0.0.1:0" if is_implicit else "127.0.0.1:0"]
        async with serving(tmp_path, listen=listen, **files, **STRANGERS) as server:
            client = await Client.connect(server, greeted=not is_implicit)
            if not is_implicit:
                await client.ask(b"EHLO x.test")
                await client.ask(b"STARTTLS")
            if octets:
                client.send(octets)
                await client.rest()
            client.close()
            await until(failures)
            await until(lambda: server._parts.context.admission.sessions == 0)

    run_async(main)
    (line,) = failures()
    assert line.peer == "127.0.0.1" and "error=" in line.getMessage()  # type: ignore[attr-defined]


def test_row_108_without_descriptors_accept_pauses_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor, "NO_ROOM_S", 0.05)
    tries = 0
    real = acceptor.Acceptor._rest

    def counted(self: acceptor.Acceptor, error: OSError) -> None:
        nonlocal tries
        tries += 1
        real(self, error)

    monkeypatch.setattr(acceptor.Acceptor, "_rest", counted)

    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            port = port_of(server)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with connections(3, port, "127.0.0.1") as clients:
                # What is open stays open; nothing more can be opened.
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    await asyncio.sleep(0)
                    await until(lambda: tries >= 3)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for client in clients:
                    assert (await said(client)).startswith(b"220"), "the connections waited"

    run_async(main)
    assert sum("cannot accept" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_unix_socket_is_removed_at_the_end(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", listen=[f"unix:{tmp_path}/s"]):
            client = Client(*await asyncio.open_unix_connection(f"{tmp_path}/s"))
            assert (await client.reply()).startswith("220")
            client.close()
        assert not (tmp_path / "s").exists()

    if loop == "asyncio":
        asyncio.run(main())
    else:
        run_async(main)
