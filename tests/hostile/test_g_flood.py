"""Rows 50, 105, 106: one address with thousands of connections of every kind keeps nobody from being served."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port, tool
from tests.daemon import Daemon

MOST_S = 2.0
COUNT = 5000
# Opens so many connections from one address, says the octets on each, keeps those that stay open, and says when it is done.
ATTACKER = """
import resource, socket, sys, time
port, source, count, octets = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
for n in range(count):
    try:
        sock = socket.create_connection(("127.0.0.1", port), 5, source_address=(source, 0))
        sock.sendall(octets)
        held.append(sock)
    except OSError:
        time.sleep(0.001)
print("done", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def attackers(kinds: list[tuple[int, str, bytes]]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process for each kind: port, source address, and what it says on each connection."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ATTACKER, str(port), source, str(COUNT), octets.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for port, source, octets in kinds
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def greeting(port: int, source: str, *, before: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
    """A client that connects and is greeted."""
    sock = socket.create_connection(("127.0.0.1", port), 20, source_address=(source, 0))
    sock.sendall(before)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname="mx.test")
    with sock:
        said = sock.recv(1000)
        assert said.startswith(b"220 "), said


def answer(port: int, path: str, token: str = "") -> None:
    """A request that is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.alone
def test_a_flood_of_every_kind_keeps_no_client_and_no_operator_waiting(
    tmp_path: Path, certificate: dict[str, str]
) -> None:
    smtps, admin, config = free_port(), free_port(), tmp_path / "pillarbox.toml"
    config.write_text('proxy_from = ["127.0.0.64/32"]\n')
    given = (
        f"--listen=smtps://127.0.0.1:{smtps}", f"--tls-cert={certificate['cert']}", f"--tls-key={certificate['key']}",
        f"--admin=127.0.0.1:{admin}", "--trust=192.0.2.0/24", "--domain=us.test", f"--config={config}",
    )  # fmt: skip
    # What a shell and many containers give.
    with Daemon(tmp_path, *given, wrap=(tool("prlimit"), "--nofile=1024")) as daemon:
        plain, token = daemon.port, json.loads((daemon.data / "admin.json").read_text())["token"]
        tls = ssl.create_default_context(cafile=certificate["ca"])
        header = b"PROXY TCP4 198.51.100.7 192.0.2.25 40000 25\r\n"
        kinds = [
            (smtps, "127.0.0.9", b""),
            (plain, "127.0.0.64", b"PROXY"),
            (plain, "127.0.0.9", b""),
            (admin, "127.0.0.9", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nG"),
        ]
        looks: dict[str, Callable[[], None]] = {
            "smtp": lambda: greeting(plain, "127.0.0.2"),
            "smtps": lambda: greeting(smtps, "127.0.0.2", tls=tls),
            # Of the very balancer whose other connections are silent.
            "proxied": lambda: greeting(plain, "127.0.0.64", before=header),
            "dashboard": lambda: answer(admin, "/api/status", token),
            "probe": lambda: answer(admin, "/healthz"),
        }
        slowest = dict.fromkeys(looks, 0.0)
        rounds = 0
        with attackers(kinds) as processes:
            end, is_over = time.monotonic() + 120, False
            while not is_over and time.monotonic() < end:
                # Once more when all of them stand.
                is_over = all(_has_said_done(process) for process in processes)
                rounds += 1
                for name, look in looks.items():
                    began = time.monotonic()
                    look()
                    slowest[name] = max(slowest[name], time.monotonic() - began)
            descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        assert is_over and rounds > 3
        assert max(slowest.values()) < MOST_S, slowest
        assert descriptors < 700


def _has_said_done(process: subprocess.Popen[str]) -> bool:
    import select

    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0.05)[0])
