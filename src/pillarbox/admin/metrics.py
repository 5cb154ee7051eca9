"""/metrics: counters, gauges and histograms for Prometheus, with bounded label sets. Keeps nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .. import __version__
from ..log.counts import ACCEPT_S, DELIVERY_S, OTHER, OUTCOMES
from .facts import Facts

# Next hops with a label of their own; the others together are "other".
MOST_LANES = 50
# Delivered, bounced and cancelled recipients are history, not the queue.
_WAITING_STATES = ("queued", "deferred", "held")
_COUNTERS = (
    ("late_settles", "pillarbox_queue_late_settles", "Outcomes discarded: their lease had expired."),
    ("takeovers", "pillarbox_queue_takeovers", "Deliveries that this server took over from dead nodes."),
    ("sessions", "pillarbox_sessions", "Sessions that began."),
    ("accepted", "pillarbox_messages_accepted", "Messages that got their 250."),
    ("accepted_tls", "pillarbox_messages_accepted_tls", "Messages that got their 250 over TLS."),
    ("device_repairs", "pillarbox_device_repairs", "What the device profile repaired in commands and content."),
    ("delivered", "pillarbox_recipients_delivered", "Recipients whose copy was delivered."),
    ("delivered_tls", "pillarbox_recipients_delivered_tls", "Recipients whose copy was delivered over TLS."),
    ("deferred", "pillarbox_recipients_deferred", "Attempts that are tried again."),
    ("bounced", "pillarbox_recipients_bounced", "Recipients that were given up."),
    ("commits", "pillarbox_queue_commits", "Transactions of the queue."),
    ("committed", "pillarbox_queue_committed", "Messages and outcomes in them."),
)
_HISTOGRAMS = (
    ("accept_delays", ACCEPT_S, "pillarbox_accept_delay_seconds", "From the end of content to its commit."),
    ("delivery_delays", DELIVERY_S, "pillarbox_delivery_delay_seconds", "From acceptance to delivery, by recipient."),
)


def _histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[float]) -> HistogramMetricFamily:
    buckets, total = [], 0.0
    for bound, count in zip([*(str(bound) for bound in bounds), "+Inf"], counts, strict=False):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=counts[-1])


def _labelled(name: str, text: str, label: str, counts: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _outcomes(name: str, text: str, label: str, rows: Mapping[str, Sequence[float]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label, "outcome"])
    for value, counts in rows.items():
        for outcome, count in zip(OUTCOMES, counts, strict=True):
            family.add_metric([value or "none", outcome], count)
    return family


class _Snapshot:
    """One scrape; prometheus-client asks it for its metrics."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._live = facts.live

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        info = GaugeMetricFamily(
            "pillarbox_build_info", "1; the labels are the versions.", labels=["version", "python"]
        )
        info.add_metric([__version__, platform.python_version()], 1)
        yield info
        yield from self._counters()
        yield from self._lanes()
        yield from self._files()
        up = self._facts.status is not None
        yield GaugeMetricFamily("pillarbox_database_up", "1 while the queue can be read.", value=up)
        if up:
            yield from self._queue(self._facts.status or {})

    def _counters(self) -> Iterator[Metric]:
        counters = self._live["counters"]
        for key, name, text in _COUNTERS:
            yield CounterMetricFamily(name, text, value=counters.get(key, 0))
        refusals, logins = counters.get("refusals", {}), counters.get("logins", {})
        yield _labelled("pillarbox_refused", "Refused sessions, commands and messages, by reason.", "reason", refusals)
        yield _labelled("pillarbox_logins", "Log-ins: ok, or the reason why not.", "result", logins)
        for key, bounds, name, text in _HISTOGRAMS:
            if key in counters:
                yield _histogram(name, text, bounds, counters[key])
        text = "Outcomes of attempts by next hop; from the 101st on they are other."
        yield _outcomes("pillarbox_next_hop_outcomes", text, "next_hop", counters.get("by_next_hop", {}))
        text = "Outcomes of attempts by the recipient's domain; from the 101st on they are other."
        yield _outcomes("pillarbox_domain_outcomes", text, "domain", counters.get("by_domain", {}))
        yield GaugeMetricFamily("pillarbox_sessions_open", "Sessions that are open.", value=counters.get("open", 0))

    def _files(self) -> Iterator[Metric]:
        facts = self._facts
        if facts.disk_free_bytes is not None:
            text = "Free octets on the disk of the data directory."
            yield GaugeMetricFamily("pillarbox_disk_free_bytes", text, value=facts.disk_free_bytes)
        if facts.certificate_ends_at is not None:
            text = "Unix time at which the TLS certificate ends."
            yield GaugeMetricFamily(
                "pillarbox_certificate_expiry_timestamp_seconds", text, value=facts.certificate_ends_at
            )

    def _queue(self, status: dict[str, Any]) -> Iterator[Metric]:
        yield GaugeMetricFamily("pillarbox_queue_paused", "1 while the queue is paused.", value=status["paused"])
        yield GaugeMetricFamily("pillarbox_queue_in_hand", "Messages in delivery.", value=status["in_hand"])
        states = GaugeMetricFamily("pillarbox_queue_recipients", "Recipients in the queue, by state.", labels=["state"])
        for state in _WAITING_STATES:
            states.add_metric([state], status["recipients"].get(state, 0))
        yield states
        if self._facts.oldest_s is not None:
            text = "Age of the oldest queued or deferred message."
            yield GaugeMetricFamily("pillarbox_queue_oldest_message_seconds", text, value=self._facts.oldest_s)
        text = "Recipients that wait for a next hop, by state."
        depth = GaugeMetricFamily("pillarbox_next_hop_recipients", text, labels=["next_hop", "state"])
        for name, row in self._depths().items():
            for state, count in row.items():
                depth.add_metric([name, state], count)
        yield depth
        if nodes := status.get("nodes"):
            yield GaugeMetricFamily("pillarbox_nodes", "Servers that work on this queue.", value=len(nodes))
        for name, value in status.get("database", {}).items():
            text = f"The queue's database: {name.replace('_', ' ')}."
            yield GaugeMetricFamily(f"pillarbox_database_{name}", text, value=value)

    def _depths(self) -> dict[str, dict[str, int]]:
        """Recipients by next hop and state; the longest queues have names."""
        depths: dict[str, dict[str, int]] = {}
        for number, row in enumerate(self._facts.next_hops):
            name = (row["next_hop"] or "none") if number < MOST_LANES else OTHER
            known = depths.setdefault(name, dict.fromkeys(_WAITING_STATES, 0))
            for state in _WAITING_STATES:
                known[state] += row[state]
        return depths

    def _lanes(self) -> Iterator[Metric]:
        rows = sorted(self._live["lanes"], key=lambda lane: -(lane["waiting"] + lane["busy"] + lane["connections"]))
        own, other = rows[:MOST_LANES], rows[MOST_LANES:]
        if self._facts.status is not None:
            # Most of what waits is in the store, not in memory.
            waiting = GaugeMetricFamily(
                "pillarbox_lane_waiting", "Queued and deferred recipients, by next hop.", labels=["next_hop"]
            )
            for name, row in self._depths().items():
                waiting.add_metric([name], row["queued"] + row["deferred"])
            yield waiting
        for key, text in (
            ("busy", "Messages on their way, by next hop."),
            ("connections", "Outgoing connections, by next hop."),
        ):
            family = GaugeMetricFamily(f"pillarbox_lane_{key}", text, labels=["next_hop"])
            for lane in own:
                family.add_metric([lane["next_hop"] or "none"], lane[key])
            if other:
                family.add_metric(["other"], sum(lane[key] for lane in other))
            yield family
        down = GaugeMetricFamily("pillarbox_lane_down", "1 for a next hop in back-off.", labels=["next_hop"])
        for lane in own:
            down.add_metric([lane["next_hop"] or "none"], lane["state"] == "down")
        if other:
            down.add_metric(["other"], sum(lane["state"] == "down" for lane in other))
        yield down


def render(facts: Facts) -> tuple[bytes, str]:
    """(body, content type)."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_Snapshot(facts))
    return generate_latest(registry), CONTENT_TYPE_LATEST
