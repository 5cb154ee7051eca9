"""Writes contrib/grafana/pillarbox.json: the dashboard for Grafana, a row of panels for each question of an operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "contrib" / "grafana" / "pillarbox.json"
# Title, unit, [(expression, legend)], width of 24.
PANELS: list[tuple[str, str, list[tuple[str, str]], int]] = [
    ("Messages accepted a second", "mps", [("sum(rate(pillarbox_messages_accepted_total[$__rate_interval]))", "accepted")], 8),
    (
        "Recipients a second", "ops",
        [
            ("sum(rate(pillarbox_recipients_delivered_total[$__rate_interval]))", "delivered"),
            ("sum(rate(pillarbox_recipients_deferred_total[$__rate_interval]))", "deferred"),
            ("sum(rate(pillarbox_recipients_bounced_total[$__rate_interval]))", "bounced"),
        ], 8,
    ),
    ("Refused a second", "ops", [("sum by (reason) (rate(pillarbox_refused_total[$__rate_interval]))", "{{reason}}")], 8),
    ("Log-ins a second", "ops", [("sum by (result) (rate(pillarbox_logins_total[$__rate_interval]))", "{{result}}")], 8),
    ("Oldest message", "s", [("max(pillarbox_queue_oldest_message_seconds)", "age")], 8),
    ("Free on the disk", "bytes", [("min(pillarbox_disk_free_bytes)", "free")], 8),
    ("Recipients in the queue", "short", [("sum by (state) (pillarbox_queue_recipients)", "{{state}}")], 12),
    ("Messages in delivery", "short", [("sum(pillarbox_queue_in_hand)", "in hand")], 6),
    ("Queue paused", "bool", [("max(pillarbox_queue_paused)", "paused")], 6),
    ("Waiting by next hop", "short", [("topk(10, sum by (next_hop) (pillarbox_lane_waiting))", "{{next_hop}}")], 8),
    ("Connections by next hop", "short", [("topk(10, sum by (next_hop) (pillarbox_lane_connections))", "{{next_hop}}")], 8),
    ("Next hops in back-off", "short", [("sum by (next_hop) (pillarbox_lane_down) > 0", "{{next_hop}}")], 8),
    (
        "From accepted to delivered", "s",
        [
            ("histogram_quantile(0.5, sum by (le) (rate(pillarbox_delivery_delay_seconds_bucket[$__rate_interval])))", "median"),
            ("histogram_quantile(0.95, sum by (le) (rate(pillarbox_delivery_delay_seconds_bucket[$__rate_interval])))", "95 %"),
        ],
        8,
    ),
    (
        "From end of content to 250", "s",
        [("histogram_quantile(0.95, sum by (le) (rate(pillarbox_accept_delay_seconds_bucket[$__rate_interval])))", "95 %")], 8,
    ),
    (
        "Bounced by domain", "ops",
        [('topk(10, sum by (domain) (rate(pillarbox_domain_outcomes_total{outcome="bounced"}[$__rate_interval])))', "{{domain}}")],
        8,
    ),
    (
        "Share over TLS", "percentunit",
        [
            ("sum(rate(pillarbox_messages_accepted_tls_total[$__rate_interval])) / sum(rate(pillarbox_messages_accepted_total[$__rate_interval]))", "accepted"),
            ("sum(rate(pillarbox_recipients_delivered_tls_total[$__rate_interval])) / sum(rate(pillarbox_recipients_delivered_total[$__rate_interval]))", "delivered"),
        ], 8,
    ),
    ("Sessions", "short", [("sum(pillarbox_sessions_open)", "open")], 8),
    ("Sessions begun a second", "ops", [("sum(rate(pillarbox_sessions_total[$__rate_interval]))", "sessions")], 8),
    (
        "Messages a commit", "short",
        [("sum(rate(pillarbox_queue_committed_total[$__rate_interval])) / sum(rate(pillarbox_queue_commits_total[$__rate_interval]))", "group size")],
        8,
    ),
    ("Processor time", "percentunit", [("sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{instance}}")], 12),
    ("Resident memory", "bytes", [("sum by (instance) (process_resident_memory_bytes)", "{{instance}}")], 12),
]  # fmt: skip


def panel(number: int, place: tuple[int, int], row: tuple[str, str, list[tuple[str, str]], int]) -> dict[str, Any]:
    """One panel at (x, y)."""
    title, unit, targets, width = row
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": place[0], "y": place[1], "w": width, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + n), "expr": expression, "legendFormat": legend, "datasource": source}
            for n, (expression, legend) in enumerate(targets)
        ],
    }


def board() -> dict[str, Any]:
    """The whole dashboard."""
    panels, x, y = [], 0, 0
    for number, row in enumerate(PANELS, 1):
        if x + row[3] > 24:
            x, y = 0, y + 8
        panels.append(panel(number, (x, y), row))
        x += row[3]
    variable = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "Pillarbox",
        "uid": "pillarbox",
        "tags": ["mail"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(board(), indent=2) + "\n")
