"""/metrics: counters and gauges for Prometheus, with bounded label sets. Reads what is counted anyway; keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# Next hops with a label of their own; the others together are "other".
MOST_LANES = 50
_COUNTERS = (
    ("late_settles", "pillarbox_queue_late_settles", "Outcomes that came when others had taken the work over."),
    ("takeovers", "pillarbox_queue_takeovers", "Deliveries that this server freed from dead ones."),
    ("sessions", "pillarbox_sessions", "Sessions that began."),
    ("accepted", "pillarbox_messages_accepted", "Messages that got their 250."),
    ("refused", "pillarbox_refused", "Commands and messages that were refused."),
    ("device_repairs", "pillarbox_device_repairs", "What the device profile repaired in commands and content."),
    ("delivered", "pillarbox_recipients_delivered", "Recipients whose copy was delivered."),
    ("delivery_s", "pillarbox_delivery_seconds", "Seconds from acceptance to delivery, of all delivered recipients."),
    ("deferred", "pillarbox_recipients_deferred", "Attempts that are tried again."),
    ("bounced", "pillarbox_recipients_bounced", "Recipients that were given up."),
    ("commits", "pillarbox_queue_commits", "Transactions of the queue."),
    ("committed", "pillarbox_queue_committed", "Messages and outcomes in them."),
)


class _Snapshot:
    """What one scrape tells; prometheus-client asks it for its metrics."""

    def __init__(self, live: dict[str, Any], status: dict[str, Any]) -> None:
        self._live = live
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        counters = self._live["counters"]
        for key, name, text in _COUNTERS:
            yield CounterMetricFamily(name, text, value=counters.get(key, 0))
        yield GaugeMetricFamily("pillarbox_sessions_open", "Sessions that are open.", value=counters.get("open", 0))
        yield GaugeMetricFamily("pillarbox_queue_paused", "1 while the queue is paused.", value=self._status["paused"])
        yield GaugeMetricFamily("pillarbox_queue_in_hand", "Messages in delivery.", value=self._status["in_hand"])
        states = GaugeMetricFamily("pillarbox_queue_recipients", "Recipients in the queue, by state.", labels=["state"])
        for state, count in self._status["recipients"].items():
            states.add_metric([state], count)
        yield states
        yield from self._lanes()
        yield from self._shared()

    def _shared(self) -> Iterator[Metric]:
        """Of a queue that many servers share."""
        if nodes := self._status.get("nodes"):
            yield GaugeMetricFamily("pillarbox_nodes", "Servers that work on this queue.", value=len(nodes))
        for name, value in self._status.get("database", {}).items():
            text = f"The queue's database: {name.replace('_', ' ')}."
            yield GaugeMetricFamily(f"pillarbox_database_{name}", text, value=value)

    def _lanes(self) -> Iterator[Metric]:
        rows = sorted(self._live["lanes"], key=lambda lane: -(lane["waiting"] + lane["busy"] + lane["connections"]))
        own, other = rows[:MOST_LANES], rows[MOST_LANES:]
        for key, text in (
            ("waiting", "Messages that wait in memory for a connection, by next hop."),
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


def render(live: dict[str, Any], status: dict[str, Any]) -> tuple[bytes, str]:
    """(body, content type)."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_Snapshot(live, status))
    return generate_latest(registry), CONTENT_TYPE_LATEST
