"""The control socket: what it says, and what it says to garbage (hostile row 131)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import StoreError
from pillarbox.queue.control import MAX_REQUEST_BYTES, ControlServer, ask, parse_query, perform
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import Query
from pillarbox.queue.stopped import StoppedSteering
from tests.conftest import Client, run_async, serving
from tests.queue.test_store_contract import NOW, accept, message

SOCKET = "control.sock"


async def asked(folder: Path, **request: Any) -> Any:
    return await asyncio.to_thread(ask, str(folder), request)


def test_verbs_on_a_running_server(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)

    async def main() -> None:
        async with serving(deep) as server:
            mode = os.stat(deep / SOCKET).st_mode
            assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            uid = (await client.transaction(b"Subject: hi\r\n\r\nx\r\n")).split()[2]
            rows = await asked(deep, verb="list", query={})
            assert [row["uid"] for row in rows] == [uid]
            shown = await asked(deep, verb="show", uid=uid)
            assert shown["waiting_for"].startswith("no smart host") and shown["subject"] == "hi"
            assert await asked(deep, verb="show", uid="nothing") is None
            await asked(deep, verb="pause")
            assert "paused" in (await asked(deep, verb="show", uid=uid))["waiting_for"]
            assert (await asked(deep, verb="status"))["paused"] is True
            await asked(deep, verb="resume")
            assert await asked(deep, verb="hold", query={"uids": [uid]}) == [uid]
            assert (await asked(deep, verb="show", uid=uid))[
                "waiting_for"
            ] == "somebody to release it: pillarbox queue release"
            assert await asked(deep, verb="release", query={"recipient": "c@d"}) == [uid]
            assert await asked(deep, verb="retry", query={"state": "queued"}) == [uid]
            assert await asked(deep, verb="cancel", query={}, is_everything=True) == [uid]
            assert (await asked(deep, verb="show", uid=uid))["waiting_for"] is None
            assert (await asked(deep, verb="status"))["recipients"] == {"cancelled": 1}
            client.close()
        assert not (deep / SOCKET).exists()
        with pytest.raises(StoreError, match="does not answer"):
            await asked(deep, verb="status")

    run_async(main)


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n", b"[1, 2]\n", b"{}\n", b'{"verb": "explode"}\n', b'{"verb": "show"}\n', b'{"verb": "cancel", "query": {}}\n',
        b'{"verb": "list", "query": []}\n', b'{"verb": "list", "query": {"limit": "x"}}\n', b'{"verb": "list", "query": {"limit": -1}}\n',
        b'{"verb": "list", "query": {"limit": 1e400}}\n', b'{"verb": "list", "query": {"limit": 99999999999999999999}}\n',
        b'{"verb": "list", "query": {"received_before": 1e300}}\n', b'{"verb": "list", "query": {"nonsense": 1}}\n',
        b'{"verb": "list", "query": {"uids": [1]}}\n', b'{"verb": "list", "query": {"state": "odd"}}\n',
        b'{"verb": "list", "query": {"limit": true}}\n', b"[" * 100_000 + b"\n", b"\xff\xfe\n",
    ],
)  # fmt: skip
def test_garbage(tmp_path: Path, line: bytes) -> None:
    async def main() -> None:
        async with serving(tmp_path):

            def talk() -> dict[str, Any]:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(tmp_path / SOCKET))
                    sock.sendall(line)
                    return dict(json.loads(sock.makefile("rb").readline()))

            answer = await asyncio.to_thread(talk)
            assert answer["ok"] is False and answer["error"].startswith("bad request")
            assert (await asked(tmp_path, verb="status"))["running"] is True

    run_async(main)


def test_endless_request_and_a_left_over_socket(tmp_path: Path) -> None:
    (tmp_path / SOCKET).write_text("left over")

    async def main() -> None:
        async with serving(tmp_path):

            def talk() -> bytes:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(tmp_path / SOCKET))
                    try:
                        sock.sendall(b"x" * (MAX_REQUEST_BYTES * 2))
                        return sock.recv(10)
                    except OSError:
                        return b""

            assert await asyncio.to_thread(talk) == b""
            assert (await asked(tmp_path, verb="status"))["running"] is True

    run_async(main)


def test_a_fault_of_ours_is_told_as_one(tmp_path: Path) -> None:
    class Broken:
        async def status(self) -> dict[str, Any]:
            raise RuntimeError("a bug")

        async def pause(self, next_hop: Any = None) -> None:
            raise StoreError("the disk is away")

    async def main() -> None:
        server = ControlServer(str(tmp_path), Broken())  # type: ignore[arg-type]
        await server.start()
        with pytest.raises(StoreError, match="internal fault"):
            await asked(tmp_path, verb="status")
        with pytest.raises(StoreError, match="the disk is away"):
            await asked(tmp_path, verb="pause")
        await server.stop()
        with pytest.raises(StoreError, match="cannot make the control socket"):
            await ControlServer(str(tmp_path / "nowhere"), Broken()).start()  # type: ignore[arg-type]
        await ControlServer(str(tmp_path), Broken()).stop()  # type: ignore[arg-type]

    run_async(main)


def test_a_server_that_hangs_up(tmp_path: Path) -> None:
    async def main() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.close()

        server = await asyncio.start_unix_server(hang_up, str(tmp_path / SOCKET))
        with pytest.raises(StoreError, match="without an answer"):
            await asked(tmp_path, verb="status")
        server.close()

    run_async(main)


def test_a_stopped_queue() -> None:
    store = MemoryStore()
    accept(store, message("A"), message("B"))
    steering = StoppedSteering(store, lambda: NOW)

    async def main() -> None:
        assert [row["uid"] for row in await perform(steering, {"verb": "list"})] == ["A", "B"]
        assert (await perform(steering, {"verb": "show", "uid": "A"}))[
            "waiting_for"
        ] == "the server, which is not running"
        assert await perform(steering, {"verb": "show", "uid": "X"}) is None
        assert await perform(steering, {"verb": "cancel", "query": {"uids": ["A"]}}) == ["A"]
        assert (await perform(steering, {"verb": "show", "uid": "A"}))["waiting_for"] is None
        await perform(steering, {"verb": "pause"})
        assert (await perform(steering, {"verb": "status"}))["paused"] is True
        await perform(steering, {"verb": "resume"})
        status = await perform(steering, {"verb": "status"})
        assert status["paused"] is False and status["running"] is False

    run_async(main)
    assert parse_query({"limit": 3, "state": None}) == Query(limit=3)


def test_silent_and_half_clients_of_the_control_socket_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pillarbox.queue import control

    async def main() -> None:
        async with serving(tmp_path) as server:
            path = str(tmp_path / "control.sock")
            sockets = []
            for octets in (b"", b'{"verb"') * control.MAX_CLIENTS:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(path)
                sock.sendall(octets)
                sockets.append(sock)
                await asyncio.sleep(0)
            assert (await asyncio.to_thread(control.ask, str(tmp_path), {"verb": "status"}))["running"]
            live = server._parts._control
            assert live is not None and len(live._clients) <= control.MAX_CLIENTS
            monkeypatch.setattr(control, "SILENT_S", 0.1)
            for sock in sockets:
                sock.close()
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b'{"verb": "enqueue", "item": {}, "size_bytes": 10}\nhalf')
            async with asyncio.timeout(5):
                assert await reader.read() == b"", "closed without an answer"
            writer.close()

    run_async(main)
