"""Metrics: what is counted, bounds of labels, and what is left while the queue cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pillarbox.admin import metrics
from pillarbox.admin.facts import read_facts
from pillarbox.errors import StoreError
from pillarbox.log.counts import DELIVERY_S, MOST_NAMES, count_outcome, new_histogram, observe
from pillarbox.queue.whole import add_counts
from pillarbox.testing import ScriptedServer
from tests.conftest import Client, run_async, serving, until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(server: Any) -> Samples:
    body, _ = metrics.render(await read_facts(server))
    found: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics_count_refusals_outcomes_and_delays(tmp_path: Path) -> None:
    def rcpt(line: str) -> str:
        return "450 4.2.1 Later" if "later" in line else "550 5.1.1 Nobody" if "gone" in line else "250 ok"

    async def main() -> None:
        async with ScriptedServer(RCPT=rcpt) as relay, serving(tmp_path, relay=f"127.0.0.1:{relay.port}") as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            await client.ask(b"RCPT TO:<a@b.test>")
            await client.ask(b"MAIL FROM:<>")
            for name in (b"ok@D.test", b"later@d.test", b"gone@e.test"):
                await client.ask(b"RCPT TO:<" + name + b">")
            await client.ask(b"DATA")
            await client.ask(b"Subject: x\r\n\r\nx\r\n.")
            counters = server._parts.context.counters
            await until(lambda: counters.delivered and counters.deferred and counters.bounced)
            found = await scrape(server)
            hop = f"relay:127.0.0.1:{relay.port}"
            assert found["pillarbox_refused_total", (("reason", "sequence"),)] == 1
            for domain, outcome in (("d.test", "delivered"), ("d.test", "deferred"), ("e.test", "bounced")):
                labels = (("domain", domain), ("outcome", outcome))
                assert found["pillarbox_domain_outcomes_total", labels] == 1
                assert found["pillarbox_next_hop_outcomes_total", (("next_hop", hop), ("outcome", outcome))] == 1
            assert found["pillarbox_delivery_delay_seconds_count", ()] == 1
            assert found["pillarbox_delivery_delay_seconds_bucket", (("le", "+Inf"),)] == 1
            assert found["pillarbox_accept_delay_seconds_count", ()] == 1
            assert found["pillarbox_messages_accepted_tls_total", ()] == 0
            await until(lambda: server._parts.scheduler.in_hand == 0)
            # Behind the commit of the last outcome.
            await server._parts.commit.run(lambda store: None)
            found = await scrape(server)
            assert found["pillarbox_next_hop_recipients", (("next_hop", hop), ("state", "deferred"))] == 1
            assert found["pillarbox_lane_waiting", (("next_hop", hop),)] == 1
            assert found["pillarbox_queue_oldest_message_seconds", ()] >= 0
            assert ("pillarbox_queue_recipients", (("state", "delivered"),)) not in found
            client.close()

    run_async(main)


def test_metrics_without_database_have_the_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable() -> Any:
        raise StoreError("the database is unreachable")

    async def main() -> None:
        async with serving(tmp_path, store="memory", paused=True) as server:
            assert (await scrape(server))["pillarbox_database_up", ()] == 1
            monkeypatch.setattr(server.queue, "status", unreachable)
            found = await scrape(server)
            assert found["pillarbox_database_up", ()] == 0
            assert found["pillarbox_messages_accepted_total", ()] == 0
            assert ("pillarbox_queue_paused", ()) not in found
            assert ("pillarbox_disk_free_bytes", ()) in found

    run_async(main)


def test_metrics_tell_when_the_certificate_ends(tmp_path: Path, certificate: dict[str, str]) -> None:
    import time

    async def main() -> None:
        tls = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, store="memory", paused=True, **tls) as server:
            ends_at = (await scrape(server))["pillarbox_certificate_expiry_timestamp_seconds", ()]
            assert ends_at > time.time() + 3600

    run_async(main)


def test_count_by_name_keeps_the_first_names_and_adds_the_others_up() -> None:
    counts: dict[str, list[float]] = {}
    for number in range(MOST_NAMES * 3):
        count_outcome(counts, f"d{number}.test", "delivered")
    count_outcome(counts, "d0.test", "expired")
    assert (
        len(counts) == MOST_NAMES + 1 and counts["other"] == [MOST_NAMES * 2, 0, 0] and counts["d0.test"] == [1, 0, 1]
    )


def test_histogram_counts_each_value_in_one_bucket() -> None:
    histogram = new_histogram(DELIVERY_S)
    for value in (0.0, 0.1, 0.2, 1e9):
        observe(histogram, DELIVERY_S, value)
    assert histogram[:2] == [2, 1] and histogram[-2] == 1 and histogram[-1] == pytest.approx(1e9 + 0.3)


def test_counts_of_workers_add_up() -> None:
    one = {"a": 1, "by": {"x": [1.0, 2.0], "y": [1.0, 0.0]}, "h": [1.0, 2.0]}
    other = {"a": 2, "by": {"x": [1.0, 1.0], "z": [5.0, 0.0]}, "h": [1.0, 0.5]}
    expected = {"a": 3, "by": {"x": [2.0, 3.0], "y": [1.0, 0.0], "z": [5.0, 0.0]}, "h": [2.0, 2.5]}
    assert add_counts(one, other) == expected
