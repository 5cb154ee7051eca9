"""`pillarbox explain` and messages that wait: rates, down next hops, no route, a server that stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pillarbox import MailServer
from pillarbox.testing import ScriptedServer
from tests.conftest import run_async, serving
from tests.daemon import Daemon
from tests.test_explain import asked, explain, rules
from tests.test_workers import send


async def enqueue(server: MailServer, to: str) -> str:
    return str(await server.enqueue(reverse_path="me@us.test", recipients=[to], content=b"Subject: x\r\n\r\nx\r\n"))


async def becomes(server: MailServer, uid: str, field: str, value: Any) -> None:
    """Returns when that field of its first recipient has that value."""
    async with asyncio.timeout(20):
        while True:
            found = await server.queue.show(uid)
            if found is not None and found["recipients"][0][field] == value:
                return
            await asyncio.sleep(0.002)


def test_explain_of_a_next_hop_at_its_rate_limit_says_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            given = {"relay": f"127.0.0.1:{relay.port}", "rate_per_next_hop": "1/h"}
            async with serving(tmp_path, **given) as server:
                first = await enqueue(server, "a@d.test")
                await becomes(server, first, "state", "delivered")
                second = await enqueue(server, "b@d.test")
                found = await asked(server, uid=second)
                assert found["verdict"] == "waits" and "rate_per_next_hop" in found["reason"], found
                found = await asked(server, "c@d.test")
                assert found["verdict"] == "waits" and "rate_per_next_hop" in found["reason"], found

    run_async(main)


def test_explain_names_the_last_outcomes_of_the_recipient(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT=lambda line: "550 5.1.1 No such user") as relay:
            async with serving(tmp_path, relay=f"127.0.0.1:{relay.port}") as server:
                uid = await enqueue(server, "joe@far.test")
                await becomes(server, uid, "state", "bounced")
                found = await asked(server, "joe@far.test")
                (history,) = [step["text"] for step in found["steps"] if step["rule"] == "history"]
                assert uid in history and "bounced, 550 5.1.1 No such user" in history

    run_async(main)


def test_explain_of_mail_without_a_route_names_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, direct=False) as server:
            found = await asked(server, uid=await enqueue(server, "a@d.test"))
            assert found["verdict"] == "waits" and rules(found["recipients"][0])["route"] == "waits"
            assert not any("None" in step["text"] for step in found["recipients"][0]["steps"])

    run_async(main)


def test_explain_of_a_message_behind_a_down_next_hop_does_not_say_untried(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, relay="127.0.0.1:1") as server:
            # One message probes the next hop; the others of the same moment only learn of its fault.
            uids = await asyncio.gather(*(enqueue(server, f"r{n}@d.test") for n in range(5)))
            for uid in uids:
                await becomes(server, uid, "last_stage", "connect")
            rows = [await server.queue.show(uid) for uid in uids]
            second = next(row["uid"] for row in rows if row is not None and not row["recipients"][0]["attempts"])
            texts = [step["text"] for step in (await asked(server, uid=second))["recipients"][0]["steps"]]
            assert any(text.startswith("not tried itself; its next hop failed: 451 4.4.1") for text in texts), texts

    run_async(main)


def test_explain_of_a_stopped_server_keeps_the_route_of_the_queue(tmp_path: Path) -> None:
    folder = f"--data-dir={tmp_path / 'data'}"
    with Daemon(tmp_path, "--relay=127.0.0.1:1", "--paused") as daemon:
        send(daemon.port, "x@nowhere.invalid")
        (row,) = daemon.queue()
    found = explain(row["uid"], folder)
    assert found["verdict"] == "waits" and "does not run" in found["reason"]
    steps = {step["rule"]: step["text"] for step in found["recipients"][0]["steps"]}
    assert "relay:127.0.0.1:1" in steps["route"] and "550" not in str(steps)
