"""When mail is tried next: list, show, explain and next hops name the probe of a next hop that is in back-off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pillarbox.cli.tables import _next
from pillarbox.queue.model import Query
from pillarbox.testing import ManualClock
from pillarbox.testing.scripted import ScriptedServer
from tests.conftest import queued, run_async, until
from tests.queue.test_delivery import put, relaying


def test_next_attempt_of_mail_for_a_next_hop_in_back_off_is_its_probe(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with (
            ScriptedServer(RCPT=lambda line: "451 4.2.1 full" if "full" in line else "250 ok") as peer,
            relaying(tmp_path, peer.port, clock=clock, retry_first_s=300.0) as (server, _),
        ):
            queue, lanes = server.queue, server._parts.lanes
            own = put(server, "full@d.test")

            async def shown(uid: str) -> dict[str, Any]:
                found = await queue.show(uid)
                assert found is not None
                return found

            def stage(uid: str) -> str | None:
                return next((v.recipients[0].last_stage for v in queued(server) if v.uid == uid), None)

            await until(lambda: stage(own) == "rcpt")
            peer.script("CONNECT", "421 4.3.2 down")
            lanes._lanes[lanes.ways.router.relay.key]._connections.copy().pop().quit()
            tried = put(server, "tried@d.test")
            await until(lambda: stage(tried) == "greeting")
            untried = put(server, "untried@d.test")
            await until(lambda: len(queued(server)) == 3)
            hop = (await shown(tried))["recipients"][0]["next_hop"]
            probe_at = lanes.retry_at(hop)
            assert probe_at is not None and probe_at < clock.time() + 10
            status = await queue.status()
            assert "next try in" in status["waiting_for"]
            rows = {row["uid"]: row for row in await queue.list(Query(limit=10))}
            page = {row["uid"]: row for row in (await queue.page(Query(limit=10)))["rows"]}
            for uid in (tried, untried):
                for row in (rows[uid], page[uid], await shown(uid)):
                    assert abs(row["recipients"][0]["due_at"] - probe_at) < 0.1
                    assert "next try in" in (row.get("waiting_for") or "next try in")
                assert _next(rows[uid]["recipients"], status, clock.time()) in ("in 4s", "in 5s")
                story = await server.explain(uid=uid)
                assert abs(story["recipients"][0]["next_attempt_at"] - probe_at) < 0.1
            # The next hop has answered to this message: a probe that works changes nothing for it.
            assert rows[own]["recipients"][0]["due_at"] > clock.time() + 200
            hops = await queue.next_hops()
            assert [abs(row["due_at"] - probe_at) < 0.1 for row in hops] == [True]
            assert "in back-off" in hops[0]["reason"]

    run_async(main)
