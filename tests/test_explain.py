"""`pillarbox explain` names the true reason: ten situations and more, in process and by the command."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, MailServer
from pillarbox.dns import Status
from pillarbox.queue.model import Action, Query
from pillarbox.testing import DictResolver, ManualClock, ScriptedServer
from tests.conftest import run_async, serving, until
from tests.daemon import PILLARBOX, Daemon, pillarbox
from tests.dnsserver import SERVFAIL, nameserver
from tests.test_workers import send

STRANGER = "192.0.2.66"


def rules(found: dict[str, Any]) -> dict[str, str]:
    """The verdict of each rule; the last counts."""
    return {step["rule"]: step["verdict"] for step in found["steps"]}


async def asked(server: MailServer, *args: Any, **kwargs: Any) -> dict[str, Any]:
    found = await server.explain(*args, **kwargs)
    assert found is not None
    json.dumps(found)
    return found


async def settled(server: MailServer, uid: str, attempts: int) -> None:
    """Its outcome is on the disk."""
    async with asyncio.timeout(20):
        while True:
            found = await server.queue.show(uid)
            assert found is not None
            one = found["recipients"][0]
            if one["attempts"] >= attempts and not one["in_flight"]:
                return
            await asyncio.sleep(0.002)


def test_relay_denied_and_domain_not_ours(tmp_path: Path) -> None:
    async def main() -> None:
        given = {"domains": ["ours.test"], "domains_via": "relay", "relay": "127.0.0.1:1"}
        async with serving(tmp_path, **given) as server:
            found = await asked(server, "x@else.test", sender="a@b.test", peer=STRANGER)
            assert found["verdict"] == "refuses" and found["reply"].startswith("550 5.7.1 Relaying denied")
            assert "else.test is none of our domains (ours.test)" in found["reason"]
            assert f"{STRANGER} is in no trusted network" in found["steps"][1]["text"]
            # Ours, but nobody takes it.
            await server.shutdown()
        async with serving(tmp_path, domains=["ours.test"]) as server:
            found = await asked(server, "x@ours.test", peer=STRANGER)
            assert found["reply"] == "550 5.1.1 No such mailbox here"
            assert "no handler matches and domains_via is handlers" in found["reason"]
        async with serving(tmp_path, **given) as server:
            found = await asked(server, "x@else.test", peer=STRANGER, user="me@ours.test")
            assert (found["verdict"], found["reply"]) == ("delivers", "250 2.1.5 Recipient OK")
            assert found["route"]["kind"] == "relay" and found["route"]["servers"][0]["port"] == 1
            found = await asked(server, "not an address", peer=STRANGER)
            assert found["reason"].startswith("address: RCPT TO:<not an address>: 501")
            with pytest.raises(ValueError, match="is no IP address"):
                await server.explain("x@y.test", peer="somewhere")
            with pytest.raises(ValueError, match="wants a recipient"):
                await server.explain()
            assert await server.explain(uid="nothing") is None

    run_async(main)


def test_dnsbl_and_sender_verification(tmp_path: Path) -> None:
    zones = {
        "66.2.0.192.list.test": {"A": ["127.0.0.2"], "TXT": ["for spam"]},
        "nomail.test": {"MX": [(0, ".")]},
        "b.test": {"MX": [(10, "mx.b.test")]},
    }
    given = {
        "dnsbl_enable": True, "dnsbl": ["list.test"], "sender_verify": True, "domains": ["ours.test"], "domains_via": "relay", "relay": "127.0.0.1:1",
        "resolver": DictResolver(zones),
    }  # fmt: skip

    async def main() -> None:
        async with serving(tmp_path, **given) as server:
            found = await asked(server, "x@ours.test", sender="a@b.test", peer=STRANGER)
            assert found["verdict"] == "refuses" and found["reply"].startswith(
                "554 5.7.1 192.0.2.66 is listed by list.test"
            )
            assert "for spam" in found["reason"] and rules(found)["sender_verify"] == "passes"
            found = await asked(server, "x@ours.test", sender="a@nomail.test", peer="192.0.2.7")
            assert found["verdict"] == "refuses" and "null MX" in found["reason"] and rules(found)["dnsbl"] == "passes"
            found = await asked(server, "x@ours.test", sender="<>", peer="192.0.2.7")
            assert found["verdict"] == "delivers"

    run_async(main)
    # A server that is not started says the same.
    server = MailServer(data_dir=str(tmp_path), hostname="mx.test", **given)
    found = run_async(lambda: server.explain("x@ours.test", sender="a@b.test", peer=STRANGER))
    assert found["reply"].startswith("554 5.7.1")


def test_routes_of_the_mx(tmp_path: Path) -> None:
    resolver = DictResolver(
        {
            "null.test": {"MX": [(0, ".")]},
            "broken.test": Status.FAILED,
            "good.test": {"MX": [(20, "b.good.test"), (10, "a.good.test")]},
            "a.good.test": {"A": ["198.51.100.1"], "AAAA": ["2001:db8::1"]},
            "b.good.test": {"A": ["203.0.114.1"]},
        }
    )

    async def main() -> None:
        async with serving(
            tmp_path, direct=True, resolver=resolver, mx_networks=["198.51.100.0/24", "2001:db8::/32"]
        ) as server:
            found = await asked(server, "x@null.test")
            assert found["verdict"] == "bounces" and "556 5.1.10" in found["reason"] and "null MX" in found["reason"]
            found = await asked(server, "x@broken.test")
            assert found["verdict"] == "waits" and "DNS look-up of broken.test failed" in found["reason"]
            found = await asked(server, "x@nowhere.test")
            assert found["verdict"] == "bounces" and "does not exist" in found["reason"]
            found = await asked(server, "x@good.test")
            assert [(s["host"], s["address"]) for s in found["route"]["servers"]] == [
                ("a.good.test", "198.51.100.1"),
                ("a.good.test", "2001:db8::1"),
                ("b.good.test", "203.0.114.1"),
            ]
            assert found["route"]["tls"] == "may" and found["verdict"] == "delivers"
            await server.pause_queue("mx:good.test")
            found = await asked(server, "x@good.test")
            assert found["verdict"] == "holds" and "mx:good.test is paused" in found["reason"]

    run_async(main)


def test_what_a_queued_message_waits_for(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.2 Mailbox full") as relay:
            given = {"relay": f"127.0.0.1:{relay.port}", "clock": clock}
            async with serving(tmp_path, **given) as server:
                uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x")
                await settled(server, uid, 1)
                found = await asked(server, uid=uid)
                assert found["verdict"] == "waits" and "450 4.2.2 Mailbox full at rcpt" in found["reason"]
                (one,) = found["recipients"]
                assert one["attempts"] == 1 and one["next_attempt_at"] > clock.time()
                assert "450 4.2.2 Mailbox full" in one["steps"][0]["text"] and one["route"]["servers"]
                await server.queue.change(Action.HOLD, Query(uids=[uid]))
                found = await asked(server, uid=uid)
                assert found["verdict"] == "holds" and "pillarbox queue release" in found["reason"]
                await server.queue.change(Action.RELEASE, Query(uids=[uid]))
                await settled(server, uid, 2)
                await server.pause_queue()
                found = await asked(server, uid=uid)
                assert found["verdict"] == "holds" and found["reason"].startswith("queue: the queue is paused")
                relay.script("RCPT", "250 OK")
                await server.resume_queue()
                await server.queue.change(Action.RETRY, Query(uids=[uid]))
                await settled(server, uid, 3)
                found = await asked(server, uid=uid)
                assert found["verdict"] == "delivered" and found["reply"].startswith("250")

    run_async(main)


def test_lane_in_back_off_and_tls_that_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            where = f"127.0.0.1:{relay.port}"
            async with serving(tmp_path, relay=where, relay_tls="encrypt") as server:
                found = await asked(server, "c@d.test", probe=True)
                assert (
                    found["verdict"] == "waits" and "does not offer STARTTLS, which is required here" in found["reason"]
                )
                assert rules(found)["tls"] == "notes" and relay.messages == []
                uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="x")
                await until(lambda: server._parts.lanes.down())
                await settled(server, uid, 0)
                for found in (await asked(server, uid=uid), await asked(server, "c@d.test")):
                    assert found["verdict"] == "waits" and "is in back-off, next try in" in found["reason"]
                    assert "does not offer STARTTLS, which is required here" in found["reason"]
            async with serving(tmp_path / "other", relay=where) as server:
                found = await asked(server, "c@d.test", probe=True)
                assert found["verdict"] == "delivers" and rules(found)["probe"] == "passes"
                await relay.stop()
                found = await asked(server, "c@d.test", probe=True)
                assert found["verdict"] == "waits" and "refused" in found["reason"].lower()

    run_async(main)


def test_a_handler_that_raises(tmp_path: Path) -> None:
    def broken(item: Any) -> None:
        raise KeyError("the database is away")

    async def main() -> None:
        async with serving(tmp_path, handlers=[Handler("^app@", broken)]) as server:
            found = await asked(server, "app@d.test")
            assert found["route"]["kind"] == "handler" and found["verdict"] == "delivers"
            uid = await server.enqueue(reverse_path="a@b.test", recipients=["app@d.test"], content="x")
            await settled(server, uid, 1)
            found = await asked(server, uid=uid)
            assert found["verdict"] == "waits" and "The handler failed: KeyError" in found["reason"]

    run_async(main)


def test_plugins_are_named_and_the_inbox_is(tmp_path: Path) -> None:
    class Odd:
        def on_cmd_rcpt(self, server: Any, event: Any) -> None:
            raise AssertionError("explain asks nobody")

    async def main() -> None:
        async with serving(tmp_path, plugins={"odd": Odd()}, capture=True) as server:
            found = await asked(server, "c@d.test")
            assert "odd" in next(step["text"] for step in found["steps"] if step["rule"] == "plugins")
            assert rules(found)["capture"] == "holds"

    run_async(main)


# --------------------------------------------------------------------- the command


def explain(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pillarbox("explain", "--json", *arguments).stdout)
    return found


def test_the_command_on_a_running_server_and_on_a_stopped_one(tmp_path: Path) -> None:
    with nameserver({"broken.test": SERVFAIL, "null.test": {"MX": [(0, ".")]}}) as (resolver, _):
        folder = f"--data-dir={tmp_path / 'data'}"
        flags = ("--direct", f"--nameserver={resolver}", "--domain=ours.test", "--workers=2")
        with Daemon(tmp_path, *flags) as daemon:
            found = explain("x@else.test", "--from=a@b.test", f"--peer={STRANGER}", folder)
            assert found["reply"].startswith("550 5.7.1")
            assert "null MX" in explain("x@null.test", folder)["reason"]
            assert "broken.test failed" in explain("x@broken.test", folder)["reason"]
            for _ in range(4):
                send(daemon.port, "x@broken.test")
            for row in daemon.queue():
                found = explain(row["uid"], folder)
                assert found["verdict"] == "waits" and "broken.test" in found["reason"]
            text = pillarbox("explain", "x@else.test", f"--peer={STRANGER}", folder).stdout
            assert text.startswith("refuses  relay rule: else.test is none of our domains (ours.test)")
            assert "RULE" in text and "550 5.7.1" in text
            uid = daemon.queue()[0]["uid"]
            daemon.pillarbox("hold", uid)
            assert explain(uid, folder)["verdict"] == "holds"
            daemon.pillarbox("release", uid)
            missing = pillarbox("explain", "nothing", folder, ok=False)
            assert missing.returncode == 1 and "no message nothing" in missing.stderr
            wrong = pillarbox("explain", "x@y.test", "--peer=here", folder, ok=False)
            assert wrong.returncode == 2 and "is no IP address" in wrong.stderr
        # Now by a configuration file, for the same rules.
        file = tmp_path / "pillarbox.toml"
        file.write_text(f'domains = ["ours.test"]\nnameservers = ["{resolver}"]\nhostname = "mx.test"\n')
        found = explain("x@else.test", f"--peer={STRANGER}", folder, f"--config={file}")
        assert found["reply"].startswith("550 5.7.1")
        found = explain(uid, folder, f"--config={file}")
        assert found["verdict"] == "waits" and "does not run" in found["reason"]
        assert explain("x@null.test", f"--data-dir={tmp_path / 'fresh'}", f"--config={file}")["verdict"] == "bounces"
        assert not (tmp_path / "fresh").exists(), "a dry run makes nothing"


def test_the_command_needs_no_server_at_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PILLARBOX, "explain", "nobody", f"--data-dir={tmp_path / 'none'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "a recipient has an @" in done.stderr
